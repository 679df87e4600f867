"""The measure: golden values, and the facts that follow from the formulas."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from modes import to_numpy

from sage_keras import sensitivity as measure
from sage_keras.backend import compiled
from sage_keras.random_bits import random_bits

BETAS = st.floats(0.05, 0.99)
STEPS = st.integers(1, 30)


def scales(products, beta_3, bias_correction, epsilon=1e-12):
    """s of every step for a run of values of `weight * gradient`, shape (steps, parameters)."""
    average = np.zeros_like(products[0])
    found = []
    for step, product in enumerate(products, start=1):
        value = measure.sensitivity(product, np.ones_like(product))
        average = measure.moving_average(average, value, beta_3)
        smoothed = average
        if bias_correction:
            smoothed = measure.bias_corrected(average, beta_3, np.float32(step))
        found.append(to_numpy(measure.learning_rate_scale(value, smoothed, epsilon)))
    return np.array(found)


@st.composite
def runs(draw):
    """Heavy-tailed values over many orders of magnitude, with zeros, as float32."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(STEPS), 8)
    values = random.standard_cauchy(shape) * 10.0 ** random.uniform(-6, 3, shape)
    return (values * (random.random(shape) < draw(st.floats(0.05, 1.0)))).astype("float32")


def test_golden_values():
    # By hand: beta_3 = 0.5, values 4 then 2. Averages 2 and 2; corrected 4 and 8/3.
    products = np.float32([[4.0], [-2.0]])
    np.testing.assert_allclose(
        scales(products, 0.5, bias_correction=False), [[2 / 2], [0 / 2]], atol=1e-6
    )
    np.testing.assert_allclose(
        scales(products, 0.5, bias_correction=True), [[0.0], [(2 / 3) / (8 / 3)]], atol=1e-6
    )


@settings(deadline=None)
@given(runs(), BETAS)
def test_scale_is_bounded(products, beta_3):
    bound = max(1.0, beta_3 / (1 - beta_3))
    plain = scales(products, beta_3, bias_correction=False)
    assert np.all(plain >= 0)
    assert np.all(plain <= bound * (1 + 1e-5))
    for step, row in enumerate(scales(products, beta_3, bias_correction=True), start=1):
        tighter = max(1.0, (beta_3 - beta_3**step) / (1 - beta_3))
        assert np.all(row >= 0)
        assert np.all(row <= tighter * (1 + 1e-5) + 1e-5)


def test_the_bound_is_reached():
    products = np.float32([[0.0], [0.0], [5.0]])
    assert scales(products, 0.75, bias_correction=False)[-1] == pytest.approx(3.0)
    assert scales(products, 0.9, bias_correction=False)[-1] == pytest.approx(9.0, rel=1e-5)


@settings(deadline=None)
@given(runs(), BETAS, st.integers(-20, 20), st.booleans())
def test_scale_does_not_see_a_constant_factor_of_the_gradient(products, beta_3, power, corrected):
    factor = np.float32(2.0**power)  # a power of two keeps every bit
    one = scales(products, beta_3, corrected, epsilon=1e-12)
    other = scales(products * factor, beta_3, corrected, epsilon=1e-12 * float(factor))
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@given(st.booleans())
def test_first_step(corrected):
    s = scales(np.float32([[3.0, -0.01, 0.0]]), 0.75, corrected)[0]
    # Corrected, a value equals its own average; uncorrected it is four times that.
    moved = 0.0 if corrected else 3.0
    np.testing.assert_allclose(s, [moved, moved, 1.0], atol=1e-6)


def test_a_weight_without_sensitivity_takes_the_base_step():
    s = scales(np.zeros((5, 1), "float32"), 0.75, bias_correction=True)
    np.testing.assert_array_equal(s, np.ones((5, 1)))


@pytest.mark.parametrize(
    ("noise", "mean"),
    [
        (lambda random, shape: np.ones(shape), 0.0),
        (lambda random, shape: 1 + 0.1 * random.normal(size=shape), 0.06),
        (lambda random, shape: 1 + random.normal(size=shape), 0.45),
        (lambda random, shape: random.normal(size=shape), 0.48),
        (lambda random, shape: random.standard_cauchy(shape), 0.73),
        (lambda random, shape: random.normal(size=shape) * (random.random(shape) < 0.05), 1.08),
    ],
    ids=["constant", "steady", "noisy", "noise", "cauchy", "sparse"],
)
def test_mean_scale_grows_with_the_noise_of_the_gradient(noise, mean):
    products = noise(np.random.default_rng(0), (60, 20_000)).astype("float32")
    s = scales(products, 0.75, bias_correction=True)[-20:]
    assert s.mean() == pytest.approx(mean, abs=0.015)


