"""Tests on logical devices, which TensorFlow has to be told of first: test_tensorflow.py runs
them."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from distribution import jobs
from modes import to_numpy

import sage_keras

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)

pytestmark = pytest.mark.filterwarnings("ignore:Between the steps")  # nobody looks in between


def make_strategy(replicas):
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)],
        # Collectives, the default, know one number of devices in a process.
        None if replicas == 2 else tf.distribute.ReductionToOneDevice(),
    )
    assert strategy.num_replicas_in_sync == replicas
    return strategy


def fit(replicas, optimizer):
    with make_strategy(replicas).scope():
        model = jobs.make_model()
        model.compile(optimizer=optimizer(), loss="mse", jit_compile=False)
    return jobs.fit(model, *jobs.data())


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", jobs.OURS)
def test_twenty_steps_equal_those_of_one_device(name, replicas):
    model = fit(replicas, jobs.OPTIMIZERS[name])
    assert to_numpy(model.optimizer.iterations) == 20
    jobs.assert_equal(model.get_weights(), jobs.weights_of_one_device(name))


def test_loss_scaling_in_float16_trains_as_one_device_does():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        alone, mirrored = (
            fit(replicas, lambda: keras.optimizers.LossScaleOptimizer(jobs.OPTIMIZERS["Sage"]()))
            for replicas in (1, 2)
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert to_numpy(mirrored.optimizer.inner_optimizer.iterations) == 20
    for one, other in zip(mirrored.get_weights(), alone.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-3)


def test_keras_sees_an_overflow_on_the_first_replica_only():
    """Of Keras, and told in the documentation. When it fails, that has a line too many."""
    x, y = (array[: jobs.BATCH_SIZE] for array in jobs.data())
    weight = np.ones(jobs.BATCH_SIZE, "float32")
    weight[jobs.BATCH_SIZE // 2 :] = np.inf  # what the second replica sees
    with make_strategy(2).scope():
        model = jobs.make_model()
        optimizer = keras.optimizers.LossScaleOptimizer(jobs.OPTIMIZERS["AdamW"]())
        model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    model.fit(x, y, jobs.BATCH_SIZE, shuffle=False, sample_weight=weight, verbose=0)
    assert to_numpy(optimizer.inner_optimizer.iterations) == 1
    assert np.isnan(model.get_weights()[0]).any()


@pytest.mark.parametrize(
    ("argument", "settings"),
    [
        ("gradient_accumulation_steps", {"gradient_accumulation_steps": 2}),
        ("ema_overwrite_frequency", {"use_ema": True, "ema_overwrite_frequency": 2}),
    ],
)
def test_what_keras_does_not_support_is_refused_in_words(argument, settings):
    """With AdamW too, of which Keras speaks of nested functions that nobody wrote."""
    with pytest.raises(RuntimeError, match="merge_call"):
        fit(2, functools.partial(jobs.OPTIMIZERS["AdamW"], **settings))
    with pytest.raises(ValueError, match=f"`{argument}` does not work.*Received: {argument}=2"):
        fit(2, functools.partial(jobs.OPTIMIZERS["Sage"], **settings))


def test_zeros_stay_zero_on_all_replicas():
    class Sparse(sage_keras.KeepZeros, keras.optimizers.AdamW):
        pass

    def fit_sparse(replicas):
        with make_strategy(replicas).scope():
            model = jobs.make_model()
            model.compile(optimizer=Sparse(jobs.LEARNING_RATE), loss="mse", jit_compile=False)
        first = model.trainable_variables[0]
        first.assign(tf.where(tf.abs(first) < 0.1, 0.0, first))
        zeros = to_numpy(first) == 0
        jobs.fit(model, *jobs.data())
        for copy in getattr(first.value, "values", [first.value]):  # of each replica
            np.testing.assert_array_equal(copy.numpy() == 0, zeros)
        return model.get_weights()

    jobs.assert_equal(fit_sparse(4), fit_sparse(1))


def test_averages_without_overwriting_work():
    """`ema_overwrite_frequency` is not needed for `keras.callbacks.SwapEMAWeights`."""
    optimizer = functools.partial(jobs.OPTIMIZERS["Sage"], use_ema=True)
    alone, mirrored = (fit(replicas, optimizer) for replicas in (1, 2))
    jobs.assert_equal(mirrored.get_weights(), alone.get_weights())
