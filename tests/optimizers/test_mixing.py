"""Mixout and DPS Mix: the weights that steps are made on, and those that others see."""

import keras
import numpy as np
import pytest
import twin
import twin_dps
from bases import plain
from mixing_jobs import (
    COLUMNS,
    COMPILED,
    DROP_RATE,
    LEARNING_RATE,
    SETTINGS,
    SHAPES,
    STAGE_STEPS,
    STEPS,
    SageDPSMix,
    assert_follows,
    assert_same,
    compiled,
    fit,
    gradients,
    inject_columns,
    make,
    mix,
    mix_twins,
    mixout,
    near,
    prepare,
    start,
    step_on,
)
from modes import BACKEND, MODES, to_numpy

from sage_keras import (
    DPSMix,
    Mixout,
    SensitivityGuided,
    SubnetworkMixing,
    SubnetworkSelection,
    WeightMixing,
)

GRAPH = "eager" if BACKEND == "torch" else "graph"
# Mixout is a part of DPSMix. Torch's compiler takes a minute for a step with a condition in it.
TWIN_CELLS = [
    *((DPSMix, mode) for mode in MODES if (BACKEND, mode) != ("torch", "graph")),
    (Mixout, COMPILED),
    (SageDPSMix, GRAPH),
]


@pytest.mark.parametrize(("optimizer_class", "mode"), TWIN_CELLS)
def test_follows_the_twin(optimizer_class, mode, monkeypatch):
    # Torch compiles a step in pieces, and each of them again for each rank: one variable there.
    count = 1 if (BACKEND, mode) == ("torch", "xla") else len(SHAPES)
    stages = {} if optimizer_class is Mixout else {"stage_steps": STAGE_STEPS}
    optimizer = optimizer_class(**SETTINGS, **stages)
    columns = inject_columns(optimizer, monkeypatch, shapes=COLUMNS[:count])
    runner = make(optimizer, mode, start()[:count])
    twins = mix_twins(optimizer, start()[:count], guide=optimizer_class is SageDPSMix)
    prepare(twins, columns[0])
    for step in range(STEPS):
        weights = runner.weights()
        runner.step([g.astype("float32") for g in gradients(weights, step)])
        for one, g in zip(twins, gradients([one.effective for one in twins], step)):
            one.step(g)
        prepare(twins, columns[step + 1])
        assert_follows(runner, twins)
    if BACKEND != "torch":
        assert runner.compilations == (STEPS if mode == "eager" else 1)


def test_long_stages_punish_frequency(monkeypatch):
    optimizer = mix(stage_steps=50)
    shape, columns_shape = (12, 3), (12, 1)
    columns = inject_columns(optimizer, monkeypatch, 51, [columns_shape])
    weights = [np.random.default_rng(2).normal(size=shape).astype("float32")]
    runner = make(optimizer, GRAPH, weights)
    twins = mix_twins(optimizer, weights)
    prepare(twins, columns[0])
    for step in range(51):
        step_on(runner, step)
        for one, g in zip(twins, gradients([one.effective for one in twins], step)):
            one.step(g)
        prepare(twins, columns[step + 1])
    (one,) = twins
    assert one.gap > 1e-4
    unpunished, _ = twin_dps.best(one.squares / np.maximum(one.frequency, 1), DROP_RATE)
    assert np.any(one.mask != unpunished)  # or this test would say nothing
    np.testing.assert_array_equal(to_numpy(optimizer.subnetwork(runner.variables[0])), one.mask)


@pytest.mark.parametrize(("make_optimizer", "mode"), [(mix, GRAPH), (mixout, "eager")])
def test_accumulation_draws_no_new_mask(make_optimizer, mode, monkeypatch):
    optimizer = make_optimizer(gradient_accumulation_steps=2)
    columns = inject_columns(optimizer, monkeypatch)
    runner = make(optimizer, mode)
    twins = mix_twins(optimizer)
    prepare(twins, columns[0])
    for step in range(2 * STAGE_STEPS + 1):
        effective = [one.effective for one in twins]
        means = np.zeros(len(twins))
        for part in (2 * step, 2 * step + 1):
            step_on(runner, part)
            means = [mean + g / 2 for mean, g in zip(means, gradients(effective, part))]
            if part % 2 == 0:
                assert all(near(w, one.effective) for w, one in zip(runner.weights(), twins))
        for one, g in zip(twins, means):
            one.step(g)
        prepare(twins, columns[step + 1])
        assert_follows(runner, twins)


