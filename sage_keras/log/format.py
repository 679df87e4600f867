"""What a log holds, and the checks that its writer and its reader share.

A log is a file of lines, each of which is an object of strict JSON:

    step         the optimizer's steps when the line was written
    epoch        the epoch as Keras counts them, from 0
    update_freq  how often the logger was asked to report, where it can be asked
    metrics      name to number, or to null for not-a-number: what Keras's `logs` held

A report has more, while a line without is the end of an epoch whose report came earlier:

    optimizers   a list of the settings of each optimizer
    edges        the edges of the bins of all histograms, a part of `COARSE_EDGES`
    model        the entry of all variables together
    groups       group name to entry

An entry:

    parameters   how many parameters it is of
    values       name to number, or to null for not-a-number
    histogram    counts, one for each bin, and zeros, which are in none

Older logs call the values "figures" and have no update_freq and no metrics.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sage_keras.histograms import COARSE_EDGES

STEP, EPOCH, UPDATE_FREQ, METRICS = "step", "epoch", "update_freq", "metrics"
OPTIMIZERS, EDGES, MODEL, GROUPS = "optimizers", "edges", "model", "groups"
PARAMETERS, VALUES, HISTOGRAM = "parameters", "values", "histogram"
COUNTS, ZEROS = "counts", "zeros"
_OLDER_VALUES = "figures"
_REQUIRED = (STEP, EPOCH)
_REQUIRED_OF_REPORTS = (OPTIMIZERS, MODEL, GROUPS)

_LARGEST_INTEGER = 2**63 - 1  # of NumPy's
_LARGEST = float(np.finfo("float32").max)  # of what a logger computes
_WORDS = re.compile(r"[a-z_]+", re.ASCII)
_QUANTILE = re.compile(r"(?:scale_)?q([0-9][0-9.e-]*)", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Kind:
    """The logs of one callback.

    Attributes:
        name: String, what its file, its TensorBoard tags and its keys in Keras's `logs` begin with.
        logger: String, the name of the callback.
        settings: Dict of the name of an optimizer's setting to its type.
        optional: The names of the settings that some logs do not have.
    """

    name: str
    logger: str
    settings: Mapping[str, type]
    optional: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of the file in the folder."""
        return f"{self.name}.jsonl"


SENSITIVITY = Kind(
    "sensitivity",
    "SensitivityLogger",
    {
        "class": str,
        "beta_3": float,
        "bias_correction": bool,
        "sensitivity_epsilon": float,
        "guide": bool,
    },
    optional=("sensitivity_epsilon",),
)
DPS = Kind("dps", "DPSLogger", {"class": str, "stage_steps": int, "drop_rate": float})
SPARSITY = Kind(
    "sparsity",
    "SparsityLogger",
    {"class": str, "score": str, "final_sparsity": float, "end_step": int},
)


def values_of(entry: Mapping[str, Any]) -> Any:
    """The values of an entry, whatever the log calls them."""
    return entry[VALUES] if VALUES in entry else entry.get(_OLDER_VALUES)


def is_report(line: Mapping[str, Any]) -> bool:
    """Whether a line is a report, and not the end of an epoch alone."""
    return METRICS not in line or any(name in line for name in _REQUIRED_OF_REPORTS)


def to_number(value: Any) -> float | None:
    """`value` as a number that a log can hold, not-a-number where it is too large, or `None`.

    `None` stands for what is no single number: metrics of Keras may be anything.
    """
    if isinstance(value, str) or np.ndim(value):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) <= _LARGEST else math.nan


def check_line(line: Any, kind: Kind) -> None:
    """Refuses a line that is not as a logger writes it.

    Args:
        line: What was read from a line of strict JSON, or is to be written as one.
        kind: The `Kind` of the log.

    Raises:
        ValueError: If something is missing, or of another kind; the message names it.
    """
    _is("report", line, dict)
    required = _REQUIRED + (_REQUIRED_OF_REPORTS if is_report(line) else ())
    missing = [name for name in required if name not in line]
    if missing:
        raise ValueError(f"it has no {missing}")
    _whole(STEP, line[STEP], low=0)
    _whole(EPOCH, line[EPOCH], low=0)
    for name, value in _is(METRICS, line.get(METRICS, {}), dict).items():
        _text("name of a metric", name)
        if value is not None:
            _number(f"metric {name!r}", value)
    if is_report(line):
        _check_report(line, kind)


