"""
Title: Watch redundancy while a model trains
Author: The authors of sage_keras
Date created: 2026/11/28
Last modified: 2026/11/28
Description: Log the sensitivity of every layer, prune the model on trial, and write a report.
Accelerator: None
"""

"""
## Introduction

A parameter is redundant if the loss does not notice when it becomes zero. Its sensitivity, |θ·g|,
estimates that during training, for nothing but the product of weight and gradient. This tutorial

1. logs the sensitivity of each layer while an oversized network trains with plain AdamW,
2. reads the log,
3. measures the trained network on data, and prunes it on trial,
4. writes a report.

It takes a minute on a CPU.
"""

"""shell
pip install -q "sage_keras[analysis]" scikit-learn
"""

"""
## Setup
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from sage_keras import Sage, analysis
from sage_keras.callbacks import SensitivityLogger

WIDTH = 256
EPOCHS = 10
UPDATE_FREQ = 20

"""
## Data and model

Three hidden layers of 256 units are far more than scikit-learn's digits need.
"""

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
x, y = digits.data[order].astype("float32") / 16, digits.target[order].astype("int32")
x_train, y_train, x_test, y_test = x[360:], y[360:], x[:360], y[:360]

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((64,)),
        layers.Dense(WIDTH, "relu", name="hidden_1"),
        layers.Dense(WIDTH, "relu", name="hidden_2"),
        layers.Dense(WIDTH, "relu", name="hidden_3"),
        layers.Dense(10, name="head"),
    ]
)

"""
## Log

`Sage(guide=False)` is AdamW, bit for bit, and measures. `SensitivityLogger` reports every
`update_freq` steps, by layer, into Keras's `logs`, a file, and TensorBoard where it is installed.
"""

model.compile(
    optimizer=Sage(1e-3, guide=False),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
model.fit(
    x_train,
    y_train,
    epochs=EPOCHS,
    callbacks=[SensitivityLogger("logs/AdamW", update_freq=UPDATE_FREQ)],
    verbose=0,
)
loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(f"validation accuracy {accuracy:.4f}")

"""
## Read

A log has the steps of its reports, the values of the whole model, and those of each group.
`redundant_share` is the share of parameters whose sensitivity is less than 1 % of the model's mean.
"""

log = analysis.read_log("logs/AdamW")
print(f"{len(log.steps)} reports, the last one at step {log.steps[-1]}")
for name, group in log.groups.items():
    first, last = group.values["redundant_share"][[0, -1]]
    print(f"{name}: {first:.0%} of the parameters redundant at first, {last:.0%} in the end")

analysis.plot_heat_map(log, "redundant_share", axes=plt.gca())
plt.show()  # Redundant share of each layer by step

"""
## Measure, and prune on trial

`measure_sensitivity` asks data instead of the optimizer, with the model as it is now. A pruning
curve sets more and more of the least sensitive weights to zero, evaluates, and puts every bit back.
To compare: by magnitude, and at random.
"""

scores = {
    "sensitivity": analysis.measure_sensitivity(model, (x_train, y_train), verbose=0),
    "magnitude": analysis.magnitude_scores(model),
    "random": analysis.random_scores(model, seed=0),
}
fractions = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9)
curves = {
    name: analysis.pruning_curve(model, (x_test, y_test), values, fractions, verbose=0)
    for name, values in scores.items()
}
print("pruned       " + "".join(f"{fraction:8.0%}" for fraction in fractions))
for name, curve in curves.items():
    print(f"{name:13}" + "".join(f"{one:8.4f}" for one in curve["accuracy"]))

analysis.plot_pruning_curves(curves, axes=plt.gca())
plt.show()  # Validation loss by the share of weights set to zero, for three rankings

"""
## Report

One page with all pictures and tables. It opens without a network. From a terminal:
`python -m sage_keras.analysis logs/AdamW -o report.html`.
"""

analysis.write_report({"AdamW": log}, "report.html", curves)

"""
The outputs in this notebook are of a run on a CPU, with one seed.
"""