@pytest.mark.parametrize(("make_optimizer", "mode"), [(mix, COMPILED), (mixout, "eager")])
def test_dropping_nothing_equals_the_base(make_optimizer, mode):
    arguments = {"learning_rate": LEARNING_RATE, "weight_decay": 0.1}
    base = plain("AdamW", "xla" if make_optimizer is mix else mode)  # DPSMix: a variable at a time
    expected = make(base(**arguments), mode)
    actual = make(make_optimizer(**arguments, drop_rate=0.0), mode)
    for step in range(10):
        step_on(expected, step)
        step_on(actual, step)
    for one, other in zip(actual.weights(), expected.weights()):
        np.testing.assert_array_equal(one, other)


def test_excluded_variables_train_as_under_the_base():
    expected = make(plain("AdamW", "xla")(LEARNING_RATE))  # DPSMix takes a variable at a time
    actual = make(mix(exclude=["weight_[02]"]))
    for step in range(2 * STAGE_STEPS):
        step_on(expected, step)
        step_on(actual, step)
    for i in (0, 2):
        np.testing.assert_array_equal(actual.weights()[i], expected.weights()[i])


def test_clipping_sees_the_masked_gradients(monkeypatch):
    optimizer = mix(global_clipnorm=0.5)
    columns = inject_columns(optimizer, monkeypatch)
    runner = make(optimizer)
    masked = [g * m for g, m in zip(gradients(runner.weights(), 0), columns[0])]
    step_on(runner, 0)
    for variable, g in zip(runner.variables, twin.clip_by_global_norm(masked, 0.5)):
        np.testing.assert_allclose(runner.slot(variable, "score"), g**2, rtol=1e-5)


def test_decay_constraints_and_ema_see_the_true_weights(monkeypatch):
    optimizer = mix(use_ema=True, ema_momentum=0.5, weight_decay=0.5)
    columns = inject_columns(optimizer, monkeypatch)
    runner = make(optimizer)
    runner.variables[0].constraint = keras.constraints.NonNeg()
    twins = mix_twins(optimizer)
    averages = None
    for step in range(2 * STAGE_STEPS):
        prepare(twins, columns[step])
        effective = [one.effective for one in twins]
        step_on(runner, step)
        for one, g in zip(twins, gradients(effective, step)):
            one.step(g)
        # Keras averages before it constrains.
        weights = [one.weight for one in twins]
        averages = [0.5 * old + 0.5 * new for old, new in zip(averages or weights, weights)]
        twins[0].base.weight = np.maximum(twins[0].weight, 0)
    assert near(runner.slot(runner.variables[0], "true_weight"), twins[0].weight)
    with pytest.warns(UserWarning, match="Between the steps"):
        optimizer.finalize_variable_values(runner.variables)
    for weight, average in zip(runner.weights(), averages):
        assert near(weight, average)


def test_loss_scale_optimizer_skips_an_overflow_whole():
    inner = mix()
    scaled = make(keras.optimizers.LossScaleOptimizer(inner, initial_scale=16.0), GRAPH)
    unscaled = make(mix())
    for step in range(STAGE_STEPS + 1):
        g = [g.astype("float32") for g in gradients(unscaled.weights(), step)]
        unscaled.step(g)
        scaled.step([16 * one for one in g])
    before = [to_numpy(v) for v in inner.variables]
    scaled.step([np.full(shape, np.inf, "float32") for shape in SHAPES])
    for one, other in zip(before, inner.variables):
        np.testing.assert_array_equal(one, to_numpy(other))
    for one, other in zip(scaled.weights(), unscaled.weights()):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_bad_batch_leaves_nothing_behind():
    """Weights, moments, scores, thresholds and columns are those of a run without it."""
    settings = {**SETTINGS, "stage_steps": 2}
    skipping = make(SageDPSMix(**settings, on_nonfinite="skip", name="one"))
    expected = make(SageDPSMix(**settings, name="one"))
    for step in range(4):
        g = [g.astype("float32") for g in gradients(expected.weights(), step)]
        expected.step(g)
        skipping.step(g)
        skipping.step([np.full(shape, np.nan, "float32") for shape in SHAPES])
    assert skipping.optimizer.skipped_steps == 4
    assert_same(skipping.weights(), expected.weights())
    state = {v.path: to_numpy(v) for v in skipping.optimizer.variables}
    for variable in expected.optimizer.variables:
        np.testing.assert_array_equal(state[variable.path], to_numpy(variable), variable.path)
    assert np.any(state["one/thresholds"])


