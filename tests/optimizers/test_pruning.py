"""Pruning while training: against a float64 twin, and the exact count after every step."""

import keras
import numpy as np
import pytest
import twin
import twin_pruning
from modes import BACKEND, Runner, to_numpy

import sage_keras
from sage_keras import GradualPruning, Platon, PrunedAdamW

LEARNING_RATE = float(np.float32(1e-3))
STEPS = 300
SCHEDULE = {"begin_step": 30, "end_step": 213, "update_freq": 10}  # the last update is no tenth
SHAPES = [(6, 5), (4, 3, 2)]
SIZE = 54
COMPILED = "graph" if BACKEND == "torch" else "xla"
# Of the first ones, in which no two scores come near each other at the edge of a mask.
SEEDS = {"confidence": 0, "magnitude": 0, "sensitivity": 0, "movement": 0}


def job(seed=0, steps=STEPS):
    random = np.random.default_rng(seed)
    weights = [random.normal(size=shape).astype("float32") * 0.1 for shape in SHAPES]
    gradients = [
        [random.normal(size=shape).astype("float32") for shape in SHAPES] for _ in range(steps)
    ]
    return weights, gradients


def variables(weights):
    return [keras.Variable(one, name=f"weight_{index}") for index, one in enumerate(weights)]


def zeros(weights):
    return sum(int(np.sum(one == 0)) for one in weights)


def expected_zeros(step, final_sparsity=0.8, size=SIZE):
    """How many weights the schedule zeroes, from its formula and not from the twin's updates."""
    begin, end, freq = SCHEDULE.values()
    if step >= end:
        step = end
    elif step > begin:
        step = begin + (step - begin) // freq * freq
    else:
        return 0
    return twin_pruning.pruned_count(size, final_sparsity, step, begin, end)


def make_twin(weights, score):
    bases = [
        twin.Adam(one, learning_rate=LEARNING_RATE, weight_decay=0.004, guide=False)
        for one in weights
    ]
    return twin_pruning.Pruned(bases, score, 0.8, *SCHEDULE.values())


CELLS = [
    pytest.param(score, mode, marks=[pytest.mark.extended] if slow else [])
    for score in SEEDS
    for mode, slow in (
        ("eager", BACKEND != "torch"),
        (COMPILED, BACKEND == "torch"),
    )
]


@pytest.mark.parametrize(("score", "mode"), CELLS)
def test_follows_the_twin_for_300_steps(score, mode):
    weights, gradients = job(SEEDS[score])
    own = variables(weights)
    optimizer = Platon(LEARNING_RATE, score=score, **SCHEDULE)
    runner = Runner(optimizer, own, mode)
    exact = make_twin(weights, score)
    for step, gradient in enumerate(gradients, start=1):
        runner.step(gradient)
        exact.step(gradient)
        assert zeros(runner.weights()) == expected_zeros(step) == exact.pruned
        for one, mask, variable in zip(exact.model, exact.masks, own):
            np.testing.assert_array_equal(to_numpy(optimizer.mask(variable)), mask)
            np.testing.assert_allclose(to_numpy(variable), one, rtol=0, atol=1e-5)
        if step == 5 and score == "confidence":
            for one, variable in zip(exact.uncertainties, own):
                slot = runner.slot(variable, "uncertainty")
                np.testing.assert_allclose(slot, one, rtol=1e-3, atol=1e-8)
    assert exact.gap > 1e-4  # else the masks could not be told apart in float32
    assert optimizer.sparsity == pytest.approx(1 - 11 / 54)
    if mode != "eager" and BACKEND != "torch":
        assert runner.compilations == 1


FEATURES = {
    "accumulation": {"gradient_accumulation_steps": 2},
    "EMA": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7},
    "Sage, movement": {"use_ema": True, "score": "movement"},
    "clipping and skipping": {"global_clipnorm": 0.5, "on_nonfinite": "skip"},
}


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class GuidedPruning(sage_keras.SensitivityGuided, GradualPruning, keras.optimizers.AdamW):
    pass


