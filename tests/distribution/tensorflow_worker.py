"""One of the workers of a MultiWorkerMirroredStrategy, which reads the environment's TF_CONFIG."""

import sys

import numpy as np
import tensorflow as tf
from distribution import jobs


def main(index, count, output):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    assert strategy.num_replicas_in_sync == count
    check_that_fit_fails_with_adamw_too(strategy)
    weights = {}
    for name in jobs.OURS:
        with strategy.scope():
            model, optimizer = jobs.make_model(), jobs.OPTIMIZERS[name]()
            optimizer.build(model.trainable_variables)
        train(strategy, model, optimizer, *jobs.share_of_data(index, count), count)
        weights |= {f"{name} {i}": array for i, array in enumerate(model.get_weights())}
    np.savez(output, **weights)


def check_that_fit_fails_with_adamw_too(strategy):
    """Keras reads the batch before it is reduced. When this no longer fails, use `fit` here."""
    with strategy.scope():
        model = jobs.compiled("AdamW", jit_compile=False)
    try:
        jobs.fit(model, *jobs.data())
    except ValueError as error:
        assert "PerReplica" in str(error), error
    else:
        raise AssertionError("`fit` works now: keras-team/keras issue 20585")


def train(strategy, model, optimizer, x, y, count):
    variables = model.trainable_variables
    size = jobs.BATCH_SIZE // count

    def step_of_replica(x, y):
        with tf.GradientTape() as tape:
            # Keras adds up the gradients of the replicas.
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y)) / count
        optimizer.apply(tape.gradient(loss, variables), variables)

    @tf.function
    def step(x, y):
        strategy.run(step_of_replica, args=(x, y))

    for start in range(0, len(x), size):
        step(tf.constant(x[start : start + size]), tf.constant(y[start : start + size]))
    with strategy.scope():
        optimizer.finalize_variable_values(variables)  # the true weights of DPSMix


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