# The statistics of what is drawn.


def drawn_masks(seed, steps=50, shape=(300, 4), name="kernel"):
    kernel = keras.Variable(np.zeros(shape, "float32"), name=name)
    optimizer = mixout(seed=seed, learning_rate=0.0)
    optimizer.build([kernel])
    masks = [to_numpy(optimizer.subnetwork(kernel))]
    for _ in range(steps - 1):
        optimizer.apply([keras.ops.zeros(shape)], [kernel])
        masks.append(to_numpy(optimizer.subnetwork(kernel)))
    return np.array(masks)


def test_masks_have_their_share_and_whole_columns():
    masks = drawn_masks(seed=0)
    assert np.all(masks == masks[:, :, :1])  # shared by all outputs
    columns = masks[:, :, 0]
    error = np.sqrt(DROP_RATE * (1 - DROP_RATE) / columns.size)
    assert abs(columns.mean() - (1 - DROP_RATE)) <= 3 * error
    # No step and no column has more than its share, and no step tells of the next.
    step_error = np.sqrt(DROP_RATE * (1 - DROP_RATE) / columns.shape[1])
    assert np.all(np.abs(columns.mean(axis=1) - (1 - DROP_RATE)) <= 4 * step_error)
    centred = columns - columns.mean()
    correlation = np.mean(centred[1:] * centred[:-1]) / np.mean(centred**2)
    assert abs(correlation) <= 3 / np.sqrt(centred[1:].size)


def test_seeds_reproduce_the_masks():
    masks = drawn_masks(seed=3, steps=4)
    np.testing.assert_array_equal(drawn_masks(seed=3, steps=4), masks)
    other = drawn_masks(seed=4, steps=4)
    agreement = 0.7**2 + 0.3**2  # of two independent draws
    for step in range(4):  # nor is it the same, a step later
        for shifted in range(4):
            share = np.mean(masks[step][:, 0] == other[shifted][:, 0])
            assert abs(share - agreement) < 0.15


def test_variables_draw_apart():
    kernels = [keras.Variable(np.zeros((300, 2), "float32")) for _ in range(2)]
    optimizer = mixout()
    optimizer.build(kernels)
    one, other = (to_numpy(optimizer.subnetwork(kernel))[:, 0] for kernel in kernels)
    assert abs(np.mean(one == other) - 0.58) < 0.15


def test_set_random_seed_reproduces_a_seed_that_is_not_given():
    keras.utils.set_random_seed(5)
    seed = Mixout().seed
    keras.utils.set_random_seed(5)
    assert Mixout().seed == seed
    assert Mixout().seed != seed


def test_heads_share_the_columns_of_queries():
    with keras.name_scope("query"):
        query = keras.Variable(np.zeros((50, 2, 3), "float32"), name="kernel")
    optimizer = mixout()
    optimizer.build([query])
    mask = to_numpy(optimizer.subnetwork(query))
    assert np.all(mask == mask[:, :1, :1])
    assert 0 < mask.mean() < 1


# What others see.


def test_context_gives_back_what_it_found():
    runner = make(mix())
    optimizer = runner.optimizer
    with optimizer.true_weights():
        assert not optimizer.is_mixed
    assert not optimizer.is_mixed  # built, and no step made
    for step in range(2):
        step_on(runner, step)
    mixed = runner.weights()
    with optimizer.true_weights():
        true = runner.weights()
        with optimizer.true_weights():
            assert_same(runner.weights(), true)
        assert_same(runner.weights(), true)
    assert optimizer.is_mixed
    assert_same(runner.weights(), mixed)
    assert np.any(true[0] != mixed[0])
    with pytest.raises(ZeroDivisionError), optimizer.true_weights():
        raise ZeroDivisionError
    assert_same(runner.weights(), true)
    optimizer.mix()
    optimizer.mix()
    assert_same(runner.weights(), mixed)
    optimizer.unmix()
    optimizer.unmix()
    assert_same(runner.weights(), true)


