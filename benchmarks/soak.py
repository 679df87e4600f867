"""A long run: does memory grow, do steps slow down?

    KERAS_BACKEND=jax python -m benchmarks.soak

Trains a small model with Sage for 20,000 steps in a row, with a SensitivityLogger that reports
every 50 and a checkpoint every 1,000. Prints the resident memory (Linux only) and the time after
each 1,000 steps. The memory may grow by 1 % after the first 1,000; more is an error. The last
1,000 should take no longer than the second 1,000, by 5 %; on a machine that others use too that
says little, and so it is printed and recorded only.
"""

import argparse
import pathlib
import tempfile
import time

import keras
import numpy as np
import tqdm

from benchmarks.common import print_table, record
from sage_keras import Sage
from sage_keras.callbacks import SensitivityLogger

STEPS_OF_PART = 1000
BATCH_SIZE = 32
ALLOWED_GROWTH = 0.01
ALLOWED_SLOWDOWN = 0.05


class Watch(keras.callbacks.Callback):
    """Measures each part of the run, which is an epoch of Keras, and shows how far it is."""

    def __init__(self, steps):
        super().__init__()
        self.megabytes = []
        self.seconds = []
        self._bar = tqdm.tqdm(total=steps, unit="step", mininterval=1)

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        self._bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._began)
        self.megabytes.append(resident_megabytes())

    def on_train_end(self, logs=None):
        self._bar.close()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--parts", type=int, default=20, help="of 1,000 steps each, 3 at least")
    options = parser.parse_args()
    if options.parts < 3:
        parser.error("argument --parts: must be 3 at least")

    with tempfile.TemporaryDirectory() as folder:
        watch = train(options.parts, pathlib.Path(folder))
    growth = watch.megabytes[-1] / watch.megabytes[0] - 1
    slowdown = watch.seconds[-1] / watch.seconds[1] - 1
    rows = [["steps", "memory, MB", "seconds"]]
    for part, (megabytes, seconds) in enumerate(zip(watch.megabytes, watch.seconds), start=1):
        rows.append([f"{part * STEPS_OF_PART:,}", f"{megabytes:.1f}", f"{seconds:.1f}"])
    print_table(rows)
    print(f"memory after the first {STEPS_OF_PART:,} steps: {growth:+.2%}")
    print(f"time of the last {STEPS_OF_PART:,} steps to the second: {slowdown:+.1%}")
    if slowdown > ALLOWED_SLOWDOWN:
        print("That is slower than allowed, if the machine had nothing else to do.")
    line = {
        "backend": keras.backend.backend(),
        "steps": options.parts * STEPS_OF_PART,
        "megabytes": [round(one, 1) for one in watch.megabytes],
        "seconds": [round(one, 2) for one in watch.seconds],
        "growth": round(growth, 5),
        "slowdown": round(slowdown, 3),
    }
    record("soak", [line])
    if growth > ALLOWED_GROWTH:
        raise SystemExit(f"the memory grew by {growth:.2%}")


def train(parts, folder):
    """Trains for so many parts, and returns what was measured."""
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS_OF_PART * BATCH_SIZE, 32)).astype("float32")
    y = np.argmax(x @ random.normal(size=(32, 10)), axis=1)
    model = keras.Sequential(
        [
            keras.Input((32,)),
            keras.layers.Dense(64, "relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        ]
    )
    model.compile(Sage(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    watch = Watch(parts * STEPS_OF_PART)
    callbacks = [
        SensitivityLogger(folder / "log", update_freq=50),
        keras.callbacks.ModelCheckpoint(folder / "model.keras"),
        keras.callbacks.ModelCheckpoint(folder / "model.weights.h5", save_weights_only=True),
        watch,
    ]
    model.fit(x, y, batch_size=BATCH_SIZE, epochs=parts, verbose=0, callbacks=callbacks)
    return watch


def resident_megabytes():
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS: this needs Linux")


if __name__ == "__main__":
    main()
