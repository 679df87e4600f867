"""Mixout and DPS Mix: the weights that steps are made on, and those that others see."""

import warnings

import keras
import numpy as np
import pytest
import twin
import twin_dps
from bases import plain
from modes import BACKEND, MODES, Runner, to_numpy

from sage_keras import (
    DPSMix,
    Mixout,
    SensitivityGuided,
    SubnetworkMixing,
    SubnetworkSelection,
    WeightMixing,
)

LEARNING_RATE = float(np.float32(1e-2))
STAGE_STEPS, CYCLES = 4, 3
STEPS = 2 * STAGE_STEPS * CYCLES
SHAPES = [(7, 5), (6,), (6, 4, 2)]
COLUMNS = [(7, 1), (6,), (6, 4, 1)]
DROP_RATE = 0.3
SETTINGS = {"learning_rate": LEARNING_RATE, "drop_rate": DROP_RATE, "seed": 0}
COMPILED = "eager" if BACKEND == "torch" else "xla"


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class SageDPSMix(SubnetworkMixing, SensitivityGuided, keras.optimizers.AdamW):
    pass


def mix(**settings):
    return DPSMix(**{**SETTINGS, "stage_steps": STAGE_STEPS, **settings})


def mixout(**settings):
    return Mixout(**{**SETTINGS, **settings})


def start():
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def make(optimizer, mode="eager", weights=None):
    weights = start() if weights is None else weights
    variables = [keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(weights)]
    return Runner(optimizer, variables, mode)


def gradients(weights, step):
    """Of a quadratic loss, and noise: they tell at which weights they were taken."""
    random = np.random.default_rng(100 + step)
    return [
        0.5 * (weight - 1.0) + random.normal(size=weight.shape).astype("float32")
        for weight in weights
    ]


def step_on(runner, step):
    runner.step([g.astype("float32") for g in gradients(runner.weights(), step)])


