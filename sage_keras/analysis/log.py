"""Reads the logs of a `SensitivityLogger` and of a `DPSLogger` back."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from sage_keras.analysis.checks import check_report

_FIELDS = {"step", "epoch", "optimizers", "model", "groups"}


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Counts in bins, one row for each report.

    Attributes:
        edges: Float array of shape `(bins + 1,)`, the same for all reports. The bins are halves
            of octaves: an edge is 1 or 1.5 times a power of two.
        counts: Float array of shape `(reports, bins)`. In a large model they are estimates from
            a sample. A row of not-a-number where a report has no histogram.
        zeros: Float array of shape `(reports,)`, the parameters of no sensitivity (less than
            2^-126), which are in no bin.
    """

    edges: np.ndarray
    counts: np.ndarray
    zeros: np.ndarray


@dataclasses.dataclass(frozen=True)
class Series:
    """The figures of a model, or of one group of its variables, over time.

    Attributes:
        parameters: Integer, how many parameters the figures are of.
        figures: Dict of name (`"mean"`, `"q0.5"`, `"share"`, ...) to a float array of shape
            `(reports,)`, with not-a-number where a report does not have the figure.
        histogram: A `Histogram`, or `None` if the log has none.
    """

    parameters: int
    figures: dict[str, np.ndarray]
    histogram: Histogram | None


@dataclasses.dataclass(frozen=True)
class Log:
    """What a logger wrote, in the order of the steps.

    Attributes:
        steps: Integer array of shape `(reports,)`, the optimizer's steps when the reports were
            made. They increase.
        epochs: Integer array of the same shape, the epochs as Keras counts them, from 0.
        optimizers: List of dicts, as in the last report, one for each optimizer: its `"class"`
            and `"beta_3"`, `"bias_correction"` and `"guide"`, or `"stage_steps"` and
            `"drop_rate"`.
        model: `Series` of all guided parameters, or of all that are trained in part.
        groups: Dict of group name to `Series`, in the model's order.
    """

    steps: np.ndarray
    epochs: np.ndarray
    optimizers: list[dict[str, Any]]
    model: Series
    groups: dict[str, Series]


def read_log(log_dir: str | os.PathLike) -> Log:
    """Reads what a `SensitivityLogger` wrote into a folder.

    The unfinished last line of a run that was killed is left out. Where a line's step is not
    above that of earlier lines, those are left out: they are of a run that was begun again, or
    resumed from an earlier step.

    Args:
        log_dir: The folder that the logger was given.

    Returns:
        A `Log` of NumPy arrays.

    Raises:
        FileNotFoundError: If the folder does not hold the log of a `SensitivityLogger`.
        ValueError: If the log is empty, or a line of it is malformed; the message names it.

    Example:

    >>> import json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> entry = {"parameters": 8, "figures": {"mean": 0.5, "gini": None}}
    >>> report = {"step": 3, "epoch": 0, "optimizers": [], "model": entry, "groups": {"h": entry}}
    >>> _ = (folder / "sensitivity.jsonl").write_text(json.dumps(report) + "\\n")
    >>> log = read_log(folder)
    >>> log.steps.tolist(), log.groups["h"].figures["mean"].tolist()
    ([3], [0.5])
    """
    return _read(log_dir, "sensitivity.jsonl", "SensitivityLogger")


def read_dps_log(log_dir):
    """Reads what a `DPSLogger` wrote into a folder.

    Of killed and resumed runs it makes what `read_log` makes of them.

    Args:
        log_dir: The folder that the logger was given.

    Returns:
        A `Log` of NumPy arrays, one report for each cycle, without histograms.

    Raises:
        FileNotFoundError: If the folder does not hold the log of a `DPSLogger`.
        ValueError: If the log is empty, or a line of it is malformed; the message names it.

    Example:

    >>> import json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> entry = {"parameters": 8, "figures": {"share": 0.5, "overlap": None}}
    >>> report = {"step": 3, "epoch": 0, "optimizers": [], "model": entry, "groups": {"h": entry}}
    >>> _ = (folder / "dps.jsonl").write_text(json.dumps(report) + "\\n")
    >>> log = read_dps_log(folder)
    >>> log.steps.tolist(), log.groups["h"].figures["share"].tolist()
    ([3], [0.5])
    """
    return _read(log_dir, "dps.jsonl", "DPSLogger")


def _read(log_dir, name, logger):
    path = pathlib.Path(log_dir) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"Argument `log_dir` must be the folder that a {logger} was given: there is no {name} "
            f"in it. Received: log_dir={str(log_dir)!r}"
        )
    reports = _latest(_parse(path, logger))
    if not reports:
        raise ValueError(f"{path} holds no report yet.")
    names = {name: None for report in reports for name in report["groups"]}
    grids = [report.get("edges", []) for report in reports]
    return Log(
        steps=np.array([report["step"] for report in reports]),
        epochs=np.array([report["epoch"] for report in reports]),
        optimizers=reports[-1]["optimizers"],
        model=_series([report["model"] for report in reports], grids),
        groups={
            name: _series([report["groups"].get(name) for report in reports], grids)
            for name in names
        },
    )


def _parse(path, logger):
    *lines, _unfinished = path.read_bytes().split(b"\n")
    reports = []
    for number, line in enumerate(lines, start=1):
        try:
            report = json.loads(line, parse_constant=_refuse)
            missing = _FIELDS - report.keys()
            if missing:
                raise ValueError(f"it has no {sorted(missing)}")
            check_report(report)
        except (AttributeError, RecursionError, ValueError) as error:
            raise ValueError(
                f"Line {number} of {path} is not a report of a {logger}: {error}. "
                "Remove the line to read the others."
            ) from error
        reports.append(report)
    return reports


def _refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def _latest(reports):
    """The reports of increasing steps that the last one ends."""
    latest = []
    for report in reversed(reports):
        if not latest or report["step"] < latest[-1]["step"]:
            latest.append(report)
    return latest[::-1]


def _series(entries, grids):
    present = [entry for entry in entries if entry is not None]
    names = {name: None for entry in present for name in entry["figures"]}
    return Series(
        parameters=present[-1]["parameters"],
        figures={name: _figure(name, entries) for name in names},
        histogram=_histogram([entry and entry.get("histogram") for entry in entries], grids),
    )


def _figure(name, entries):
    values = [None if entry is None else entry["figures"].get(name) for entry in entries]
    return np.array([np.nan if value is None else value for value in values], dtype="float64")


def _histogram(entries, grids):
    """One `Histogram` of all: each report writes the bins that were not empty in it."""
    if not any(entries):
        return None
    edges = np.unique(np.concatenate(grids))
    counts = np.full((len(entries), max(len(edges) - 1, 0)), np.nan)
    zeros = np.full(len(entries), np.nan)
    for row, (entry, grid) in enumerate(zip(entries, grids)):
        if entry:
            counts[row] = 0
            counts[row, np.searchsorted(edges, grid[:-1])] = entry["counts"]
            zeros[row] = entry["zeros"]
    return Histogram(edges, counts, zeros)
