"""The largest of many scores, found without sorting."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from modes import to_numpy

from sage_keras.thresholds import at_least, largest, largest_of_arrays, threshold

few = settings(deadline=None, max_examples=60)
# Many equal ones, zeros, the tiniest and the largest that float32 has.
SCORES = st.lists(
    st.one_of(
        st.sampled_from([0.0, 1.0, 2.0, 1e-45, 2.0**-126, 3.4028234663852886e38, float("inf")]),
        st.floats(0, width=32, allow_nan=False),
    ),
    min_size=1,
    max_size=40,
)


@few
@given(SCORES, st.data())
def test_threshold_is_the_value_that_sorting_finds(scores, data):
    count = data.draw(st.integers(1, len(scores)))
    scores = np.array(scores, dtype="float32")
    expected = np.sort(scores)[::-1][count - 1]
    bits = threshold(ops.convert_to_tensor(scores), count)
    assert int(bits) == expected.view("int32")
    mask = to_numpy(at_least(ops.convert_to_tensor(scores), bits))
    np.testing.assert_array_equal(mask, scores.view("int32") >= expected.view("int32"))


@pytest.mark.parametrize("shape", [(), (1,), (300, 200), (3, 4, 5, 6)])
def test_exactly_the_best_are_kept_in_any_shape(shape):
    scores = np.random.default_rng(0).permutation(np.arange(np.prod(shape, dtype=int)) + 1.0)
    scores = ops.convert_to_tensor(scores.reshape(shape).astype("float32"))
    size = int(np.prod(shape))
    count = math.ceil(size * 0.7)
    mask = to_numpy(at_least(scores, threshold(scores, count)))
    assert mask.shape == shape
    np.testing.assert_array_equal(mask, to_numpy(scores) > size - count)


SIGNED = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, float("inf"), float("-inf")]),
    st.floats(width=32, allow_nan=False),
)


@few
@given(st.lists(SIGNED, min_size=12, max_size=12), st.integers(0, 12))
def test_exactly_the_largest_of_several_tensors_the_first_among_equals(scores, count):
    scores = np.array(scores, "float32")
    shapes = [(2, 3), (), (5, 1)]  # shapes stay the same: each one is compiled on JAX
    parts = np.split(scores, [6, 7])
    arrays = [part.reshape(shape) for part, shape in zip(parts, shapes)]
    expected = np.zeros(12, bool)
    expected[np.argsort(-scores.astype("float64"), kind="stable")[:count]] = True
    masks = largest([ops.convert_to_tensor(array) for array in arrays], count)
    for found in (list(map(to_numpy, masks)), largest_of_arrays(arrays, count)):
        assert [mask.shape for mask in found] == shapes
        np.testing.assert_array_equal(np.concatenate([mask.ravel() for mask in found]), expected)


def test_no_count_of_what_is_not_a_number_is_lost():
    scores = ops.convert_to_tensor(np.array([np.nan, 1.0, np.nan, -np.nan, np.inf], "float32"))
    for count in range(6):
        (mask,) = largest([scores], ops.convert_to_tensor(count, "int32"))
        assert int(np.sum(to_numpy(mask))) == count