def inject_columns(optimizer, monkeypatch, steps=STEPS, shapes=COLUMNS, drop_rate=DROP_RATE):
    """Has the optimizer draw from a table, which is returned: step, variable, columns."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    table = np.random.default_rng(7).random((steps + 1, sum(sizes))) >= drop_rate
    tensor = keras.ops.convert_to_tensor(table.astype("float32"))

    def draw(shape, seed):
        step = 0 if isinstance(seed, int) else keras.ops.convert_to_tensor(optimizer.iterations)
        return keras.ops.take(tensor, step, axis=0)

    monkeypatch.setattr(optimizer, "_draw", draw)
    parts = np.split(table, np.cumsum(sizes)[:-1], axis=1)
    return [
        [part[step].reshape(shape) for part, shape in zip(parts, shapes)]
        for step in range(steps + 1)
    ]


def mix_twins(optimizer, weights=None, guide=False):
    return [
        twin_dps.Mix(
            twin.Adam(w, LEARNING_RATE, guide=guide, weight_decay=optimizer.weight_decay),
            getattr(optimizer, "stage_steps", 1),
            optimizer.drop_rate,
            stages=isinstance(optimizer, SubnetworkSelection),
        )
        for w in (start() if weights is None else weights)
    ]


def prepare(twins, columns):
    for one, kept in zip(twins, columns):
        one.prepare(kept)


def near(actual, expected):
    return np.max(np.abs(actual - expected)) <= 1e-5 * np.max(np.abs(expected))


def assert_follows(runner, twins):
    """What the forward pass sees, the true weights, and the masks bit by bit."""
    for variable, weight, one in zip(runner.variables, runner.weights(), twins):
        assert one.gap > 1e-4  # float32 sees which score is larger
        assert near(weight, one.effective)
        assert near(runner.slot(variable, "true_weight"), one.weight)
        np.testing.assert_array_equal(to_numpy(runner.optimizer.subnetwork(variable)), one.mask)


# Torch's compiler takes a minute for a step with a condition in it.
TWIN_CELLS = [
    (optimizer_class, mode)
    for optimizer_class in (DPSMix, Mixout, SageDPSMix)
    for mode in MODES
    if BACKEND != "torch" or mode == "eager" or (optimizer_class, mode) == (DPSMix, "xla")
]


@pytest.mark.parametrize(("optimizer_class", "mode"), TWIN_CELLS)
def test_follows_the_twin(optimizer_class, mode, monkeypatch):
    stages = {} if optimizer_class is Mixout else {"stage_steps": STAGE_STEPS}
    optimizer = optimizer_class(**SETTINGS, **stages)
    columns = inject_columns(optimizer, monkeypatch)
    runner = make(optimizer, mode)
    twins = mix_twins(optimizer, guide=optimizer_class is SageDPSMix)
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
    runner = make(optimizer, COMPILED, weights)
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


@pytest.mark.parametrize("make_optimizer", [mix, mixout])
def test_accumulation_draws_no_new_mask(make_optimizer, monkeypatch):
    optimizer = make_optimizer(gradient_accumulation_steps=2)
    columns = inject_columns(optimizer, monkeypatch)
    runner = make(optimizer, COMPILED)
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


@pytest.mark.parametrize("mode", sorted({"eager", COMPILED}))
@pytest.mark.parametrize("make_optimizer", [mix, mixout])
def test_dropping_nothing_equals_the_base(make_optimizer, mode):
    arguments = {"learning_rate": LEARNING_RATE, "weight_decay": 0.1}
    expected = make(plain("AdamW")(**arguments), mode)
    actual = make(make_optimizer(**arguments, drop_rate=0.0), mode)
    for step in range(10):
        step_on(expected, step)
        step_on(actual, step)
    for one, other in zip(actual.weights(), expected.weights()):
        np.testing.assert_array_equal(one, other)


def test_excluded_variables_train_as_under_the_base():
    expected = make(plain("AdamW")(LEARNING_RATE))
    actual = make(mix(exclude=["weight_[02]"]))
    for step in range(STEPS):
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
    optimizer.swapped_by_callback = True
    optimizer.finalize_variable_values(runner.variables)
    for weight, average in zip(runner.weights(), averages):
        assert near(weight, average)


def test_loss_scale_optimizer_skips_an_overflow_whole():
    inner = mix()
    scaled = make(keras.optimizers.LossScaleOptimizer(inner, initial_scale=16.0), COMPILED)
    unscaled = make(mix(), COMPILED)
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


def compiled(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    model.compile(optimizer=optimizer, loss="mse", **arguments)
    return model


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 4)).astype("float32")
    return x, (x @ random.normal(size=(4, 3))).astype("float32")


def fit(model, epochs=1, callbacks=(), swap=True, **arguments):
    from sage_keras.callbacks import SwapTrueWeights

    x, y = data()
    callbacks = [*([SwapTrueWeights()] if swap else []), *callbacks]
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(x, y, epochs=epochs, callbacks=callbacks, **arguments)


class Look(keras.callbacks.Callback):
    """Remembers the weights that are in the model, and those that the optimizer keeps."""

    def __init__(self):
        super().__init__()
        self.seen, self.true = [], []

    def on_test_begin(self, logs=None):
        self.seen.append(self.model.get_weights())
        with self.model.optimizer.true_weights():
            self.true.append(self.model.get_weights())

    on_epoch_end = lambda self, epoch, logs=None: self.on_test_begin()  # noqa: E731


def assert_same(one, other):
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def twin_fit(optimizer, columns, start_weights, epochs):
    """The kernel under DPS Mix, the bias under Adam; their weights at the end of each epoch."""
    x, y = (array.astype("float64") for array in data())
    kernel = mix_twins(optimizer, start_weights[:1])[0]
    bias = twin.Adam(start_weights[1], LEARNING_RATE, guide=False, weight_decay=0.004)
    seen = []
    for step in range(6 * epochs):
        kernel.prepare(columns[step][0])
        batch = slice(step % 6 * 4, step % 6 * 4 + 4)
        error = 2 * (x[batch] @ kernel.effective + bias.weight - y[batch]) / y[batch].size
        kernel.step(x[batch].T @ error)
        bias.step(error.sum(axis=0))
        if step % 6 == 5:
            loss = np.mean((x @ kernel.weight + bias.weight - y) ** 2)
            seen.append((kernel.weight, bias.weight, loss))
    return seen


def test_validation_and_end_of_epoch_see_the_true_weights(monkeypatch):
    optimizer = mix(exclude=["bias"])
    columns = inject_columns(optimizer, monkeypatch, 24, [(4, 1)])
    model, look = compiled(optimizer), Look()
    expected = twin_fit(optimizer, columns, model.get_weights(), epochs=4)
    history = fit(model, epochs=4, callbacks=[look], validation_data=data())
    assert optimizer.stage == 1
    for epoch, (kernel, bias, loss) in enumerate(expected):
        for seen in look.seen[2 * epoch : 2 * epoch + 2]:  # in validation, at the epoch's end
            assert near(seen[0], kernel)
            assert near(seen[1], bias)
        assert history.history["val_loss"][epoch] == pytest.approx(loss, rel=1e-4)
    assert near(model.get_weights()[0], expected[-1][0])
    for seen, true in zip(look.seen, look.true):
        assert_same(seen, true)


@pytest.mark.parametrize("make_optimizer", [mix, mixout])
def test_true_weights_are_in_the_model_after_fit_and_in_files(make_optimizer, tmp_path):
    path = tmp_path / "{epoch}.keras"
    model = compiled(make_optimizer())
    look = Look()
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    fit(model, epochs=2, callbacks=[checkpoint, look])
    assert not model.optimizer.is_mixed
    true = [to_numpy(slot) for slot in model.optimizer._true_weights]
    assert_same(model.get_weights(), true)
    model.save(tmp_path / "model.keras")
    assert_same(keras.models.load_model(tmp_path / "model.keras").get_weights(), true)
    for epoch in (1, 2):
        saved = keras.models.load_model(tmp_path / f"{epoch}.keras")
        assert_same(saved.get_weights(), look.true[epoch - 1])
        assert not saved.optimizer.is_mixed


def test_early_stopping_restores_true_weights():
    look = Look()
    stop = keras.callbacks.EarlyStopping(
        "loss", patience=1, mode="max", restore_best_weights=True, start_from_epoch=0
    )
    model = compiled(mix())
    fit(model, epochs=5, callbacks=[stop, look])  # the loss falls: the first epoch is "best"
    assert len(look.seen) == 2
    assert_same(model.get_weights(), look.true[0])


class Fail(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 4:
            raise RuntimeError("stopped on purpose")


def test_true_weights_are_in_the_model_after_an_exception():
    model = compiled(mix())
    with pytest.raises(RuntimeError, match="on purpose"), model.optimizer.true_weights():
        fit(model, callbacks=[Fail()])
    true = [to_numpy(slot) for slot in model.optimizer._true_weights]
    assert_same(model.get_weights(), true)
    assert not model.optimizer.is_mixed
    assert int(model.optimizer.iterations) > 0


class FailsInTraining(keras.layers.Layer):
    def call(self, inputs, training=False):
        if training:
            raise RuntimeError("stopped on purpose")
        return inputs


def test_the_error_of_a_first_step_is_the_one_that_is_seen():
    """JAX finalizes after it, though the variables have no values then."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), FailsInTraining()])
    model.compile(optimizer=mix(), loss="mse")
    with pytest.raises(RuntimeError, match="on purpose"), model.optimizer.true_weights():
        fit(model)


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


