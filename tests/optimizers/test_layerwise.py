"""Learning rates by layer: each variable trains as under an optimizer of its own rate."""

import keras
import numpy as np
import pytest
import twin
from bases import BASES, plain
from modes import BACKEND, Runner, to_numpy

import sage_keras
from sage_keras import (
    DPSMix,
    LayerwiseAdamW,
    LayerwiseLearningRate,
    LayerwiseSage,
    Sage,
    SensitivityGuided,
    SubnetworkSelection,
    guided_optimizers,
)
from sage_keras.callbacks import SwapTrueWeights

register = keras.saving.register_keras_serializable(package="sage_keras_tests")
# Powers of two, so that a factor rounds nothing away, and 0.
FACTORS = {"low": 0.25, "frozen": 0.0, "high": 2.0, "rest": 1.0}
MULTIPLIERS = {"low": 0.25, "frozen": 0.0, "high": 2.0}
SHAPES = {"low": (4, 3), "frozen": (3,), "high": (2, 3, 2), "rest": (5,)}
RATE = 2.0**-7
STEPS = 4


@register
class LayerwiseDPSMix(LayerwiseLearningRate, DPSMix):
    pass


@register
class LayerwiseEverything(
    LayerwiseLearningRate, SubnetworkSelection, SensitivityGuided, keras.optimizers.AdamW
):
    pass


def layerwise(name):
    base = getattr(keras.optimizers, name)
    return type(f"Layerwise{name}", (LayerwiseLearningRate, base), {})


def weights():
    random = np.random.default_rng(1)
    return {name: random.normal(size=s).astype("float32") for name, s in SHAPES.items()}


def gradients(step, names=SHAPES):
    random = np.random.default_rng(100 + step)
    drawn = {name: random.normal(size=s).astype("float32") for name, s in SHAPES.items()}
    return [drawn[name] for name in names]


def make(optimizer, names=SHAPES, mode="eager"):
    start = weights()
    return Runner(optimizer, [keras.Variable(start[n], name=n) for n in names], mode)


def train(optimizer, names=SHAPES, mode="eager", steps=STEPS):
    runner = make(optimizer, names, mode)
    for step in range(steps):
        runner.step(gradients(step, names))
    return dict(zip(names, runner.weights()))


def assert_frozen(trained):
    np.testing.assert_array_equal(trained["frozen"], weights()["frozen"])


# Torch's compiler takes 5 s for a step.
TWIN_CELLS = [
    (LayerwiseAdamW, "eager"),
    (LayerwiseSage, "graph" if BACKEND == "torch" else "xla"),
]


@pytest.mark.parametrize(("make_optimizer", "mode"), TWIN_CELLS)
def test_follows_the_twin(make_optimizer, mode):
    """Step and decay are both at the layer's own rate."""
    decay, multipliers = 0.1, {"low": 0.3, "frozen": 0.0, "high": 1.7}
    optimizer = make_optimizer(RATE, weight_decay=decay, learning_rate_multipliers=multipliers)
    runner = make(optimizer, mode=mode)
    guide = make_optimizer is LayerwiseSage
    twins = {
        name: twin.Adam(w, RATE * multipliers.get(name, 1.0), weight_decay=decay, guide=guide)
        for name, w in weights().items()
    }
    for step in range(30):
        runner.step(gradients(step))
        for one, gradient in zip(twins.values(), gradients(step)):
            one.step(gradient)
        for weight, one in zip(runner.weights(), twins.values()):
            assert np.max(np.abs(weight - one.weight)) <= 1e-5
    assert_frozen(dict(zip(SHAPES, runner.weights())))
    assert runner.compilations == (30 if mode == "eager" else 1)


@pytest.mark.parametrize("name", BASES)
def test_each_variable_trains_as_under_a_rate_of_its_own(name):
    arguments = {**BASES[name], "weight_decay": 0.1}
    # Keras's Nadam multiplies its momentum schedule up once a call, whatever the variables.
    optimizer = layerwise(name)(RATE, learning_rate_multipliers=MULTIPLIERS, **arguments)
    trained = train(optimizer)
    assert_frozen(trained)
    for one, factor in FACTORS.items():
        if factor:
            alone = train(plain(name)(RATE * factor, **arguments), [one])
            np.testing.assert_array_equal(trained[one], alone[one])


