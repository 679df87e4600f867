"""One small job, the same on whatever devices it runs: 20 steps on batches of 16."""

import functools

import keras
import numpy as np

from sage_keras import DPSDense, DPSMix, Platon, Sage, SparseAdamW

STEPS, BATCH_SIZE, INPUTS, HIDDEN, OUTPUTS = 20, 16, 16, 32, 8
LEARNING_RATE = 1e-2
OPTIMIZERS = {
    "AdamW": functools.partial(keras.optimizers.AdamW, LEARNING_RATE),
    "Sage": functools.partial(Sage, LEARNING_RATE),
    "calibrated Sage": functools.partial(Sage, LEARNING_RATE, calibrate=True),
    "DPSDense": functools.partial(DPSDense, LEARNING_RATE, stage_steps=3),
    "DPSMix": functools.partial(DPSMix, LEARNING_RATE, stage_steps=3, seed=0),
    "Platon": functools.partial(Platon, LEARNING_RATE, begin_step=2, end_step=12, update_freq=3),
    "SparseAdamW": functools.partial(SparseAdamW, LEARNING_RATE, fraction=0.1, selection_steps=4),
}
# Those that train all weights, so that the same can be said of their steps.
OURS = tuple(name for name in OPTIMIZERS if name not in ("AdamW", "SparseAdamW"))


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS * BATCH_SIZE, INPUTS)).astype("float32")
    return x, np.tanh(x @ random.normal(size=(INPUTS, OUTPUTS))).astype("float32")


def share_of_data(index, count):
    """What one of `count` workers has to see of every batch."""
    parts = []
    for array in data():
        batches = array.reshape(STEPS, count, BATCH_SIZE // count, -1)
        parts.append(batches[:, index].reshape(STEPS * BATCH_SIZE // count, -1))
    return parts


def make_model():
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((INPUTS,)),
            keras.layers.Dense(HIDDEN, "tanh", name="up"),
            keras.layers.Dense(OUTPUTS, name="down"),
        ]
    )


def compiled(name, **arguments):
    model = make_model()
    model.compile(optimizer=OPTIMIZERS[name](), loss="mse", **arguments)
    return model


def fit(model, x, y, batch_size=BATCH_SIZE, callbacks=()):
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


@functools.cache
def weights_of_one_device(name):
    return fit(compiled(name), *data()).get_weights()


def assert_equal(weights, expected):
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
