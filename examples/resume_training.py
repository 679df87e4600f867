"""Trains a classifier that may be killed at any moment: started again, it goes on where it was.

    python examples/resume_training.py
    python examples/resume_training.py --way orbax     # on JAX
    python examples/resume_training.py --way manager   # on TensorFlow

Kill it and start it again, as often as you like: the final weights, the optimizer's state and the
log are those of a run that was never killed, to the bit.

Three things make it so. The weights, the optimizer's state and its count of steps are saved
together. The order of the data and the seeds of dropout follow from the number of the step, and
from nothing that is lost with the process; Keras's own files do not hold the seeds. And training is
saved where an epoch of Keras ends: `--save-every` says how many steps that is, whatever the length
of the data.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import shutil

import h5py
import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sage_keras import DPSDense, DPSMix, Platon, Sage, SparseAdamW
from sage_keras.analysis import read_log
from sage_keras.callbacks import SensitivityLogger, SwapTrueWeights

WAYS = {"file": None, "backup": None, "orbax": "jax", "manager": "tensorflow"}
QUICK = {"steps": 120}


def main(arguments=None):
    options = parse_arguments(arguments)
    keras.utils.set_random_seed(options.seed)  # the initial weights, and the seeds of dropout
    images, labels = load_digits(return_X_y=True)
    train_images, images, train_labels, labels = train_test_split(
        images / 16, labels, train_size=1437, random_state=0
    )
    model = make_model(make_optimizer(options))
    batches = Batches(train_images, train_labels, options)

    position = {}

    def begin(logs=None):
        position["start"] = int(model.optimizer.iterations)
        print(f"Starting at step {position['start']} of {options.steps}", flush=True)

    def begin_epoch(epoch, logs=None):
        step = epoch * options.save_every
        batches.begin_at(step)
        seed_layers(model, options.seed, step)

    model.optimizer.build(model.trainable_variables)  # there have to be slots to load into
    restore, checkpoints = {
        "file": by_file,
        "backup": by_backup,
        "orbax": by_orbax,
        "manager": by_manager,
    }[options.way](model, options)
    restore()
    model.fit(
        batches,
        initial_epoch=int(model.optimizer.iterations) // options.save_every,
        epochs=options.steps // options.save_every,
        shuffle=False,  # `Batches` does it
        validation_data=(images, labels),
        callbacks=[
            *([SwapTrueWeights()] if options.optimizer == "dps_mix" else []),
            checkpoints,
            keras.callbacks.LambdaCallback(on_train_begin=begin, on_epoch_begin=begin_epoch),
            *loggers(options),
        ],
    )
    save_whole(model, options.output / "final.weights.h5")
    print_results(model, (images, labels), position["start"], options)


class Batches(keras.utils.PyDataset):
    """The training data, in an order that follows from the seed and the number of the step.

    Each pass over the data has an order of its own; a pass may begin and end in the middle of an
    epoch of Keras.
    """

    def __init__(self, x, y, options):
        super().__init__()
        self._x, self._y, self._options = x, y, options
        self._steps_of_pass = len(x) // options.batch_size
        self.begin_at(0)

    def begin_at(self, step):
        """Has the coming epoch of Keras begin at a step."""
        self._first = step

    def __len__(self):
        return self._options.save_every

    def __getitem__(self, index):
        number, place = divmod(self._first + index, self._steps_of_pass)
        order = np.random.default_rng([self._options.seed, number]).permutation(len(self._x))
        size = self._options.batch_size
        chosen = order[place * size : (place + 1) * size]
        return self._x[chosen], self._y[chosen]


def seed_layers(model, seed, step):
    """Has the random numbers of the model's layers, here of dropout, follow from seed and step."""
    generator = np.random.default_rng([seed, step])
    keras.utils.set_random_seed(int(generator.integers(2**31)))  # what dropout uses on torch
    for variable in model.non_trainable_variables:
        if variable.path.endswith("seed_generator_state"):  # and elsewhere
            variable.assign(generator.integers(2**31, size=2, dtype="uint32"))


def by_file(model, options):
    """On every backend: one file, that is written beside the old one and then put in its place."""
    path = options.output / "checkpoint.weights.h5"

    def restore():
        if path.exists():
            model.load_weights(path)

    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: save_whole(model, path))
    return restore, save


def by_backup(model, options):
    """On every backend: Keras's own callback, with the previous file kept."""
    callback = Backup(options.output / "backup", options.save_every)
    return lambda: None, callback  # it restores where `fit` begins


