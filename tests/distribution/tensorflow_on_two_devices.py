"""A bad batch on logical devices, alone in its process: test_tensorflow.py runs it.

The collectives of all strategies of a process are numbered alike, and the first one here is of
another shape than that of other optimizers.
"""

import numpy as np
import tensorflow as tf
from distribution import jobs
from modes import to_numpy

from sage_keras import Sage

[cpu] = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def test_a_batch_that_is_bad_on_one_replica_is_skipped_on_all():
    x, y = jobs.data()
    x[jobs.BATCH_SIZE - 1] = np.nan  # the last example of the first batch: the second replica's
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model = jobs.make_model()
        optimizer = Sage(jobs.LEARNING_RATE, on_nonfinite="skip")
        model.compile(optimizer=optimizer, loss="mse", jit_compile=False)
    jobs.fit(model, x, y)
    assert model.optimizer.skipped_steps == 1
    assert to_numpy(model.optimizer.iterations) == jobs.STEPS - 1
    good = slice(jobs.BATCH_SIZE, None)
    expected = jobs.fit(jobs.compiled("Sage"), x[good], y[good])
    jobs.assert_equal(model.get_weights(), expected.get_weights())
