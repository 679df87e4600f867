"""Sparse fine-tuning: the chosen weights follow the base's rule, and no other bit changes."""

import math

import keras
import numpy as np
import pytest
import twin
import twin_sparse
from bases import plain
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import BACKEND, Runner, float64_allowed, to_numpy

from sage_keras import LayerwiseLearningRate, SensitivityGuided, SparseAdamW, SparseFineTuning
from sage_keras.optimizers.sparse import choice

RATE = float(np.float32(1e-2))
SHAPES = [(7, 5), (6,), (4, 3, 2), ()]
STEPS = 8
COMPILED = "eager" if BACKEND == "torch" else "xla"  # torch takes minutes for a condition


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class SparseSage(SparseFineTuning, SensitivityGuided, keras.optimizers.AdamW):
    pass


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class SparseLayerwise(SparseFineTuning, LayerwiseLearningRate, keras.optimizers.AdamW):
    pass


def start(dtype="float32"):
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype(dtype) for shape in SHAPES]


def gradients(step):
    random = np.random.default_rng(100 + step)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def variables(dtype="float32"):
    return [
        keras.Variable(weight, name=f"weight_{index}", dtype=dtype)
        for index, weight in enumerate(start())
    ]


def scores():
    random = np.random.default_rng(2)
    return {f"weight_{i}": random.uniform(size=shape) for i, shape in enumerate(SHAPES)}


def trained(optimizer, mode="eager", steps=STEPS, dtype="float32"):
    runner = Runner(optimizer, variables(dtype), mode)
    for step in range(steps):
        runner.step([np.asarray(one, "float32") for one in gradients(step)])
    return runner


def assert_equal(weights, expected):
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def counts(fraction):
    return [math.ceil(math.prod(shape) * fraction) for shape in SHAPES]


TWINS = {
    "scores": (SparseAdamW, {"scores": scores()}, "eager"),
    "gradients": (SparseAdamW, {"selection_steps": 3}, "eager"),
    "gradients, compiled": (SparseAdamW, {"selection_steps": 3}, COMPILED),
    "guided": (SparseSage, {"selection_steps": 3}, COMPILED),
}


@pytest.mark.parametrize("what", TWINS)
def test_follows_the_twin(what):
    """To 1e-5 of float64, the choice exactly; compiled once for all steps of both kinds."""
    cls, arguments, mode = TWINS[what]
    optimizer = cls(RATE, fraction=0.25, weight_decay=0.1, **arguments)

    def make(weight):
        return twin.Adam(weight, RATE, guide=cls is SparseSage, weight_decay=0.1)

    twins = [
        twin_sparse.Sparse(
            weight,
            make,
            twin_sparse.best(scores()[f"weight_{index}"], count) if what == "scores" else None,
            count,
            selection_steps=3,
        )
        for index, (weight, count) in enumerate(zip(start(), counts(0.25)))
    ]
    runner = Runner(optimizer, variables(), mode)
    for step in range(STEPS):
        runner.step(gradients(step))
        assert optimizer.is_selecting == (what != "scores" and step < 2)
        for one, gradient in zip(twins, gradients(step), strict=True):
            one.step(gradient)
        chosen = optimizer.chosen_positions
        for index, (one, weight) in enumerate(zip(twins, runner.weights(), strict=True)):
            np.testing.assert_array_equal(to_numpy(chosen[f"weight_{index}"]), one.positions)
            np.testing.assert_allclose(weight, one.weight, rtol=1e-5, atol=1e-6)
    assert int(optimizer.iterations) == (STEPS if what == "scores" else STEPS - 3)
    if mode != "eager":
        for step in range(200 - STEPS):
            runner.step(gradients(step))
        assert runner.compilations == 1


def test_float64_weights_have_float64_state():
    with float64_allowed():
        weight = keras.Variable(start()[0], dtype="float64", name="weight_0")
        given = {"weight_0": scores()["weight_0"]}
        optimizer = SparseAdamW(RATE, fraction=0.25, scores=given, weight_decay=0.0)
        # The twin is no help: Keras's Adam has its constants in float32.
        whole = keras.Variable(start()[0], dtype="float64")
        base = keras.optimizers.AdamW(RATE, weight_decay=0.0)
        for step in range(STEPS):
            gradient = keras.ops.convert_to_tensor(gradients(step)[0].astype("float64"))
            optimizer.apply([gradient], [weight])
            base.apply([gradient], [whole])
        chosen = twin_sparse.best(scores()["weight_0"], 9)
        expected = start()[0].astype("float64")
        expected.flat[chosen] = to_numpy(whole).flat[chosen]
        np.testing.assert_allclose(to_numpy(weight), expected, rtol=1e-8)
        assert {str(v.dtype) for v in optimizer.variables} >= {"float64", "int32"}


