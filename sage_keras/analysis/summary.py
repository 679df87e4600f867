"""A table of a model's layers and the sensitivity of their parameters."""

import contextlib
import math
from collections.abc import Callable, Mapping

import keras
import numpy as np

from sage_keras import text_tables
from sage_keras.annotations import Scores, Variable
from sage_keras.groups import group_variables
from sage_keras.optimizers.sage.guided import SensitivityGuided, guided_optimizers
from sage_keras.paths import unique_paths
from sage_keras.scores import read_scores, to_numpy

_REDUNDANT = 0.01  # of the model's mean: parameters below it count as redundant
_UNKNOWN = "-"
_COLUMNS: text_tables.Columns = {
    "Layer": "left",
    "Parameters": "right",
    "Guided": "left",
    "Mean\nsensitivity": "right",
    "Redundant\nshare": "right",
    "Mean\nscale": "right",
}


def summary(
    model: keras.Model,
    sensitivities: Scores | None = None,
    report: Mapping[str, Mapping[str, float]] | None = None,
    print_fn: Callable[[str], object] | None = None,
) -> None:
    """Prints a table of the model's layers and the sensitivity of their parameters.

    The columns are:

    - Layer: each layer that has trainable variables, nested ones as `model/layer`.
    - Parameters: how many trainable ones it has.
    - Guided: `guided`, if a sensitivity-guided optimizer trains it; `watched`, if that optimizer
      only measures (`guide=False`); `plain`, if it takes the base step; or, such as `2 of 3`,
      how many of its variables are guided or watched.
    - Mean sensitivity: over the layer's parameters.
    - Redundant share: how many of its parameters have a sensitivity below 1 % of the model's
      mean.
    - Mean scale: of the learning rate at the last reported step.

    What is not known is a `-`. Means and shares count the parameters whose sensitivity is known.

    Args:
        model: A built `keras.Model`.
        sensitivities: Dict of variable path to an array of the variable's shape, as
            `measure_sensitivity` returns it, or `None` for the bias-corrected moving averages of
            the model's guided optimizers. Defaults to `None`.
        report: Dict of layer, by its name in the table, to a dict with the entry `"scale_mean"`,
            or `None`. The optimizer does not keep the scales of its last step; a
            `SensitivityLogger` reports them. Defaults to `None`.
        print_fn: Function that is called with the whole text, or `None` to print it. Defaults to
            `None`.

    Raises:
        ValueError: If `sensitivities` is `None` and the model has no guided optimizer, or one
            that has not made a step; if the model does not have a path; or if an array is of
            another shape.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(2, use_bias=False, name="dense")
    >>> model = keras.Sequential([keras.Input((2,)), dense], name="tiny")
    >>> summary(model, {"tiny/dense/kernel": [[1.0, 2.0], [3.0, 0.0]]}, print_fn=print)
    Model: "tiny"
    ┏━━━━━━━┳━━━━━━━━━━━━┳━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━━━━━━┳━━━━━━━┓
    ┃       ┃            ┃        ┃        Mean ┃ Redundant ┃  Mean ┃
    ┃ Layer ┃ Parameters ┃ Guided ┃ sensitivity ┃     share ┃ scale ┃
    ┡━━━━━━━╇━━━━━━━━━━━━╇━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━━━━━━╇━━━━━━━┩
    │ dense │          4 │ -      │    1.50e+00 │     25.0% │     - │
    └───────┴────────────┴────────┴─────────────┴───────────┴───────┘
     Trainable parameters: 4
     With a sensitivity: 4
     Mean sensitivity: 1.50e+00
     Redundant share: 25.0%
    """
    variables = model.trainable_variables
    optimizers = guided_optimizers(getattr(model, "optimizer", None))
    if sensitivities is None:
        _check_optimizers(model, optimizers)
        arrays = [_average(optimizers, variable) for variable in variables]
    else:
        scores = read_scores(model, sensitivities)
        arrays = [scores.get(path) for path in unique_paths(variables)]
    known = {id(variable): array for variable, array in zip(variables, arrays)}
    mean = _mean(arrays)

    rows = []
    for name, group in group_variables(model).items():
        arrays_of_group = [known[id(variable)] for variable in group]
        scale = (report or {}).get(name, {}).get("scale_mean")
        rows.append(
            [
                name,
                f"{_count(group):,}",
                _state(model, optimizers, group),
                _format(_mean(arrays_of_group), "{:.2e}"),
                _format(_redundant_share(arrays_of_group, mean), "{:.1%}"),
                _format(scale, "{:.3f}"),
            ]
        )

    measured = sum(array.size for array in arrays if array is not None)
    totals = {
        "Trainable parameters": f"{_count(variables):,}",
        "With a sensitivity": f"{measured:,}",
        "Mean sensitivity": _format(mean, "{:.2e}"),
        "Redundant share": _format(_redundant_share(arrays, mean), "{:.1%}"),
    }
    text_tables.show(print_fn, model.name, _COLUMNS, rows, totals)


def _check_optimizers(model: keras.Model, optimizers: list[SensitivityGuided]) -> None:
    if not optimizers:
        raise ValueError(
            f"The model {model.name!r} has no sensitivity-guided optimizer. Pass `sensitivities`, "
            "such as summary(model, measure_sensitivity(model, data)), or compile it with `Sage`, "
            "or with `Sage(guide=False)` to measure only."
        )
    if not any(int(optimizer.iterations) for optimizer in optimizers):
        raise ValueError(
            f"The optimizer of the model {model.name!r} has not made a step. Train first, or pass "
            "`sensitivities`, such as summary(model, measure_sensitivity(model, data))."
        )


def _average(optimizers: list[SensitivityGuided], variable: Variable) -> np.ndarray | None:
    """The bias-corrected average of the optimizer that guides the variable, or None."""
    for optimizer in optimizers:
        with contextlib.suppress(ValueError):  # another one's variable
            return to_numpy(optimizer.sensitivity(variable))
    return None


def _state(model: keras.Model, optimizers: list[SensitivityGuided], group: list[Variable]) -> str:
    """Whether a group's variables are guided, as text."""
    if not getattr(model, "compiled", False) or not all(one.built for one in optimizers):
        return _UNKNOWN
    states = [_state_of(optimizers, variable) for variable in group]
    special = [state for state in states if state != "plain"]
    if not special:
        return "plain"
    if len(special) == len(states):
        return special[0]
    return f"{len(special)} of {len(states)}"


def _state_of(optimizers: list[SensitivityGuided], variable: Variable) -> str:
    for optimizer in optimizers:
        with contextlib.suppress(ValueError):
            optimizer.sensitivity(variable)
            return "guided" if optimizer.guide else "watched"
    return "plain"


def _count(variables: list[Variable]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _mean(arrays: list[np.ndarray | None]) -> float | None:
    known = [array for array in arrays if array is not None]
    size = sum(array.size for array in known)
    return sum(float(np.sum(array, dtype="float64")) for array in known) / size if size else None


def _redundant_share(arrays: list[np.ndarray | None], mean: float | None) -> float | None:
    known = [array for array in arrays if array is not None]
    size = sum(array.size for array in known)
    if not size or mean is None:
        return None
    if math.isnan(mean):
        return mean
    return sum(int(np.count_nonzero(array < _REDUNDANT * mean)) for array in known) / size


def _format(value: float | None, style: str) -> str:
    return _UNKNOWN if value is None else style.format(value)
