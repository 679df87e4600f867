"""Scores of weights: by which it is decided what is pruned, what trains, and what gets a rank.

For a weight `theta` with gradient `g` of the loss, each under the name that all of this package
takes for it. A low score says that the weight can go:

    magnitude     |theta|                                       `magnitude`
    sensitivity   |theta * g|, or its moving average            `sensitivity`, `moving_average`
    confidence    average * U, with U the moving average of
                  |sensitivity - average|                       `uncertainty`, `confidence`
    movement      the sum of -theta * g over steps              `movement`
    fisher        the sum or mean of g^2 over steps             `fisher`
    random        uniform in [0, 1)                             `random`

These are pure functions of tensors, and nothing in them knows of Keras variables or optimizers.
Below them are scores of a model: dicts of variable path to an array of the variable's shape.

Reference:
    - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), magnitude.
    - [Liang et al., 2022](https://arxiv.org/abs/2202.02664), sensitivity.
    - [Zhang et al., 2022](https://arxiv.org/abs/2206.12562), confidence (PLATON).
    - [Sanh et al., 2020](https://arxiv.org/abs/2005.07683), movement.
    - [Xu et al., 2021](https://arxiv.org/abs/2109.05687), Fisher (Child-Tuning).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Arrays, Scores, Tensor, Variable
from sage_keras.paths import unique_paths
from sage_keras.random_bits import random_bits
from sage_keras.sensitivity import moving_average as moving_average
from sage_keras.sensitivity import sensitivity as sensitivity

SCORES = ("magnitude", "sensitivity", "confidence", "movement", "fisher", "random")
# Those that follow from the weights alone. The others need gradients.
WITHOUT_DATA = ("magnitude", "random")
_RANDOM_BITS = 24  # all that float32 tells apart in [0, 1)
_PATHS_SHOWN = 8


def magnitude(weight: Tensor) -> Tensor:
    """The magnitude `|weight|` of every element.

    Args:
        weight: Tensor, the weights.

    Returns:
        A non-negative tensor of the same shape.

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(magnitude(ops.array([-2.0, 0.5]))).tolist()
    [2.0, 0.5]
    """
    return ops.abs(weight)


def uncertainty(value: Tensor, average: Tensor) -> Tensor:
    """How far a sensitivity is from its moving average.

    Args:
        value: Tensor, this step's sensitivity.
        average: Tensor of the same shape, its moving average, this step's value included.

    Returns:
        `|value - average|`, of which PLATON takes a moving average in turn.

    Example:

    >>> float(uncertainty(2.0, 3.5))
    1.5
    """
    return ops.abs(ops.subtract(value, average))


def confidence(average: Tensor, average_uncertainty: Tensor) -> Tensor:
    """The score of PLATON: the upper confidence bound of the sensitivity.

    Args:
        average: Tensor, the moving average of the sensitivity.
        average_uncertainty: Tensor of the same shape, that of the `uncertainty`.

    Returns:
        `average * average_uncertainty`.

    Example:

    >>> float(confidence(3.0, 0.5))
    1.5
    """
    return ops.multiply(average, average_uncertainty)


def movement(weight: Tensor, gradient: Tensor) -> Tensor:
    """How far a step of gradient descent moves every weight away from zero, to first order.

    Args:
        weight: Tensor, the weights at which the gradient was taken.
        gradient: Tensor of the same shape, the gradient of the loss.

    Returns:
        `-weight * gradient`: below zero where the weight shrinks. The score is its sum over steps.

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(movement(ops.array([2.0, 2.0]), ops.array([3.0, -1.0]))).tolist()
    [-6.0, 2.0]
    """
    return ops.negative(ops.multiply(weight, gradient))


def fisher(gradient: Tensor) -> Tensor:
    """The squared gradient: one step's part of the diagonal of the empirical Fisher information.

    Args:
        gradient: Tensor, the gradient of the loss.

    Returns:
        A non-negative tensor of the same shape. The score is its sum or mean over steps.

    Example:

    >>> float(fisher(-3.0))
    9.0
    """
    return ops.square(gradient)


def random(seed: int | Tensor, position: int | Tensor, shape: Sequence[int]) -> Tensor:
    """Random scores, the same on every backend.

    Args:
        seed: Integer, or int32 scalar tensor.
        position: Integer, or scalar tensor of integers: another one for each variable.
        shape: Tuple of integers, the shape of the variable.

    Returns:
        Float32 tensor, uniform in [0, 1).

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(random(seed=1, position=0, shape=(2,))).tolist()
    [0.43556123971939087, 0.4862455725669861]
    """
    bits = ops.bitwise_and(random_bits(seed, position, shape), 2**_RANDOM_BITS - 1)
    return ops.multiply(ops.cast(bits, "float32"), 2.0**-_RANDOM_BITS)


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
        seed: Int. Equal seeds give equal scores, on every backend. Defaults to `0`.

    Returns:
        Dict of variable path to a NumPy array, uniform in [0, 1), for each trainable variable.

    Example:

    >>> import keras
    >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="dense")])
    >>> [scores.shape for scores in random_scores(model, seed=7).values()]
    [(3, 2), (2,)]
    """
    seed = arguments.integer("seed", seed, low=0, example=0)
    return {
        path: to_numpy(random(seed, position, tuple(variable.shape)))
        for position, (path, variable) in enumerate(by_path(model).items())
    }


def by_path(model: keras.Model) -> dict[str, Variable]:
    """Dict of unique path to trainable variable."""
    return dict(zip(unique_paths(model.trainable_variables), model.trainable_variables))


def read_scores(
    model: keras.Model, scores: Scores | str, argument: str = "sensitivities"
) -> Arrays:
    """The scores as NumPy arrays of one float dtype, if they fit the model's variables."""
    if isinstance(scores, str):
        return _named_scores(model, scores, argument)
    if not isinstance(scores, dict) or not scores:
        raise ValueError(
            f"Argument `{argument}` must be a dict of variable path to array, as "
            "`measure_sensitivity` returns it, or "
            f"{_quoted(WITHOUT_DATA)}. Received: {type(scores).__name__}"
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


def read_sortable(
    model: keras.Model, scores: Scores | str, argument: str = "sensitivities"
) -> Arrays:
    """What `read_scores` returns, if it can be ranked."""
    arrays = read_scores(model, scores, argument)
    for path, array in arrays.items():
        if np.isnan(array).any():
            raise ValueError(
                f"Argument `{argument}` has NaNs for {path!r}, which cannot be ranked. Measure "
                "on data that give a finite loss, or drop the variable from the dict."
            )
    return arrays


def to_numpy(values: Any) -> np.ndarray:
    """A tensor or array-like as an array of at least float32: NumPy cannot sort bfloat16."""
    array: np.ndarray = np.asarray(ops.convert_to_numpy(values))
    return array.astype("float64" if array.dtype == "float64" else "float32", copy=False)


def _named_scores(model: keras.Model, name: str, argument: str) -> Arrays:
    arguments.choice(argument, name, SCORES)
    if name not in WITHOUT_DATA:
        raise ValueError(
            f"Argument `{argument}`: {name!r} follows from gradients, so that a name is not "
            "enough. Pass a dict of variable path to array, as `measure_sensitivity(model, data)` "
            f"returns it, or {_quoted(WITHOUT_DATA)}."
        )
    return magnitude_scores(model) if name == "magnitude" else random_scores(model)


def _quoted(names: Sequence[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _listed(paths: list[str]) -> str:
    more = len(paths) - _PATHS_SHOWN
    return ", ".join(map(repr, paths[:_PATHS_SHOWN])) + (f" and {more} more" if more > 0 else "")
