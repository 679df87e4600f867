"""Trains a classifier of handwritten digits with Sage on all the devices there are.

    python examples/distributed_jax.py
    python examples/distributed_jax.py --model-devices 2
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python examples/distributed_jax.py --quick

The same command runs on one device, on several, and on several hosts. Each host then needs three
environment variables, of which the last one counts the hosts from 0, and one command:

    KERAS_DISTRIBUTION_JOB_ADDRESSES=10.0.0.1:1234
    KERAS_DISTRIBUTION_NUM_PROCESSES=2
    KERAS_DISTRIBUTION_PROCESS_ID=0

Nothing in the training is about devices: the distribution is set before the model is made, and the
optimizer's state is laid out as the weights are. The losses are the same however many devices
there are. With `--model-devices` each copy of the model is spread over that many devices.
"""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
import sklearn.datasets
from common import make_parser, parse, positive_integer, stop

from sage_keras import Sage
from sage_keras.callbacks import SensitivityLogger

TRAIN_SIZE, TEST_SIZE = 1536, 256
QUICK = {"epochs": 2, "width": 64}


def main(arguments=None):
    options = parse_arguments(arguments)
    (x_train, y_train), test = load_digits()
    if keras.backend.backend() != "jax":
        stop("it is about JAX. Set the environment variable KERAS_BACKEND to jax.")
    if "KERAS_DISTRIBUTION_JOB_ADDRESSES" in os.environ:
        keras.distribution.initialize()  # before JAX is asked for its devices
    distribution = make_distribution(options)
    first_host = distribution.data_shard_id == 0

    keras.utils.set_random_seed(options.seed)  # the hosts have to begin alike
    with distribution.scope():
        model = make_model(options)
        epochs = EpochsOfDigits(x_train, y_train, options.batch_size, options.seed, distribution)
        history = model.fit(
            epochs,
            epochs=options.epochs,
            # Every host takes part in measuring; only one writes.
            callbacks=[SensitivityLogger(options.output if first_host else None, logs=["mean"])],
            verbose="auto" if first_host else 0,
        ).history
        held_out = EpochsOfDigits(*test, options.batch_size, None, distribution)
        _, accuracy = model.evaluate(held_out, verbose=0)
        report = {
            "hosts": distribution.num_processes,
            "devices": distribution.device_mesh.devices.size,
            "copies": distribution.num_model_replicas,
            "MB per device": round(bytes_per_device(model) / 1e6, 3),
            "losses": history["loss"],
            "mean sensitivity": history["sensitivity/mean"][-1],
            "accuracy": accuracy,
        }
    if first_host:
        print_report(report)
        path = options.output / "distributed_jax.json"
        path.write_text(json.dumps(report, indent=1) + "\n")
        print(f"Wrote {path}")


def make_distribution(options):
    """Copies of the model on all devices; each copy on one device, or spread over several."""
    count = keras.distribution.get_device_count()
    if count % options.model_devices:
        stop(
            f"there are {count} devices, which copies on {options.model_devices} do not fill. "
            "Pass a --model-devices that divides their number."
        )
    copies = count // options.model_devices
    if options.batch_size % copies or TEST_SIZE % options.batch_size:
        stop(
            f"{copies} copies of the model cannot share a batch of {options.batch_size}. Pass a "
            f"--batch-size that is a multiple of {copies} and divides {TEST_SIZE}."
        )
    if options.model_devices == 1:
        return keras.distribution.DataParallel(auto_shard_dataset=False)
    mesh = keras.distribution.DeviceMesh((copies, options.model_devices), ("batch", "model"))
    layout = keras.distribution.LayoutMap(mesh)
    # What the first layer computes of one output stays on one device; the second adds it up.
    layout[".*up/kernel"] = (None, "model")
    layout[".*up/bias"] = ("model",)
    layout[".*down/kernel"] = ("model", None)
    return keras.distribution.ModelParallel(
        layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False
    )


def make_model(options):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(options.width, "gelu", name="up"),
            keras.layers.Dense(options.width // 4, "gelu", name="down"),
            keras.layers.Dense(10, name="digits"),
        ]
    )
    model.compile(
        optimizer=Sage(options.learning_rate, weight_decay=0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


class EpochsOfDigits(keras.utils.PyDataset):
    """This host's share of every batch. All hosts shuffle alike, and none needs the others' data.

    Args:
        x: Array of images.
        y: Array of labels.
        batch_size: Integer, the examples in a batch, over all hosts.
        seed: Integer, the seed of the order, or None for the order there is.
        distribution: The `keras.distribution.Distribution`.
    """

    def __init__(self, x, y, batch_size, seed, distribution):
        super().__init__()
        self._x, self._y, self._batch_size = x, y, batch_size
        self._shares = min(distribution.num_processes, distribution.num_model_replicas)
        self._share = distribution.data_shard_id
        self._random = None if seed is None else np.random.default_rng(seed)
        self._order = np.arange(len(x))
        self.on_epoch_end()

    def __len__(self):
        return len(self._x) // self._batch_size

    def __getitem__(self, index):
        size = self._batch_size // self._shares
        start = index * self._batch_size + self._share * size
        chosen = self._order[start : start + size]
        return self._x[chosen], self._y[chosen]

    def on_epoch_end(self):
        if self._random is not None:
            self._random.shuffle(self._order)


def load_digits():
    """Images to train on and to judge by, in whole batches on any number of devices."""
    digits = sklearn.datasets.load_digits()
    x, y = digits.data.astype("float32") / 16, digits.target.astype("int32")
    test = slice(TRAIN_SIZE, TRAIN_SIZE + TEST_SIZE)
    return (x[:TRAIN_SIZE], y[:TRAIN_SIZE]), (x[test], y[test])


def bytes_per_device(model):
    """What one device holds of weights and optimizer state."""
    shards = [
        variable.value.addressable_shards[0].data
        for variable in [*model.variables, *model.optimizer.variables]
    ]
    return sum(shard.nbytes for shard in shards)


def print_report(report):
    print()
    for name, value in report.items():
        if name != "losses":
            print(f"{name:>16}  {value:.6g}")
    print(f"{'loss by epoch':>16}  " + "  ".join(f"{loss:.6f}" for loss in report["losses"]))
    print()


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--epochs", type=positive_integer, default=20, help="passes over the training data")
    add("--batch-size", type=positive_integer, default=64, help="images in a step, of all devices")
    add("--learning-rate", type=float, default=3e-3, help="that of Sage")
    add("--width", type=positive_integer, default=512, help="outputs of the first layer")
    add("--model-devices", type=positive_integer, default=1, help="devices that share a copy")
    add("--seed", type=int, default=0, help="of the weights and the order of the images")
    trial = "a trial run of a narrow model, of two epochs"
    return parse(parser, arguments, "results/distributed_jax", QUICK, trial)


if __name__ == "__main__":
    main()
