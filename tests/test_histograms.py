"""Histograms and what follows from them, against exact ones of NumPy in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from modes import to_numpy

from sage_keras import histograms
from sage_keras.backend import compiled

PROBABILITIES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
WIDTH = 1 / 64  # half a bin, relative

# Larger ones have a reciprocal that is not a normal number, by which XLA divides.
NORMAL = st.floats(2.0**-126, 2.0**125, width=32)
VECTORS = arrays("float32", st.integers(1, 60), elements=st.just(0.0) | NORMAL)


@compiled
def _counts(values):
    return histograms.counts([values])[0]


def counts_of(values):
    return _counts(ops.convert_to_tensor(np.asarray(values, dtype="float32")))


def exact_quantiles(values):
    return np.quantile(np.float64(values), PROBABILITIES, method="inverted_cdf")


def exact_gini(values):
    values = np.sort(np.float64(values))
    ranks = 2 * np.arange(1, len(values) + 1) - len(values) - 1
    return float(np.sum(ranks * (values / values.sum())) / len(values)) if values.any() else 0.0


def log_normal(spread, count=1_000_000):
    return np.exp(np.random.default_rng(0).normal(-18.0, spread, count)).astype("float32")


@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_a_million_log_normal_values(spread):
    values = log_normal(spread)
    counts = counts_of(values)
    found = to_numpy(histograms.quantiles(counts, PROBABILITIES))
    np.testing.assert_allclose(found, exact_quantiles(values), rtol=WIDTH)
    assert float(histograms.gini(counts)) == pytest.approx(exact_gini(values), abs=1e-3)


@settings(deadline=None, max_examples=40)
@given(VECTORS)
def test_quantiles_of_anything(values):
    padded = np.pad(values, (0, 60 - len(values)))  # one shape, so one compilation
    found = to_numpy(histograms.quantiles(counts_of(padded), PROBABILITIES))
    np.testing.assert_allclose(found, exact_quantiles(padded), rtol=WIDTH)


@settings(deadline=None, max_examples=40)
@given(VECTORS)
def test_gini_of_anything(values):
    padded = np.pad(values, (0, 60 - len(values)))
    found = float(histograms.gini(counts_of(padded)))
    assert found == pytest.approx(exact_gini(padded), abs=WIDTH)
    assert -1e-6 <= found <= 1


def test_gini_at_its_ends():
    alike, alone, none = np.full(64, 3e-7), np.eye(1, 64)[0] * 5e30, np.zeros(64)
    together = ops.stack([counts_of(alike), counts_of(alone), counts_of(none)])
    np.testing.assert_allclose(to_numpy(histograms.gini(together)), [0, 63 / 64, 0], atol=1e-6)


def test_values_without_a_bin_of_their_own():
    smallest_normal, largest = 2.0**-126, np.finfo("float32").max
    values = [0.0, -0.0, 1e-40, smallest_normal, largest, np.inf, -np.nan, np.nan]
    counts = to_numpy(counts_of(values))
    assert counts.sum() == 8
    assert counts[histograms.BIN_VALUES == 0].sum() == 3
    assert counts[np.isnan(histograms.BIN_VALUES)].sum() == 3
    found = to_numpy(histograms.quantiles(ops.convert_to_tensor(counts), [0.5, 0.6, 0.9]))
    np.testing.assert_allclose(found, [smallest_normal, largest, np.nan], rtol=WIDTH)


def test_coarse_bins_are_those_of_numpy():
    values = np.concatenate([log_normal(3.0, 1000), [0.0, 0.0, 1.0, 1.5, 2.0**-126, 3e38]])
    values = values.astype("float32")
    zeros, *counts = to_numpy(histograms.coarse(counts_of(values)[None]))[0]
    assert zeros == 2
    expected, _ = np.histogram(values[values > 0], histograms.COARSE_EDGES)
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("shape", [(2**15, 768), (2**24 + 5,), (3, 3, 2**8, 2**8), (5,), ()])
@pytest.mark.parametrize("xla", [True, False])
def test_total_stays_accurate(shape, xla):
    """One running sum of 2^24 would be off by 1 % by now, since it only ever rounds down."""
    values = np.full(shape, 0.1, dtype="float32")
    found = float(compiled(histograms.total, xla)(ops.convert_to_tensor(values)))
    assert found == pytest.approx(values.sum(dtype="float64"), rel=2e-5)


@given(
    st.lists(st.integers(1, 4096), min_size=1, max_size=3),
    st.integers(1, 10**10),
)
def test_stride(shape, others):
    size = math.prod(shape)
    total = size + others
    stride = histograms.stride(shape, total)
    assert math.gcd(stride, size) == 1 or size == 1
    assert size / stride >= min(size, max(2**16, size * 2**22 // total))


def test_a_sample_covers_all_columns_alike():
    stride = histograms.stride((768, 768), 10**9)
    columns = np.broadcast_to(np.arange(768), (768, 768)).astype("int32")
    seen = np.bincount(to_numpy(histograms.sample(ops.convert_to_tensor(columns), stride)))
    assert stride > 1
    assert seen.min() > 0
    assert seen.max() - seen.min() <= 1


def test_counts_of_several_vectors_are_those_of_each():
    values = [log_normal(1.0, count) for count in (7, 1, 300)]
    counts = to_numpy(histograms.counts([ops.convert_to_tensor(one) for one in values]))
    for row, one in zip(counts, values):
        np.testing.assert_array_equal(row, to_numpy(counts_of(one)))


def test_sums_maxima_and_histograms_of_groups():
    groups = [[0, 1, 2], [1], [0, 1]]
    values = ops.convert_to_tensor(np.float32([3.0, 4.0, np.nan]))
    sums, maxima = histograms.group_sums(values, groups), histograms.group_maxima(values, groups)
    np.testing.assert_array_equal(to_numpy(sums), [np.nan, 4, 7])
    np.testing.assert_array_equal(to_numpy(maxima)[1:], [4, 4])
    counts = np.float32([[1, 0, 2], [4, 0, 0], [0.5, 1, 1]])
    found = histograms.group_histograms(ops.convert_to_tensor(counts), groups)
    np.testing.assert_array_equal(to_numpy(found), [[5.5, 1, 3], [4, 0, 0], [5, 0, 2]])
