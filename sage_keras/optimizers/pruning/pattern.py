"""Two of each four weights in a row, along the inputs of a layer (2:4)."""

import itertools

from keras import ops

from sage_keras.annotations import Tensor, Variable
from sage_keras.optimizers.columns import column_shape
from sage_keras.paths import variable_path
from sage_keras.thresholds import ordered

_GROUP, _KEPT = 4, 2


def check(variables: list[Variable]) -> None:
    """Refuses variables of which the inputs cannot be divided by four."""
    for variable in variables:
        shape = tuple(variable.shape)
        if len(shape) < 2 or shape[_inputs_axis(variable)] % _GROUP:
            raise ValueError(
                'Argument `pattern="2:4"` prunes two of each four weights along the inputs of a '
                "layer, which must be two axes or more with a number of inputs that is divisible "
                f"by four. Leave {variable_path(variable)}, of the shape {shape}, out by "
                "`exclude`."
            )


def best_two_beyond_all(variable: Variable, score: Tensor) -> Tensor:
    """The scores, but infinite for the best two of each four, which so are never the lowest.

    Of equal scores the first are the best ones.
    """
    axis = _inputs_axis(variable)
    shape = tuple(score.shape)
    grouped = ops.reshape(score, (*shape[:axis], shape[axis] // _GROUP, _GROUP, *shape[axis + 1 :]))
    parts = [ops.take(ordered(grouped), place, axis=axis + 1) for place in range(_GROUP)]
    better = [ops.zeros_like(part) for part in parts]  # how many of the others are better
    for first, second in itertools.combinations(range(_GROUP), 2):
        wins = ops.cast(ops.greater_equal(parts[first], parts[second]), "int32")
        better[second] = ops.add(better[second], wins)
        better[first] = ops.add(better[first], ops.subtract(1, wins))
    best = ops.less(ops.stack(better, axis=axis + 1), _KEPT)
    return ops.where(ops.reshape(best, shape), float("inf"), score)


def _inputs_axis(variable: Variable) -> int:
    """The last axis that indexes inputs: all others are outputs, or the places of a kernel."""
    columns = column_shape(variable_path(variable), variable.shape)
    axes = [axis for axis, size in enumerate(columns) if size > 1]
    return axes[-1] if axes else 0
