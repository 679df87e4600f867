"""Steps that are taken back, because a gradient was infinite or not a number."""

import keras
from keras import ops

from sage_keras.optimizers.gradients import to_dense


def all_finite(gradients):
    """Whether no gradient holds an infinity or a not-a-number, on any replica.

    Args:
        gradients: List of gradients, at least one.

    Returns:
        Boolean scalar.
    """
    finite = ops.all(ops.stack([ops.all(ops.isfinite(to_dense(one))) for one in gradients]))
    if not _replicated():
        return finite
    import tensorflow as tf

    # On TensorFlow the gradients that `apply` gets are still those of one replica.
    bad = tf.cast(tf.logical_not(finite), "float32")
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, bad) == 0


def take_back(variables, before, finite):
    """Gives the variables back the values they had, unless `finite`.

    Args:
        variables: List of variables.
        before: List of tensors, their values before the step.
        finite: Boolean scalar.
    """
    if not _replicated():
        for variable, value in zip(variables, before):
            variable.assign(ops.where(finite, ops.convert_to_tensor(variable), value))
        return
    import tensorflow as tf

    def on_device(variable, value, finite):
        variable.assign(tf.where(finite, variable, value))

    def on_all_devices(distribution, variables, before, finite):
        for variable, value in zip(variables, before):
            distribution.extended.update(variable, on_device, args=(value, finite), group=False)

    # A replica cannot assign to a slot: tf.distribute would have to know how to add up.
    native = [getattr(variable, "value", variable) for variable in variables]
    tf.distribute.get_replica_context().merge_call(on_all_devices, args=(native, before, finite))


def _replicated():
    """Whether this is one of several replicas of tf.distribute, which share their variables."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
