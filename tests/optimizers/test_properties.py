"""What holds for every guided optimizer, whatever the weights and gradients."""

import keras
import numpy as np
import pytest
from bases import guided, plain
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import Runner, to_numpy

NAMES = ("AdamW", "Adam", "Adamax", "SGD", "Lion")
SMOOTH = NAMES[:-1]  # the sign in Lion may turn on the last bit of a mean
SEEDS = st.integers(0, 2**32 - 1)
few = settings(deadline=None, max_examples=8)


def job(seed, steps=4, count=3):
    random = np.random.default_rng(seed)
    shapes = [tuple(random.integers(1, 4, random.integers(0, 3))) for _ in range(count)]
    weights = [random.normal(size=shape).astype("float32") for shape in shapes]
    gradients = [
        [(random.standard_t(2, shape) * 0.1).astype("float32") for shape in shapes]
        for _ in range(steps)
    ]
    return weights, gradients


def make(optimizer, weights, names=None):
    names = names or [f"weight_{i}" for i in range(len(weights))]
    variables = [keras.Variable(w, name=name) for w, name in zip(weights, names)]
    return Runner(optimizer, variables, "eager")


def train(optimizer, weights, gradients, names=None):
    runner = make(optimizer, weights, names)
    for gradient in gradients:
        runner.step(gradient)
    return runner.weights()


@few
@given(SEEDS, st.sampled_from(NAMES))
def test_excluded_variables_step_as_under_the_base(seed, name):
    weights, gradients = job(seed)
    expected = train(plain(name)(0.01), weights, gradients)
    actual = train(guided(name)(0.01, exclude=["weight_[02]"]), weights, gradients)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[2], expected[2])


@few
@given(SEEDS, st.sampled_from(SMOOTH), st.integers(2, 4), st.booleans())
def test_accumulation_is_one_step_on_the_mean_gradient(seed, name, together, calibrate):
    arguments = {"learning_rate": 0.01, "calibrate": calibrate}
    weights, gradients = job(seed, steps=3 * together)
    groups = [gradients[i : i + together] for i in range(0, len(gradients), together)]
    means = [[np.mean(parts, axis=0) for parts in zip(*group)] for group in groups]
    expected = train(guided(name)(**arguments), weights, means)
    actual = train(
        guided(name)(gradient_accumulation_steps=together, **arguments), weights, gradients
    )
    for one, other in zip(actual, expected):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-5)


@few
@given(SEEDS, st.sampled_from(NAMES), st.sampled_from(["float32", "bfloat16"]), st.booleans())
def test_resuming_from_the_saved_state_changes_no_bit(seed, name, dtype, calibrate):
    weights, gradients = job(seed, steps=6)
    arguments = {"learning_rate": 0.01, "sensitivity_dtype": dtype, "calibrate": calibrate}
    expected = train(guided(name)(**arguments), weights, gradients)

    first = make(guided(name)(**arguments), weights)
    for gradient in gradients[:3]:
        first.step(gradient)
    store = {}
    first.optimizer.save_own_variables(store)
    second = make(guided(name)(**arguments), first.weights())
    second.optimizer.load_own_variables(store)
    for gradient in gradients[3:]:
        second.step(gradient)
    for one, other in zip(second.weights(), expected):
        np.testing.assert_array_equal(one, other)


@few
@given(SEEDS, st.sampled_from(NAMES), st.permutations(range(3)))
def test_permuting_the_variables_permutes_the_result(seed, name, order):
    weights, gradients = job(seed)
    arrange = lambda items: [items[i] for i in order]  # noqa: E731
    names = ["a_kernel", "b_bias", "c_kernel"]
    arguments = {"learning_rate": 0.01, "include": ["kernel"]}
    expected = train(guided(name)(**arguments), weights, gradients, names)
    actual = train(
        guided(name)(**arguments), arrange(weights), map(arrange, gradients), arrange(names)
    )
    for one, other in zip(actual, arrange(expected)):
        np.testing.assert_array_equal(one, other)


@few
@given(SEEDS, st.integers(-8, 8))
def test_sgd_scales_with_the_gradient(seed, power):
    """s does not see a constant factor of the gradient, so SGD's step is multiplied by it."""
    factor = 2.0**power
    weights, gradients = job(seed)
    expected = train(guided("SGD")(0.01, sensitivity_epsilon=1e-12), weights, gradients)
    actual = train(
        guided("SGD")(0.01 / factor, sensitivity_epsilon=1e-12 * factor),
        weights,
        [[g * np.float32(factor) for g in gradient] for gradient in gradients],
    )
    for one, other in zip(actual, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_reading_the_state_changes_nothing(name):
    weights, gradients = job(0)
    expected = train(guided(name)(0.01), weights, gradients)
    runner = make(guided(name)(0.01), weights)
    for gradient in gradients:
        runner.step(gradient)
        for variable in runner.variables:
            to_numpy(runner.optimizer.sensitivity(variable))
        repr(runner.optimizer)
    for one, other in zip(runner.weights(), expected):
        np.testing.assert_array_equal(one, other)