def _check_report(report: dict[str, Any], kind: Kind) -> None:
    for number, settings in enumerate(_is(OPTIMIZERS, report[OPTIMIZERS], list)):
        check_settings(f"{OPTIMIZERS}[{number}]", settings, kind)
    bins = max(len(_edges(report.get(EDGES, []))) - 1, 0)
    _check_entry(MODEL, report[MODEL], bins)
    for name, entry in _is(GROUPS, report[GROUPS], dict).items():
        _text("name of a group", name)
        _check_entry(f"group {name!r}", entry, bins)


def check_settings(place: str, settings: Any, kind: Kind) -> None:
    """Refuses the settings of an optimizer that lack one, or have it of another type.

    Args:
        place: String, what to call them.
        settings: Dict of name to setting.
        kind: The `Kind` of the log.

    Raises:
        ValueError: If that is so.
    """
    _is(place, settings, dict)
    for name, wanted in kind.settings.items():
        field = f"{place}[{name!r}]"
        if name not in settings:
            if name not in kind.optional:
                raise ValueError(f"its {place} has no {name!r}")
        elif wanted is float:
            _number(field, settings[name])
        elif wanted is int:
            _whole(field, settings[name], low=1)
        elif wanted is str:
            _text(field, settings[name])
        else:
            _is(field, settings[name], wanted)
    if kind is SENSITIVITY and not 0 < settings["beta_3"] < 1:
        raise ValueError(f"its {place}['beta_3'] is not between 0 and 1")


def _check_entry(name: str, entry: Any, bins: int) -> None:
    _is(name, entry, dict)
    _whole(f"parameters of {name}", entry.get(PARAMETERS), low=1)
    for key, value in _is(f"values of {name}", values_of(entry), dict).items():
        _check_value_name(key)
        if value is not None:
            _number(f"{key} of {name}", value)
    if HISTOGRAM in entry:
        histogram = _is(f"histogram of {name}", entry[HISTOGRAM], dict)
        _number(f"zeros of {name}", histogram.get(ZEROS), low=0)
        counts = _is(f"counts of {name}", histogram.get(COUNTS), list)
        for count in counts:
            _number(f"counts of {name}", count, low=0)
        if len(counts) != bins:
            raise ValueError(f"the counts of {name} are {len(counts)}, for {bins} bins")


def _check_value_name(name: str) -> None:
    """Words, or a quantile as `f"q{number:g}"` writes it."""
    quantile = _QUANTILE.fullmatch(name)
    known = _WORDS.fullmatch(name) if quantile is None else _is_probability(quantile[1])
    if not known:
        raise ValueError(f"{name!r} is no name of a value")


def _is_probability(digits: str) -> bool:
    try:
        number = float(digits)
    except ValueError:
        return False
    return 0 <= number <= 1 and f"{number:g}" == digits


def _edges(values: Any) -> list[float]:
    """`values`, if they are edges: some of the fixed grid, one after the other."""
    edges: list[float] = _is(EDGES, values, list)
    for edge in edges:
        _number(EDGES, edge, low=0, high=float(COARSE_EDGES[-1]))
    begin = int(np.searchsorted(COARSE_EDGES, edges[0])) if edges else 0
    if not np.array_equal(COARSE_EDGES[begin : begin + len(edges)], edges):
        raise ValueError("its edges are not those of bins that a logger counts in")
    return edges


def _is(name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"its {name} is of type {type(value).__name__}, not {kind.__name__}")
    return value


def _text(name: str, value: Any) -> None:
    if not _encodable(_is(name, value, str)):
        raise ValueError(f"its {name} holds a lone surrogate: {value!r}")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(name: str, value: Any, low: int) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not low <= value <= _LARGEST_INTEGER
    ):
        raise ValueError(f"its {name} is not a whole number from {low} on")


def _number(name: str, value: Any, low: float = -math.inf, high: float = _LARGEST) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not max(low, -_LARGEST) <= value <= high:
        raise ValueError(f"its {name} is not a number that a logger writes")
