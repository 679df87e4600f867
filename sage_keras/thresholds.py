"""The largest of many scores, without sorting them: pure functions of tensors.

Floats are ordered as the integers that their bits spell, so that a threshold is found bit by bit:
each bit takes one count of the scores that reach it. In XLA sorting takes many times as long, and
counts need no more than sums of weights that are spread over devices.

    threshold, at_least    the scores that reach the count-th largest one, all ties included
    largest                exactly so many scores of several tensors, ties by position
    largest_of_arrays      the same of NumPy arrays, in double precision too, by partition

Nothing here has state, and nothing knows of Keras variables or optimizers.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from keras import ops

from sage_keras.annotations import Tensor
from sage_keras.backend import compiled_loop

# Positions and counts are int32.
MOST_SCORES = 2**31 - 1


def threshold(scores: Tensor, count: int) -> Tensor:
    """The `count`-th largest score, as the bits of a float32.

    Args:
        scores: Float32 tensor without negative values, of any shape.
        count: Integer from 1 to the number of scores.

    Returns:
        Int32 scalar tensor, as `at_least` takes it.

    Example:

    >>> from keras import ops
    >>> bits = threshold(ops.array([0.5, 3.0, 2.0, 1.0]), count=2)
    >>> float(ops.view(bits, "float32"))
    2.0
    """
    return _threshold(ops.view(scores, "int32"), ops.convert_to_tensor(count, "int32"))


def at_least(scores: Tensor, threshold: Tensor) -> Tensor:
    """Which scores reach a threshold.

    They are compared bit by bit, as they were when the threshold was taken; as floats, backends
    disagree on the tiniest.

    Args:
        scores: Float32 tensor without negative values.
        threshold: Int32 scalar tensor, the bits of a float32.

    Returns:
        Boolean tensor of the shape of `scores`.

    Example:

    >>> from keras import ops
    >>> scores = ops.array([0.5, 3.0, 2.0, 2.0])
    >>> ops.convert_to_numpy(at_least(scores, threshold(scores, count=2))).tolist()
    [False, True, True, True]
    """
    return ops.greater_equal(ops.view(scores, "int32"), threshold)


def largest(scores: Sequence[Tensor], count: int | Tensor) -> list[Tensor]:
    """Which scores are the `count` largest of all, no more and no less.

    Of equal scores those that come first are taken: in the order of the tensors, and within a
    tensor row by row. Zero and minus zero are equal. What is not a number stands beyond the
    infinity of its sign.

    Args:
        scores: List of float32 tensors of any shapes, at most 2^31 - 1 scores together.
        count: Integer, or int32 scalar tensor, from 0 to the number of scores.

    Returns:
        List of boolean tensors, of the shapes of `scores`.

    Example:

    >>> from keras import ops
    >>> scores = [ops.array([0.5, 2.0, -1.0]), ops.array([[2.0], [3.0]])]
    >>> masks = largest(scores, count=2)
    >>> [ops.convert_to_numpy(mask).tolist() for mask in masks]
    [[False, True, False], [[False], [True]]]
    """
    if not scores:
        return []
    masks: list[Tensor] = _largest(list(scores), ops.convert_to_tensor(count, "int32"))
    return masks


def largest_of_arrays(scores: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Which scores are the `count` largest of all, as `largest` has it.

    Scores of double precision are told apart, and there may be any number of them.

    Args:
        scores: List of arrays without NaNs, of any shapes.
        count: Integer from 0 to the number of scores.

    Returns:
        List of Boolean arrays, of the shapes of `scores`.

    Example:

    >>> scores = [np.array([0.5, 2.0, -1.0]), np.array([[2.0], [3.0]])]
    >>> [mask.tolist() for mask in largest_of_arrays(scores, count=2)]
    [[False, True, False], [[False], [True]]]
    """
    if count == 0:
        return [np.zeros(one.shape, bool) for one in scores]
    ranked = np.concatenate([one.ravel() for one in scores])
    place = ranked.size - count
    ranked.partition(place)  # in place: argpartition's indices take twice the memory
    threshold = ranked[place]
    del ranked
    masks = [one.ravel() > threshold for one in scores]
    missing = count - sum(map(np.count_nonzero, masks))
    for one, mask in zip(scores, masks):
        equal = np.flatnonzero(one.ravel() == threshold)[:missing]
        mask[equal] = True
        missing -= len(equal)
    return [mask.reshape(one.shape) for mask, one in zip(masks, scores)]


