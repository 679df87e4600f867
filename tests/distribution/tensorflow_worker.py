"""One of the workers of a MultiWorkerMirroredStrategy, which reads the environment's TF_CONFIG."""

import sys

import numpy as np
import tensorflow as tf
from distribution import jobs


def main(output):
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    weights = {}
    for name in jobs.OURS:
        with strategy.scope():
            model = jobs.compiled(name, jit_compile=False)
        # Keras gives every worker its share of a batch.
        jobs.fit(model, *jobs.data())
        weights |= {f"{name} {i}": array for i, array in enumerate(model.get_weights())}
    np.savez(output, **weights)


if __name__ == "__main__":
    main(sys.argv[1])
