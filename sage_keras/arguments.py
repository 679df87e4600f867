"""Checks of the arguments that users pass: what is wrong, what was passed, what to write."""

import difflib
import math
import numbers
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import keras

from sage_keras.annotations import Patterns

_PATHS_SHOWN = 8
_NO_ARGUMENTS = ("self", "kwargs", "__class__")
# What other libraries call them, and what no likeness of letters finds.
_KNOWN_MISTAKES = {
    "lr": "learning_rate",
    "eps": "epsilon",
    "wd": "weight_decay",
    "beta0": "beta_3",
    "clip_norm": "clipnorm",
    "max_grad_norm": "global_clipnorm",
    "accumulation_steps": "gradient_accumulation_steps",
}
_Value = TypeVar("_Value")


def passed(names: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a method that begins with `passed(locals())`, to hand them all on."""
    known = {name: value for name, value in names.items() if name not in _NO_ARGUMENTS}
    return known | names["kwargs"]


def check_names(function: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuses names of arguments that nobody takes, and says which is probably meant."""
    known = list(known)
    for name in names:
        if name in known:
            continue
        meant = _KNOWN_MISTAKES.get(name) or next(
            iter(difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.7)), None
        )
        advice = f"Did you mean `{meant}`?" if meant in known else f"It takes {', '.join(known)}."
        raise ValueError(f"`{function}` has no argument `{name}`. {advice}")


