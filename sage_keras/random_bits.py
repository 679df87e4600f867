"""Random bits that follow from a seed, a step and a position, and from nothing else.

Keras's own generators give other numbers on each backend, and on TensorFlow with and without XLA.
These are the same 32 bits everywhere. There is no state that a resumed run could lose, and XLA
computes them where they are needed, without an array of them in memory:

    key  = hash(seed * 0x9E3779B9 + step)
    bits = hash(key + position)                               `random_bits`

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


def random_bits(seed: int | Tensor, step: int | Tensor, shape: Sequence[int]) -> Tensor:
    """32 random bits for every element of an array.

    Args:
        seed: Integer, of which the lowest 32 bits count, or int32 scalar tensor.
        step: Integer or scalar tensor of integers, such as an optimizer's `iterations`.
        shape: Tuple of integers, the shape of the array. The positions of its elements are 0, 1, 2
            and so on, as they lie in memory.

    Returns:
        Int32 tensor of this shape, each value as likely as any other.

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(random_bits(seed=1, step=7, shape=(2, 2))).tolist()
    [[1577112760, -770173083], [-876504552, -724752930]]
    """
    if isinstance(seed, int):
        seed = _wrapped(seed)
    if isinstance(step, int):
        step = _wrapped(step)
    sequence = ops.multiply(ops.cast(seed, "int32"), _wrapped(0x9E3779B9))
    number = _hash(ops.add(sequence, ops.cast(step, "int32")))
    # Axis by axis, and onto the key, which is no constant: of one XLA would store the whole array,
    # and it can cut this one into parts for several devices.
    number = ops.reshape(number, (1,) * len(shape))
    for axis, size in enumerate(shape):
        stride = _wrapped(math.prod(shape[axis + 1 :]))
        along = ops.multiply(ops.arange(size, dtype="int32"), stride)
        number = ops.add(number, ops.reshape(along, (size,) + (1,) * (len(shape) - axis - 1)))
    return _hash(number)


def chosen(bits: Tensor, probability: float) -> Tensor:
    """Turns random bits into choices that are true with a probability.

    Args:
        bits: Int32 tensor, as `random_bits` makes it.
        probability: Float from 0 to 1.

    Returns:
        Boolean tensor of the shape of `bits`, true with the probability to 2^-32, for 1 always.

    Example:

    >>> from keras import ops
    >>> bits = random_bits(seed=0, step=0, shape=(8,))
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
