"""Reads the logs of a `SensitivityLogger`, a `DPSLogger` and a `SparsityLogger` back."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from sage_keras.log import format as log_format
from sage_keras.log.format import DPS, SENSITIVITY, SPARSITY, Kind

_MOST_GAPS = 64  # cells without a number, for each that has one


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
    """The values of a model, or of one group of its variables, over time.

    Attributes:
        parameters: Integer, how many parameters the values are of.
        values: Dict of name (`"mean"`, `"q0.5"`, `"share"`, ...) to a float array of shape
            `(reports,)`, with not-a-number where a report does not have the value.
        histogram: A `Histogram`, or `None` if the log has none.
    """

    parameters: int
    values: dict[str, np.ndarray]
    histogram: Histogram | None


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The loss and the metrics of a run over time, as Keras's `logs` held them.

    Those of the training data are means of the epoch so far, as in the progress bar; those of the
    validation data come at the ends of epochs.

    Attributes:
        steps: Integer array, the optimizer's steps at reports and at ends of epochs. They
            increase.
        values: Dict of name (`"loss"`, `"val_loss"`, ...) to a float array as long as `steps`,
            with not-a-number where there was no value.
    """

    steps: np.ndarray
    values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Log:
    """What a logger wrote, in the order of the steps.

    Attributes:
        steps: Integer array of shape `(reports,)`, the optimizer's steps when the reports were
            made. They increase.
        epochs: Integer array of the same shape, the epochs as Keras counts them, from 0.
        optimizers: List of dicts, as in the last report, one for each optimizer: its `"class"`
            and `"beta_3"`, `"bias_correction"` and `"guide"`, or `"stage_steps"` and
            `"drop_rate"`, or `"score"`, `"final_sparsity"` and `"end_step"`.
        model: `Series` of all guided parameters, of all that are trained in part, or of all
            that are pruned.
        groups: Dict of group name to `Series`, in the model's order.
        metrics: `Metrics`, or `None` if the log has none. Defaults to `None`.
    """

    steps: np.ndarray
    epochs: np.ndarray
    optimizers: list[dict[str, Any]]
    model: Series
    groups: dict[str, Series]
    metrics: Metrics | None = None


def read_log(log_dir: str | os.PathLike[str]) -> Log:
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
    >>> entry = {"parameters": 8, "values": {"mean": 0.5, "gini": None}}
    >>> report = {"step": 3, "epoch": 0, "optimizers": [], "model": entry, "groups": {"h": entry}}
    >>> _ = (folder / "sensitivity.jsonl").write_text(json.dumps(report) + "\\n")
    >>> log = read_log(folder)
    >>> log.steps.tolist(), log.groups["h"].values["mean"].tolist()
    ([3], [0.5])
    """
    return _read(log_dir, SENSITIVITY)


def read_dps_log(log_dir: str | os.PathLike[str]) -> Log:
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
    >>> entry = {"parameters": 8, "values": {"share": 0.5, "overlap": None}}
    >>> report = {"step": 3, "epoch": 0, "optimizers": [], "model": entry, "groups": {"h": entry}}
    >>> _ = (folder / "dps.jsonl").write_text(json.dumps(report) + "\\n")
    >>> log = read_dps_log(folder)
    >>> log.steps.tolist(), log.groups["h"].values["share"].tolist()
    ([3], [0.5])
    """
    return _read(log_dir, DPS)


def read_sparsity_log(log_dir: str | os.PathLike[str]) -> Log:
    """Reads what a `SparsityLogger` wrote into a folder.

    Of killed and resumed runs it makes what `read_log` makes of them.

    Args:
        log_dir: The folder that the logger was given.

    Returns:
        A `Log` of NumPy arrays, without histograms.

    Raises:
        FileNotFoundError: If the folder does not hold the log of a `SparsityLogger`.
        ValueError: If the log is empty, or a line of it is malformed; the message names it.

    Example:

    >>> import json, pathlib, tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> entry = {"parameters": 8, "values": {"sparsity": 0.5}}
    >>> report = {"step": 3, "epoch": 0, "optimizers": [], "model": entry, "groups": {"h": entry}}
    >>> _ = (folder / "sparsity.jsonl").write_text(json.dumps(report) + "\\n")
    >>> log = read_sparsity_log(folder)
    >>> log.steps.tolist(), log.groups["h"].values["sparsity"].tolist()
    ([3], [0.5])
    """
    return _read(log_dir, SPARSITY)


