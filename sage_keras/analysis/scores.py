"""Scores of parameters: dicts of variable path to an array of the variable's shape.

What `measure_sensitivity` returns is one; here are the baselines that it is compared with.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from sage_keras.annotations import Arrays, Scores, Variable
from sage_keras.paths import unique_paths

_PATHS_SHOWN = 8


def magnitude_scores(model: keras.Model) -> Arrays:
    """The magnitudes of the weights, as scores for pruning: the classic baseline.

    Args:
        model: A built `keras.Model`.

    Returns:
        Dict of variable path to a NumPy array, `|theta|` of each trainable variable.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", name="dense")
    >>> model = keras.Sequential([keras.Input((1,)), dense], name="tiny")
    >>> magnitude_scores(model)["tiny/dense/kernel"].tolist()
    [[1.0, 1.0]]
    """
    return {path: np.abs(to_numpy(variable)) for path, variable in by_path(model).items()}


def random_scores(model: keras.Model, seed: int = 0) -> Arrays:
    """Random scores for pruning: what any other choice has to beat.

    Args:
        model: A built `keras.Model`.
        seed: Int, or what else `numpy.random.default_rng` takes. Equal seeds give equal scores,
            on every backend. Defaults to `0`.

    Returns:
        Dict of variable path to a NumPy array, uniform in [0, 1), for each trainable variable.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    >>> [scores.shape for scores in random_scores(model, seed=7).values()]
    [(3, 2), (2,)]
    """
    generator = np.random.default_rng(seed)
    return {
        path: generator.random(tuple(variable.shape), "float32")
        for path, variable in by_path(model).items()
    }


def by_path(model: keras.Model) -> dict[str, Variable]:
    """Dict of unique path to trainable variable."""
    return dict(zip(unique_paths(model.trainable_variables), model.trainable_variables))


def read_scores(model: keras.Model, scores: Scores, argument: str = "sensitivities") -> Arrays:
    """The scores as NumPy arrays of one float dtype, if they fit the model's variables."""
    if not isinstance(scores, dict) or not scores:
        raise ValueError(
            f"Argument `{argument}` must be a dict of variable path to array, as "
            f"`measure_sensitivity` returns it. Received: {type(scores).__name__}"
            + (" without entries" if isinstance(scores, dict) else "")
        )
    variables = by_path(model)
    unknown = [path for path in scores if path not in variables]
    if unknown:
        raise ValueError(
            f"Argument `{argument}` names variables that the model {model.name!r} does not "
            f"have, or does not train: {_listed(unknown)}. It has: {_listed(list(variables))}"
        )
    arrays = {path: to_numpy(array) for path, array in scores.items()}
    for path, array in arrays.items():
        if array.shape != tuple(variables[path].shape):
            raise ValueError(
                f"Argument `{argument}` has an array of the shape {array.shape} for "
                f"{path!r}, where the model's variable has {tuple(variables[path].shape)}."
            )
    dtype = np.result_type(*arrays.values())
    return {path: np.asarray(array, dtype=dtype) for path, array in arrays.items()}


def to_numpy(values: Any) -> np.ndarray:
    """A tensor or array-like as an array of at least float32: NumPy cannot sort bfloat16."""
    array: np.ndarray = np.asarray(ops.convert_to_numpy(values))
    return array.astype("float64" if array.dtype == "float64" else "float32", copy=False)


def _listed(paths: list[str]) -> str:
    more = len(paths) - _PATHS_SHOWN
    return ", ".join(map(repr, paths[:_PATHS_SHOWN])) + (f" and {more} more" if more > 0 else "")