class Backup(keras.callbacks.BackupAndRestore):
    """`BackupAndRestore`, made to bear being killed while it saves.

    Keras writes over the file of the weights, and then over a file with the number of the epoch.
    Killed between the two, it would train an epoch twice; the weights' own count of steps says
    which epoch it is. Killed while it writes its very first file, it would never start again, nor
    where it left half a file of weights that HDF5 opens.
    """

    def __init__(self, folder, steps_of_epoch):
        super().__init__(str(folder), double_checkpoint=True, delete_checkpoint=False)
        self._steps_of_epoch = steps_of_epoch

    def on_train_begin(self, logs=None):
        newest = pathlib.Path(self.backup_dir, "latest.weights.h5")
        if newest.exists() and not is_whole(newest):
            newest.write_bytes(b"")  # Keras takes the file before if this one does not open
        try:
            super().on_train_begin(logs)
        except json.JSONDecodeError:
            pass  # it was the epoch that was being written; the weights are loaded
        except OSError:
            shutil.rmtree(self.backup_dir)  # neither file is whole: nothing was saved yet
        epoch = int(self.model.optimizer.iterations) // self._steps_of_epoch
        self.model._initial_epoch = epoch  # as `BackupAndRestore` itself tells `fit`


def is_whole(path):
    """Whether everything in a file of weights can be read."""

    def read(name, item):
        if isinstance(item, h5py.Dataset):
            item[()]

    try:
        with h5py.File(path) as file:
            file.visititems(read)
            return len(file) > 0
    except (KeyError, OSError, RuntimeError):
        return False


def by_orbax(model, options):
    """On JAX: Orbax, which writes on the side while training goes on."""
    folder = (options.output / "orbax").resolve()
    callback = keras.callbacks.OrbaxCheckpoint(str(folder), max_to_keep=2)

    def restore():
        if any(path.name.isdigit() for path in folder.glob("*")):  # a finished checkpoint
            model.load_weights(str(folder))  # the newest

    return restore, callback


def by_manager(model, options):
    """On TensorFlow: `tf.train.CheckpointManager`."""
    import tensorflow as tf

    variables = [*model.variables, *model.optimizer.variables]
    # By their places in one list, so that nothing is left out, or matched to something else.
    checkpoint = tf.train.Checkpoint(state=[variable.value for variable in variables])
    manager = tf.train.CheckpointManager(checkpoint, str(options.output / "manager"), max_to_keep=2)

    def restore():
        if manager.latest_checkpoint:
            checkpoint.restore(manager.latest_checkpoint).assert_consumed()

    save = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: manager.save())
    return restore, save


def save_whole(model, path):
    """Saves a model's weights and its optimizer's state: a reader sees the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"partial.{path.name}")
    model.save_weights(partial)
    os.replace(partial, path)


def make_model(optimizer):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu", name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.2, name="dropout"),
            keras.layers.Dense(10, name="head"),
        ],
        name="digits",
    )
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def make_optimizer(options):
    schedule = keras.optimizers.schedules.CosineDecay(3e-3, decay_steps=options.steps)
    if options.optimizer == "sage":
        return Sage(schedule)
    if options.optimizer == "dps_dense":
        return DPSDense(schedule, total_steps=options.steps)
    if options.optimizer == "platon":
        return Platon(schedule, total_steps=options.steps)
    if options.optimizer == "sparse":  # chosen at once, so that all steps are updates
        return SparseAdamW(schedule, fraction=0.1, scores="magnitude")
    return DPSMix(schedule, total_steps=options.steps, seed=options.seed)


def loggers(options):
    if options.optimizer != "sage":
        return []
    return [SensitivityLogger(log_dir(options), update_freq=options.update_freq)]


def log_dir(options):
    return options.output / "log"


def print_results(model, test_data, start, options):
    loss, accuracy = model.evaluate(*test_data, verbose=0)
    print(
        f"\nsteps     {int(model.optimizer.iterations)}, of which this process made all but {start}"
    )
    print(f"loss      {loss:.4f}\naccuracy  {accuracy:.4f}")
    if options.optimizer == "sage":
        log = read_log(log_dir(options))
        print(f"reports   {len(log.steps)}")
        print(f"scale     {log.model.values['scale_mean'][-1]:.4f} in the mean, at the last report")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--way", choices=WAYS, default="file", help="how training is saved and resumed")
    add("--optimizer", choices=["sage", "dps_dense", "dps_mix", "platon", "sparse"], default="sage")
    add("--steps", type=int, default=880, help="of the whole training")
    add("--save-every", type=int, default=40, help="steps from save to save")
    add("--update-freq", type=int, default=10, help="steps from report to report")
    add("--batch-size", type=int, default=32, help="examples in a step")
    add("--seed", type=int, default=0, help="of the weights, dropout and the order of the data")
    add("--output", type=pathlib.Path, default="results/resume_training", help="where files go")
    add("--quick", action="store_true", help="a trial run of few steps")
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    for name in ("steps", "save_every", "update_freq", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"argument --{name.replace('_', '-')}: must be a whole number above 0")
    if options.steps % options.save_every:
        parser.error("argument --steps: must be a multiple of --save-every")
    backend = WAYS[options.way]
    if backend and keras.backend.backend() != backend:
        parser.error(f"argument --way: {options.way} needs KERAS_BACKEND={backend}")
    if options.way == "orbax" and importlib.util.find_spec("orbax") is None:
        parser.error("argument --way: orbax needs a package: pip install orbax-checkpoint")
    return options


if __name__ == "__main__":
    main()