FEATURES = {
    "plain": {},
    "clipvalue": {"clipvalue": 0.5},
    "EMA": {"use_ema": True, "ema_momentum": 0.5},
    "accumulation": {"gradient_accumulation_steps": 2},
    "skipping": {"on_nonfinite": "skip"},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_fraction_of_one_equals_the_base_to_the_bit(feature):
    options = dict(FEATURES[feature])
    runner = trained(SparseAdamW(RATE, fraction=1.0, scores="random", **options))
    options.pop("on_nonfinite", None)
    base = trained(plain("AdamW")(RATE, **options))
    for one in (runner, base):
        one.optimizer.finalize_variable_values(one.variables)
    assert_equal(runner.weights(), base.weights())


def test_a_fraction_of_one_equals_the_clipped_base():
    """The norms of the same gradients are added up in another order."""
    one = trained(SparseAdamW(RATE, fraction=1.0, scores="random", global_clipnorm=0.5))
    base = trained(plain("AdamW")(RATE, global_clipnorm=0.5))
    for weight, expected in zip(one.weights(), base.weights()):
        np.testing.assert_allclose(weight, expected, rtol=1e-6, atol=1e-7)


def test_the_norm_is_that_of_the_chosen_gradients():
    weight = keras.Variable([1.0, 1.0, 1.0], name="w")
    optimizer = SparseFineTuningSGD(1.0, fraction=0.6, scores={"w": [3, 2, 1]}, global_clipnorm=1.0)
    optimizer.apply([keras.ops.array([3.0, 4.0, 1e6])], [weight])
    np.testing.assert_allclose(to_numpy(weight), [0.4, 0.2, 1.0], rtol=1e-6)


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class SparseFineTuningSGD(SparseFineTuning, keras.optimizers.SGD):
    pass


@settings(max_examples=6, deadline=None)
@given(
    # A few, since each is a shape of its own to compile.
    fraction=st.sampled_from([0.01, 0.1, 0.3, 0.9]),
    by=st.sampled_from(["gradient", "sensitivity", "magnitude", "random"]),
    feature=st.sampled_from(sorted(FEATURES)),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_weights_that_are_not_chosen_keep_every_bit(fraction, by, feature, dtype):
    optimizer = SparseAdamW(
        0.5, fraction=fraction, scores=by, selection_steps=2, weight_decay=0.1, **FEATURES[feature]
    )
    kernel = keras.Variable(start()[0], name="kernel", dtype=dtype)
    before = to_numpy(keras.ops.cast(kernel, "float32")).ravel()
    for step in range(100):
        optimizer.apply([keras.ops.convert_to_tensor(gradients(step)[0])], [kernel])
    optimizer.finalize_variable_values([kernel])
    after = to_numpy(keras.ops.cast(kernel, "float32")).ravel()
    (positions,) = map(to_numpy, optimizer.chosen_positions.values())
    assert len(positions) == len(set(positions.tolist())) == math.ceil(35 * fraction)
    assert positions.tolist() == sorted(positions)
    moved = np.flatnonzero(before != after)
    assert moved.tolist() == positions.tolist()


def test_half_precision_adds_up_steps_that_it_cannot_hold():
    """bfloat16 near 1 has steps of 2^-7; what is set from outside is taken over."""
    weight = keras.Variable([1.0, 1.0], name="w", dtype="bfloat16")
    optimizer = SparseFineTuningSGD(2.0**-11, fraction=0.5, scores={"w": [1.0, 0.0]})
    for _ in range(16):
        optimizer.apply([keras.ops.array([-1.0, -1.0])], [weight])
    assert to_numpy(keras.ops.cast(weight, "float32")).tolist() == [1.0 + 2.0**-7, 1.0]
    weight.assign([2.0, 3.0])
    optimizer.apply([keras.ops.array([-256.0, 0.0])], [weight])
    assert to_numpy(keras.ops.cast(weight, "float32")).tolist() == [2.125, 3.0]


def test_what_is_left_out_trains_as_a_whole_or_not_at_all():
    arguments = {"fraction": 0.25, "scores": "magnitude", "include": ["weight_[02]"]}
    base = trained(plain("AdamW")(RATE)).weights()
    rest = trained(SparseAdamW(RATE, **arguments)).weights()
    frozen = trained(SparseAdamW(RATE, **arguments, rest="freeze", exclude=["weight_2"]), COMPILED)
    assert_equal([rest[1], rest[3]], [base[1], base[3]])
    assert_equal(frozen.weights()[1:], start()[1:])
    assert_equal([frozen.weights()[0]], [rest[0]]) if COMPILED == "eager" else None
    assert np.sum(frozen.weights()[0] != start()[0]) == 9
    assert {slot.shape for slot in frozen.optimizer.variables} == {(), (9,)}


def test_layers_have_their_rates_and_paths_mean_what_they_mean_without():
    rates = {"weight_0": 0.0, "weight_1": 0.5}
    one = SparseLayerwise(RATE, fraction=1.0, scores="random", learning_rate_multipliers=rates)
    one.exclude_from_weight_decay(var_names=["weight_2"])
    runner = trained(one, COMPILED)
    base = keras.optimizers.AdamW if BACKEND != "torch" else plain("AdamW")

    class Layerwise(LayerwiseLearningRate, base):
        pass

    other = Layerwise(RATE, learning_rate_multipliers=rates)
    other.exclude_from_weight_decay(var_names=["weight_2"])
    expected = trained(other, COMPILED).weights()
    for weight, target in zip(runner.weights(), expected, strict=True):
        np.testing.assert_allclose(weight, target, rtol=1e-6, atol=1e-8)
    assert set(one.chosen_positions) == {"weight_1", "weight_2", "weight_3"}


def test_one_threshold_for_all_variables():
    given = scores()
    optimizer = SparseAdamW(RATE, fraction=0.1, scores=given, scope="global")
    trained(optimizer, steps=1)
    whole = np.concatenate([one.ravel() for one in given.values()]).astype("float32")
    found = [to_numpy(one) for one in optimizer.chosen_positions.values()]
    assert sum(map(len, found)) == math.ceil(66 * 0.1) == 7
    expected = np.sort(whole)[-7:]
    taken = [given[path].ravel()[to_numpy(p)] for path, p in optimizer.chosen_positions.items()]
    np.testing.assert_array_equal(np.sort(np.concatenate(taken).astype("float32")), expected)
    without = set(given) - set(optimizer.chosen_positions)
    assert without  # a variable without a chosen weight has no state
    assert not any(name in slot.path for slot in optimizer.variables for name in without)


def test_the_bytes_of_the_state():
    kernel = keras.Variable(np.ones((100, 100), "float32"), name="kernel")
    optimizer, base = SparseAdamW(fraction=0.05), keras.optimizers.AdamW()
    for one in (optimizer, base):
        one.build([kernel])
    size = [sum(4 * math.prod(v.shape) for v in one.variables) for one in (optimizer, base)]
    assert size[0] - 12 == 500 * 16  # three scalars
    assert size[1] - 8 == 10_000 * 8


def test_gradients_that_are_missing_or_not_finite_choose_nothing():
    optimizer = SparseAdamW(0.1, fraction=0.25, selection_steps=2, weight_decay=0.0)
    first, second = (keras.Variable([1.0] * 4, name=name) for name in ("first", "second"))
    nan = keras.ops.array([float("nan"), 1.0, 3.0, float("inf")])
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        for _ in range(3):
            optimizer.apply([nan, None], [first, second])
    assert to_numpy(optimizer.chosen_positions["first"]).tolist() == [2]
    np.testing.assert_allclose(to_numpy(first), [1.0, 1.0, 0.9, 1.0], rtol=1e-5)
    assert to_numpy(second).tolist() == [1.0] * 4


def test_sensitivity_chooses_by_the_product():
    optimizer = SparseAdamW(fraction=0.5, scores="sensitivity", selection_steps=1)
    weight = keras.Variable([10.0, 0.1], name="w")
    optimizer.apply([keras.ops.array([1.0, 2.0])], [weight])
    assert to_numpy(optimizer.chosen_positions["w"]).tolist() == [0]


def test_a_random_choice_follows_from_the_seed_alone():
    def chosen(seed):
        optimizer = SparseAdamW(fraction=0.25, scores="random", seed=seed)
        optimizer.build(variables())
        return [to_numpy(one).tolist() for one in optimizer.chosen_positions.values()]

    assert chosen(3) == chosen(3)
    assert chosen(3)[:2] == [[0, 8, 9, 10, 13, 24, 29, 31, 33], [0, 3]]


def saved(optimizer):
    store = {}
    optimizer.save_own_variables(store)
    return store


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(one, marks=[] if one == "eager" else pytest.mark.extended)
        for one in sorted({"eager", COMPILED})
    ],
)
@pytest.mark.parametrize("stop", [2, 5], ids=["while it selects", "while it trains"])
def test_stopped_and_resumed_it_equals_a_run_that_was_not(mode, stop):
    def make():
        return SparseAdamW(RATE, fraction=0.25, selection_steps=4, name="s")

    whole = trained(make(), mode)
    first = trained(make(), mode, steps=stop)
    again = Runner(make(), variables(), mode)
    for variable, weight in zip(again.variables, first.weights()):
        variable.assign(weight)
    again.optimizer.load_own_variables(saved(first.optimizer))
    for step in range(stop, STEPS):
        again.step(gradients(step))
    assert_equal(again.weights(), whole.weights())
    states = [[to_numpy(v) for v in one.optimizer.variables] for one in (again, whole)]
    assert_equal(*states)