def ordered(scores: Tensor) -> Tensor:
    """Integers in the order of the scores.

    Args:
        scores: Float32 tensor.

    Returns:
        Int32 tensor of the same shape.

    Example:

    >>> from keras import ops
    >>> first, second, third = ordered(ops.array([-2.0, 0.0, 0.5]))
    >>> bool(first < second < third), bool(ordered(ops.array(-0.0)) == second)
    (True, True)
    """
    bits = ops.view(scores, "int32")
    # Below zero the numbers fall where the bits rise.
    return ops.where(ops.less(bits, 0), ops.negative(ops.bitwise_and(bits, 2**31 - 1)), bits)


@compiled_loop
def _threshold(bits: Tensor, count: Tensor) -> Tensor:
    def reached(value: Tensor) -> Tensor:
        return ops.greater_equal(_count([ops.greater_equal(bits, value)]), count)

    return _bisect(reached, 0, 1 << 30)


@compiled_loop
def _largest(scores: list[Tensor], count: Tensor) -> list[Tensor]:
    def reached(value: Tensor) -> Tensor:
        above = _count([ops.greater_equal(ordered(one), value) for one in scores])
        return ops.greater_equal(above, count)

    start = ops.where(reached(ops.convert_to_tensor(0, "int32")), 0, -(2**31))
    value = _bisect(reached, start, 1 << 30)
    above = [ops.greater(ordered(one), value) for one in scores]
    equal = [ops.equal(ordered(one), value) for one in scores]
    missing = ops.subtract(count, _count(above))

    sizes = [math.prod(one.shape) for one in scores]
    starts = [sum(sizes[:index]) for index in range(len(sizes))]

    def before(end: Tensor) -> list[Tensor]:
        return [
            ops.logical_and(same, ops.less(_positions(one.shape, start), end))
            for same, one, start in zip(equal, scores, starts)
        ]

    def room(end: Tensor) -> Tensor:
        return ops.less_equal(_count(before(end)), missing)

    # Mostly no two scores are equal, and there is nothing to look for.
    ties = ops.greater(_count(equal), missing)
    end = _bisect(
        room,
        ops.where(ties, 0, MOST_SCORES),
        ops.where(ties, 1 << max(sum(sizes).bit_length() - 1, 0), 0),
    )
    return [ops.logical_or(more, same) for more, same in zip(above, before(end))]


def _bisect(holds: Callable[[Tensor], Tensor], start: int | Tensor, bit: int | Tensor) -> Tensor:
    """The largest integer that `holds`, from `start` on, whose bits from `bit` down are zero."""

    def try_bit(found: Tensor, bit: Tensor) -> tuple[Tensor, Tensor]:
        larger = ops.add(found, bit)
        return ops.where(holds(larger), larger, found), ops.floor_divide(bit, 2)

    state = (ops.cast(start, "int32"), ops.cast(bit, "int32"))
    found, _ = ops.while_loop(lambda found, bit: ops.greater(bit, 0), try_bit, state)
    return found


def _count(masks: list[Tensor]) -> Tensor:
    return sum(ops.sum(ops.cast(mask, "int32")) for mask in masks)


def _positions(shape: Sequence[int], start: int) -> Tensor:
    """The place of each element, row by row, in sums that need no reshaping of what is sharded."""
    positions = ops.full((1,) * len(shape), start, dtype="int32")
    for axis, size in enumerate(shape):
        stride = math.prod(shape[axis + 1 :])
        steps = ops.multiply(ops.arange(size, dtype="int32"), stride)
        along = [size if other == axis else 1 for other in range(len(shape))]
        positions = ops.add(positions, ops.reshape(steps, along))
    return positions