def test_weights_set_in_the_context_are_kept():
    runner = make(mix(weight_decay=0.0, learning_rate=0.0))
    for step in range(2):
        step_on(runner, step)
    with runner.optimizer.true_weights():
        for variable in runner.variables:
            variable.assign(keras.ops.full(variable.shape, 2.0))
    step_on(runner, 2)
    with runner.optimizer.true_weights():
        for weight in runner.weights():
            np.testing.assert_array_equal(weight, 2.0)


def test_resuming_from_mixed_weights_changes_no_bit():
    """Weights and state as they are between two steps, without the callback."""
    expected = make(mix())
    first = make(mix())
    for step in range(6):
        step_on(expected, step)
        step_on(first, step)
    store = {}
    with pytest.warns(UserWarning, match="mixed ones"):
        first.optimizer.save_own_variables(store)
    second = make(mix(), weights=first.weights())
    second.optimizer.load_own_variables(store)
    assert second.optimizer.is_mixed
    for step in range(6, 12):
        step_on(expected, step)
        step_on(second, step)
    assert_same(second.weights(), expected.weights())


def test_the_columns_of_other_variables_are_refused():
    """They lie one after the other in one variable, which is of another shape here."""
    store = {}
    make(mixout()).optimizer.save_own_variables(store)
    runner = make(mixout(), weights=start()[:2])
    before = [to_numpy(one) for one in runner.optimizer.variables]
    with pytest.raises(ValueError, match=r"has the shape \(37,\) for columns, here it is \(13,\)"):
        runner.optimizer.load_own_variables(store)
    assert_same([to_numpy(one) for one in runner.optimizer.variables], before)


def test_models_trained_in_turn_share_nothing():
    alone = []
    for seed in (0, 1):
        runner = make(mix(seed=seed))
        for step in range(STAGE_STEPS + 2):
            step_on(runner, step)
        alone.append(runner.weights())
    together = [make(mix(seed=seed)) for seed in (0, 1)]
    for step in range(STAGE_STEPS + 2):
        for runner in together:
            step_on(runner, step)
    for runner, expected in zip(together, alone):
        assert_same(runner.weights(), expected)


def test_weights_loaded_after_build_are_the_initial_ones(tmp_path):
    """A model that was saved before its first step builds its optimizer, and loads then."""
    model = compiled(mixout())
    model.set_weights([np.full((4, 3), 2.0), np.zeros(3)])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    optimizer = loaded.optimizer
    optimizer.build(loaded.trainable_variables)
    fit(loaded)
    initial = [to_numpy(slot) for slot in optimizer._initial_weights]
    assert_same(initial, model.get_weights())
    # Nor do they change with what is loaded later.
    loaded.set_weights([np.full((4, 3), 3.0), np.zeros(3)])
    fit(loaded)
    assert_same([to_numpy(slot) for slot in optimizer._initial_weights], initial)


def test_a_saved_optimizer_brings_its_initial_weights(tmp_path):
    model = compiled(mixout())
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for one, other in zip(loaded.optimizer._initial_weights, model.optimizer._initial_weights):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_the_first_forward_pass_sees_the_weights_themselves():
    runner = make(mix())
    assert_same(runner.weights(), start())
    runner.optimizer.mix()  # what the callback does: mixed with themselves they stay
    for weight, expected in zip(runner.weights(), start()):
        np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_a_custom_loop_may_build_in_its_first_step():
    def run(build):
        kernel = keras.Variable(start()[0], name="kernel")
        optimizer = mix()
        if build:
            optimizer.build([kernel])

        def step(gradient):
            optimizer.apply_gradients([(gradient, kernel)])

        if BACKEND == "tensorflow":
            import tensorflow as tf

            step = tf.function(step)
        for i in range(6):
            step(keras.ops.convert_to_tensor(gradients([start()[0]], i)[0]))
        return to_numpy(kernel)

    np.testing.assert_allclose(run(build=False), run(build=True), rtol=1e-5, atol=1e-6)