OTHERS = {
    "fraction": ({"fraction": 0.5}, "is of fraction=0.25, this optimizer has fraction=0.5"),
    "scores": ({"scores": "random"}, "is of scores='gradient', this optimizer has scores='random'"),
    "a dict of scores": ({"scores": scores()}, "is of scores='gradient', this optimizer has"),
    "include": (
        {"include": ["weight_[0-2]"]},
        r"shape \(1,\) for momentum of weight_3, here it is",
    ),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_state_of_another_choice_is_refused_by_name(what):
    change, message = OTHERS[what]
    store = saved(trained(SparseAdamW(RATE, fraction=0.25), steps=1).optimizer)
    other = trained(SparseAdamW(RATE, **{"fraction": 0.25, **change}), steps=1).optimizer
    before = [to_numpy(variable) for variable in other.variables]
    with pytest.raises(ValueError, match=message):
        other.load_own_variables(store)
    assert_equal(before, [to_numpy(variable) for variable in other.variables])


@pytest.mark.parametrize("scope", ["variable", "global"])
def test_a_configuration_has_no_scores_and_its_state_brings_the_choice(scope):
    first = trained(SparseAdamW(RATE, fraction=0.25, scores=scores(), scope=scope)).optimizer
    config = first.get_config()
    assert set(config["scores"]) == {"fingerprint", "counts"}
    again = SparseAdamW.from_config(config)
    again.build(variables())
    assert again.is_selecting
    again.load_own_variables(saved(first))
    assert not again.is_selecting
    for one, other in zip(again.chosen_positions.values(), first.chosen_positions.values()):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    other = SparseAdamW(RATE, fraction=0.25, scores={k: -v for k, v in scores().items()})
    other.build(variables())
    with pytest.raises(ValueError, match="is of scores="):
        other.load_own_variables(saved(first))


def network(optimizer):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, name="a"), keras.layers.Dense(2, name="b")]
    model = keras.Sequential([keras.Input((5,)), *layers])
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=BACKEND != "jax")
    return model


