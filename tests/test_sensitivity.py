"""The measure: golden values, and the facts that follow from the formulas."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from modes import to_numpy

from sage_keras import sensitivity as measure

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


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_compute_dtype_is_float32_at_least(dtype):
    assert measure.compute_dtype(dtype) == ("float64" if dtype == "float64" else "float32")


def test_float16_would_not_do():
    zero = ops.zeros((1,), dtype="float16")
    assert np.isnan(to_numpy(measure.learning_rate_scale(zero, zero))[0])