def test_an_apply_without_gradients_does_nothing():
    optimizer = mix()
    optimizer.apply([], [])
    assert not optimizer.built
    with pytest.raises(ValueError, match="must already be built"):
        optimizer.apply([keras.ops.ones((2,))])


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has sparse gradients")
def test_sparse_gradients_equal_dense_ones():
    import tensorflow as tf

    table = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
    values = np.random.default_rng(1).normal(size=(4, 3)).astype("float32")
    sparse = tf.IndexedSlices(tf.constant(values), tf.constant([1, 4, 1, 5]), tf.constant([6, 3]))

    def train_table(gradient):
        runner = make(mix(clipnorm=0.5), "graph", [table])
        for _ in range(6):
            runner._step([gradient])
        return runner.weights()[0]

    np.testing.assert_allclose(
        train_table(sparse), train_table(tf.convert_to_tensor(sparse)), rtol=1e-6, atol=1e-7
    )


# What the classes accept.

BAD_ARGUMENTS = [
    ("drop_rate", 1.0, "below 1"),
    ("drop_rate", -0.1, "at least 0"),
    ("drop_rate", "0.3", "must be a float"),
    ("seed", -1, "at least 0"),
    ("seed", 1.5, "must be an integer"),
    ("seed", "0", "must be an integer"),
    ("seed", True, "must be an integer"),
    ("include", [], "include=None"),
    ("exclude", "bias", "list of regular expressions"),
]


@pytest.mark.parametrize(("argument", "value", "advice"), BAD_ARGUMENTS)
@pytest.mark.parametrize("make_optimizer", [lambda **s: DPSMix(total_steps=100, **s), Mixout])
def test_refuses_bad_arguments(make_optimizer, argument, value, advice):
    with pytest.raises((TypeError, ValueError)) as raised:
        make_optimizer(**{argument: value})
    assert f"{argument}={value!r}" in str(raised.value)
    assert advice in str(raised.value)


def test_mixout_has_no_stages():
    with pytest.raises(ValueError, match="has no argument"):
        Mixout(total_steps=100)


@pytest.mark.parametrize(
    ("bases", "message"),
    [
        ((SubnetworkSelection, WeightMixing, keras.optimizers.AdamW), "`SubnetworkSelection`"),
        ((SensitivityGuided, SubnetworkMixing, keras.optimizers.AdamW), "`SensitivityGuided`"),
        ((keras.optimizers.AdamW, WeightMixing), "before `AdamW`"),
        ((WeightMixing, keras.optimizers.LossScaleOptimizer), "wraps other"),
    ],
)
def test_refuses_the_wrong_order_of_bases(bases, message):
    with pytest.raises(TypeError, match=message):
        type("Wrong", bases, {})


def test_a_mixin_alone_says_what_to_write():
    with pytest.raises(TypeError, match=r"MyOptimizer\(SubnetworkMixing, keras"):
        SubnetworkMixing(total_steps=100)


@pytest.mark.parametrize("make_optimizer", [mix, mixout, lambda **s: SageDPSMix(stage_steps=4)])
def test_config_round_trip(make_optimizer):
    optimizer = make_optimizer(include=["kernel"])
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert again.seed == optimizer.seed


def test_repr_says_what_is_mixed():
    model = compiled(mix(exclude=["bias"]))
    model.optimizer.build(model.trainable_variables)
    assert repr(model.optimizer) == (
        "<DPSMix(learning_rate=0.01, seed=0, stage_steps=4, exclude=['bias']) on AdamW, "
        "trains 1 of 2 variables in part>"
    )


def test_summary_says_what_is_mixed():
    model = compiled(mix(exclude=["bias"]))
    model.optimizer.build(model.trainable_variables)
    lines = []
    model.optimizer.summary(lines.append)
    kernel, bias = (variable.path for variable in model.trainable_variables)
    assert [line.split(maxsplit=2) for line in lines[1:]] == [
        ["partial", "path", "shape"],
        ["yes", kernel, "(4, 3)"],
        ["no", bias, "(3,)"],
    ]
