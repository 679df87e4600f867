"""The controls against NumPy: Sage's twin, with the scale that each control makes of it."""

import keras
import numpy as np
import pytest
import twin
from modes import to_numpy

from evidence.arms import ARMS, WarmupAndDecay
from evidence.controls import FrozenScale, MeanScale, RandomScale, TensorMean

SHAPES = [(3, 2), (5,)]
STEPS = 6
RATE = 0.05


class ControlledTwin(twin.Adam):
    """Sage's twin, whose scale passes through `control`, a function of scale and step from 1."""

    def __init__(self, weight, control):
        super().__init__(weight, RATE)
        self.control = control

    def direction(self, g, t):
        # The twin multiplies by its own scale after this: exchange it for the control's.
        rate = self.control(self.scale, t)
        self.scales = [*getattr(self, "scales", []), self.scale]
        with np.errstate(invalid="ignore"):
            return super().direction(g, t) * rate / self.scale


def draws(seed):
    return [np.random.default_rng([seed, i]).normal(size=s) for i, s in enumerate(SHAPES)]


def train(optimizer, steps=STEPS):
    """The variables after some steps, and what the optimizer was built with."""
    variables = [keras.Variable(one, dtype="float32") for one in draws(0)]
    optimizer.build(variables)
    for step in range(steps):
        gradients = [keras.ops.convert_to_tensor(g, "float32") for g in draws(step + 1)]
        optimizer.apply(gradients, variables)
    return [to_numpy(variable) for variable in variables]


def train_twins(controls, steps=STEPS):
    twins = [ControlledTwin(w, control) for w, control in zip(draws(0), controls)]
    for step in range(steps):
        for one, gradient in zip(twins, draws(step + 1)):
            one.step(gradient)
    return twins


def assert_same(weights, twins):
    for weight, one in zip(weights, twins):
        np.testing.assert_allclose(weight, one.weight, rtol=1e-5, atol=1e-6)


def test_tensor_mean():
    twins = train_twins([lambda scale, t: scale.mean()] * 2)
    assert_same(train(TensorMean(RATE, weight_decay=0.0)), twins)


def test_frozen_scale_is_that_of_the_last_step_of_warmup():
    def freeze():
        kept = []

        def control(scale, t):
            if t <= 3:
                kept[:] = [scale]
            return kept[0]

        return control

    twins = train_twins([freeze(), freeze()])
    assert_same(train(FrozenScale(RATE, weight_decay=0.0, warmup_steps=3)), twins)


def test_mean_scale_is_that_of_the_whole_model_at_the_step_before():
    twins = [ControlledTwin(w, None) for w in draws(0)]
    mean = 0.0
    for step in range(STEPS):
        for one, gradient in zip(twins, draws(step + 1)):
            one.control = lambda scale, t, rate=mean: rate
            one.step(gradient)
        mean = np.concatenate([one.scale.ravel() for one in twins]).mean()
    assert_same(train(MeanScale(RATE, weight_decay=0.0)), twins)


class SeenScales(RandomScale):
    """Keeps what scale each step had, and which it would have had in Sage."""

    def _scale(self, variable, value, average):
        dealt = super()._scale(variable, value, average)
        own = super(RandomScale, self)._scale(variable, value, average)
        self.seen = [*getattr(self, "seen", []), (to_numpy(own), to_numpy(dealt))]
        return dealt


def seen_scales(seed):
    optimizer = SeenScales(RATE, weight_decay=0.0)
    optimizer.build([keras.Variable(one, dtype="float32") for one in draws(0)])
    optimizer.reseed(seed)
    for step in range(STEPS):
        gradients = [keras.ops.convert_to_tensor(g, "float32") for g in draws(step + 1)]
        optimizer.apply(gradients)
    return optimizer.seen


def offsets(seen):
    """How far each scale was turned; the first step's are all 0 and tell nothing."""
    turned = []
    for own, dealt in seen[len(SHAPES) :]:
        fits = [
            offset
            for offset in range(own.size)
            if np.array_equal(np.roll(own.ravel(), -offset), dealt.ravel())
        ]
        assert len(fits) == 1, "the scales dealt are not Sage's own, turned"
        turned += fits
    return turned


def test_random_scales_are_sages_own_turned_by_another_offset_each_time():
    first, again, other = (offsets(seen_scales(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first)) > 2


def test_random_offsets_reach_every_place():
    optimizer = SeenScales(RATE, weight_decay=0.0)
    variables = [keras.Variable(np.arange(1.0, 4.0), dtype="float32")]
    optimizer.build(variables)
    for step in range(40):
        gradient = np.random.default_rng(step).normal(size=3)
        optimizer.apply([keras.ops.convert_to_tensor(gradient, "float32")])
    places = [int(np.argmin(np.abs(dealt - own[0]))) for own, dealt in optimizer.seen[1:]]
    assert set(places) == {0, 1, 2}


def test_schedule_rises_over_a_tenth_and_falls_to_zero():
    schedule = WarmupAndDecay(20)
    schedule.peak = 3.0
    rates = [float(schedule(step)) for step in range(21)]
    np.testing.assert_allclose(rates[:3], [1.5, 3.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(rates[2:], np.linspace(3.0, 0.0, 19), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_arms_share_one_recipe(arm):
    optimizer = arm.make_optimizer(40)
    assert (optimizer.weight_decay, optimizer.global_clipnorm) == (0.01, 1.0)
    assert optimizer.schedule.warmup_steps == 4
    assert getattr(optimizer, "beta_3", None) == arm.beta_3
    optimizer.schedule.peak.assign(0.5)
    assert float(optimizer.schedule(3)) == 0.5


def test_arms_have_names_of_their_own():
    assert len({str(arm) for arm in ARMS}) == len(ARMS)
