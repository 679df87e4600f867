"""A guided class that does not guide is its base, bit by bit; one that does is its base, scaled."""

import unittest

import keras
import numpy as np
import pytest
from bases import BASES, guided, plain
from cells import diagonals
from modes import Runner, to_numpy

from sage_keras.optimizers.base import VariableChoice

FEATURES = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.3},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "weight_decay": {"weight_decay": 0.1},
    "ema": {"use_ema": True, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
}
NOT_GUIDING = {"guide=False": {"guide": False}, "excluded": {"exclude": ["."]}}
STEPS = 4


def start():
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype("float32") for shape in [(4, 3), (3,), (2, 3, 2)]]


def gradients(step):
    random = np.random.default_rng(100 + step)
    return [random.normal(size=w.shape).astype("float32") for w in start()]


def variables():
    return [keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(start())]


def train(optimizer, mode="eager"):
    runner = Runner(optimizer, variables(), mode)
    for step in range(STEPS):
        runner.step(gradients(step))
    return runner.weights()


@pytest.mark.parametrize(
    ("name", "feature", "settings"), diagonals(BASES, FEATURES, NOT_GUIDING, every=2)
)
def test_not_guiding_equals_the_base(name, feature, settings):
    arguments = {"learning_rate": 0.01, **BASES[name], **FEATURES[feature]}
    expected = train(plain(name)(**arguments))
    actual = train(guided(name)(**arguments, **NOT_GUIDING[settings]))
    for one, other in zip(actual, expected):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["AdamW", "Adamax", "SGD"])
def test_excluding_equals_the_base_when_compiled(name):
    arguments = {"learning_rate": 0.01, **BASES[name]}
    expected = train(plain(name, "xla")(**arguments), "xla")
    actual = train(guided(name)(**arguments, exclude=["."]), "xla")
    for one, other in zip(actual, expected):
        np.testing.assert_array_equal(one, other)


def stepping(optimizer, weights):
    """What a base moves by the learning rate: the weights, or what they are an average of."""
    if isinstance(optimizer, keras.optimizers.ScheduleFreeAdamW):
        return optimizer._momentums
    return weights


@pytest.mark.parametrize("name", BASES)
def test_guiding_scales_the_step_of_the_base(name):
    """Bases without momentum on the update: the guided step is s times the base's own."""
    arguments = {"learning_rate": 0.01}  # momentum off where there is one
    base, scaled = plain(name)(**arguments), guided(name)(**arguments)
    base_variables, scaled_variables = variables(), variables()
    base.build(base_variables)
    scaled.build(scaled_variables)

    for step in range(STEPS):
        moving, scaled_moving = stepping(base, base_variables), stepping(scaled, scaled_variables)
        for one, other in zip(
            [*base_variables, *moving], [*scaled_variables, *scaled_moving], strict=True
        ):
            one.assign(keras.ops.copy(other.value))
        before = [to_numpy(v).astype("float64") for v in scaled_variables]
        started = [to_numpy(v).astype("float64") for v in scaled_moving]
        averages = [to_numpy(slot) for slot in scaled.sensitivities.values()]
        gradient = [keras.ops.convert_to_tensor(g) for g in gradients(step)]
        decay = 0.01 * (base.weight_decay or 0.0)

        base.apply(gradient, base_variables)
        scaled.apply(gradient, scaled_variables)

        for i, (old, average, g) in enumerate(zip(before, averages, gradients(step))):
            old = old * (1 - decay)  # Keras decays before it steps, and the decay is not scaled
            value = np.abs(old * g)
            average = 0.75 * average + 0.25 * value
            smoothed = average / (1 - 0.75 ** (step + 1))
            s = (np.abs(value - smoothed) + 1e-12) / (smoothed + 1e-12)
            start = old if scaled_moving is scaled_variables else started[i]
            whole_step = to_numpy(moving[i]) - start
            own_step = to_numpy(scaled_moving[i]) - start
            np.testing.assert_allclose(own_step, s * whole_step, rtol=1e-4, atol=3e-7)


@pytest.mark.parametrize("name", BASES)
def test_keras_own_tests_hold(name, monkeypatch):
    """Runs the tests that Keras ships for the base on the guided class, all excluded."""
    monkeypatch.setitem(VariableChoice.__init__.__kwdefaults__, "exclude", ["."])
    module = pytest.importorskip(
        f"keras.src.optimizers.{name.lower()}_test",
        reason="Keras's wheels have its tests since 3.15.1",
    )
    monkeypatch.setattr(module, name, guided(name))
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    assert suite.countTestCases() >= 3
    result = suite.run(unittest.TestResult())
    assert not result.failures + result.errors
