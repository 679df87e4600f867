"""Kills a training script at random moments, resumes it, and compares with one never killed.

    python -m benchmarks.crashes
    python -m benchmarks.crashes --backends jax --ways file orbax --kills 5

Runs examples/resume_training.py, sends SIGKILL while it trains, and starts it again, so many times
for each way of saving. Every second kill waits until a file of a checkpoint changes, so as to hit
the script while it writes. In the end the final weights, all slots of the optimizer and the reports
of the log have to be those of a run that was never killed, bit by bit.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import time

import h5py
import numpy as np
import tqdm

from benchmarks.common import print_table, record

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "resume_training.py"
WAYS = {
    "tensorflow": ["file", "backup", "manager"],
    "jax": ["file", "backup", "orbax"],
    "torch": ["file", "backup"],
}
LONGEST_DELAY = 0.01  # seconds from a change of a checkpoint to the kill
PARTIAL_NAMES = ("partial", "tmp", "temp")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--backends", nargs="+", choices=WAYS, default=list(WAYS))
    add("--ways", nargs="+", help="ways of saving; all that the backend has if left out")
    add("--optimizer", choices=["sage", "dps_dense", "dps_mix", "platon", "sparse"], default="sage")
    add("--kills", type=int, default=20, help="for each backend and way")
    add("--steps", type=int, default=4000, help="of the whole training")
    add("--save-every", type=int, default=20, help="steps from save to save")
    add("--seed", type=int, default=0, help="of the moments")
    options = parser.parse_args()
    lines = []
    for backend in options.backends:
        ways = [way for way in WAYS[backend] if way in (options.ways or WAYS[backend])]
        lines += try_backend(backend, ways, options)
    keys = ["backend", "way", "optimizer", "kills", "while_saving", "state_equal", "log_equal"]
    print_table([keys, *([str(line[key]) for key in keys] for line in lines)])
    record("crashes", lines)
    if not all(line["state_equal"] and line["log_equal"] for line in lines):
        raise SystemExit("a resumed run differs from one that was never killed")


def try_backend(backend, ways, options):
    """The lines of the table for one backend."""
    settings = ["--optimizer", options.optimizer, "--steps", str(options.steps)]
    settings += ["--save-every", str(options.save_every)]
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        reference = Job(backend, pathlib.Path(folder) / "reference", settings)
        seconds = reference.finish()
        for way in ways:
            job = Job(backend, pathlib.Path(folder) / way, [*settings, "--way", way])
            generator = random.Random(options.seed)
            for number in tqdm.trange(options.kills, desc=f"{backend} {way}", unit="kill"):
                moment = generator.uniform(0, seconds / options.kills)
                # The first kill, and every fifth, may come before anything was saved.
                job.kill(moment, while_saving=number % 2 == 1, after_a_save=number % 5 > 0)
            job.finish()
            found = {
                "backend": backend,
                "way": way,
                "optimizer": options.optimizer,
                "kills": job.kills,
                "while_saving": job.kills_while_saving,
                "started_at": job.starts,
            }
            lines.append(found | compare(job.output, reference.output))
            print(json.dumps(lines[-1]), flush=True)
    return lines


class Job:
    """A run of the example that can be killed and started again.

    Args:
        backend: String, the Keras backend.
        output: Path of its folder.
        settings: List of strings, arguments of the script.
    """

    def __init__(self, backend, output, settings):
        self.output = output
        self.starts = []
        self.kills = self.kills_while_saving = 0
        self._command = [sys.executable, str(EXAMPLE), *settings, "--output", str(output)]
        self._environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        self._printed = output.with_name(f"{output.name}.txt")

    def kill(self, seconds, while_saving, after_a_save=False):
        """Starts the script, and kills it so many seconds after its training has begun.

        Args:
            seconds: Float.
            while_saving: Boolean, whether to wait for the next change of a checkpoint then.
            after_a_save: Boolean, whether to count the seconds from the end of a save on.
        """
        process = self._begin()
        before = set(half_written(self.output))
        if after_a_save:
            self._wait_for_change(process)
            while process.poll() is None and set(half_written(self.output)) - before:
                time.sleep(0.01)
        time.sleep(seconds)
        if while_saving:
            self._wait_for_change(process)
            time.sleep(random.random() * LONGEST_DELAY)
        process.kill()
        if process.wait() == 0:
            return  # it was done sooner
        self.kills += 1
        self.kills_while_saving += bool(set(half_written(self.output)) - before)

    def finish(self):
        """Runs the script to its end, and returns the seconds since it saved first."""
        process = self._begin()
        self._wait_for_change(process)
        began = time.perf_counter()
        if process.wait():
            raise RuntimeError(f"the script failed:\n{self._printed.read_text()[-4000:]}")
        return time.perf_counter() - began

    def _wait_for_change(self, process):
        before = snapshot(self.output)
        while process.poll() is None and snapshot(self.output) == before:
            time.sleep(0.0005)

    def _begin(self):
        with self._printed.open("w") as file:
            process = subprocess.Popen(
                self._command, env=self._environment, stdout=file, stderr=subprocess.STDOUT
            )
        while True:
            start = re.search(
                r"^Starting at step (\d+) of", self._printed.read_text(), re.MULTILINE
            )
            if start:
                self.starts.append(int(start[1]))
                return process
            if process.poll():
                raise RuntimeError(f"the script failed:\n{self._printed.read_text()[-4000:]}")
            time.sleep(0.01)


def snapshot(folder):
    """What tells that a checkpoint is being written: the files, their sizes and times."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed meanwhile
            status = path.stat()
            if path.is_file() and "log" not in path.relative_to(folder).parts:
                found[path] = (path, status.st_size, status.st_mtime_ns)
    return found


def half_written(folder):
    """Entries of `snapshot` that a save has begun: of a passing name, or that cannot be read."""
    return [
        entry
        for path, entry in snapshot(folder).items()
        if any(part in name for name in path.relative_to(folder).parts for part in PARTIAL_NAMES)
        or not is_readable(path)
    ]


def is_readable(path):
    try:
        if path.suffix == ".h5":
            read_state(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
    except (OSError, RuntimeError, ValueError):
        return False
    return True


def compare(output, reference):
    """Whether two finished runs are equal, bit by bit: state of model and optimizer, and log."""
    states = [read_state(folder / "final.weights.h5") for folder in (output, reference)]
    logs = [read_reports(folder / "log" / "sensitivity.jsonl") for folder in (output, reference)]
    for kind, (one, other) in {"variables": states, "reports": logs}.items():
        names = [name for name in other if one.get(name) != other[name]]
        if names:
            print(f"{len(names)} of {len(other)} {kind} differ, the first is {names[0]}")
    return {"state_equal": states[0] == states[1], "log_equal": logs[0] == logs[1]}


def read_state(path):
    """Dict of the name of a variable in a file of Keras to its dtype, shape and bytes."""
    state = {}

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            array = np.asarray(item)
            state[name] = (str(array.dtype), array.shape, array.tobytes())

    with h5py.File(path) as file:
        file.visititems(add)
    return state


def read_reports(path):
    """Dict of step to the last report of it, as text; empty where nothing is logged."""
    if not path.exists():
        return {}
    lines = path.read_text().splitlines()
    return {json.loads(line)["step"]: line for line in lines}


if __name__ == "__main__":
    main()
