"""DPS Dense: the stages, the selection in them, and what the classes accept."""

import keras
import numpy as np
import pytest
import twin
import twin_dps
from bases import plain
from modes import BACKEND, MODES, Runner, to_numpy

from sage_keras import (
    DPSDense,
    LayerwiseLearningRate,
    SensitivityGuided,
    SubnetworkMixing,
    SubnetworkSelection,
)

LEARNING_RATE = float(np.float32(1e-2))
STAGE_STEPS, CYCLES = 4, 3
STEPS = 2 * STAGE_STEPS * CYCLES
SHAPES = [(7, 5), (6,), (4, 3, 2)]
SELECTING = {"learning_rate": LEARNING_RATE, "stage_steps": STAGE_STEPS, "drop_rate": 0.3}


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class SageDPS(SubnetworkSelection, SensitivityGuided, keras.optimizers.AdamW):
    pass


def start():
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def gradients(step):
    random = np.random.default_rng(100 + step)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def make(optimizer, mode="eager", weights=None):
    weights = start() if weights is None else weights
    variables = [keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(weights)]
    return Runner(optimizer, variables, mode)


def train(optimizer, mode="eager", steps=STEPS):
    runner = make(optimizer, mode)
    for step in range(steps):
        runner.step(gradients(step))
    return runner.weights()


def dense_twins(optimizer, guide=False):
    return [
        twin_dps.Dense(
            twin.Adam(w, LEARNING_RATE, guide=guide, weight_decay=optimizer.weight_decay),
            optimizer.stage_steps,
            optimizer.drop_rate,
        )
        for w in start()
    ]


def assert_follows(runner, twins, step):
    """The weights to 1e-5, and in stage II the masks bit by bit."""
    for variable, weight, one in zip(runner.variables, runner.weights(), twins):
        distance = np.max(np.abs(weight - one.weight)) / np.max(np.abs(one.weight))
        assert distance <= 1e-5, f"step {step}"
        assert one.gap > 1e-5  # float32 sees which is larger
        one.prepare()
        np.testing.assert_array_equal(to_numpy(runner.optimizer.subnetwork(variable)), one.mask)


# Torch's compiler takes a minute for a step with a condition in it.
TWIN_CELLS = [
    (make_optimizer, mode)
    for make_optimizer in (DPSDense, SageDPS)
    for mode in MODES
    if BACKEND != "torch" or mode == "eager" or (make_optimizer, mode) == (DPSDense, "xla")
]
COMPILED = "eager" if BACKEND == "torch" else "xla"


@pytest.mark.parametrize(("make_optimizer", "mode"), TWIN_CELLS)
def test_follows_the_twin(make_optimizer, mode):
    optimizer = make_optimizer(**SELECTING)
    runner = make(optimizer, mode)
    twins = dense_twins(optimizer, guide=make_optimizer is SageDPS)
    compilations = []
    for step in range(STEPS):
        runner.step(gradients(step))
        for one, gradient in zip(twins, gradients(step)):
            one.step(gradient)
        assert optimizer.stage == (2 if (step + 1) % 8 >= STAGE_STEPS else 1)
        assert_follows(runner, twins, step)
        compilations.append(runner.compilations)
    if BACKEND == "torch":
        # The condition breaks the graph in pieces, and all are seen once stage II has begun.
        assert mode == "eager" or compilations[STAGE_STEPS] == compilations[-1]
    else:
        assert compilations[-1] == (STEPS if mode == "eager" else 1)


def test_accumulation_does_not_shorten_the_stages():
    optimizer = DPSDense(**SELECTING, gradient_accumulation_steps=3)
    runner = make(optimizer, COMPILED)
    twins = dense_twins(optimizer)
    for step in range(2 * STAGE_STEPS + 1):
        parts = [gradients(3 * step + i) for i in range(3)]
        for part in parts:
            runner.step(part)
        for one, *g in zip(twins, *parts):
            one.step(np.mean(g, axis=0))
        assert_follows(runner, twins, step)


def test_scores_count_clipped_gradients():
    optimizer = DPSDense(**SELECTING, global_clipnorm=0.5)
    runner = make(optimizer)
    runner.step(gradients(0))
    for variable, g in zip(runner.variables, twin.clip_by_global_norm(gradients(0), 0.5)):
        np.testing.assert_allclose(runner.slot(variable, "score"), g**2, rtol=1e-5)


