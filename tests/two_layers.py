"""A network of two linear layers, whose gradient fits on a few lines, and its training."""

import functools

import keras
import numpy as np
from modes import BACKEND, to_numpy

BATCHES, BATCH = 6, 4
# For tests to which it is all one how the model's own step is compiled. JAX compiles what is eager
# piece by piece, which takes longer.
CHEAPEST = {"run_eagerly": BACKEND != "jax"}


def data(batches=BATCHES):
    random = np.random.default_rng(0)
    x = random.normal(size=(batches * BATCH, 5)).astype("float32")
    return x, (x @ random.normal(size=(5, 2))).astype("float32")


def network(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(7, name="first"), keras.layers.Dense(2, name="second")]
    model = keras.Sequential([keras.Input((5,)), *layers])
    for layer in layers:
        layer.bias.assign(np.linspace(-0.3, 0.4, layer.units))
    model.compile(optimizer=optimizer, loss="mse", **arguments)
    return model


def rewound(make, **arguments):
    """The network as it was before its first step, compiled once for all tests of a process.

    Args:
        make: Function that returns the optimizer, of a name of its own.
        **arguments: Arguments of `compile`.
    """
    model, start = _compiled_once(make, **arguments)
    for variable, value in zip(_state(model), start):
        variable.assign(value)
    model.stop_training = False
    return model


@functools.cache
def _compiled_once(make, **arguments):
    model = network(make(), **arguments)
    model.optimizer.build(model.trainable_variables)
    return model, [to_numpy(variable) for variable in _state(model)]


def _state(model):
    return [*model.variables, *model.optimizer.variables]


def fit(model, logger, epochs=2, batches=BATCHES, callbacks=(), **arguments):
    x, y = data(batches)
    return model.fit(
        x,
        y,
        batch_size=BATCH,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[logger, *callbacks],
        **arguments,
    )


def gradients(weights, batch, batches=BATCHES):
    """The gradients of the loss of a batch, in float64."""
    chosen = slice(batch * BATCH, (batch + 1) * BATCH)
    x, y = (np.float64(one[chosen]) for one in data(batches))
    kernel_1, bias_1, kernel_2, bias_2 = weights
    hidden = x @ kernel_1 + bias_1
    error = 2 * (hidden @ kernel_2 + bias_2 - y) / y.size
    back = error @ kernel_2.T
    return [x.T @ back, back.sum(axis=0), hidden.T @ error, error.sum(axis=0)]
