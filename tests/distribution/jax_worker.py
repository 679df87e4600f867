"""One of the processes of a data-parallel run: its share of every batch, all the optimizers."""

import sys

import keras
import numpy as np
from distribution import jobs

from sage_keras.callbacks import SwapTrueWeights


def main(address, count, index, output):
    # Before anything else asks JAX for its devices.
    keras.distribution.initialize(address, count, index)
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    weights = {}
    for name in jobs.OURS:
        with distribution.scope():
            model = jobs.compiled(name)
            callbacks = [SwapTrueWeights()] if name == "DPSMix" else []
            jobs.fit(
                model,
                *jobs.share_of_data(index, count),
                batch_size=jobs.BATCH_SIZE // count,
                callbacks=callbacks,
            )
        for i, variable in enumerate(model.trainable_variables):
            weights[f"{name} {i}"] = keras.ops.convert_to_numpy(variable)
    np.savez(output, **weights)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
