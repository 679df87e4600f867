"""
Title: Train a vision Transformer from scratch with Sage
Author: The authors of sage_keras
Date created: 2026/11/28
Last modified: 2026/11/28
Description: A small vision Transformer on handwritten digits, with AdamW and with Sage.
Accelerator: None
"""

"""
## Introduction

A vision Transformer cuts a picture into patches and reads them as a sentence of tokens. This
tutorial trains a small one from scratch on scikit-learn's digits, once with AdamW and once with
`Sage`, which gives every parameter a learning rate of its own. It takes a minute on a CPU.
"""

"""shell
pip install -q sage_keras scikit-learn matplotlib
"""

"""
## Setup

The backend may be TensorFlow, JAX or torch.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import layers
from sklearn.datasets import load_digits

from sage_keras import Sage

WIDTH = 64
DEPTH = 3
HEADS = 4
BATCH_SIZE = 32
EPOCHS = 20
LEARNING_RATE = 1e-3

"""
## The data

1,797 pictures of 8 by 8 pixels. 360 of them judge.
"""

digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = digits.images[order, :, :, None].astype("float32") / 16
labels = digits.target[order].astype("int32")
x_train, y_train = images[360:], labels[360:]
x_test, y_test = images[:360], labels[:360]

"""
## The model

Patches of 2 by 2 pixels make 16 tokens. Each token gets a learned position.
"""


@keras.saving.register_keras_serializable(package="tutorial")
class Positions(layers.Layer):
    """Adds a learned vector to each token."""

    def build(self, shape):
        self.vectors = self.add_weight(shape=shape[1:], initializer="random_normal")

    def call(self, tokens):
        return tokens + self.vectors


def block(x, name):
    y = layers.LayerNormalization(name=f"{name}_attention_norm")(x)
    y = layers.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"{name}_attention")(y, y)
    x = x + layers.Dropout(0.1)(y)
    y = layers.LayerNormalization(name=f"{name}_dense_norm")(x)
    y = layers.Dense(4 * WIDTH, activation="gelu", name=f"{name}_dense_in")(y)
    y = layers.Dense(WIDTH, name=f"{name}_dense_out")(y)
    return x + layers.Dropout(0.1)(y)


def make_model():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(WIDTH, 2, strides=2, name="patches")(inputs)
    x = Positions(name="positions")(layers.Reshape((16, WIDTH))(x))
    for index in range(DEPTH):
        x = block(x, f"block_{index}")
    x = layers.GlobalAveragePooling1D()(layers.LayerNormalization(name="norm")(x))
    return keras.Model(inputs, layers.Dense(10, name="head")(x))


print(f"{make_model().count_params():,} parameters")

"""
## Training

The rate of both falls along a cosine, after a rise over the first tenth of the steps. With
`calibrate=True` Sage takes AdamW's rate. Without, it wants two to four times as much.
"""


def train(optimizer):
    model = make_model()
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        validation_data=(x_test, y_test),
        verbose=0,
    )
    return model, history.history["val_accuracy"]


steps = EPOCHS * -(-len(x_train) // BATCH_SIZE)
schedule = keras.optimizers.schedules.CosineDecay(
    0.0, steps - steps // 10, warmup_target=LEARNING_RATE, warmup_steps=steps // 10
)
_, adamw_accuracy = train(keras.optimizers.AdamW(schedule, global_clipnorm=1.0))
model, sage_accuracy = train(Sage(schedule, global_clipnorm=1.0, calibrate=True))
print(f"AdamW {adamw_accuracy[-1]:.4f}")
print(f"Sage  {sage_accuracy[-1]:.4f}")

epochs = range(1, EPOCHS + 1)
plt.plot(epochs, adamw_accuracy, "-", label="AdamW")
plt.plot(epochs, sage_accuracy, "--", label="Sage")
plt.xlabel("epoch")
plt.ylabel("validation accuracy")
plt.ylim(0, 1)
plt.legend()
plt.show()  # Validation accuracy of AdamW and of Sage by epoch

"""
On 360 pictures and with one seed, a difference of a few pictures is noise.

## Where it looks

The sensitivity of the position vectors says which patches the loss depends on.
"""

positions = model.get_layer("positions").vectors
by_patch = keras.ops.mean(model.optimizer.sensitivity(positions), axis=-1)
plt.imshow(keras.ops.convert_to_numpy(by_patch).reshape(4, 4), cmap="viridis")
plt.colorbar(label="mean sensitivity")
plt.xticks([])
plt.yticks([])
plt.show()  # Mean sensitivity of the position vectors of the 16 patches

"""
In the run that is kept here a patch near the centre matters most, and two at the top least.

## Next

- Pictures of any data set of TFDS, or a pre-trained model: `examples/train_vit.py`.
- Rates that fall from block to block: the guide to layerwise learning rates.

The outputs in this notebook are of a run on a CPU.
"""
