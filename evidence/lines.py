"""The lines of `results/runs.jsonl`: read, added to, and which learning rate they say is best."""

import collections
import json
import os
import pathlib
import statistics

FOLDER = pathlib.Path(__file__).parent / "results"
RESULTS = FOLDER / "runs.jsonl"
KEY = ("task", "arm", "beta_3", "learning_rate", "seed")
BASE = ("AdamW", None)
FACTORS = {  # of the best rate, by phase
    "final": 1,
    "twice": 2,
    "four_times": 4,
    "adamw_rate": 1,
    "further": 1,
}
MAIN_TASKS = (  # those that answer the question; the others search for where guiding pays
    "reviews320",
    "vit",
    "vit_320",
    "translation",
    "reviews1000",
    "cola",
    "rte",
    "mrpc",
    "reviews8000",
)


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
    """What makes a run the one it is, as a tuple: of its phase only whether it is tuning."""
    return (*(line[name] for name in KEY), line["phase"] == "tune")


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


def rate_of_phase(best, arm, phase):
    """The learning rate of an arm's runs of a phase.

    Args:
        best: Dict of `best_rates`.
        arm: Tuple of name and beta_3.
        phase: A key of `FACTORS`. In `"adamw_rate"` every arm trains at the best rate of AdamW.

    Returns:
        Float, or `None` where the best rate is still to be found.
    """
    rate = best.get(BASE if phase == "adamw_rate" else arm)
    return rate and rounded(rate * FACTORS[phase])


def rounded(rate):
    """A learning rate as it is written: six digits."""
    return float(f"{rate:.6g}")
