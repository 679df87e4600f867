"""Checks what was read from a log, which may be damaged, or come from anyone."""

import itertools
import sys

_LARGEST_INTEGER = 2**63 - 1  # of NumPy's
_LARGEST = sys.float_info.max  # JSON's 1e999 is read as infinity
_SETTINGS = {
    "class": str,
    "beta_3": float,
    "bias_correction": bool,
    "sensitivity_epsilon": float,
    "guide": bool,
    "drop_rate": float,
}


def check_report(report):
    """Refuses a report whose entries are not of the kinds that a logger writes.

    Args:
        report: Dict, a line of a log that was read as strict JSON.

    Raises:
        ValueError: If an entry is of another kind; the message names it.
    """
    _whole("step", report["step"], low=0)
    _whole("epoch", report["epoch"], low=0)
    _is("optimizers", report["optimizers"], list)
    for settings in report["optimizers"]:
        _check_settings(_is("optimizers", settings, dict))
    edges = _numbers("edges", report.get("edges", []))
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise ValueError("its edges do not increase")
    _check_entry("model", report["model"], edges)
    for name, entry in _is("groups", report["groups"], dict).items():
        _check_entry(f"group {name!r}", entry, edges)


def _check_settings(settings):
    for name, kind in _SETTINGS.items():
        if name in settings and kind is float:
            _number(name, settings[name])
        elif name in settings:
            _is(name, settings[name], kind)


def _check_entry(name, entry, edges):
    _is(name, entry, dict)
    _whole(f"parameters of {name}", entry.get("parameters"), low=1)
    for figure, value in _is(f"figures of {name}", entry.get("figures"), dict).items():
        if value is not None:
            _number(f"{figure} of {name}", value)
    if "histogram" in entry:
        histogram = _is(f"histogram of {name}", entry["histogram"], dict)
        _number(f"zeros of {name}", histogram.get("zeros"))
        counts = _numbers(f"counts of {name}", histogram.get("counts"))
        if len(counts) != max(len(edges) - 1, 0):
            raise ValueError(f"the counts of {name} are {len(counts)}, for {len(edges)} edges")


def _is(name, value, kind):
    if not isinstance(value, kind):
        raise ValueError(f"its {name} is of type {type(value).__name__}, not {kind.__name__}")
    return value


def _whole(name, value, low):
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not low <= value <= _LARGEST_INTEGER
    ):
        raise ValueError(f"its {name} is not a whole number from {low} on")


def _number(name, value):
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not -_LARGEST <= value <= _LARGEST:
        raise ValueError(f"its {name} is not a finite number")


def _numbers(name, values):
    for value in _is(name, values, list):
        _number(name, value)
    return values