FEATURES = {
    "clipnorm": {"clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.3},
    "ema": {"use_ema": True, "ema_momentum": 0.5},
    "ema_overwrite": {"use_ema": True, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 8.0},
}


@pytest.mark.parametrize("mode", ["eager"] if BACKEND == "torch" else ["eager", "xla"])
@pytest.mark.parametrize("feature", FEATURES)
def test_features_of_keras_at_a_rate_of_ones_own(feature, mode):
    arguments = {"weight_decay": 0.1, **FEATURES[feature]}

    def finished(optimizer, names):
        runner = make(optimizer, names, mode)
        for step in range(STEPS):
            runner.step(gradients(step, names))
        optimizer.finalize_variable_values(runner.variables)
        return dict(zip(names, runner.weights()))

    multipliers = {"low": 0.25, "frozen": 0.0}
    optimizer = LayerwiseAdamW(RATE, learning_rate_multipliers=multipliers, **arguments)
    trained = finished(optimizer, ["low", "frozen", "rest"])
    assert_frozen(trained)
    tolerance = {"rtol": 0, "atol": 0 if mode == "eager" else 1e-7}
    for name, factor in {"low": 0.25, "rest": 1.0}.items():
        alone = finished(plain("AdamW")(RATE * factor, **arguments), [name])
        np.testing.assert_allclose(trained[name], alone[name], **tolerance)


@pytest.mark.parametrize("feature", ["plain", "ema", "accumulation", "amsgrad"])
@pytest.mark.parametrize(
    ("make_optimizer", "base"), [(LayerwiseAdamW, keras.optimizers.AdamW), (LayerwiseSage, Sage)]
)
def test_frozen_variables_own_no_slot(make_optimizer, base, feature):
    arguments = {"amsgrad": {"amsgrad": True}, "plain": {}, **FEATURES}[feature]
    layered = make_optimizer(learning_rate_multipliers=MULTIPLIERS, **arguments)
    make(layered)
    alone = base(**arguments)
    make(alone, ["low", "high", "rest"])
    shapes = [[tuple(v.shape) for v in one.variables] for one in (layered, alone)]
    assert shapes[0] == shapes[1]


def test_the_norm_of_all_gradients_is_that_of_the_trained_ones():
    optimizer = LayerwiseAdamW(RATE, global_clipnorm=0.5, learning_rate_multipliers={"frozen": 0.0})
    trained = train(optimizer)
    names = ["low", "high", "rest"]
    for name, expected in train(plain("AdamW")(RATE, global_clipnorm=0.5), names).items():
        np.testing.assert_array_equal(trained[name], expected)


def test_variables_excluded_from_decay_do_not_decay():
    optimizer = LayerwiseAdamW(0.5, weight_decay=0.5, learning_rate_multipliers=MULTIPLIERS)
    optimizer.exclude_from_weight_decay(var_names=["high"])  # the only one of its factor
    runner = make(optimizer)
    runner.step([np.zeros(shape, "float32") for shape in SHAPES.values()])
    factors = {"low": 1 - 0.125 * 0.5, "frozen": 1, "high": 1, "rest": 1 - 0.5 * 0.5}
    for name, weight in zip(SHAPES, runner.weights()):
        np.testing.assert_array_equal(weight, weights()[name] * np.float32(factors[name]))


def test_variables_may_be_passed_in_part_and_without_gradients():
    optimizer = LayerwiseAdamW(RATE, learning_rate_multipliers=MULTIPLIERS)
    runner = make(optimizer)
    low, frozen, high, rest = runner.variables
    grads = [keras.ops.convert_to_tensor(g) for g in gradients(0)]
    optimizer.apply([grads[0], None], [low, frozen])  # no warning: it needs no gradient
    optimizer.apply_gradients([(grads[1], frozen), (grads[2], high)])
    assert int(optimizer.iterations) == 2
    assert_frozen(dict(zip(SHAPES, runner.weights())))
    np.testing.assert_array_equal(to_numpy(rest), weights()["rest"])
    assert not np.any(to_numpy(low) == weights()["low"])
    assert not np.any(to_numpy(high) == weights()["high"])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([grads[0]], [keras.Variable(weights()["low"])])


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(32, 4)).astype("float32")
    return x, (x @ random.normal(size=(4, 1))).astype("float32")


def compiled(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="tanh", name="first"),
            keras.layers.Dense(3, activation="tanh", name="second"),
            keras.layers.Dense(1, name="head"),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse", **arguments)
    return model


def fit(model, epochs=2, **arguments):
    x, y = data()
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **arguments)
    return model