@settings(deadline=None)
@given(runs(), BETAS)
def test_last_value_inverts_the_average(products, beta_3):
    previous = np.abs(products[0])
    value = np.abs(products[-1])
    average = measure.moving_average(previous, value, beta_3)
    found = to_numpy(measure.last_value(average, previous, beta_3))
    rounding = 1e-6 * np.maximum(previous, value) / (1 - beta_3)
    assert np.all(np.abs(found - value) <= rounding)


def float32_error(beta_3, values):
    """The largest relative error of the average in float32, after any step."""
    average, exact, worst = np.zeros_like(values[0]), np.zeros(values[0].shape), 0.0
    step = compiled(lambda average, value: measure.moving_average(average, value, beta_3))
    for value in values:
        average = step(ops.convert_to_tensor(average), ops.convert_to_tensor(value))
        exact = beta_3 * exact + (1 - beta_3) * value.astype("float64")
        worst = max(worst, np.max(np.abs(to_numpy(average) / exact - 1)))
    return worst


@pytest.mark.parametrize("beta_3", [0.001, 0.1, 0.5, 0.75, 0.9, 0.999])
def test_average_is_as_exact_as_stated(beta_3):
    random = np.random.default_rng(0)
    steady = np.repeat(random.uniform(1, 2, (1, 200)), 300, axis=0).astype("float32")
    noisy = np.abs(random.normal(size=(300, 200))).astype("float32")
    # From large to small: what is left of the old average is most of the new one.
    falling = (10.0 ** -np.arange(0, 20, 2.0)[:, None] * steady[:10]).astype("float32")
    for values in (steady, noisy, falling):
        assert float32_error(beta_3, values) <= max(6e-7, 6e-8 / (1 - beta_3))


@pytest.mark.parametrize("beta_3", [0.001, 0.5, 0.75, 0.99, 0.999])
@pytest.mark.parametrize("step", [1, 2, 30, 1000, 10**6])
def test_correction_is_exact(beta_3, step):
    found = measure.bias_corrected(1.0, beta_3, ops.convert_to_tensor(step, "float32"))
    assert float(found) == pytest.approx(1 / (1 - beta_3**step), rel=5e-7)


def test_rounding_to_bfloat16_is_that_of_the_bits():
    """The same on every backend, compiled or not: up where the lower 16 bits carry."""
    random = np.random.default_rng(0)
    average = (random.uniform(1, 2, (40, 25)) * 10.0 ** random.uniform(-30, 30, (40, 25))).astype(
        "float32"
    )
    noise = to_numpy(random_bits(3, 11, average.shape)).view("uint32") & np.uint32(0xFFFF)
    expected = ((average.view("uint32") + noise) & np.uint32(0xFFFF0000)).view("float32")
    store = lambda average, step: measure.as_stored(average, "bfloat16", 3, step)  # noqa: E731
    for function in (store, compiled(store)):
        stored = function(ops.convert_to_tensor(average), ops.convert_to_tensor(11, "int32"))
        assert keras.backend.standardize_dtype(stored.dtype) == "bfloat16"
        np.testing.assert_array_equal(to_numpy(ops.cast(stored, "float32")), expected)


def test_rounding_keeps_what_is_no_number_and_what_bfloat16_has():
    exact = np.float32([0.0, 1.0, 2.0**126, 2.0**-120, np.inf])
    # All bits set, as a GPU has it: to add to them would give zero.
    numbers = np.append(exact, np.array([0x7FFFFFFF, 0xFFC00000], "uint32").view("float32"))
    for step in range(20):
        stored = measure.as_stored(ops.convert_to_tensor(numbers), "bfloat16", 0, step)
        found = to_numpy(ops.cast(stored, "float32"))
        np.testing.assert_array_equal(found[:-2], exact)
        assert np.all(np.isnan(found[-2:]))


def capped_sensitivity(weight, gradient):
    return measure.capped(measure.sensitivity(weight, gradient))


def test_capped_sensitivity_ends_before_float32_does():
    weight = np.float32([1e30, -1e38, 1e30, np.nan, 1.0, 2.0])
    gradient = np.float32([1e10, 1e38, 1e-30, 1.0, np.nan, 3.0])
    expected = np.float32([2.0**126, 2.0**126, 1.0, np.nan, np.nan, 6.0])
    function = compiled(capped_sensitivity)
    for found in (
        capped_sensitivity(weight, gradient),
        function(ops.convert_to_tensor(weight), ops.convert_to_tensor(gradient)),
    ):
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_compute_dtype_is_float32_at_least(dtype):
    assert measure.compute_dtype(dtype) == ("float64" if dtype == "float64" else "float32")


def test_float16_would_not_do():
    zero = ops.zeros((1,), dtype="float16")
    assert np.isnan(to_numpy(measure.learning_rate_scale(zero, zero))[0])