def test_a_second_fit_goes_on():
    """As one fit of two epochs: the callback mixes before the first step of each."""
    expected = compiled(mix())
    fit(expected, epochs=2)
    model = compiled(mix())
    fit(model)
    fit(model)
    assert_same(model.get_weights(), expected.get_weights())


@pytest.mark.parametrize("make_optimizer", [mix, mixout])
def test_resuming_in_mid_stage_two_changes_no_bit(make_optimizer, tmp_path):
    expected = compiled(make_optimizer())
    fit(expected, epochs=3)  # six steps an epoch
    saved = compiled(make_optimizer())
    fit(saved)
    if make_optimizer is mix:
        assert saved.optimizer.stage == 2
    assert int(saved.optimizer.iterations) % STAGE_STEPS == 2
    saved.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    fit(resumed, epochs=2)
    assert_same(resumed.get_weights(), expected.get_weights())
    for one, other in zip(resumed.optimizer.variables, expected.optimizer.variables):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_resuming_from_mixed_weights_changes_no_bit():
    """Weights and state as they are between two steps, without the callback."""
    expected = make(mix(), COMPILED)
    first = make(mix(), COMPILED)
    for step in range(6):
        step_on(expected, step)
        step_on(first, step)
    store = {}
    first.optimizer.save_own_variables(store)
    second = make(mix(), COMPILED, first.weights())
    second.optimizer.load_own_variables(store)
    assert second.optimizer.is_mixed
    for step in range(6, 12):
        step_on(expected, step)
        step_on(second, step)
    assert_same(second.weights(), expected.weights())


def test_models_trained_in_turn_share_nothing():
    alone = []
    for seed in (0, 1):
        runner = make(mix(seed=seed), COMPILED)
        for step in range(STEPS):
            step_on(runner, step)
        alone.append(runner.weights())
    together = [make(mix(seed=seed), COMPILED) for seed in (0, 1)]
    for step in range(STEPS):
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


def warnings_of_fit(model, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, validation_data=data(), **arguments)
    return [str(w.message) for w in caught if "mixed weights" in str(w.message)]


def test_fit_without_the_callback_is_said():
    model = compiled(mix())
    told = warnings_of_fit(model, swap=False)
    for words in ("`validation_data`", "`ModelCheckpoint`", "SwapTrueWeights()"):
        assert words in told[0]
    assert warnings_of_fit(model, swap=False)  # though the step is compiled by now
    assert warnings_of_fit(compiled(keras.optimizers.LossScaleOptimizer(mix())), swap=False)


def test_fit_with_the_callback_says_nothing():
    model = compiled(mix())
    for _ in range(2):
        assert warnings_of_fit(model) == []
    assert warnings_of_fit(compiled(keras.optimizers.LossScaleOptimizer(mix()))) == []


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
    with pytest.raises(ValueError, match="not recognized"):
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
        "<DPSMix(stage_steps=4, drop_rate=0.3, include=None, exclude=('bias',), seed=0), "
        "trains 1 of 2 variables in part>"
    )


def test_the_callback_asks_for_an_optimizer_that_mixes():
    with pytest.raises(ValueError, match=r"DPSMix.*Received: optimizer=<"):
        fit(compiled(keras.optimizers.SGD()))
