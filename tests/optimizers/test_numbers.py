"""Numbers at the edge: the largest and the smallest, long averages, masks bit by bit."""

import copy

import keras
import numpy as np
import pytest
from modes import BACKEND, MODES, Runner, to_numpy

from sage_keras import DPSMix, Mixout

# Masks.


def twin_hash(number):
    number = number ^ (number >> np.uint32(16))
    number = number * np.uint32(0x7FEB352D)
    number = number ^ (number >> np.uint32(15))
    number = number * np.uint32(0x846CA68B)
    return number ^ (number >> np.uint32(16))


def twin_columns(seed, step, count, drop_rate):
    """Which columns are kept, from the seed and the number of the step alone."""
    key = twin_hash(np.array([(seed * 0x9E3779B9 + step) % 2**32], "uint32"))
    bits = twin_hash(key + np.arange(count, dtype="uint32")) ^ np.uint32(2**31)  # signed order
    return bits >= round(drop_rate * 2**32)


# Eagerly, and as Keras compiles a training step. It does not compile torch's.
RUN_MODES = {"tensorflow": MODES, "jax": ("eager", "xla"), "torch": ("eager",)}[BACKEND]


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize("optimizer_class", [Mixout, DPSMix])
def test_masks_follow_from_seed_and_iterations_on_every_backend_and_under_xla(
    optimizer_class, mode
):
    stages = {"stage_steps": 9} if optimizer_class is DPSMix else {}
    optimizer = optimizer_class(learning_rate=0.1, drop_rate=0.3, seed=5, **stages)
    kernels = [keras.Variable(np.ones(shape, "float32")) for shape in ((40, 2), (25, 3))]
    runner = Runner(optimizer, kernels, mode)
    for step in range(4):
        expected = np.split(twin_columns(5, step, 65, 0.3), [40])
        for kernel, columns in zip(kernels, expected):
            mask = to_numpy(optimizer.subnetwork(kernel))
            np.testing.assert_array_equal(mask, np.repeat(columns[:, None], mask.shape[1], 1))
        runner.step([np.ones(kernel.shape, "float32") for kernel in kernels])


@pytest.mark.filterwarnings("ignore:The weights of the model are loaded, but not the state")
def test_a_copy_of_a_built_optimizer_draws_the_same_masks():
    """Keras copies an optimizer by its settings, and builds it later."""
    kernel = keras.Variable(np.ones((30, 2), "float32"))
    optimizer = DPSMix(learning_rate=0.1, stage_steps=3, seed=5)
    optimizer.build([kernel])
    other = copy.deepcopy(optimizer)
    other.build([kernel])
    expected = twin_columns(5, 0, 30, 0.3)
    for one in (optimizer, other):
        np.testing.assert_array_equal(to_numpy(one.subnetwork(kernel))[:, 0], expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the format is TensorFlow's")
def test_a_saved_model_trains_with_the_masks_of_the_seed(tmp_path):
    import tensorflow as tf

    kernel = keras.Variable(np.ones((30, 2), "float32"))
    optimizer = Mixout(learning_rate=0.0, seed=5)
    optimizer.build([kernel])

    class Job(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = [kernel.value, *(one.value for one in optimizer.variables)]

        @tf.function(input_signature=[])
        def train(self):
            optimizer.apply([tf.ones((30, 2))], [kernel])
            return tf.convert_to_tensor(optimizer.iterations), optimizer.subnetwork(kernel)

    tf.saved_model.save(Job(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for step in (1, 2):
        iterations, mask = loaded.train()
        assert int(iterations) == step
        np.testing.assert_array_equal(mask[:, 0], twin_columns(5, step, 30, 0.3))
