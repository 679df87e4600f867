"""Tests on logical devices, which TensorFlow has to be told of first: test_tensorflow.py runs
them."""

import pytest
import tensorflow as tf
from distribution import jobs

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)

pytestmark = pytest.mark.filterwarnings("ignore:Between the steps")


def fit(replicas, name, **arguments):
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)],
        # Collectives, the default, know one number of devices in a process.
        tf.distribute.ReductionToOneDevice() if replicas == 4 else None,
    )
    assert strategy.num_replicas_in_sync == replicas
    with strategy.scope():
        model = jobs.compiled(name, **arguments)
    return jobs.fit(model, *jobs.data())


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("name", jobs.OURS)
def test_twenty_steps_equal_those_of_one_device(name, replicas):
    model = fit(replicas, name, jit_compile=False)
    assert int(model.optimizer.iterations) == 20
    jobs.assert_equal(model.get_weights(), jobs.weights_of_one_device(name))