@pytest.mark.parametrize("mode", sorted({"eager", COMPILED}))
def test_dropping_nothing_equals_the_base(mode):
    arguments = {"learning_rate": LEARNING_RATE, "weight_decay": 0.1}
    expected = train(plain("AdamW", mode)(**arguments), mode, steps=10)
    actual = train(DPSDense(**arguments, stage_steps=2, drop_rate=0.0), mode, steps=10)
    for one, other in zip(actual, expected):
        np.testing.assert_array_equal(one, other)


def test_excluded_variables_always_train():
    expected = train(plain("AdamW")(LEARNING_RATE))
    actual = train(DPSDense(**SELECTING, include=["weight"], exclude=["weight_[02]"]))
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[2], expected[2])
    assert np.any(actual[1] != expected[1])


def test_ties_are_kept():
    weight = keras.Variable([0.0] * 4)
    optimizer = DPSDense(0.1, stage_steps=1, drop_rate=0.5)
    optimizer.apply([keras.ops.array([1.0, -1.0, 1.0, 0.5])], [weight])
    assert to_numpy(optimizer.subnetwork(weight)).tolist() == [True, True, True, False]


def test_dropped_weights_drift_on_old_momentum():
    """Stage II gives the base a gradient of zero, and nothing else."""
    weight, alone = keras.Variable([1.0, 1.0]), keras.Variable([1.0, 1.0])
    optimizer = DPSDense(0.1, stage_steps=1, drop_rate=0.5)
    base = plain("AdamW")(0.1)
    optimizer.apply([keras.ops.array([2.0, 1.0])], [weight])
    optimizer.apply([keras.ops.array([2.0, 1.0])], [weight])
    base.apply([keras.ops.array([2.0, 1.0])], [alone])
    base.apply([keras.ops.array([2.0, 0.0])], [alone])
    np.testing.assert_array_equal(to_numpy(weight), to_numpy(alone))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_variables_are_scored_in_float32(dtype):
    weight = keras.Variable([1.0, 1.0, 1.0], dtype=dtype)

    class Selecting(SubnetworkSelection, keras.optimizers.SGD):
        pass

    optimizer = Selecting(0.5, stage_steps=1, drop_rate=0.6)
    # In float16 the first square would be zero, and the second infinite.
    optimizer.apply([keras.ops.array([1e-4, 1e3, 1.0], dtype=dtype)], [weight])
    assert to_numpy(optimizer.subnetwork(weight)).tolist() == [False, True, True]
    assert keras.backend.standardize_dtype(weight.dtype) == dtype


def test_models_trained_in_turn_share_nothing():
    def trainer(seed):
        runner = make(DPSDense(**SELECTING), COMPILED, start()[:1])
        return runner, lambda step: runner.step(gradients(seed + step)[:1])

    alone = []
    for seed in (0, 50):
        runner, step = trainer(seed)
        for i in range(STEPS):
            step(i)
        alone.append(runner.weights())
    first, first_step = trainer(0)
    second, second_step = trainer(50)
    for i in range(STEPS):
        first_step(i)
        second_step(i)
    for runner, expected in zip((first, second), alone):
        for one, other in zip(runner.weights(), expected):
            np.testing.assert_array_equal(one, other)


def compiled(optimizer):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(optimizer=optimizer, loss="mse")
    return model


def fit(model, epochs=1):
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 4))
    model.fit(x, x.sum(axis=1), batch_size=4, epochs=epochs, shuffle=False, verbose=0)
    return model


@pytest.mark.parametrize("make_optimizer", [DPSDense, SageDPS])
def test_resuming_in_mid_stage_two_changes_no_bit(make_optimizer, tmp_path):
    expected = fit(fit(compiled(make_optimizer(**SELECTING))))  # six steps an epoch
    saved = fit(compiled(make_optimizer(**SELECTING)))
    assert saved.optimizer.stage == 2
    assert int(saved.optimizer.iterations) % STAGE_STEPS == 2
    saved.save(tmp_path / "model.keras")
    resumed = fit(keras.models.load_model(tmp_path / "model.keras"))
    for one, other in zip(resumed.get_weights(), expected.get_weights()):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(resumed.optimizer.variables, expected.optimizer.variables):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has sparse gradients")
