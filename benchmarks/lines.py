"""The lines of `results/glue.jsonl`: read, added to, and which learning rate they say is best."""

import collections
import json
import os
import statistics

from benchmarks import common

RESULTS = common.RESULTS / "glue.jsonl"
KEY = ("task", "arm", "beta_3", "learning_rate", "seed", "phase")
FACTORS = {"final": 1, "twice": 2, "four_times": 4}  # of the best rate, by phase


def read(path):
    """The lines of a file as dicts, none if there is no file.

    Args:
        path: `pathlib.Path`.

    Returns:
        List of dicts.
    """
    return [json.loads(line) for line in path.open()] if path.exists() else []


def append(path, line):
    """Adds a line to a file, whole or not at all when the process is killed.

    Args:
        path: `pathlib.Path`.
        line: Dict.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())  # one call
    finally:
        os.close(file)


def key(line):
    """What makes a run the one it is, as a tuple."""
    return tuple(line[name] for name in KEY)


def arm_of(line):
    """The arm of a line as a tuple of its name and beta_3."""
    return line["arm"], line["beta_3"]


def tuning_values(lines, task):
    """The metric at each learning rate tried, the mean over the tuning seeds.

    Args:
        lines: List of dicts.
        task: String.

    Returns:
        Dict of arm, a tuple of name and beta_3, to a dict of learning rate to value.
    """
    values = collections.defaultdict(lambda: collections.defaultdict(list))
    for line in lines:
        if line["task"] == task and line["phase"] == "tune":
            values[arm_of(line)][line["learning_rate"]].append(line["value"])
    return {
        arm: {rate: statistics.fmean(some) for rate, some in sorted(rates.items())}
        for arm, rates in values.items()
    }


def best_rates(lines, task):
    """The learning rate of the highest metric, the lowest among equals.

    Args:
        lines: List of dicts.
        task: String.

    Returns:
        Dict of arm, a tuple of name and beta_3, to learning rate.
    """
    return {
        arm: max(values, key=lambda rate: (values[rate], -rate))
        for arm, values in tuning_values(lines, task).items()
    }


def rate_of_phase(best_rate, phase):
    """The learning rate of the runs of a phase.

    Args:
        best_rate: Float.
        phase: A key of `FACTORS`.

    Returns:
        Float.
    """
    return rounded(best_rate * FACTORS[phase])


def rounded(rate):
    """A learning rate as it is written: six digits."""
    return float(f"{rate:.6g}")
