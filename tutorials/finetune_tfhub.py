"""
Title: Fine-tune a module of TensorFlow Hub in Keras 3
Author: The authors of sage_keras
Date created: 2026/11/28
Last modified: 2026/11/28
Description: A module as a layer whose weights Keras 3 can train, guide, save and load.
Accelerator: GPU
"""

"""
## Introduction

`hub.KerasLayer` is a layer of Keras 2, and Keras 3 does not accept it. `sage_keras.hub.HubLayer`
makes the variables of a module weights of a Keras 3 layer: any optimizer trains them, `Sage` guides
them, and a `.keras` file holds them. It needs TensorFlow as the backend.

This tutorial fine-tunes a text encoder on movie reviews, and saves and loads the model.
"""

"""shell
pip install -q "sage_keras[hub]" tensorflow-datasets
"""

"""
## Setup
"""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow_datasets as tfds

from sage_keras import Sage
from sage_keras.hub import HubLayer

HANDLE = "https://tfhub.dev/google/nnlm-en-dim128/2"
TRAIN_SIZE = 1600
VALIDATION_SIZE = 800
BATCH_SIZE = 32
EPOCHS = 2
LEARNING_RATE = 1e-4

"""
## The data
"""

training, validation = tfds.load(
    "imdb_reviews",
    split=[f"train[:{TRAIN_SIZE}]", f"test[:{VALIDATION_SIZE}]"],
    as_supervised=True,
)
training = training.shuffle(TRAIN_SIZE, seed=0).batch(BATCH_SIZE)
validation = validation.batch(BATCH_SIZE)

"""
## The model

The module takes sentences and returns a vector for each. A head of two classes is new. A module is
a program: load only those you trust.
"""

keras.utils.set_random_seed(0)
sentences = keras.Input((), dtype="string", name="sentences")
vectors = HubLayer(HANDLE, name="encoder")(sentences)
logits = keras.layers.Dense(2, name="logits")(keras.layers.Dropout(0.1)(vectors))
model = keras.Model(sentences, logits)
print(f"{len(model.get_layer('encoder').trainable_variables)} trainable variables in the module")

"""
## Training

With `calibrate=True` the rate is the one that you would give AdamW.
"""

model.compile(
    optimizer=Sage(LEARNING_RATE, calibrate=True),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(training, validation_data=validation, epochs=EPOCHS, verbose=2)

"""
## Save and load

The file holds the weights and the handle. Loading reads the module from its handle again and gives
it the saved weights, so that `safe_mode=False` has to say that you trust it.
"""

model.save("classifier.keras")
loaded = keras.models.load_model("classifier.keras", safe_mode=False)
print(type(loaded.optimizer).__name__, int(loaded.optimizer.iterations))
_, accuracy = loaded.evaluate(validation, verbose=0)
print(
    f"validation accuracy {accuracy:.4f}, before saving {history.history['val_accuracy'][-1]:.4f}"
)

"""
The outputs in this notebook are of a short run on a CPU in which `HANDLE` was the folder of a
SavedModel: a MiniLM with its tokenizer, exported as one module. `TRAIN_SIZE` was 160 and
`VALIDATION_SIZE` 80, and the texts were snippets of movie reviews.

## Next

- An encoder of two modules, a preprocessor and a BERT: `examples/finetune_tfhub.py`.
- `HubLayer(handle, trainable=False)` for a module that stays as it is.
"""