def fitted(model, steps=6):
    x = np.random.default_rng(0).normal(size=(4 * steps, 5)).astype("float32")
    model.fit(x, x[:, :2], batch_size=4, shuffle=False, verbose=0)
    return model


def test_fit_saves_loads_and_goes_on(tmp_path):
    """Through LossScaleOptimizer and a file, with a schedule that counts updates only."""
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([3], [0.1, 0.0])

    def make():
        inner = SparseAdamW(
            schedule, fraction=0.2, selection_steps=2, include=["kernel"], weight_decay=0.0
        )
        return keras.optimizers.LossScaleOptimizer(inner, initial_scale=8.0)

    model = network(make())
    before = model.get_weights()
    fitted(model, steps=2)
    assert_equal([model.get_weights()[0]], [before[0]])
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    for one in (model, again):
        fitted(one)
    assert_equal(model.get_weights(), again.get_weights())
    assert int(again.optimizer.inner_optimizer.iterations) == 6
    changed = [int(np.sum(a != b)) for a, b in zip(before, again.get_weights())]
    assert changed == [6, 6, 3, 2]


def test_an_optimizer_that_fit_builds_trains_what_it_chose():
    """On TensorFlow it is built while the first step is traced, when it still chooses."""
    model = network(SparseAdamW(0.1, fraction=0.2, selection_steps=2, include=["kernel"]))
    model.run_eagerly = False
    before = model.get_weights()
    fitted(model)
    changed = [int(np.sum(a != b)) for a, b in zip(before, model.get_weights())]
    assert changed == [6, 6, 3, 2]
    assert int(model.optimizer.iterations) == 4