RATES = {"first": 0.0, "second": 0.5}
FITS = {
    "LayerwiseAdamW": lambda: LayerwiseAdamW(0.02, learning_rate_multipliers=RATES),
    "LayerwiseDPSMix": lambda: LayerwiseDPSMix(
        0.02, learning_rate_multipliers=RATES, stage_steps=2, seed=3
    ),
    "LayerwiseEverything": lambda: LayerwiseEverything(
        0.02, learning_rate_multipliers=RATES, stage_steps=2
    ),
}


SLOW = ("LayerwiseDPSMix", "LayerwiseEverything")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.extended] if name in SLOW else []) for name in FITS],
)
def test_fit_saves_and_resumes_bit_equal(name, tmp_path):
    callbacks = [SwapTrueWeights()] if name == "LayerwiseDPSMix" else []
    model = fit(compiled(FITS[name]()), epochs=1, callbacks=callbacks)
    before = compiled(FITS[name]())
    for layer, stays in [("first", True), ("second", False), ("head", False)]:
        pair = [one.get_layer(layer).get_weights() for one in (model, before)]
        assert all(np.array_equal(a, b) == stays for a, b in zip(*pair))

    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.optimizer.get_config() == model.optimizer.get_config()
    # Keras drops the model's name when it loads a model.
    factors = {"/".join(p.split("/")[-2:]): m for p, m in again.optimizer.multipliers.items()}
    assert factors == {
        f"{layer}/{one}": factor
        for layer, factor in [("first", 0.0), ("second", 0.5), ("head", 1.0)]
        for one in ("kernel", "bias")
    }
    for one in (model, again):
        fit(one, epochs=1, callbacks=callbacks)
    for a, b in zip(model.get_weights(), again.get_weights()):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(model.optimizer.variables, again.optimizer.variables):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))


def test_fit_under_loss_scaling_and_with_an_untrainable_layer_is_the_same():
    """A frozen layer and one that is not trainable come to the same thing, bit for bit."""
    scaled = keras.optimizers.LossScaleOptimizer(
        LayerwiseSage(0.02, learning_rate_multipliers=RATES), initial_scale=64.0
    )
    frozen = fit(compiled(scaled))
    untrainable = compiled(None)
    untrainable.get_layer("first").trainable = False
    optimizer = keras.optimizers.LossScaleOptimizer(
        LayerwiseSage(0.02, learning_rate_multipliers={"second": 0.5}), initial_scale=64.0
    )
    untrainable.compile(optimizer=optimizer, loss="mse")
    fit(untrainable)
    # Compilers may fuse the two programs differently.
    for one, other in zip(frozen.get_weights(), untrainable.get_weights()):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert len(scaled.variables) == len(optimizer.variables)
    assert [type(one) for one in guided_optimizers(scaled)] == [LayerwiseSage]


def test_swapped_averages_leave_frozen_variables_alone():
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    model = compiled(LayerwiseAdamW(0.02, learning_rate_multipliers=RATES, use_ema=True))
    before = model.get_layer("first").get_weights()
    fit(model, callbacks=[swap], validation_data=data())
    for one, other in zip(before, model.get_layer("first").get_weights()):
        np.testing.assert_array_equal(one, other)


def test_the_learning_rate_itself_is_as_it_was_set():
    optimizer = LayerwiseAdamW(0.02, learning_rate_multipliers=RATES)
    model = compiled(optimizer)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch: [0.02, 0.0][epoch])
    fit(model, callbacks=[halve])
    once = fit(compiled(LayerwiseAdamW(0.02, learning_rate_multipliers=RATES)), epochs=1)
    for one, other in zip(model.get_weights(), once.get_weights()):
        np.testing.assert_array_equal(one, other)
    assert float(optimizer.learning_rate) == 0.0


@pytest.mark.skipif(BACKEND != "tensorflow", reason="other backends' gradients are dense")
@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_sparse_gradients(mode):
    import tensorflow as tf

    class SparseRunner(Runner):
        def step(self, gradients):
            self._step(gradients)

    def trained(optimizer):
        table = keras.Variable(np.ones((6, 2), "float32"), name="table")
        frozen = keras.Variable(np.ones((6, 2), "float32"), name="frozen")
        runner = SparseRunner(optimizer, [table, frozen], mode)
        for step in range(STEPS):
            values = np.random.default_rng(step).normal(size=(3, 2)).astype("float32")
            gradient = tf.IndexedSlices(
                tf.constant(values), tf.constant([1, 4, 1]), tf.constant([6, 2])
            )
            runner.step([gradient, gradient])
        return runner.weights()

    rates = {"table": 0.25, "frozen": 0.0}
    table, frozen = trained(LayerwiseAdamW(0.02, learning_rate_multipliers=rates))
    np.testing.assert_array_equal(frozen, np.ones((6, 2)))
    np.testing.assert_array_equal(table, trained(plain("AdamW")(0.005))[0])


