"""The sensitivity of a model over data, against a float64 twin, and what must not change."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from modes import BACKEND, float64_allowed, to_numpy

from sage_keras import Mixout, Sage
from sage_keras.analysis import measure_sensitivity
from sage_keras.callbacks import SwapTrueWeights

SIZE, BATCH = 10, 4  # so that the last batch is ragged


def examples():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(SIZE, 4)), random.normal(size=(SIZE, 2))
    return x.astype("float32"), y.astype("float32"), np.linspace(0, 2, SIZE, dtype="float32")


def dense_net(optimizer="sgd"):
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(3, "tanh", bias_initializer="glorot_normal", name="hidden")
    out = keras.layers.Dense(2, bias_initializer="glorot_normal", name="out")
    model = keras.Sequential([keras.Input((4,)), hidden, out], name="net")
    model.compile(optimizer=optimizer, loss="mse")
    return model


def twin(model, x, y, sample_weight=None):
    """|theta * gradient| of one batch in float64, by hand."""
    x, y = x.astype("float64"), y.astype("float64")
    share = (np.ones(len(x)) if sample_weight is None else sample_weight.astype("float64")) / len(x)
    w_1, b_1, w_2, b_2 = (weight.astype("float64") for weight in model.get_weights())
    h = np.tanh(x @ w_1 + b_1)
    d_2 = 2 * (h @ w_2 + b_2 - y) / y.shape[1] * share[:, None]
    d_1 = (d_2 @ w_2.T) * (1 - h**2)
    gradients = (x.T @ d_1, d_1.sum(axis=0), h.T @ d_2, d_2.sum(axis=0))
    return [np.abs(weight * gradient) for weight, gradient in zip((w_1, b_1, w_2, b_2), gradients)]


def cut(arrays, size=BATCH):
    return [tuple(array[i : i + size] for array in arrays) for i in range(0, SIZE, size)]


def expected(model, batches):
    return [np.mean(parts, axis=0) for parts in zip(*(twin(model, *batch) for batch in batches))]


def assert_close(measured, wanted, tolerance=1e-5):
    assert len(measured) == len(wanted)
    for value, exact in zip(measured.values(), wanted):
        np.testing.assert_allclose(value, exact, rtol=0, atol=tolerance * np.max(exact))


class Batches(keras.utils.PyDataset):
    def __init__(self, batches, endless=False):
        super().__init__()
        self.batches = batches
        self.endless = endless

    @property
    def num_batches(self):
        return None if self.endless else len(self.batches)

    def __getitem__(self, index):
        return self.batches[index % len(self.batches)]


def tf_dataset(arrays):
    return pytest.importorskip("tensorflow").data.Dataset.from_tensor_slices(arrays).batch(BATCH)


def torch_loader(arrays):
    data = pytest.importorskip("torch").utils.data
    tensors = [__import__("torch").tensor(array) for array in arrays]
    return data.DataLoader(data.TensorDataset(*tensors), batch_size=BATCH)


KINDS = {
    "arrays": tuple,
    "list": cut,
    "generator": lambda arrays: (batch for batch in cut(arrays)),
    "lists of lists": lambda arrays: [list(batch) for batch in cut(arrays)],
    "tensors": lambda arrays: tuple(ops.convert_to_tensor(array) for array in arrays),
    "PyDataset": lambda arrays: Batches(cut(arrays)),
    "tf.data": tf_dataset,
    "DataLoader": torch_loader,
}


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_data_against_the_twin(kind, weighted):
    model = dense_net()
    arrays = examples() if weighted else examples()[:2]
    size = {"batch_size": BATCH} if kind in ("arrays", "tensors") else {}
    measured = measure_sensitivity(model, KINDS[kind](arrays), verbose=0, **size)
    assert list(measured) == [
        f"net/{layer}/{name}" for layer in ("hidden", "out") for name in ("kernel", "bias")
    ]
    assert {value.dtype for value in measured.values()} == {np.dtype("float32")}
    assert_close(measured, expected(model, cut(arrays)))


@pytest.mark.parametrize("kind", ["arrays", "tf.data"])
def test_single_examples_against_the_twin(kind):
    model = dense_net()
    measured = measure_sensitivity(model, KINDS[kind](examples()), per="example", verbose=0)
    assert_close(measured, expected(model, cut(examples(), 1)))


def test_arrays_come_in_batches_of_32_and_batches_can_be_limited():
    model = dense_net()
    x, y, _ = examples()
    x, y = np.tile(x, (4, 1)), np.tile(y, (4, 1))
    whole = measure_sensitivity(model, (x, y), verbose=0)
    assert_close(whole, expected(model, [(x[:32], y[:32]), (x[32:], y[32:])]))
    first = measure_sensitivity(model, (x, y), batches=1, verbose=0)
    assert_close(first, expected(model, [(x[:32], y[:32])]))
    endless = measure_sensitivity(model, Batches([(x[:32], y[:32])], True), batches=2, verbose=0)
    assert_close(endless, list(first.values()), 1e-6)


def test_a_generator_gives_no_more_than_it_is_asked_for():
    generator = (batch for batch in cut(examples()))
    measure_sensitivity(dense_net(), generator, batches=2, verbose=0)
    assert len(next(generator)[0]) == SIZE - 2 * BATCH


def test_named_inputs_and_outputs():
    keras.utils.set_random_seed(0)
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}
    joined = keras.layers.Concatenate()([inputs["a"], inputs["b"]])
    hidden = keras.layers.Dense(3, "tanh", name="hidden")(joined)
    out = keras.layers.Dense(2, name="out")(hidden)
    model = keras.Model(inputs, {"out": out}, name="net")
    model.compile(loss={"out": "mse"})
    x, y, weight = examples()
    data = ({"a": x[:, :2], "b": x[:, 2:]}, {"out": y}, {"out": weight})
    measured = measure_sensitivity(model, data, batch_size=BATCH, verbose=0)
    assert_close(measured, expected(model, cut((x, y, weight))))


class Added(keras.Model):
    """Without `training`, and without any other loss."""

    def __init__(self, dtype="float32"):
        super().__init__(name="added", dtype=dtype)
        regularizer = keras.regularizers.L2(0.5)
        self.scale = self.add_weight(
            shape=(3,), initializer="ones", regularizer=regularizer, name="scale"
        )

    def call(self, inputs):
        self.add_loss(ops.sum(inputs * self.scale))  # a mean would be taken in float32
        return inputs


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_regularization_and_added_losses_count(dtype, tolerance):
    with float64_allowed():
        model = Added(dtype)
        model.compile()
        x = np.array([[1, 2, 3], [3, 4, -9]], dtype=dtype) / 7
        model(x)
        measured = measure_sensitivity(model, (x,), verbose=0)["added/scale"]
    assert measured.dtype == dtype
    # d/ds of sum(x * s) + 0.5 * sum(s ** 2) at s = 1
    np.testing.assert_allclose(measured, np.abs(x.sum(axis=0) + 1), rtol=tolerance)


class Counter(keras.layers.Layer):
    """Counts its calls in a variable, in evaluation too, and its traces in Python."""

    def build(self, input_shape):
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)
        self.traces = 0

    def call(self, inputs):
        self.traces += 1
        self.calls.assign_add(1.0)
        return inputs


@pytest.fixture(scope="module")
def stateful():
    keras.utils.set_random_seed(0)
    layers = [
        keras.Input((4,)),
        Counter(name="counter"),
        keras.layers.Dense(3, name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.5, name="dropout"),
        keras.layers.Dense(2, name="out"),
    ]
    model = keras.Sequential(layers, name="net")
    model.compile(optimizer=Sage(0.1), loss="mse", metrics=["mae"])
    x, y, _ = examples()
    model.fit(x, y, batch_size=5, verbose=0)
    return model


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [to_numpy(variable).tobytes() for variable in variables]


@pytest.mark.parametrize("per", ["batch", "example"])
def test_model_is_left_untouched(per, stateful):
    model = stateful
    before, trained = state(model), model.get_layer("counter").traces
    gradients = [getattr(variable.value, "grad", None) for variable in model.trainable_variables]
    measure_sensitivity(model, tf_dataset(examples()), per=per, verbose=0)
    assert state(model) == before
    assert gradients == [
        getattr(variable.value, "grad", None) for variable in model.trainable_variables
    ]
    # Compiled once, and once more for the ragged batch.
    if BACKEND != "torch":
        traces = model.get_layer("counter").traces - trained
        assert traces == {"batch": 2, "example": 1}[per]


def test_model_is_left_untouched_by_an_exception(stateful):
    def broken():
        yield examples()[:2]
        raise OSError("the disk is gone")

    before = state(stateful)
    with pytest.raises(OSError, match="the disk is gone"):
        measure_sensitivity(stateful, broken(), verbose=0)
    with pytest.raises(ValueError, match=r"shape|hidden"):
        measure_sensitivity(stateful, [(np.ones((2, 7)), np.ones((2, 2)))], verbose=0)
    assert state(stateful) == before


def test_dropout_is_off():
    plain, dropping = (
        keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3), *dropout, keras.layers.Dense(2)]
        )
        for dropout in ([], [keras.layers.Dropout(0.5, seed=0)])
    )
    dropping.set_weights(plain.get_weights())
    measured = []
    for model in (plain, dropping):
        model.compile(optimizer="sgd", loss="mse")
        measured.append(measure_sensitivity(model, examples()[:2], verbose=0).values())
    for one, other in zip(*measured, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_measuring_twice_is_the_same_and_training_goes_on(stateful):
    first, second = (measure_sensitivity(stateful, examples(), verbose=0) for _ in range(2))
    for path in first:
        np.testing.assert_array_equal(first[path], second[path])
    stateful.fit(*examples()[:2], verbose=0)


@pytest.mark.parametrize("scale", [2.0**10, 2.0**120], ids=["scaled", "overflows"])
def test_loss_scale_does_not_show(scale):
    optimizer = keras.optimizers.LossScaleOptimizer(Sage(), initial_scale=scale)
    model = dense_net(optimizer)
    x, y, weight = examples()
    measured = measure_sensitivity(model, (x, 1e4 * y, weight), batch_size=BATCH, verbose=0)
    assert_close(measured, expected(model, cut((x, 1e4 * y, weight))))


def test_what_is_not_finite_is_reported():
    model = dense_net(keras.optimizers.LossScaleOptimizer(Sage(), initial_scale=4.0))
    x, y, _ = examples()
    measured = measure_sensitivity(model, (x, np.full_like(y, np.inf)), verbose=0)
    assert not np.isfinite(measured["net/out/bias"]).any()


def test_small_gradients_survive_half_precision():
    """In float16 alone they would be zero: the loss scale carries them."""
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(2, dtype="mixed_float16", name="dense")
    model = keras.Sequential([keras.Input((4,)), dense])
    scaled = keras.optimizers.LossScaleOptimizer(Sage(), initial_scale=2.0**30)
    x, y, _ = examples()
    x = np.float16(x).astype("float32")
    results = {}
    for optimizer in (scaled, "sgd"):
        model.compile(optimizer=optimizer, loss=lambda y, p: 1e-9 * ops.mean(ops.square(y - p)))
        results[optimizer] = list(measure_sensitivity(model, (x, y), verbose=0).values())
    kernel, bias = (weight.astype("float64") for weight in model.get_weights())
    exact = 1e-9 * np.abs(kernel * (x.T @ (x @ kernel + bias - y)) / SIZE)
    np.testing.assert_allclose(results[scaled][0], exact, rtol=0, atol=0.02 * exact.max())
    assert results[scaled][0].dtype == "float32"
    assert np.count_nonzero(results["sgd"][0]) == 0


def test_paths_that_occur_twice_are_told_apart():
    class Twins(keras.Model):
        def __init__(self):
            super().__init__(name="twins")
            self.parts = [keras.layers.Dense(1, use_bias=False, name="same") for _ in range(2)]

        def call(self, inputs):
            return self.parts[0](inputs) + 2 * self.parts[1](inputs)

    model = Twins()
    model(np.ones((1, 1)))
    model.set_weights([np.ones((1, 1))] * 2)
    model.compile(loss="mae")
    measured = measure_sensitivity(model, (np.ones((1, 1)), np.zeros((1, 1))), verbose=0)
    assert {path: float(value[0, 0]) for path, value in measured.items()} == {
        "twins/same/kernel": 1.0,
        "twins/same/kernel#1": 2.0,
    }


def test_unused_and_sparse_variables():
    """A variable that the loss does not see is at 0, an embedding looked up twice is summed."""

    class Lookup(keras.Model):
        def __init__(self):
            super().__init__(name="lookup")
            self.table = keras.layers.Embedding(3, 2, embeddings_initializer="ones", name="table")
            self.unused = self.add_weight(shape=(2,), initializer="ones", name="unused")

        def call(self, inputs):
            return ops.sum(self.table(inputs), axis=(1, 2))

    model = Lookup()
    x, y = np.array([[0, 0, 1]]), np.array([0.0])
    model(x)
    model.compile(loss="mae")
    measured = measure_sensitivity(model, (x, y), verbose=0)
    assert measured["lookup/table/embeddings"].tolist() == [[2, 2], [1, 1], [0, 0]]
    assert measured["lookup/unused"].tolist() == [0, 0]


def test_progress_bar_knows_the_end_and_the_loss(capsys):
    model = dense_net()
    x, y, _ = examples()
    loss = model.evaluate(x, y, verbose=0)
    measure_sensitivity(model, (x, y))
    shown = capsys.readouterr().out
    assert "1/1" in shown
    assert f"loss: {loss:.4f}" in shown
    measure_sensitivity(model, (x, y), verbose=0)
    assert capsys.readouterr().out == ""


class OldLoss(keras.Model):
    """Overrides `compute_loss` as before Keras 3.3, under names of its own."""

    def __init__(self):
        super().__init__(name="old")
        self.scale = self.add_weight(shape=(), initializer="ones", name="scale")

    def call(self, inputs):
        return self.scale * inputs

    def compute_loss(self, inputs, targets, outputs, weights=None):
        return 3.0 * ops.sum(outputs)


def test_compute_loss_may_be_without_training():
    model = OldLoss()
    model.compile()
    x = np.array([[1.0, 2.0]], dtype="float32")
    model(x)
    assert measure_sensitivity(model, (x, x), verbose=0)["old/scale"] == 9.0


@pytest.mark.parametrize("eagerly", [False, True])
def test_runs_eagerly_where_the_model_does(eagerly):
    counter = Counter()
    model = keras.Sequential([keras.Input((2,)), counter, keras.layers.Dense(1)])
    model.compile(loss="mse", run_eagerly=eagerly)
    x = np.ones((3, 2), dtype="float32")
    before = counter.traces
    measure_sensitivity(model, [(x, x[:, :1])] * 3, verbose=0)
    assert counter.traces - before == (3 if eagerly or BACKEND == "torch" else 1)


def scipy_matrix(x):
    return pytest.importorskip("scipy.sparse").coo_matrix(x)


def tensorflow_sparse(x):
    return pytest.importorskip("tensorflow").sparse.from_dense(x)


def own_sparse(x):
    if BACKEND == "jax":
        return pytest.importorskip("jax.experimental.sparse").BCOO.fromdense(x)
    if BACKEND == "torch":
        pytest.skip("Keras has no sparse tensors on torch")
    return tensorflow_sparse(x)


@pytest.mark.parametrize("make", [scipy_matrix, tensorflow_sparse, own_sparse])
def test_sparse_inputs_are_measured_as_dense_ones(make):
    model = dense_net()
    x, y, weight = (array[:4] for array in examples())
    x[:, ::2] = 0.0  # each row has as many zeros, so that JAX compiles once
    halves = [(x[:2], y[:2], weight[:2]), (x[2:], y[2:], weight[2:])]
    exact = expected(model, halves)
    data = make(x), y, weight
    assert_close(measure_sensitivity(model, data, batch_size=2, verbose=0), exact)
    data = [(make(x), *rest) for x, *rest in halves]
    assert_close(measure_sensitivity(model, data, verbose=0), exact)


def test_single_examples_of_sparse_inputs():
    model = dense_net()
    x, y, _ = (array[:2] for array in examples())
    measured = measure_sensitivity(model, (scipy_matrix(x), y), per="example", verbose=0)
    assert_close(measured, expected(model, [(x[:1], y[:1]), (x[1:], y[1:])]))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no sparse tensors on torch")
def test_sparse_inputs_reach_the_model_as_in_fit():
    kinds = []

    class Kind(keras.Model):
        def __init__(self):
            super().__init__(name="kind")
            self.dense = keras.layers.Dense(1)

        def call(self, inputs):
            kinds.append((type(inputs).__name__, inputs.dtype))
            return self.dense(inputs)

    model = Kind()
    model.compile(optimizer="sgd", loss="mse")
    x, y = scipy_matrix(np.eye(4)), np.ones((4, 1))
    model.fit(x, y, verbose=0)
    fitted = kinds[-1]
    measure_sensitivity(model, (x, y), verbose=0)
    assert kinds[-1] == fitted
    assert fitted[0] in ("SparseTensor", "BCOO")


def test_warns_of_mixed_weights_where_there_are_any():
    model = dense_net(Mixout(0.1, seed=0))
    x, y, _ = examples()
    model.fit(x, y, callbacks=[SwapTrueWeights()], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "__array__ implementation")
        measure_sensitivity(model, (x, y), verbose=0)
        with model.optimizer.true_weights():
            measure_sensitivity(model, (x, y), verbose=0)
    model.optimizer.mix()
    with pytest.warns(UserWarning, match="'net' holds the mixed weights of Mixout.*true_weights"):
        measure_sensitivity(model, (x, y), verbose=0)


def test_loss_scale_factor_does_not_show():
    model = dense_net(keras.optimizers.SGD(loss_scale_factor=2.0**10))
    measured = measure_sensitivity(model, examples(), batch_size=BATCH, verbose=0)
    assert_close(measured, expected(model, cut(examples())))


def not_compiled():
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])


def not_built():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile(loss="mse")
    return model


def without_loss():
    model = not_compiled()
    model.compile()
    return model


def frozen():
    model = dense_net()
    model.trainable = False
    return model


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (not_compiled, ValueError, "is not compiled.*compile"),
        (not_built, ValueError, "is not built"),
        (without_loss, ValueError, "has no loss"),
        (frozen, ValueError, "no trainable variables"),
        (lambda: keras.layers.Dense(2), TypeError, "`model`.*Dense"),
    ],
)
def test_refuses_models(make, error, message):
    with pytest.raises(error, match=message):
        measure_sensitivity(make(), examples()[:2], verbose=0)


X, Y, _ = examples()


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        (X, {}, TypeError, "`data` must be a tuple of arrays.*ndarray"),
        (scipy_matrix(X), {}, TypeError, "`data` must be a tuple of arrays.*coo_"),
        ([X, Y], {}, TypeError, "`data` must be a tuple of arrays.*list"),
        ({"x": X}, {}, TypeError, "`data`.*dict"),
        (3, {}, TypeError, "`data`.*int"),
        ((X, Y, Y, Y), {}, ValueError, "tuple of 4"),
        ((X, Y[:3]), {}, ValueError, r"first dimension.*\(10, 4\), \(3, 2\)"),
        ((X, 1.0), {}, ValueError, "first dimension"),
        ((X[:0], Y[:0]), {}, ValueError, "`data` is empty"),
        ([], {}, ValueError, "`data` is empty"),
        (iter([]), {}, ValueError, "`data` is empty"),
        (Batches([], endless=True), {}, ValueError, "never ends.*batches=100"),
        ((X, Y), {"batches": 0}, ValueError, "batches=0"),
        ((X, Y), {"batches": 1.5}, TypeError, "batches=1.5"),
        ((X, Y), {"batches": 2}, ValueError, "has 1 batches.*batches=2"),
        (iter([(X, Y)]), {"batches": 2}, ValueError, "has 1 batches.*batches=2"),
        ((X, Y), {"batch_size": 0}, ValueError, "batch_size=0"),
        ([(X, Y)], {"batch_size": 2}, ValueError, "for arrays only.*batch_size=2"),
        ((X, Y), {"per": "row"}, ValueError, "per='row'"),
    ],
)
def test_refuses_data(data, arguments, error, message):
    with pytest.raises(error, match=message):
        measure_sensitivity(dense_net(), data, verbose=0, **arguments)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a strategy of TensorFlow")
def test_mirrored_strategy():
    import tensorflow as tf

    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = dense_net()
    measured = measure_sensitivity(model, examples(), batch_size=BATCH, verbose=0)
    assert_close(measured, expected(model, cut(examples())))