def test_it_prints_what_it_trains(capsys):
    optimizer = SparseAdamW(fraction=0.25, scores="magnitude", seed=0, exclude=["weight_3"])
    optimizer.build(variables())
    assert "trains 17 weights of 3 variables" in repr(optimizer)
    optimizer.summary()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["trained", "path", "shape"]
    assert lines[2].split() == ["9", "weight_0", "(7,", "5)"]
    assert lines[5].split() == ["-", "weight_3", "()"]


BAD = {
    "fraction zero": ({"fraction": 0.0}, ValueError, "`fraction` must be above 0"),
    "fraction above one": ({"fraction": 1.5}, ValueError, "at most 1"),
    "fraction NaN": ({"fraction": math.nan}, ValueError, "`fraction`"),
    "fraction a string": ({"fraction": "5%"}, TypeError, "`fraction` must be a float"),
    "fraction a boolean": ({"fraction": True}, TypeError, "`fraction` must be a float"),
    "scores unknown": ({"scores": "hessian"}, ValueError, '`scores` must be "gradient"'),
    "scores of PLATON": ({"scores": "confidence"}, ValueError, "`scores` must be"),
    "scores None": ({"scores": None}, ValueError, "Received: scores=None"),
    "scores a list": ({"scores": [1.0]}, ValueError, r"of type list"),
    "scores empty": ({"scores": {}}, ValueError, "`scores` must be"),
    "scores NaN": ({"scores": {"w": [math.nan] * 4}}, ValueError, "'w' that are not finite"),
    "scope unknown": ({"scope": "layer"}, ValueError, '`scope` must be "variable" or "global"'),
    "scope without scores": ({"scope": "global"}, ValueError, "known before training"),
    "rest unknown": ({"rest": "drop"}, ValueError, '`rest` must be "train" or "freeze"'),
    "no selection steps": ({"selection_steps": 0}, ValueError, "`selection_steps` must be at"),
    "half a step": ({"selection_steps": 1.5}, TypeError, "`selection_steps` must be an integer"),
    "seed negative": ({"seed": -1}, ValueError, "`seed` must be at least 0"),
    "include a string": ({"include": "kernel"}, TypeError, "list of regular expressions"),
    "include malformed": ({"include": ["("]}, ValueError, "malformed"),
    "include nothing": ({"include": ["embedding"]}, ValueError, "`include` matches no variable"),
    "scores lacking": ({"scores": {"v": [1.0] * 4}}, ValueError, "lacks variables that.*\n  w"),
    "scores of a shape": ({"scores": {"w": [1.0]}}, ValueError, r"shape \(1,\) for 'w'.*\(4,\)"),
    "configuration": (
        {"scores": {"fingerprint": 1, "counts": [1, 2]}, "scope": "global"},
        ValueError,
        "of 2 variables",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_arguments_are_refused_before_anything_is_made(what):
    arguments, error, message = BAD[what]
    weight = keras.Variable([1.0] * 4, name="w")
    with pytest.raises(error, match=message):
        SparseAdamW(**arguments).apply([keras.ops.ones((4,))], [weight])
    assert to_numpy(weight).tolist() == [1.0] * 4


def test_a_variable_with_a_constraint_is_refused():
    layer = keras.layers.Dense(2, kernel_constraint="max_norm", name="d")
    layer.build((None, 3))
    with pytest.raises(ValueError, match=r"d/kernel' has a constraint.*`exclude`"):
        SparseAdamW().build(layer.trainable_variables)
    SparseAdamW(exclude=["kernel"]).build(layer.trainable_variables)


@pytest.mark.parametrize("base", ["Muon", "Adafactor", "ScheduleFreeAdamW"])
def test_bases_that_need_whole_variables_are_refused(base):
    with pytest.raises(TypeError, match=f"cannot be built on `{base}`"):
        type("Wrong", (SparseFineTuning, getattr(keras.optimizers, base)), {})


def test_best_of_equal_scores_are_the_first():
    ones = [np.ones((2, 2), "float32"), np.ones(3, "float32")]
    found = choice.best(ones, 0.5, "global")
    assert [one.tolist() for one in found] == [[0, 1, 2, 3], []]
    assert [one.tolist() for one in choice.best(ones, 0.5, "variable")] == [[0, 1], [0, 1]]