def _read(log_dir: str | os.PathLike[str], kind: Kind) -> Log:
    path = pathlib.Path(log_dir) / kind.file
    if not path.is_file():
        raise FileNotFoundError(
            f"Argument `log_dir` must be the folder that a {kind.logger} was given: there is no "
            f"{kind.file} in it. Received: log_dir={str(log_dir)!r}"
        )
    lines = _latest(_parse(path, kind))
    reports = [line for line in lines if log_format.is_report(line)]
    if not reports:
        raise ValueError(f"{path} holds no report yet.")
    groups = [report[log_format.GROUPS] for report in reports]
    names = dict.fromkeys(name for one in groups for name in one)
    _check_gaps(path, groups, "groups")
    grids = [report.get(log_format.EDGES, []) for report in reports]
    return Log(
        steps=np.array([report[log_format.STEP] for report in reports]),
        epochs=np.array([report[log_format.EPOCH] for report in reports]),
        optimizers=reports[-1][log_format.OPTIMIZERS],
        model=_series([report[log_format.MODEL] for report in reports], grids),
        groups={name: _series([one.get(name) for one in groups], grids) for name in names},
        metrics=_metrics(path, lines),
    )


def _parse(path: pathlib.Path, kind: Kind) -> list[dict[str, Any]]:
    *lines, _unfinished = path.read_bytes().split(b"\n")
    parsed = []
    for number, text in enumerate(lines, start=1):
        try:
            line = json.loads(text, parse_constant=_refuse)
            log_format.check_line(line, kind)
        except (RecursionError, ValueError) as error:
            raise ValueError(
                f"Line {number} of {path} is not a report of a {kind.logger}: {error}. "
                "Remove the line to read the others."
            ) from error
        parsed.append(line)
    return parsed


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _latest(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of increasing steps that the last one ends."""
    latest: list[dict[str, Any]] = []
    for line in reversed(lines):
        if not latest or _place(line) < _place(latest[-1]):
            latest.append(line)
    return latest[::-1]


def _place(line: dict[str, Any]) -> tuple[int, bool]:
    """Where a line stands among the others: the end of an epoch follows a report of its step."""
    return line[log_format.STEP], not log_format.is_report(line)


def _check_gaps(path: pathlib.Path, lines: Sequence[dict[str, Any]], of: str) -> None:
    """Refuses a small file that might fill the memory: each name has a place for each line."""
    names = {name for line in lines for name in line}
    if len(names) * len(lines) > _MOST_GAPS * sum(map(len, lines)):
        raise ValueError(f"{path} holds the reports of too many runs with unlike {of}.")


def _metrics(path: pathlib.Path, lines: list[dict[str, Any]]) -> Metrics | None:
    by_step: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line.get(log_format.METRICS):
            by_step.setdefault(line[log_format.STEP], {}).update(line[log_format.METRICS])
    if not by_step:
        return None
    rows = list(by_step.values())
    _check_gaps(path, rows, "metrics")
    names = dict.fromkeys(name for row in rows for name in row)
    return Metrics(
        steps=np.array(list(by_step)),
        values={name: _numbers([row.get(name) for row in rows]) for name in names},
    )


def _series(entries: Sequence[dict[str, Any] | None], grids: Sequence[Sequence[float]]) -> Series:
    present = [entry for entry in entries if entry is not None]
    names = dict.fromkeys(name for entry in present for name in log_format.values_of(entry))
    return Series(
        parameters=present[-1][log_format.PARAMETERS],
        values={name: _values(name, entries) for name in names},
        histogram=_histogram(
            [entry and entry.get(log_format.HISTOGRAM) for entry in entries], grids
        ),
    )


def _values(name: str, entries: Sequence[dict[str, Any] | None]) -> np.ndarray:
    return _numbers([entry and log_format.values_of(entry).get(name) for entry in entries])


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype="float64")


def _histogram(
    entries: Sequence[dict[str, Any] | None], grids: Sequence[Sequence[float]]
) -> Histogram | None:
    """One `Histogram` of all: each report writes the bins that were not empty in it."""
    if not any(entries):
        return None
    edges = np.unique(np.concatenate([grid for grid, entry in zip(grids, entries) if entry]))
    counts = np.full((len(entries), max(len(edges) - 1, 0)), np.nan)
    zeros = np.full(len(entries), np.nan)
    for row, (entry, grid) in enumerate(zip(entries, grids)):
        if entry:
            counts[row] = 0
            counts[row, np.searchsorted(edges, grid[:-1])] = entry[log_format.COUNTS]
            zeros[row] = entry[log_format.ZEROS]
    return Histogram(edges, counts, zeros)
