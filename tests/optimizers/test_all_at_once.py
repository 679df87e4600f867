"""On torch an eager step takes all variables at once, and does what one at a time does."""

import keras
import numpy as np
import pytest
from bases import guided
from modes import BACKEND, to_numpy

from sage_keras import (
    DPSDense,
    LayerwiseAdamW,
    LayerwiseLearningRate,
    LayerwiseSage,
    Sage,
    SageAdam,
    SensitivityGuided,
    SubnetworkSelection,
)

pytestmark = pytest.mark.skipif(BACKEND != "torch", reason="only torch runs a kernel at a time")

SHAPES = [(4, 3), (3,), (2, 3, 2), ()]
RATES = {"learning_rate_multipliers": {"weight_1": 0.25, "weight_2": 0.0}}


class SelectedSage(SubnetworkSelection, Sage):
    pass


class LayerwiseSGD(LayerwiseLearningRate, keras.optimizers.SGD):
    pass


class LayerwiseAdadelta(LayerwiseLearningRate, SensitivityGuided, keras.optimizers.Adadelta):
    pass


CASES = {
    "Adadelta": (guided("Adadelta"), {}),
    "Adagrad": (guided("Adagrad"), {}),
    "Adam": (guided("Adam"), {"amsgrad": True, "exclude": ["weight_1"]}),
    "AdamW": (Sage, {"weight_decay": 0.1, "global_clipnorm": 0.5}),
    "Adamax": (guided("Adamax"), {"bias_correction": False}),
    "Lion": (guided("Lion"), {"beta_3": 0.3}),
    "Nadam": (guided("Nadam"), {"include": ["weight_[12]"]}),
    "RMSprop": (guided("RMSprop"), {"centered": True}),
    "RMSprop, momentum": (guided("RMSprop"), {"momentum": 0.5}),
    "SGD": (guided("SGD"), {"clipnorm": 0.5, "use_ema": True, "ema_overwrite_frequency": 3}),
    "SGD, momentum": (guided("SGD"), {"momentum": 0.9}),
    "SGD, nesterov": (guided("SGD"), {"momentum": 0.9, "nesterov": True}),
    "accumulation": (Sage, {"gradient_accumulation_steps": 2}),
    "skip": (Sage, {"on_nonfinite": "skip"}),
    "layerwise": (LayerwiseAdamW, RATES),
    "layerwise SGD": (LayerwiseSGD, RATES),
    "layerwise Sage": (LayerwiseSage, RATES),
    "layerwise guided Adadelta": (LayerwiseAdadelta, RATES),
    "DPS": (DPSDense, {"stage_steps": 2, "exclude": ["weight_1"]}),
    "DPS, Sage": (SelectedSage, {"stage_steps": 2}),
}


@pytest.fixture
def steps(monkeypatch):
    """Which steps were made at once."""
    from sage_keras import foreach

    made = []
    update = foreach.update

    def noted(*arguments):
        made.append(update(*arguments))
        return made[-1]

    monkeypatch.setattr(foreach, "update", noted)
    return made


def make_variables(shapes=SHAPES, dtype="float32"):
    random = np.random.default_rng(1)
    return [
        keras.Variable(random.normal(size=shape), name=f"weight_{i}", dtype=dtype)
        for i, shape in enumerate(shapes)
    ]


def make_gradients(step, shapes=SHAPES):
    random = np.random.default_rng(100 + step)
    return [keras.ops.convert_to_tensor(random.normal(size=s).astype("float32")) for s in shapes]


def train(optimizer, count=6, **kwargs):
    """All weights and the state after some steps; the second lacks a gradient."""
    variables = make_variables(**kwargs)
    optimizer.build(variables)
    for step in range(count):
        gradients = make_gradients(step)
        optimizer.apply([None if step == 1 else gradients[0], *gradients[1:]], variables)
    return [to_numpy(one) for one in [*variables, *optimizer.variables]]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("case", CASES)