@pytest.mark.parametrize("mode", MODES)
def test_sparse_gradients_equal_dense_ones(mode):
    import tensorflow as tf

    table = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    values = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    sparse = tf.IndexedSlices(tf.constant(values), tf.constant([1, 4, 1, 5]), tf.constant([6, 3]))

    def train_table(gradient):
        runner = make(DPSDense(0.1, stage_steps=2), mode, [table])
        for _ in range(6):
            runner._step([gradient])
        return runner.weights()[0]

    np.testing.assert_allclose(
        train_table(sparse), train_table(tf.convert_to_tensor(sparse)), rtol=1e-6, atol=1e-7
    )


# argument, value, what the message must say besides them
BAD_ARGUMENTS = [
    ("drop_rate", 1.0, "below 1"),
    ("drop_rate", -0.1, "at least 0"),
    ("drop_rate", 1.5, "below 1"),
    ("drop_rate", float("nan"), "such as 0.3"),
    ("drop_rate", "0.3", "must be a float"),
    ("drop_rate", None, "must be a float"),
    ("update_ratio", 0.0, "above 0"),
    ("update_ratio", 1.0, "below 1"),
    ("update_ratio", -0.05, "above 0"),
    ("update_ratio", "5%", "must be a float"),
    ("total_steps", 0, "at least 1"),
    ("total_steps", -100, "at least 1"),
    ("total_steps", 1000.0, "must be an integer"),
    ("total_steps", "1000", "must be an integer"),
    ("total_steps", True, "must be an integer"),
    ("total_steps", None, "stage_steps"),
    ("total_steps", 19, "update_ratio=0.05"),
    ("include", "kernel", "list of regular expressions"),
    ("include", [], "include=None"),
    ("exclude", ["*bias"], "malformed"),
]


@pytest.mark.parametrize(("argument", "value", "advice"), BAD_ARGUMENTS)
def test_refuses_bad_arguments(argument, value, advice):
    with pytest.raises((TypeError, ValueError)) as raised:
        DPSDense(**{"total_steps": 1000, argument: value})
    message = str(raised.value)
    assert f"{argument}={value!r}" in message
    assert advice in message


@pytest.mark.parametrize(
    ("value", "advice"), [(0, "at least 1"), (2.5, "must be an integer"), ("4", "an integer")]
)
def test_refuses_bad_stage_steps(value, advice):
    with pytest.raises((TypeError, ValueError), match=f"(?s)`stage_steps`.*{advice}"):
        DPSDense(stage_steps=value)


def test_total_steps_and_stage_steps_exclude_each_other():
    with pytest.raises(ValueError, match=r"(?s)one of.*total_steps=1000, stage_steps=50"):
        DPSDense(total_steps=1000, stage_steps=50)


def test_too_few_steps_for_the_ratio_name_the_arguments():
    with pytest.raises(ValueError) as raised:
        DPSDense(total_steps=9, update_ratio=0.1)
    for words in ("total_steps=9", "update_ratio=0.1", "`stage_steps`"):
        assert words in str(raised.value)
    assert DPSDense(total_steps=10, update_ratio=0.1).stage_steps == 1


def test_patterns_that_match_nothing_change_nothing():
    model = compiled(DPSDense(total_steps=100, include=["attention"]))
    with pytest.raises(ValueError, match=r"include=\['attention'\]"):
        model.optimizer.build(model.trainable_variables)
    assert not model.optimizer.built
    assert len(model.optimizer.variables) == 2


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ((SensitivityGuided, SubnetworkSelection, keras.optimizers.AdamW), "`SensitivityGuided`"),
        ((keras.optimizers.AdamW, SubnetworkSelection), "before `AdamW`"),
        ((SensitivityGuided, DPSDense), "before `SensitivityGuided`"),
        ((SubnetworkSelection, keras.optimizers.LossScaleOptimizer), "wraps other"),
        ((SubnetworkSelection, keras.optimizers.MultiOptimizer), "wraps other"),
    ],
)
def test_refuses_the_wrong_order_of_bases(bases, message):
    with pytest.raises(TypeError, match=message):
        type("Wrong", bases, {})


def test_a_mixin_alone_says_what_to_write():
    with pytest.raises(TypeError, match=r"MyOptimizer\(SubnetworkSelection, keras"):
        SubnetworkSelection(total_steps=100)


@pytest.mark.parametrize("name", ["SGD", "Adamax", "Lion", "Adafactor", "Ftrl"])
def test_any_base_will_do(name):
    base = getattr(keras.optimizers, name)
    selecting = type(f"Selecting{name}", (SubnetworkSelection, base), {})
    settings = {"learning_rate": LEARNING_RATE}
    expected = train(plain(name)(**settings), steps=6)
    actual = train(selecting(**settings, stage_steps=2, drop_rate=0.0), steps=6)
    for one, other in zip(actual, expected):
        np.testing.assert_array_equal(one, other)


