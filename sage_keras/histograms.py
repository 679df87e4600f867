"""Numbers about many parameters at once, as functions of tensors that stay on the device.

Quantiles come from histograms with bins that are the leading bits of a float32: 32 in each octave,
so that a bin is at most 3.1 % wide and its middle at most 1.6 % from any value in it, over the
whole range of normal numbers. That needs one pass and no sort. Less than 2^-126 counts as zero.

A large model is sampled: `stride` says how far apart the parameters lie that are looked at.
"""

import math
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from sage_keras.annotations import Tensor

_MANTISSA_BITS = 5
_SHIFT = 23 - _MANTISSA_BITS  # of the 23 bits of a float32's mantissa
_PER_OCTAVE = 2**_MANTISSA_BITS
_OCTAVES = 256  # the values of the exponent: zero, 254 octaves, not finite
_BINS = _OCTAVES * _PER_OCTAVE

_COARSE_PER_OCTAVE = 2
_COARSE_BINS = (_OCTAVES - 2) * _COARSE_PER_OCTAVE

# What a report looks at: all of a small model, and enough of a large one that the quantiles of
# the whole lie within half a percent of those of all parameters, and those of a layer within two.
_SAMPLE = 2**22
_SAMPLE_PER_VARIABLE = 2**16
_RUN = 2**10  # the elements that are added up one by one


