"""One of the processes of a DistributedDataParallel run, in a loop of its own."""

import sys

import keras
import numpy as np
import torch
from distribution import jobs


def main(address, count, index, output):
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://{address}", world_size=count, rank=index
    )
    weights = {}
    for name in jobs.OURS:
        model = jobs.make_model()
        # The initial weights of process 0 count: it sends them to the others.
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        train(model, parallel, jobs.OPTIMIZERS[name](), *jobs.share_of_data(index, count), count)
        weights |= {f"{name} {i}": array for i, array in enumerate(model.get_weights())}
    np.savez(output, **weights)
    torch.distributed.destroy_process_group()


def train(model, parallel, optimizer, x, y, count):
    variables = model.trainable_variables
    optimizer.build(variables)
    size = jobs.BATCH_SIZE // count
    for start in range(0, len(x), size):
        batch = torch.tensor(x[start : start + size]), torch.tensor(y[start : start + size])
        model.zero_grad()
        loss = keras.ops.mean(keras.ops.square(parallel(batch[0], training=True) - batch[1]))
        loss.backward()  # averages the gradients over the processes
        gradients = [variable.value.grad for variable in variables]
        with torch.no_grad():
            optimizer.apply(gradients, variables)
    optimizer.finalize_variable_values(variables)  # the true weights of DPSMix


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
