"""A task of the evidence that trains in no time."""

import keras
import numpy as np

from evidence.arms import ARMS
from evidence.tasks import Data, Task


def make_model():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(6, activation="relu", name="block_0")(inputs)
    x = keras.layers.Dropout(0.3)(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))


def draw_weights(model, seed):
    keras.utils.set_random_seed(seed)
    model.set_weights(make_model().get_weights())


def load():
    x = np.random.default_rng(0).normal(size=(200, 4)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")
    return Data((x[:130], y[:130]), (x[130:], y[130:]))


TASK = Task("tiny", load, make_model, draw_weights, epochs=3, train_size=100)
ARM = {str(arm): arm for arm in ARMS}