def test_config_round_trip():
    for steps in ({"total_steps": 200, "update_ratio": 0.1}, {"stage_steps": 20}):
        optimizer = SageDPS(0.5, **steps, drop_rate=0.25, include=["kernel"], beta_3=0.9)
        config = optimizer.get_config()
        again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
        assert type(again) is SageDPS
        assert again.get_config() == config
        assert again.stage_steps == 20
        assert {key: config[key] for key in steps} == steps
        assert (config["drop_rate"], config["include"], config["beta_3"]) == (0.25, ["kernel"], 0.9)


def test_registered_name_and_defaults():
    optimizer = keras.optimizers.get(
        {"class_name": "sage_keras>DPSDense", "config": {"total_steps": 468}}
    )
    config = optimizer.get_config()
    base = keras.optimizers.AdamW().get_config()
    config.pop("name"), base.pop("name")
    own = {key: config.pop(key) for key in set(config) - set(base)}
    assert config == base
    assert own == {
        "total_steps": 468,
        "update_ratio": 0.05,
        "stage_steps": None,
        "drop_rate": 0.3,
        "include": None,
        "exclude": None,
        "on_nonfinite": "propagate",
    }
    assert optimizer.stage_steps == 23


def test_repr_and_summary_say_where_it_selects():
    optimizer = DPSDense(total_steps=200, exclude=["bias"])
    assert repr(optimizer) == (
        "<DPSDense(learning_rate=0.001, total_steps=200, exclude=['bias']) on AdamW, not built>"
    )
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines == [repr(optimizer)]
    model = compiled(optimizer)
    optimizer.build(model.trainable_variables)
    assert "trains 2 of 4 variables in part" in repr(optimizer)
    optimizer.summary(print_fn=lines.append)
    assert [line.split()[0] for line in lines[2:]] == ["partial", "yes", "no", "yes", "no"]


class Everything(LayerwiseLearningRate, SubnetworkMixing, SensitivityGuided, keras.optimizers.SGD):
    pass


def test_repr_and_summary_of_all_mixins_in_one_class():
    rates = {"first": 0.0, "second": 0.5}
    optimizer = Everything(
        0.1, stage_steps=3, seed=1, beta_3=0.9, exclude=["bias"], learning_rate_multipliers=rates
    )
    names = ("first", "second_kernel", "second_bias")
    optimizer.build([keras.Variable(np.ones((2, 3)), name=name) for name in names])
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines == [
        f"<Everything(learning_rate=0.1, learning_rate_multipliers={rates}, seed=1, "
        "stage_steps=3, beta_3=0.9, exclude=['bias']) on SGD, "
        "trains 1 of 2 variables in part, guides 1 of 2 variables, "
        "own rates for 2 and 1 frozen of 3 variables>",
        "  partial  guided  rate    path           shape",
        "  -        -       frozen  first          (2, 3)",
        "  yes      yes     0.5     second_kernel  (2, 3)",
        "  no       no      0.5     second_bias    (2, 3)",
    ]


def test_subnetwork_of_variables_that_are_not_its_own():
    model = compiled(DPSDense(total_steps=200, exclude=["bias"]))
    optimizer = model.optimizer
    kernel, bias = model.trainable_variables[:2]
    with pytest.raises(ValueError, match="build it, then pass"):
        optimizer.subnetwork(kernel)
    optimizer.build(model.trainable_variables)
    assert to_numpy(optimizer.subnetwork(kernel)).all()
    for stranger in (bias, keras.Variable([1.0])):
        with pytest.raises(ValueError, match=f"variable={stranger.path}"):
            optimizer.subnetwork(stranger)


def test_measuring_sees_the_masked_gradient():
    """Selection acts first, then the scale: what is dropped has no sensitivity."""
    weight = keras.Variable([1.0, 1.0])
    optimizer = SageDPS(0.0, stage_steps=1, drop_rate=0.5, weight_decay=0.0)
    for _ in range(2):
        optimizer.apply([keras.ops.array([2.0, 1.0])], [weight])
    value = {name: to_numpy(slot) for name, slot in optimizer.sensitivities.items()}[weight.path]
    np.testing.assert_allclose(value, [0.75 * 0.5 + 0.5, 0.75 * 0.25], rtol=1e-6)