@pytest.mark.parametrize("feature", FEATURES)
def test_the_exact_count_after_every_one_of_300_steps(feature):
    steps = 2 if feature == "accumulation" else 1
    weights, gradients = job(1, STEPS * steps)
    own = variables(weights)
    cls = GuidedPruning if feature.startswith("Sage") else Platon
    optimizer = cls(LEARNING_RATE, **SCHEDULE, **FEATURES[feature])
    runner = Runner(optimizer, own, "eager" if BACKEND == "torch" else "xla")
    for step, gradient in enumerate(gradients, start=1):
        runner.step(gradient)
        assert zeros(runner.weights()) == expected_zeros(step // steps)
        if optimizer.use_ema and step % 50 == 0:
            averages = optimizer._model_variables_moving_average
            hidden = [to_numpy(one) == 0 for one in averages]
            for one, weight in zip(hidden, runner.weights()):
                assert np.all(one[weight == 0])
    optimizer.finalize_variable_values(own)
    assert zeros(runner.weights()) == expected_zeros(STEPS)


class Zeros(keras.callbacks.Callback):
    """The zeros of the model's kernels after each batch."""

    def on_train_begin(self, logs=None):
        self.counts = []

    def on_train_batch_end(self, batch, logs=None):
        kernels = [one for one in self.model.trainable_variables if one.path.endswith("kernel")]
        self.counts.append(sum(int(np.sum(to_numpy(one) == 0)) for one in kernels))


def model_and_data(optimizer, batches=STEPS, **options):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(6, "tanh", name="up"), keras.layers.Dense(3, name="down")]
    model = keras.Sequential([keras.Input((6,)), *layers])  # 54 weights in its kernels
    model.compile(optimizer=optimizer, loss="mse", **options)
    random = np.random.default_rng(0)
    x = random.normal(size=(batches * 4, 6)).astype("float32")
    return model, x, x[:, :3] * 2 + x[:, 3:]


def fit(model, x, y, callbacks=()):
    model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=list(callbacks))
    return model


def test_the_exact_count_in_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        inner = Platon(LEARNING_RATE, **SCHEDULE)
        wrapped = keras.optimizers.LossScaleOptimizer(inner, initial_scale=64.0)
        counts = Zeros()
        fit(*model_and_data(wrapped), [counts])
    finally:
        keras.config.set_dtype_policy(before)
    assert counts.counts == [expected_zeros(step) for step in range(1, STEPS + 1)]
    assert int(to_numpy(inner.iterations)) == STEPS