def test_at_once_equals_one_at_a_time(case, steps, monkeypatch):
    from sage_keras import foreach

    optimizer_class, arguments = CASES[case]
    at_once = train(optimizer_class(learning_rate=0.01, **arguments))
    assert steps and all(steps)
    monkeypatch.setattr(foreach, "update", lambda *arguments: False)
    one_at_a_time = train(optimizer_class(learning_rate=0.01, **arguments))
    for one, other in zip(at_once, one_at_a_time, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


def kernels(optimizer, count):
    """The operations of the third and fifth step that start a kernel, for `count` variables."""
    import torch

    shapes = [(3, 2)] * count
    variables = make_variables(shapes)
    optimizer.build(variables)
    found = []
    for step in range(5):
        gradients = make_gradients(step, shapes)
        with torch.no_grad(), torch.profiler.profile() as profiler:
            optimizer.apply(gradients, variables)
        outermost = [one for one in profiler.events() if one.cpu_parent is None]
        found.append([one.name for one in outermost if starts_a_kernel(one)])
    return found[2], found[4]


def starts_a_kernel(event):
    """Whether an operation does more than to make room, to look at a tensor, or to read a number.

    `to` calls others where it has something to do.
    """
    name = event.name.removeprefix("aten::")
    views = {"empty", "empty_like", "view", "detach", "detach_", "alias", "item", "is_nonzero"}
    views |= {"lift_fresh", "resolve_conj", "resolve_neg", "unbind", "select"}
    return name not in views and (name != "to" or bool(event.cpu_children))


@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [
        (Sage, {}),
        (Sage, {"guide": False}),
        (LayerwiseAdamW, {"learning_rate_multipliers": {"weight_1": 0.5}}),
        (DPSDense, {"stage_steps": 3}),  # of which the third step selects
    ],
)
def test_the_number_of_kernels_does_not_depend_on_that_of_variables(optimizer_class, arguments):
    few, many = (kernels(optimizer_class(**arguments), count) for count in (3, 30))
    assert few[1] == many[1]
    assert len(many[1]) <= 40
    if optimizer_class is not DPSDense:
        assert many[0] == many[1]


class OwnScale(Sage):
    def _scale_of(self, value, average, step):
        return keras.ops.ones_like(value)


class OwnUpdate(Sage):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(gradient, variable, learning_rate)


class OwnAdjustment(Sage):
    def _adjust(self, gradient, variable, learning_rate):
        return super()._adjust(gradient, variable, learning_rate)


class OwnBase(keras.optimizers.AdamW):
    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        super()._backend_update_step(grads, trainable_variables, learning_rate)


class OnOwnBase(SensitivityGuided, OwnBase):
    pass


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    ("optimizer_class", "arguments"),
    [
        (Sage, {"calibrate": True}),
        (Sage, {"sensitivity_dtype": "bfloat16"}),
        (OwnScale, {}),
        (OwnUpdate, {}),
        (OwnAdjustment, {}),
        (OnOwnBase, {"learning_rate": 0.01}),
        (guided("Lamb"), {}),
    ],
)
def test_what_wants_single_variables_gets_them(optimizer_class, arguments, steps):
    train(optimizer_class(**arguments), count=2)
    assert steps == [False, False]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_other_dtypes_are_updated_one_at_a_time(steps):
    train(Sage(), count=2, dtype="float64")
    assert steps == [False, False]


def test_gradients_of_another_kind_are_updated_one_at_a_time(steps):
    variables = make_variables()
    Sage().apply([to_numpy(one) for one in make_gradients(0)], variables)
    assert steps == [False]


def test_stateless_steps_leave_their_arguments_alone(steps):
    optimizer = SageAdam(0.1)  # Keras's weight decay is in place
    optimizer.build(make_variables())
    arguments = [
        [keras.ops.copy(one.value) for one in optimizer.variables],
        make_gradients(0),
        [keras.ops.copy(one.value) for one in make_variables()],
    ]
    before = [[to_numpy(one) for one in some] for some in arguments]
    optimizer.stateless_apply(*arguments)
    assert steps == [False]
    for some, others in zip(arguments, before):
        for one, other in zip(some, others):
            np.testing.assert_array_equal(to_numpy(one), other)


def test_gradients_are_left_as_they_are():
    gradients = make_gradients(0)
    before = [to_numpy(one) for one in gradients]
    SelectedSage(0.1, stage_steps=1).apply(gradients, make_variables())
    for one, other in zip(gradients, before):
        np.testing.assert_array_equal(to_numpy(one), other)


def test_what_is_dropped_is_zero_whatever_it_was():
    """In stage II an infinite gradient of a weight outside the subnetwork has no effect."""
    variable = keras.Variable([1.0, 1.0, 1.0, 1.0])
    optimizer = DPSDense(0.1, stage_steps=1, drop_rate=0.5)
    optimizer.apply([keras.ops.array([1.0, 4.0, 3.0, 2.0])], [variable])
    optimizer.apply([keras.ops.array([np.inf, -5.0, 6.0, np.nan])], [variable])
    np.testing.assert_allclose(
        to_numpy(optimizer._momentums[0]), [0.09, -0.14, 0.87, 0.18], rtol=1e-6
    )
    assert np.all(np.isfinite(to_numpy(variable)))
