"""Checks of the arguments that users pass: what is wrong, what was passed, what to write."""

import math
import numbers
import re
import warnings

_PATHS_SHOWN = 8


def number(argument, value, low, high, example, low_included=False):
    """`value` as a float, if it is a number between `low` and `high`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"Argument `{argument}` must be a float, such as {example}. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    # A NaN is never between them.
    if not (low < value < high or (low_included and low == value)):
        bound = "at least" if low_included else "above"
        raise ValueError(
            f"Argument `{argument}` must be {bound} {low:g} and below {high:g}, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


def share(argument, value, example):
    """`value` as a float, if it is a number from 0 to 1, both included."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value <= 1:
        raise ValueError(
            f"Argument `{argument}` must be a number from 0 to 1, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


def integer(argument, value, low, example):
    """`value` as an int, if it is a whole number of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(
            f"Argument `{argument}` must be an integer, such as {example}. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    if value < low:
        raise ValueError(
            f"Argument `{argument}` must be at least {low}, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    return int(value)


def boolean(argument, value):
    """`value`, if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"Argument `{argument}` must be True or False. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    return value


def optional_string(argument, value, example):
    """`value`, if it is None or a string."""
    if value is not None and not isinstance(value, str):
        raise TypeError(
            f"Argument `{argument}` must be None or a string, such as {example}. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    return value


def patterns(argument, value):
    """`value` as a tuple, if it is a list of regular expressions; None stays None."""
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or not all(isinstance(p, str) for p in value):
        raise TypeError(
            f"Argument `{argument}` must be None or a list of regular expressions, such as "
            f'{argument}=["attention", "kernel$"]. Received: {argument}={value!r}'
        )
    if not value:
        raise ValueError(
            f"Argument `{argument}` must not be an empty list. To {argument} nothing in "
            f"particular, write {argument}=None. Received: {argument}={value!r}"
        )
    for pattern in value:
        _check_pattern(argument, pattern, value)
    return tuple(value)


def factors(argument, value):
    """`value`, if it is a dict of regular expressions to finite numbers of at least 0."""
    wanted = f'a dict of regular expression to factor, such as {argument}={{"embedding": 0.1}}'
    if not isinstance(value, dict) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"Argument `{argument}` must be {wanted}. Received: {argument}={value!r}")
    if not value:
        raise ValueError(f"Argument `{argument}` must not be empty, but {wanted}.")
    for pattern, factor in value.items():
        _check_pattern(argument, pattern, value)
        if (
            isinstance(factor, bool)
            or not isinstance(factor, numbers.Real)
            or not 0 <= factor < math.inf
        ):
            raise ValueError(
                f"Argument `{argument}` must be {wanted}, with finite factors of at least 0. "
                f"Received: {argument}={{{pattern!r}: {factor!r}}}"
            )
    return {pattern: float(factor) for pattern, factor in value.items()}


def probabilities(argument, value):
    """`value` as a tuple of floats, if it is a list of numbers from 0 to 1."""
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(one, numbers.Real) and not isinstance(one, bool) and 0 <= one <= 1
        for one in value
    ):
        raise ValueError(
            f"Argument `{argument}` must be a list of numbers from 0 to 1, such as "
            f"{argument}=[0.25, 0.5, 0.75]. Received: {argument}={value!r}"
        )
    return tuple(float(one) for one in value)


def frequency(argument, value):
    """`value`, if it is "epoch", "batch" or a number of batches."""
    if value in ("epoch", "batch"):
        return value
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(
            f'Argument `{argument}` must be "epoch", "batch" or a whole number of batches above '
            f"0, such as 50. Received: {argument}={value!r}"
        )
    return int(value)


def batches(frequency):
    """How many batches a frequency stands for: infinitely many for "epoch"."""
    if isinstance(frequency, int):
        return frequency
    return {"epoch": math.inf, "batch": 1}[frequency]


def choice(argument, value, allowed):
    """`value`, if it is one of the `allowed` strings."""
    if value not in allowed:
        listed = " or ".join(f'"{one}"' for one in allowed)
        raise ValueError(f"Argument `{argument}` must be {listed}. Received: {argument}={value!r}")
    return value


def matches(argument, patterns, paths, default, strict=True):
    """Which paths some pattern is found in, as a list of booleans; `default` for no patterns.

    Patterns that are found in none are refused, or warned of if not `strict`.
    """
    if patterns is None:
        return [default] * len(paths)
    matched = [any(re.search(pattern, path) for pattern in patterns) for path in paths]
    if paths and not any(matched):
        _refuse_or_warn(
            f"Argument `{argument}` matches no variable. Pass regular expressions that are found "
            f"in the path of one, or None. Received: {argument}={list(patterns)}. "
            f"The variables are:{listed(paths)}",
            strict,
        )
    return matched


def first_match(argument, values, paths, default, strict=True):
    """For each path the value of the first pattern that is found in it, else `default`.

    A pattern that is found in none is refused, or warned of if not `strict`.
    """
    for pattern in values:
        if paths and not any(re.search(pattern, path) for path in paths):
            _refuse_or_warn(
                f"Argument `{argument}` has a pattern that matches no variable. Leave it out, or "
                "pass a regular expression that is found in the path of one. "
                f"Received: {pattern!r}. The variables are:{listed(paths)}",
                strict,
            )
    return [
        next((value for pattern, value in values.items() if re.search(pattern, path)), default)
        for path in paths
    ]


def _refuse_or_warn(message, strict):
    if strict:
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)


def listed(paths):
    """The first paths, each on a line of its own, and how many more there are."""
    more = len(paths) - _PATHS_SHOWN
    rest = [f"and {more} more"] if more > 0 else []
    return "".join(f"\n  {line}" for line in [*paths[:_PATHS_SHOWN], *rest])


def _check_pattern(argument, pattern, received):
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Argument `{argument}` holds a malformed regular expression ({error}). Escape "
            f"special characters with a backslash. Received: {argument}={received!r}"
        ) from error
