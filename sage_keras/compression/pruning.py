"""Zeroes the weights of the lowest scores: on trial or for good."""

import fractions

import keras
import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Arrays, Patterns, Scores
from sage_keras.compression.zeros import Sparsity, count_zeros
from sage_keras.groups import group_variables
from sage_keras.optimizers.base import find_optimizers
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.optimizers.patterns import is_weight_matrix
from sage_keras.scores import by_path, read_sortable
from sage_keras.thresholds import largest_of_arrays

SCOPES = ("global", "layer", "variable")


def prune(
    model: keras.Model,
    scores: Scores | str,
    sparsity: float,
    scope: str = "global",
    include: Patterns = None,
    exclude: Patterns = None,
) -> Sparsity:
    """Zeroes the weights of the lowest scores, for good.

    Of `n` weights, `sparsity * n` are zeroed, rounded to the nearest integer (a half to the even
    one). `sparsity` is taken as the decimal number that is written, so that 0.7 of 10 is 7. Of
    equal scores, those that come first are kept, as in training: in the order of `scores`, within a
    variable row by row. `sage_keras.analysis.pruned` does the same on trial.

    A later fine-tuning moves the zeros, unless the optimizer keeps them, as `KeepZeros` does. To
    prune while training, which loses less at a high sparsity, compile with `Platon`.

    Args:
        model: A built `keras.Model`. Its weights are changed in place.
        scores: Dict of variable path to an array of the variable's shape, as
            `measure_sensitivity` returns it; or `"magnitude"` or `"random"`. Variables that the
            dict does not name are left alone.
        sparsity: Float in [0, 1], the share of weights to zero.
        scope: `"global"` to take the lowest scores of all the chosen variables together, `"layer"`
            to zero the same share of each layer, or `"variable"` of each variable. Defaults to
            `"global"`.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Variables that match one are pruned, whatever their shape. Defaults to `None`, the
            variables of two axes or more but embeddings and biases, as `GradualPruning` has it.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.

    Returns:
        A `Sparsity` of the chosen variables, as they are now.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: Before anything is changed, if the model is not built or holds the mixed weights
            of an optimizer, if an argument is out of range, if the model does not have a path, or
            if an array is of another shape or has NaNs.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(1, use_bias=False, name="dense")
    >>> model = keras.Sequential([keras.Input((4,)), dense], name="tiny")
    >>> _ = dense.kernel.assign([[3.0], [-1.0], [4.0], [2.0]])
    >>> prune(model, "magnitude", sparsity=0.5).total
    0.5
    >>> print(model.get_weights()[0].ravel())
    [3. 0. 4. 0.]

    Reference:
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878)
    """
    arguments.built_model("model", model)
    sparsity = arguments.share("sparsity", sparsity, example=0.8)
    arguments.choice("scope", scope, SCOPES)
    _refuse_mixed_weights(model)
    arrays = read_sortable(model, scores, "scores")
    variables = by_path(model)
    matrices = [is_weight_matrix(variables[path]) for path in arrays]
    chosen = arguments.chosen(include, exclude, list(arrays), default=matrices)
    arrays = {path: array for (path, array), yes in zip(arrays.items(), chosen) if yes}
    zero(model, masks(model, arrays, sparsity, scope))
    return count_zeros(model, [variables[path] for path in arrays])


def masks(model: keras.Model, scores: Arrays, share: float, scope: str) -> Arrays:
    """Which weights to zero: dict of path to boolean array."""
    found: Arrays = {}
    for pool in _pools(model, list(scores), scope):
        arrays = [scores[path] for path in pool]
        size = sum(array.size for array in arrays)
        kept = largest_of_arrays(arrays, size - _count(share, size))
        found.update(zip(pool, map(np.logical_not, kept)))
    return found


def zero(model: keras.Model, masks: Arrays) -> None:
    """Zeroes the weights that masks are true for."""
    variables = by_path(model)
    for path, mask in masks.items():
        value = variables[path].value
        variables[path].assign(ops.where(mask, ops.zeros_like(value), value))


def _refuse_mixed_weights(model: keras.Model) -> None:
    for optimizer in find_optimizers(getattr(model, "optimizer", None), WeightMixing):
        if optimizer.is_mixed:
            raise ValueError(
                f"The model {model.name!r} holds the mixed weights of {type(optimizer).__name__}. "
                "Prune the true ones, inside `with optimizer.true_weights():`."
            )


def _pools(model: keras.Model, paths: list[str], scope: str) -> list[list[str]]:
    """The paths whose weights are ranked together."""
    if scope == "global":
        return [paths]
    if scope == "variable":
        return [[path] for path in paths]
    names = {id(variable): path for path, variable in by_path(model).items()}
    layers = [[names[id(v)] for v in group] for group in group_variables(model).values()]
    named = [[path for path in layer if path in paths] for layer in layers]
    return [pool for pool in named if pool]


def _count(share: float, size: int) -> int:
    # str() gives back the decimal that was written; 0.15 * 10 in floats is below 1.5.
    return round(fractions.Fraction(str(share)) * size)