@pytest.mark.parametrize(
    ("form", "score"),
    [
        (".keras", "confidence"),
        (".weights.h5", "movement"),
        pytest.param(".keras", "movement", marks=pytest.mark.extended),
        pytest.param(".weights.h5", "confidence", marks=pytest.mark.extended),
    ],
)
def test_a_saved_run_goes_on_bit_for_bit_and_sparse(form, score, tmp_path):
    def make(batches):
        optimizer = Platon(LEARNING_RATE, score=score, begin_step=2, end_step=13, update_freq=3)
        return model_and_data(optimizer, batches, run_eagerly=BACKEND != "jax")

    whole, x, y = make(16)
    fit(whole, x, y)
    half, *_ = make(16)
    fit(half, x[:32], y[:32])
    path = tmp_path / f"half{form}"
    if form == ".keras":
        half.save(path)
        again = keras.saving.load_model(path)
    else:
        half.save_weights(path)
        again, *_ = make(16)
        again.optimizer.build(again.trainable_variables)
        again.load_weights(path)
    kernels = [one for one in again.get_weights() if one.ndim == 2]
    assert zeros(kernels) == round(54 * 0.8 * (1 - (5 / 11) ** 3))
    assert again.optimizer.sparsity == half.optimizer.sparsity == zeros(kernels) / 54
    fit(again, x[32:], y[32:])
    for one, other in zip(again.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(again.optimizer.variables, whole.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def stepped(optimizer, weights, steps=5, seed=0):
    random = np.random.default_rng(seed)
    for _ in range(steps):
        gradients = [keras.ops.convert_to_tensor(random.normal(size=w.shape)) for w in weights]
        optimizer.apply([keras.ops.cast(one, "float32") for one in gradients], weights)
    return optimizer


def named(path, shape):
    """A weight of ones to n at a path of a model."""
    scope, _, name = path.partition("/")
    values = np.random.default_rng(3).permutation(np.arange(np.prod(shape, dtype=int)) + 1.0)
    with keras.name_scope(scope):
        return keras.Variable(values.reshape(shape).astype("float32"), name=name)


@pytest.mark.backend_agnostic
def test_what_is_pruned_by_default_and_by_patterns():
    made = [
        named("dense/kernel", (4, 3)),
        named("dense/bias", (3,)),
        named("query/bias", (2, 2)),
        named("token_embedding/embeddings", (5, 4)),
        named("patch_embedding/kernel", (4, 4)),
        named("norm/scale", (4,)),
    ]
    steps = {"begin_step": 0, "end_step": 2, "update_freq": 1}
    optimizer = PrunedAdamW(0.0, final_sparsity=0.5, **steps)
    stepped(optimizer, made)
    assert [one.path for one in optimizer.pruned_variables] == [
        "dense/kernel",
        "patch_embedding/kernel",
    ]
    assert zeros([to_numpy(one) for one in made]) == 14 == 28 * optimizer.sparsity
    assert repr(optimizer).endswith("prunes 2 of 6 variables, sparsity 0.5>")
    lines = []
    optimizer.summary(lines.append)
    assert [line.split() for line in lines[1:4]] == [
        ["sparsity", "path", "shape"],
        ["0.583", "dense/kernel", "(4,", "3)"],
        ["-", "dense/bias", "(3,)"],
    ]
    by_pattern = PrunedAdamW(0.0, final_sparsity=0.5, include=["norm", "query"], **steps)
    stepped(by_pattern, [named(one.path, tuple(one.shape)) for one in made])
    assert [one.path for one in by_pattern.pruned_variables] == ["query/bias", "norm/scale"]


@pytest.mark.backend_agnostic
def test_the_same_share_of_each_variable():
    made = [named("small/kernel", (5, 2)), named("large/kernel", (5, 6))]
    options = {"begin_step": 0, "end_step": 4, "update_freq": 3}
    optimizer = PrunedAdamW(0.0, final_sparsity=0.7, scope="variable", **options)
    stepped(optimizer, made, steps=3)
    assert [zeros([to_numpy(one)]) for one in made] == [7, 21]  # 0.689 of 10 and of 30
    assert [np.sort(to_numpy(one), axis=None)[-3] for one in made] == [8, 28]


def test_ties_are_kept_by_position_and_none_is_lost():
    made = [keras.Variable(np.ones((2, 3), "float32")), keras.Variable(np.ones((2, 2), "float32"))]
    optimizer = PrunedAdamW(0.0, 0.0, final_sparsity=0.6, begin_step=0, end_step=1)
    stepped(optimizer, made, steps=1)
    np.testing.assert_array_equal(to_numpy(made[0]), [[1, 1, 1], [1, 0, 0]])
    np.testing.assert_array_equal(to_numpy(made[1]), np.zeros((2, 2)))


def test_two_of_each_four_along_the_inputs():
    made = [named("up/kernel", (8, 3)), named("query/kernel", (8, 2, 2))]
    options = {"begin_step": 0, "end_step": 3, "update_freq": 1, "pattern": "2:4"}
    optimizer = PrunedAdamW(0.0, 0.0, final_sparsity=0.5, **options)
    start = [to_numpy(one) for one in made]
    for step in range(1, 4):
        stepped(optimizer, made, steps=1)
        groups = [to_numpy(one).reshape((2, 4, -1)) for one in made]
        most = max(int(np.max(np.sum(one == 0, axis=1))) for one in groups)
        assert most == 2
        assert zeros(groups) == [20, 27, 28][step - 1]
    for one, before in zip(groups, start):
        second = np.sort(before.reshape((2, 4, -1)), axis=1)[:, 2:3]
        np.testing.assert_array_equal(one != 0, before.reshape(one.shape) >= second)


def test_what_movement_hides_trains_on_and_comes_back():
    """A weight whose gradients would make it grow, pruned while another's did."""
    weight = keras.Variable(np.float32([[1.0], [1.0]]), name="kernel")
    optimizer = PrunedAdamW(
        0.1, 0.0, score="movement", final_sparsity=0.5, begin_step=0, end_step=9, update_freq=4
    )
    optimizer.build([weight])
    truth = next(one for one in optimizer.variables if one.path.endswith("_hidden"))
    for step in range(8):
        gradient = [-1.0, 1.0] if step < 4 else [3.0, -3.0]
        optimizer.apply([keras.ops.convert_to_tensor(np.float32(gradient)[:, None])], [weight])
        if step == 3:
            np.testing.assert_allclose(to_numpy(weight), [[1.4], [0.0]], atol=1e-5)
            np.testing.assert_allclose(to_numpy(truth)[1], 0.6, atol=1e-5)
    shown = to_numpy(weight).ravel()
    assert shown[0] == 0
    assert shown[1] > 0.6  # it goes on where it was, and not from zero


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has sparse gradients")
def test_sparse_gradients_of_what_is_not_pruned_stay_sparse():
    import tensorflow as tf

    table, kernel = named("tokens/embeddings", (5, 2)), named("a/kernel", (4, 3))
    optimizer = Platon(total_steps=9)
    optimizer.build([table, kernel])
    slices = tf.IndexedSlices(tf.ones((1, 2)), tf.constant([3]), (5, 2))
    seen = optimizer._before_clipping([slices, tf.ones((4, 3))], [table, kernel])
    assert seen[0] is slices
    by_name = Platon(total_steps=9, include=["tokens"])
    by_name.build([table, kernel])
    (dense, _) = by_name._before_clipping([slices, tf.ones((4, 3))], [table, kernel])
    np.testing.assert_array_equal(to_numpy(dense)[2:4], [[0, 0], [1, 1]])


def test_one_average_serves_both():
    weights = [named("a/kernel", (4, 3))]
    optimizer = stepped(GuidedPruning(1e-3, begin_step=0, end_step=9), weights)
    names = [name for _, name in optimizer._names.slots.values()]
    assert names == ["momentum", "velocity", "sensitivity", "mask", "uncertainty"]
    assert optimizer.beta_3 == 0.75  # of the mixin that comes first
    alone = stepped(PrunedAdamW(1e-3, begin_step=0, end_step=9), [named("a/kernel", (4, 3))])
    assert [name for _, name in alone._names.slots.values()] == ["momentum", "velocity", "mask"]


def test_true_weights_that_are_mixed_are_pruned():
    class Both(sage_keras.WeightMixing, GradualPruning, keras.optimizers.AdamW):
        pass

    weight = named("a/kernel", (6, 4))
    options = {"begin_step": 0, "end_step": 3, "update_freq": 1, "score": "movement"}
    optimizer = stepped(Both(1e-2, seed=0, **options), [weight], steps=6)
    with optimizer.true_weights():
        assert zeros([to_numpy(weight)]) == 19  # round(24 * 0.8)


BAD = [
    ({"final_sparsity": 0.0}, ValueError, "`final_sparsity` must be above 0 and below 1"),
    ({"final_sparsity": 1.0}, ValueError, "`final_sparsity` must be above 0 and below 1"),
    ({"final_sparsity": "0.8"}, TypeError, "`final_sparsity` must be a float, such as 0.8"),
    ({"score": "gradient"}, ValueError, '`score` must be "magnitude" or "sensitivity" or'),
    ({"total_steps": None}, ValueError, "Pass either `total_steps`"),
    ({"begin_step": 5}, ValueError, "Pass either `total_steps`.*begin_step=5"),
    ({"total_steps": None, "end_step": 5}, ValueError, "both of `begin_step` and `end_step`"),
    ({"total_steps": 1.5}, TypeError, "`total_steps` must be an integer"),
    ({"total_steps": 2**31}, ValueError, "`total_steps` must be at most 2147483647"),
    ({"total_steps": 1}, ValueError, "leave no step to prune at.*total_steps=1"),
    ({"begin": 1.0}, ValueError, "`begin` must be at least 0 and below 1"),
    ({"begin": 0.5, "end": 0.5}, ValueError, "`end` must be above 0.5 and at most 1"),
    (
        {"total_steps": None, "begin_step": 5, "end_step": 5},
        ValueError,
        "`end_step` must be at least 6",
    ),
    (
        {"total_steps": None, "begin_step": -1, "end_step": 5},
        ValueError,
        "`begin_step` must be at least 0",
    ),
    ({"update_freq": 0}, ValueError, "`update_freq` must be at least 1"),
    ({"update_freq": True}, TypeError, "`update_freq` must be an integer"),
    ({"scope": "layer"}, ValueError, '`scope` must be "global" or "variable"'),
    ({"pattern": "1:2"}, ValueError, '`pattern` must be None or "2:4"'),
    ({"pattern": "2:4"}, ValueError, '`final_sparsity` must be 0.5 with `pattern="2:4"`'),
    ({"beta_3": 1.0}, ValueError, "`beta_3` must be above 0 and at most 0.999"),
    ({"beta_4": 0}, ValueError, "`beta_4` must be above 0 and at most 0.999"),
    (
        {"score": "movement", "use_ema": True, "ema_overwrite_frequency": 5},
        ValueError,
        "`ema_overwrite_frequency` cannot be used with .*movement",
    ),
    ({"seed": -1}, ValueError, "`seed` must be at least 0"),
]


@pytest.mark.backend_agnostic
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        Platon(**{"total_steps": 100} | arguments)


REFUSED_MODELS = {
    "nothing to prune": ({}, [("norm/scale", (3,))], "None of the variables is pruned by default"),
    "no groups of four": (
        {"pattern": "2:4", "final_sparsity": 0.5},
        [("a/kernel", (4, 3)), ("b/kernel", (6, 3))],
        r"divisible by four. Leave b/kernel, of the shape \(6, 3\), out",
    ),
    "no match": ({"include": ["x"]}, [("a/kernel", (4, 3))], "`include` matches no variable"),
}


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("what", REFUSED_MODELS)
def test_models_are_refused_before_anything_is_changed(what):
    arguments, made, message = REFUSED_MODELS[what]
    weights = [named(*one) for one in made]
    before = [to_numpy(one) for one in weights]
    optimizer = PrunedAdamW(total_steps=10, **arguments)
    with pytest.raises(ValueError, match=message):
        stepped(optimizer, weights, steps=1)
    assert int(to_numpy(optimizer.iterations)) == 0
    for one, weight in zip(before, weights):
        np.testing.assert_array_equal(one, to_numpy(weight))


@pytest.mark.backend_agnostic
def test_more_weights_than_can_be_ranked_are_refused():
    class Huge:
        path, shape = "huge/kernel", (2**16, 2**15)

    optimizer = PrunedAdamW(total_steps=10)
    with pytest.raises(ValueError, match="A variable that is pruned has 2147483648 weights"):
        optimizer._check_sizes([Huge()])
    Huge.shape = (2**15, 2**15)
    with pytest.raises(ValueError, match=r'have 2147483648 weights.*Pass scope="variable"'):
        optimizer._check_sizes([Huge(), Huge()])
    PrunedAdamW(total_steps=10, scope="variable")._check_sizes([Huge(), Huge()])


@pytest.mark.backend_agnostic
def test_settings_come_back():
    optimizer = Platon(total_steps=100, pattern="2:4", final_sparsity=0.5, include=["a"])
    again = Platon.from_config(optimizer.get_config())
    assert again.get_config() == optimizer.get_config()
    assert (again.begin_step, again.end_step) == (10, 70)
    steps = Platon(begin_step=3, end_step=9)
    assert Platon.from_config(steps.get_config()).end_step == 9
    assert repr(PrunedAdamW(total_steps=9)) == (
        "<PrunedAdamW(learning_rate=0.001, total_steps=9) on AdamW, not built>"
    )
