"""Random bits that follow from a seed, a step and a position, and from nothing else.

Keras's own generators give other numbers on each backend, and on TensorFlow with and without XLA.
These are the same 32 bits everywhere. There is no state that a resumed run could lose, and XLA
computes them where they are needed, without an array of them in memory:

    key  = hash(seed * 0x9E3779B9 + step)
    bits = hash(key xor position)                             `random_bits`

`hash` maps the 32-bit integers one to one, and flips about half of the bits of its result where one
bit of its argument changes. The factor of the seed is 2^32 over the golden ratio, so that the
sums of neighbouring seeds meet after millions of steps only.

Nothing here has state, and nothing knows of Keras variables or optimizers.

Reference:
    - [Salmon et al., 2011](https://doi.org/10.1145/2063384.2063405), on counters in the place of
      state.
    - [Wellons, 2018](https://nullprogram.com/blog/2018/07/31/), whose search found the hash.
"""

import math
from collections.abc import Sequence

from keras import ops

from sage_keras.annotations import Tensor


def random_bits(seed: int | Tensor, step: int | Tensor, position: int | Tensor) -> Tensor:
    """32 random bits for each position.

    Args:
        seed: Integer, of which the lowest 32 bits count, or int32 tensor.
        step: Integer or tensor of integers, such as an optimizer's `iterations`.
        position: Int32 tensor, such as `positions` makes it.

    Returns:
        Int32 tensor of the shape to which all three broadcast, each value as likely as any other.

    Example:

    >>> from keras import ops
    >>> bits = random_bits(seed=1, step=7, position=positions((2, 2)))
    >>> ops.convert_to_numpy(bits).tolist()
    [[1577112760, -1307898927], [-1037204305, 127224206]]
    """
    if isinstance(seed, int):
        seed = _wrapped(seed)
    if isinstance(step, int):
        step = _wrapped(step)
    sequence = ops.multiply(ops.cast(seed, "int32"), _wrapped(0x9E3779B9))
    key = _hash(ops.add(sequence, ops.cast(step, "int32")))
    return _hash(ops.bitwise_xor(key, position))


def positions(shape: Sequence[int]) -> Tensor:
    """The place of every element of an array, in the order in which its elements lie in memory.

    Args:
        shape: Tuple of integers, the shape of the array.

    Returns:
        Int32 tensor of that shape: 0, 1, 2 and so on. From 2^31 on they wrap around.

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(positions((2, 3))).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """
    # A sum over the axes, since XLA can cut such an array into parts for several devices.
    found = ops.zeros((1,) * len(shape), "int32")
    for axis, size in enumerate(shape):
        stride = _wrapped(math.prod(shape[axis + 1 :]))
        along = ops.multiply(ops.arange(size, dtype="int32"), stride)
        found = ops.add(found, ops.reshape(along, (size,) + (1,) * (len(shape) - axis - 1)))
    return found


def chosen(bits: Tensor, probability: float) -> Tensor:
    """Turns random bits into choices that are true with a probability.

    Args:
        bits: Int32 tensor, as `random_bits` makes it.
        probability: Float from 0 to 1.

    Returns:
        Boolean tensor of the shape of `bits`, true with the probability to 2^-32, for 1 always.

    Example:

    >>> from keras import ops
    >>> bits = random_bits(seed=0, step=0, position=positions((8,)))
    >>> ops.convert_to_numpy(chosen(bits, 0.5)).tolist()
    [True, True, False, True, False, True, False, False]
    """
    first = min(round((1.0 - probability) * 2**32), 2**32 - 1)
    return ops.greater_equal(bits, first - 2**31)


def _hash(number: Tensor) -> Tensor:
    """A one-to-one map of the int32 numbers. Products wrap around."""
    number = ops.bitwise_xor(number, _shifted(number, 16))
    number = ops.multiply(number, _wrapped(0x7FEB352D))
    number = ops.bitwise_xor(number, _shifted(number, 15))
    number = ops.multiply(number, _wrapped(0x846CA68B))
    return ops.bitwise_xor(number, _shifted(number, 16))


def _shifted(number: Tensor, count: int) -> Tensor:
    """The bits moved to the right, with zeros before them: Keras's shift repeats the sign."""
    return ops.bitwise_and(ops.right_shift(number, count), 2 ** (32 - count) - 1)


def _wrapped(number: int) -> int:
    """The int32 of which the bits are the lowest 32 of an integer."""
    return (number + 2**31) % 2**32 - 2**31
