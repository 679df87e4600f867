"""How many weights are pruned at which step, as pure functions of integers.

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

import numpy as np


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


def _decimal(number: float) -> fractions.Fraction:
    return fractions.Fraction(str(number))