def number(
    argument: str,
    value: Any,
    low: float,
    high: float,
    example: str,
    low_included: bool = False,
    high_included: bool = False,
) -> float:
    """`value` as a float, if it is a number between `low` and `high`."""
    if not _is_real(value):
        raise TypeError(
            f"Argument `{argument}` must be a float, such as {example}. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    # A NaN is never between them.
    inside = low < value < high
    if not (inside or (low_included and low == value) or (high_included and high == value)):
        lowest = f"at least {low:g}" if low_included else f"above {low:g}"
        highest = f"at most {high:g}" if high_included else f"below {high:g}"
        raise ValueError(
            f"Argument `{argument}` must be {lowest} and {highest}, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


def share(argument: str, value: Any, example: float) -> float:
    """`value` as a float, if it is a number from 0 to 1, both included."""
    if not _is_real(value) or not 0 <= value <= 1:
        raise ValueError(
            f"Argument `{argument}` must be a number from 0 to 1, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    return float(value)


def integer(argument: str, value: Any, low: int, example: int, high: float = math.inf) -> int:
    """`value` as an int, if it is a whole number of at least `low` and at most `high`."""
    if not _is_integer(value):
        raise TypeError(
            f"Argument `{argument}` must be an integer, such as {example}. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    if value < low:
        raise ValueError(
            f"Argument `{argument}` must be at least {low}, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    if value > high:
        raise ValueError(
            f"Argument `{argument}` must be at most {high}, such as {example}. "
            f"Received: {argument}={value!r}"
        )
    return int(value)


def boolean(argument: str, value: Any) -> bool:
    """`value`, if it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(
            f"Argument `{argument}` must be True or False. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    return value


def optional_string(argument: str, value: Any, example: str) -> str | None:
    """`value`, if it is None or a string."""
    if value is not None and not isinstance(value, str):
        raise TypeError(
            f"Argument `{argument}` must be None or a string, such as {example}. "
            f"Received: {argument}={value!r} (of type {type(value).__name__})"
        )
    return value


def patterns(argument: str, value: Any) -> tuple[str, ...] | None:
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


def factors(argument: str, value: Any) -> dict[str, float]:
    """`value`, if it is a dict of regular expressions to finite numbers of at least 0."""
    wanted = f'a dict of regular expression to factor, such as {argument}={{"embedding": 0.1}}'
    if not isinstance(value, dict) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"Argument `{argument}` must be {wanted}. Received: {argument}={value!r}")
    if not value:
        raise ValueError(f"Argument `{argument}` must not be empty, but {wanted}.")
    for pattern, factor in value.items():
        _check_pattern(argument, pattern, value)
        if not _is_real(factor) or not 0 <= factor < math.inf:
            raise ValueError(
                f"Argument `{argument}` must be {wanted}, with finite factors of at least 0. "
                f"Received: {argument}={{{pattern!r}: {factor!r}}}"
            )
    return {pattern: float(factor) for pattern, factor in value.items()}


def probabilities(argument: str, value: Any) -> tuple[float, ...]:
    """`value` as a tuple of floats, if it is a list of numbers from 0 to 1."""
    if not isinstance(value, (list, tuple)) or not all(
        _is_real(one) and 0 <= one <= 1 for one in value
    ):
        raise ValueError(
            f"Argument `{argument}` must be a list of numbers from 0 to 1, such as "
            f"{argument}=[0.25, 0.5, 0.75]. Received: {argument}={value!r}"
        )
    return tuple(float(one) for one in value)


def frequency(argument: str, value: Any) -> str | int:
    """`value`, if it is "epoch", "batch" or a number of batches."""
    if value in ("epoch", "batch"):
        return str(value)
    if not _is_integer(value) or value < 1:
        raise ValueError(
            f'Argument `{argument}` must be "epoch", "batch" or a whole number of batches above '
            f"0, such as 50. Received: {argument}={value!r}"
        )
    return int(value)


def batches(frequency: str | int) -> float:
    """How many batches a frequency stands for: infinitely many for "epoch"."""
    if isinstance(frequency, int):
        return frequency
    return {"epoch": math.inf, "batch": 1}[frequency]


def choice(argument: str, value: Any, allowed: Sequence[str]) -> str:
    """The one of the `allowed` strings that equals `value`, which may be a dtype of NumPy's."""
    for one in allowed:
        if value == one:
            return one
    listed = " or ".join(f'"{one}"' for one in allowed)
    raise ValueError(f"Argument `{argument}` must be {listed}. Received: {argument}={value!r}")


def names(argument: str, value: Any, known: Sequence[str]) -> tuple[str, ...]:
    """`value` as a tuple, if it is a list of known names; all of them for "all"."""
    if isinstance(value, str) and value == "all":
        return tuple(known)
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise TypeError(
            f'Argument `{argument}` must be a list of names, such as {argument}=["{known[0]}"], or '
            f'"all". Received: {argument}={value!r}'
        )
    unknown = [one for one in value if one not in known]
    if unknown:
        raise ValueError(
            f"Argument `{argument}` must be a list of names of {', '.join(known)}, or "
            f'"all". Unknown are {unknown}. Received: {argument}={value!r}'
        )
    return tuple(value)


def matches(
    argument: str, patterns: Patterns, paths: Sequence[str], default: bool, strict: bool = True
) -> list[bool]:
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


def first_match(
    argument: str,
    values: dict[str, _Value],
    paths: Sequence[str],
    default: _Value,
    strict: bool = True,
) -> list[_Value]:
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


def chosen(
    include: Any, exclude: Any, paths: Sequence[str], default: Sequence[bool] | None = None
) -> list[bool]:
    """Which paths the arguments `include` and `exclude` choose; at least one.

    Without `include` it is all, or those that `default` is true for.
    """
    included = matches("include", patterns("include", include), paths, default=True)
    excluded = matches("exclude", patterns("exclude", exclude), paths, default=False)
    if include is None and default is not None:
        included = list(default)
    both = [yes and not no for yes, no in zip(included, excluded)]
    if not any(both):
        raise ValueError(
            "Arguments `include` and `exclude` leave no variable. Received: "
            f"include={include!r}, exclude={exclude!r}. The variables are:{listed(paths)}"
        )
    return both


def built_model(argument: str, model: Any) -> keras.Model:
    """`model`, if it is a Keras model that has its variables."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Argument `{argument}` must be a `keras.Model`. Received: {type(model).__name__}"
        )
    if not model.built:
        raise ValueError(
            f"The model {model.name!r} is not built. Call it on a batch of data, or `model.build` "
            "with the shape of its input, first."
        )
    return model


def _refuse_or_warn(message: str, strict: bool) -> None:
    if strict:
        raise ValueError(message)
    warnings.warn(message, stacklevel=4)


def listed(paths: Sequence[str]) -> str:
    """The first paths, each on a line of its own, and how many more there are."""
    more = len(paths) - _PATHS_SHOWN
    rest = [f"and {more} more"] if more > 0 else []
    return "".join(f"\n  {line}" for line in [*paths[:_PATHS_SHOWN], *rest])


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_pattern(argument: str, pattern: str, received: object) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"Argument `{argument}` holds a malformed regular expression ({error}). Escape "
            f"special characters with a backslash. Received: {argument}={received!r}"
        ) from error
