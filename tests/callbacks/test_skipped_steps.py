"""A run in which skipped steps pile up is ended, whichever optimizer skips them."""

import functools

import keras
import numpy as np
import pytest
from two_layers import CHEAPEST

from sage_keras import Sage, SageSGD
from sage_keras.callbacks import RaiseOnSkippedSteps


def skipping():
    return Sage(0.1, on_nonfinite="skip")


def loss_scaled():
    return keras.optimizers.LossScaleOptimizer(SageSGD(0.1), dynamic_growth_steps=3)


@functools.cache
def compiled(make):
    """A model that all tests with one optimizer share: the counts of each `fit` are its own."""
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=make(), loss="mse", **CHEAPEST)
    return model


def fit(model, bad, batches=4, **arguments):
    """Returns how many batches were begun."""
    begun = []
    count = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda b, logs: begun.append(b))
    x = np.random.default_rng(0).normal(size=(batches, 4, 3)).astype("float32")
    x[bad] = np.nan
    callbacks = [*arguments.pop("callbacks"), count]
    y = np.ones((4 * batches, 1), "float32")
    try:
        model.fit(
            x.reshape(-1, 3),
            y,
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=callbacks,
            **arguments,
        )
    except FloatingPointError as error:
        return len(begun), str(error)
    return len(begun), None


def test_batches_are_counted_from_the_beginning_of_each_epoch():
    callback = RaiseOnSkippedSteps(limit=2, update_freq=3)
    begun, message = fit(compiled(skipping), bad=[2], epochs=2, callbacks=[callback])
    assert begun == 4 + 3  # the third batch of the second epoch is looked at
    assert message.startswith("2 steps were skipped")


def test_bad_steps_in_a_row_under_a_loss_scale():
    callback = RaiseOnSkippedSteps(limit=5, update_freq="batch")
    begun, message = fit(compiled(loss_scaled), bad=slice(3, 51), batches=51, callbacks=[callback])
    assert begun == 3 + 5 + 1  # the scale was doubled once before
    assert message.startswith("5 steps were skipped")


def test_a_scale_that_goes_up_and_down_is_no_lost_run():
    callback = RaiseOnSkippedSteps(limit=2, update_freq="batch")
    bad = range(3, 16, 4)
    begun, message = fit(compiled(loss_scaled), bad=bad, batches=16, callbacks=[callback])
    assert (begun, message) == (16, None)


def by_function(make):
    optimizers = {"kernel": make(), "bias": make()}
    return keras.optimizers.MultiOptimizer(lambda one: optimizers[one.path.split("/")[-1]])


def multi_skipping():
    return by_function(skipping)


def multi_plain():
    return by_function(SageSGD)


def test_optimizers_that_are_known_after_the_first_step():
    """As on TensorFlow those of a MultiOptimizer are."""
    callback = RaiseOnSkippedSteps(limit=4, update_freq="batch")
    begun, message = fit(compiled(multi_skipping), bad=[1, 2], callbacks=[callback])
    assert begun == 3
    assert message.startswith("4 steps were skipped")  # two of each optimizer
    with pytest.raises(ValueError, match=r"on_nonfinite=\"skip\""):
        fit(compiled(multi_plain), bad=[], callbacks=[RaiseOnSkippedSteps()])