def stride(shape: Sequence[int], total: int) -> int:
    """How far apart the elements of a variable lie that are looked at.

    It has no factor in common with the size, so that all rows and columns have their turn.

    Args:
        shape: Tuple, the variable's shape.
        total: Integer, the number of parameters of all variables together.

    Returns:
        Integer, 1 to look at every element.

    Example:

    >>> stride((768, 768), total=1_000_000), stride((768, 768), total=100_000_000)
    (1, 7)
    """
    size = math.prod(shape)
    wanted = max(_SAMPLE_PER_VARIABLE, size * _SAMPLE // total)
    step = max(1, size // wanted)
    while math.gcd(step, size) > 1:
        step -= 1
    return step


def sample(values: Tensor, step: int) -> Tensor:
    """Every `step`-th element, as a new vector."""
    return ops.copy(ops.reshape(values, (-1,))[::step])


def total(values: Tensor) -> Tensor:
    """The sum of non-negative values, in runs so short that no running sum loses much.

    XLA adds up one by one, and makes one sum of two in a row unless something stands between them.
    """
    while len(values.shape) > 1:
        values = ops.abs(ops.sum(values, axis=-1))
    size = math.prod(values.shape)
    if size <= _RUN:
        return ops.sum(values)
    whole = size - size % _RUN
    runs = ops.abs(ops.sum(ops.reshape(values[:whole], (-1, _RUN)), axis=-1))
    return ops.add(total(runs), ops.sum(values[whole:]))


def counts(samples: Sequence[Tensor]) -> Tensor:
    """For each vector the counts of its elements, in bins of equal width in each octave.

    Args:
        samples: List of non-negative float32 vectors.

    Returns:
        Float32 tensor of shape `(len(samples), bins)`, the count in each of `BIN_VALUES`.
    """
    # One histogram with bins of its own for each vector compiles to much less code than several.
    # The sign bit of a minus zero would make a negative index.
    bins = [
        ops.add(ops.right_shift(ops.view(ops.abs(one), "int32"), _SHIFT), position * _BINS)
        for position, one in enumerate(samples)
    ]
    counted = _count(ops.concatenate(bins), len(samples) * _BINS)
    return ops.cast(ops.reshape(counted, (len(samples), _BINS)), "float32")


def _count(indices: Tensor, bins: int) -> Tensor:
    # One of keras.ops is too slow on torch, by 12 times, and the other does not compile elsewhere.
    if keras.backend.backend() == "torch":
        return ops.bincount(indices, minlength=bins)
    return ops.segment_sum(ops.ones_like(indices), indices, num_segments=bins)


def _bin_values() -> np.ndarray:
    """The middle of each bin; zero for the lowest octave, not-a-number for the highest."""
    exponents = np.arange(_OCTAVES).reshape(-1, 1) - 127.0
    middles = 2**exponents * (1 + (np.arange(_PER_OCTAVE) + 0.5) / _PER_OCTAVE)
    middles[0], middles[-1] = 0.0, np.nan
    return np.asarray(middles.reshape(-1), dtype="float32")


BIN_VALUES = _bin_values()
_FINITE_VALUES = np.nan_to_num(BIN_VALUES)
_NOT_FINITE = (_OCTAVES - 1) * _PER_OCTAVE  # the first bin of the highest octave


def quantiles(counts: Tensor, probabilities: Sequence[float]) -> Tensor:
    """The quantiles of histograms, each at most 1.6 % from an element of that rank.

    Args:
        counts: Tensor of shape `(..., bins)`, as the function `counts` gives them.
        probabilities: Floats in [0, 1].

    Returns:
        Tensor of shape `(..., len(probabilities))`. Zero where there are no elements.
    """
    below = _cumulative(counts)
    ranks = below[..., -1:] * ops.convert_to_tensor(probabilities, dtype="float32")
    ranks = ops.maximum(ranks, 0.5)  # that of the smallest element, for a probability of 0
    before = ops.expand_dims(below, -2) < ops.expand_dims(ranks, -1)
    index = ops.minimum(ops.sum(ops.cast(before, "int32"), axis=-1), _BINS - 1)
    # A constant that is not a number would be an error to TensorFlow's check_numerics.
    return ops.divide(
        ops.take(ops.convert_to_tensor(_FINITE_VALUES), index),
        ops.cast(index < _NOT_FINITE, "float32"),
    )


def gini(counts: Tensor) -> Tensor:
    """The Gini index of histograms: 0 if all elements are equal, near 1 if few hold all.

    Args:
        counts: Tensor of shape `(..., bins)`.

    Returns:
        Tensor of shape `(...)`. Zero where all elements are.
    """
    below = _cumulative(counts)
    count = ops.maximum(below[..., -1:], 1.0)
    values = ops.where(counts > 0, ops.convert_to_tensor(_FINITE_VALUES), 0.0)
    # Relative to the largest, or the products would underflow.
    largest = ops.max(values, axis=-1, keepdims=True)
    mass = counts / count * (values / ops.maximum(largest, 2.0**-126))
    rank = (2.0 * below - counts) / count - 1.0
    return ops.sum(mass * rank, axis=-1) / ops.maximum(ops.sum(mass, axis=-1), 2.0**-126)


def coarse(counts: Tensor) -> Tensor:
    """The counts in `COARSE_EDGES`, and the count of zeros before them.

    Args:
        counts: Tensor of shape `(..., bins)`.

    Returns:
        Tensor of shape `(..., 1 + coarse bins)`.
    """
    octaves = ops.reshape(counts, (*counts.shape[:-1], _OCTAVES, _PER_OCTAVE))
    zeros = ops.sum(octaves[..., 0, :], axis=-1)
    parts = (-1, _COARSE_BINS, _PER_OCTAVE // _COARSE_PER_OCTAVE)
    bins = ops.sum(ops.reshape(octaves[..., 1:-1, :], parts), axis=-1)
    return ops.concatenate([ops.reshape(zeros, (-1, 1)), bins], axis=-1)


COARSE_EDGES = np.append(np.outer(2.0 ** np.arange(-126, 128), [1.0, 1.5]), 2.0**128)


def _cumulative(counts: Tensor) -> Tensor:
    """Running sums over the bins, octave by octave: short sums compile to fast code everywhere."""
    octaves = ops.reshape(counts, (*counts.shape[:-1], _OCTAVES, _PER_OCTAVE))
    within = ops.cumsum(octaves, axis=-1)
    of_octaves = within[..., -1]
    before = ops.cumsum(of_octaves, axis=-1) - of_octaves
    return ops.reshape(within + ops.expand_dims(before, -1), counts.shape)


def group_histograms(histograms: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The histograms of groups of variables.

    Args:
        histograms: Tensor of shape `(variables, bins)`.
        groups: List of lists of positions in it.

    Returns:
        Tensor of shape `(len(groups), bins)`.
    """
    variables = np.concatenate(groups).astype("int32")
    owners = np.repeat(np.arange(len(groups)), [len(group) for group in groups]).astype("int32")
    rows = ops.take(histograms, ops.convert_to_tensor(variables), axis=0)
    return ops.segment_sum(rows, ops.convert_to_tensor(owners), num_segments=len(groups))


def group_sums(values: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The sums of groups of variables.

    Args:
        values: Vector of a non-negative number of each variable.
        groups: List of lists of positions in it.

    Returns:
        Vector of `len(groups)` numbers.
    """
    return ops.sum(_by_group(values, groups), axis=-1)


def group_maxima(values: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """The largest number of groups of variables; the arguments are those of `group_sums`."""
    return ops.max(_by_group(values, groups), axis=-1)


def _by_group(values: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """A row for each group, with zeros for the variables that are not in it."""
    members = np.zeros((len(groups), values.shape[0]), dtype="bool")
    for row, group in zip(members, groups):
        row[list(group)] = True
    return ops.where(ops.convert_to_tensor(members), ops.expand_dims(values, 0), 0.0)
