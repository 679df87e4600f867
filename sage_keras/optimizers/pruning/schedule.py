"""How many weights are pruned at which step, as pure functions.

Between the steps `begin` and `end` the sparsity rises, fast at first and slowly in the end:

    sparsity(t) = final_sparsity * (1 - ((end - t) / (end - begin))^3)

It takes a new value at the update steps: every `update_freq` steps from `begin` on, and at `end`.

Nothing here has state, and all of it is exact: in binary 0.15 * 10 is below 1.5.

Reference:
    - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878)
"""

import fractions
import functools
import math
from typing import Any

import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Tensor

_MOST_STEPS = 2**31 - 1  # iterations may be counted in int32


def begin_and_end(
    total_steps: Any, begin: float, end: float, begin_step: Any, end_step: Any
) -> tuple[int, int]:
    """The steps at which the sparsity begins to rise and is reached, from a user's arguments.

    Args:
        total_steps: Integer, the number of updates of the whole training; or `None`.
        begin: Float, the share of `total_steps` at which it begins to rise.
        end: Float, the share at which it is reached.
        begin_step: Integer, the first of the steps itself; or `None`.
        end_step: Integer, the second; or `None`.

    Returns:
        Tuple of two integers, the second above the first.

    Raises:
        TypeError: If one of the steps is no integer.
        ValueError: If not exactly one of the two forms is passed, a step is out of range, or no
            step is left to prune at.

    Example:

    >>> begin_and_end(1000, 0.1, 0.7, None, None)
    (100, 700)
    """
    given = begin_step is not None and end_step is not None
    none = begin_step is None and end_step is None
    if not (none if total_steps is not None else given):
        raise ValueError(
            "Pass either `total_steps`, the number of updates of the whole training (such as "
            "epochs * steps per epoch), or both of `begin_step` and `end_step`. Received: "
            f"total_steps={total_steps!r}, begin_step={begin_step!r}, end_step={end_step!r}"
        )
    if total_steps is None:
        first = arguments.integer("begin_step", begin_step, low=0, example=100)
        last = arguments.integer(
            "end_step", end_step, low=first + 1, example=first + 1000, high=_MOST_STEPS
        )
        return first, last
    total = arguments.integer("total_steps", total_steps, low=1, example=1000, high=_MOST_STEPS)
    first, last = share_of_steps(total, begin), share_of_steps(total, end)
    if last <= first:
        raise ValueError(
            "Arguments `total_steps`, `begin` and `end` leave no step to prune at: there must "
            "be one between their products. Raise `total_steps`, or pass `begin_step` and "
            f"`end_step`. Received: total_steps={total_steps!r}, begin={begin!r}, end={end!r}"
        )
    return first, last


def share_of_steps(total_steps: int, share: float) -> int:
    """The step that ends a part of all steps.

    Args:
        total_steps: Integer, the number of updates of the whole training.
        share: Float from 0 to 1.

    Returns:
        Integer, `total_steps * share` without its fraction, in decimal arithmetic.

    Example:

    >>> share_of_steps(100, 0.29), share_of_steps(1000, 0.7)
    (29, 700)
    """
    return math.floor(total_steps * _decimal(share))


def update_count(begin: int, end: int, update_freq: int) -> int:
    """How many update steps there are.

    Args:
        begin: Integer, the step at which the sparsity begins to rise.
        end: Integer above it, the step at which it is reached.
        update_freq: Integer, the steps from one update to the next.

    Returns:
        Integer.

    Example:

    >>> update_count(begin=10, end=35, update_freq=10)  # at 20, 30 and 35
    3
    """
    return -((begin - end) // update_freq)


@functools.lru_cache(maxsize=1024)
def pruned_counts(
    size: int, final_sparsity: float, begin: int, end: int, update_freq: int
) -> np.ndarray:
    """How many of `size` weights are zero from each update step on.

    Args:
        size: Integer, the number of weights.
        final_sparsity: Float in (0, 1), the share that is zero in the end.
        begin: Integer, the step at which the sparsity begins to rise.
        end: Integer above it, the step at which it is reached.
        update_freq: Integer, the steps from one update to the next.

    Returns:
        Int32 array, one count for each update step, rounded to the nearest integer and a half to
        the even one.

    Example:

    >>> pruned_counts(1000, 0.8, begin=0, end=40, update_freq=10).tolist()
    [462, 700, 788, 800]
    """
    length = end - begin
    whole = size * _decimal(final_sparsity)
    steps = range(1, update_count(begin, end, update_freq) + 1)
    left = (max(length - step * update_freq, 0) for step in steps)
    counts = [round(whole * (length**3 - rest**3) / length**3) for rest in left]
    return np.array(counts, dtype="int32")


def is_due(iterations: Tensor, begin: int, end: int, update_freq: int) -> Tensor:
    """Whether weights are chosen at the end of a step.

    Args:
        iterations: Integer tensor, the number of the step, from 1 on.
        begin: Integer, the step at which the sparsity begins to rise.
        end: Integer above it, the step at which it is reached.
        update_freq: Integer, the steps from one update to the next.

    Returns:
        Boolean tensor.

    Example:

    >>> [step for step in range(40) if bool(is_due(step, begin=10, end=35, update_freq=10))]
    [20, 30, 35]
    """
    past = ops.subtract(iterations, begin)
    regular = ops.logical_and(
        ops.logical_and(ops.greater(past, 0), ops.less(iterations, end)),
        ops.equal(ops.mod(past, update_freq), 0),
    )
    return ops.logical_or(regular, ops.equal(iterations, end))


def kept_count(
    size: int, final_sparsity: float, iterations: Tensor, begin: int, end: int, update_freq: int
) -> Tensor:
    """How many of `size` weights are kept at an update step, and until the next.

    Args:
        size: Integer, the number of weights.
        final_sparsity: Float in (0, 1), the share that is zero in the end.
        iterations: Integer tensor, the number of the step, from 1 on.
        begin: Integer, the step at which the sparsity begins to rise.
        end: Integer above it, the step at which it is reached.
        update_freq: Integer, the steps from one update to the next.

    Returns:
        Int32 tensor.

    Example:

    >>> int(kept_count(1000, 0.8, 20, begin=0, end=40, update_freq=10))
    300
    """
    counts = size - pruned_counts(size, final_sparsity, begin, end, update_freq)
    past = ops.subtract(iterations, begin)
    update = ops.floor_divide(ops.add(past, update_freq - 1), update_freq)
    update = ops.clip(ops.cast(update, "int32"), 1, len(counts))
    return ops.take(ops.convert_to_tensor(counts, "int32"), ops.subtract(update, 1))


def _decimal(number: float) -> fractions.Fraction:
    return fractions.Fraction(str(number))