def test_the_first_pattern_that_matches_counts():
    rates = {"bias": 2.0, "second": 0.5, "": 0.25}
    optimizer = LayerwiseAdamW(learning_rate_multipliers=rates)
    optimizer.build(compiled("sgd").trainable_variables)
    assert list(optimizer.multipliers.values()) == [0.25, 2.0, 0.5, 2.0, 0.25, 2.0]
    assert list(optimizer.get_config()["learning_rate_multipliers"]) == list(rates)


def test_summary():
    optimizer = LayerwiseSage(learning_rate_multipliers=RATES, include=["kernel"])
    assert repr(optimizer).endswith("include=['kernel']) on AdamW, not built>")
    assert optimizer.multipliers == {}
    optimizer.build([keras.Variable(np.ones((2, 3)), name=n) for n in ("first", "second_kernel")])
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines == [
        f"<LayerwiseSage(learning_rate=0.001, learning_rate_multipliers={RATES}, "
        "include=['kernel']) on AdamW, "
        "guides 1 of 1 variables, own rates for 1 and 1 frozen of 2 variables>",
        "  guided  rate    path           shape",
        "  -       frozen  first          (2, 3)",
        "  yes     0.5     second_kernel  (2, 3)",
    ]


@pytest.mark.parametrize(
    ("multipliers", "error", "words"),
    [
        (0.9, TypeError, "must be a dict of regular expression to factor"),
        (["head"], TypeError, r"Received: learning_rate_multipliers=\['head'\]"),
        ({1: 0.5}, TypeError, "must be a dict of regular expression"),
        ({}, ValueError, "must not be empty"),
        ({"head": -0.1}, ValueError, r"finite factors of at least 0. Received: .*'head': -0.1"),
        ({"head": float("nan")}, ValueError, "'head': nan"),
        ({"head": float("inf")}, ValueError, "'head': inf"),
        ({"head": True}, ValueError, "'head': True"),
        ({"head": "0.1"}, ValueError, "'head': '0.1'"),
        ({"head(": 0.1}, ValueError, r"malformed regular expression .*Received: .*'head\('"),
    ],
)
def test_wrong_multipliers_are_refused(multipliers, error, words):
    with pytest.raises(error, match=words):
        LayerwiseAdamW(learning_rate_multipliers=multipliers)


@pytest.mark.parametrize(
    ("multipliers", "words"),
    [
        ({"head": 0.5, "heat": 0.1}, r"matches no variable.*'heat'[\s\S]*first/kernel"),
        ({"": 0.0}, "freezes every variable"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_in_build(multipliers, words):
    optimizer = LayerwiseAdamW(learning_rate_multipliers=multipliers)
    with pytest.raises(ValueError, match=words):
        optimizer.build(compiled("sgd").trainable_variables)
    assert not optimizer.built
    assert len(optimizer.variables) == 2  # iterations and the learning rate


def test_state_of_other_frozen_variables_is_refused():
    store = {}
    make(LayerwiseAdamW(learning_rate_multipliers=MULTIPLIERS)).optimizer.save_own_variables(store)
    other = make(LayerwiseAdamW(learning_rate_multipliers={"rest": 0.0})).optimizer
    with pytest.raises(ValueError, match=r"saved state.*, here learning_rate_multipliers="):
        other.load_own_variables(store)


@pytest.mark.parametrize(
    ("bases", "words"),
    [
        ((SensitivityGuided, LayerwiseLearningRate, keras.optimizers.AdamW), "`SensitivityGuided`"),
        ((SubnetworkSelection, LayerwiseLearningRate, keras.optimizers.AdamW), "must come before"),
        ((keras.optimizers.AdamW, LayerwiseLearningRate), "must come before `AdamW`"),
        ((LayerwiseLearningRate, keras.optimizers.LossScaleOptimizer), "wraps other optimizers"),
    ],
)
def test_bases_in_another_order_are_refused(bases, words):
    with pytest.raises(TypeError, match=words):
        type("Mine", bases, {})


def test_the_names_are_public():
    assert {"LayerwiseAdamW", "LayerwiseLearningRate", "layerwise_decay"} <= {*sage_keras.__all__}
