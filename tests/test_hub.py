"""Modules of TensorFlow Hub as layers, on modules that are made here."""

import functools
import http.server
import sys
import tarfile
import threading

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy

from sage_keras import Sage
from sage_keras.analysis import measure_sensitivity
from sage_keras.hub import HubLayer

tensorflow_only = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="a module is a TensorFlow graph; refused elsewhere, see below"
)
if BACKEND == "tensorflow":
    import tensorflow as tf

WORDS = ["dull", "fine", "bad", "good"]


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    """A function of a name that returns the folder of that module."""
    folder = tmp_path_factory.mktemp("modules")

    @functools.cache
    def saved(name):
        module, signatures = globals()[f"make_{name}"]()
        path = str(folder / name)
        tf.saved_model.save(module, path, signatures=signatures)
        return path

    return saved


def make_reusable():
    """All that the interface of reusable SavedModels has, regularization losses included."""

    class Reusable(tf.train.Checkpoint):
        def __init__(self):
            super().__init__()
            generator = np.random.default_rng(0)
            kernel = generator.normal(size=(3, 4)).astype("float32")
            self.kernel = tf.Variable(kernel, name="block_0/dense/kernel")
            self.bias = tf.Variable(tf.ones(4), name="block_0/dense/bias")
            self.frozen = tf.Variable(tf.ones(4), name="frozen")  # trainable by its own flag
            self.calls = tf.Variable(0.0, trainable=False, name="calls")
            self.trainable_variables = [self.kernel, self.bias]
            self.variables = [self.kernel, self.bias, self.frozen, self.calls]
            self.regularization_losses = [self.penalty]

        @tf.function(input_signature=[])
        def penalty(self):
            return 0.5 * tf.reduce_sum(self.kernel**2)

        @tf.function
        def __call__(self, inputs, training=False):
            if training:
                self.calls.assign_add(1.0)
            return tf.tanh(inputs @ self.kernel + self.bias) * self.frozen

    module = Reusable()
    for training in (False, True):
        module.__call__.get_concrete_function(tf.TensorSpec((None, 3)), training=training)
    return module, None


def make_dicts():
    """No `training`, no lists of variables; dicts in and out, and a variable that is not used."""

    class Dicts(tf.Module):
        def __init__(self):
            super().__init__()
            self.left = tf.Variable(tf.ones((3, 2)))
            self.right = tf.Variable(tf.ones((3, 2)))
            self.unused = tf.Variable(tf.ones((3, 2)))

        @tf.function(
            input_signature=[{"a": tf.TensorSpec((None, 3)), "b": tf.TensorSpec((None, 3))}]
        )
        def __call__(self, inputs):
            total = inputs["a"] @ self.left + inputs["b"] @ self.right
            return {"total": total, "first": total[:, :1]}

    return Dicts(), None


def make_signatures():
    """Signatures only: one of one input, one of two."""

    class Signatures(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(tf.ones((3, 2)), name="kernel")

        @tf.function(input_signature=[tf.TensorSpec((None, 3), name="features")])
        def one(self, features):
            return {"projected": features @ self.kernel, "copied": features}

        @tf.function(input_signature=2 * [tf.TensorSpec((None, 3))])
        def two(self, first, second):
            return {"projected": (first - second) @ self.kernel}

    module = Signatures()
    return module, {"serving_default": module.one, "difference": module.two}


def make_words():
    """An embedding of words, which are looked up in a table of the module's own."""

    class Words(tf.Module):
        def __init__(self):
            super().__init__()
            initializer = tf.lookup.KeyValueTensorInitializer(WORDS, tf.range(4))
            self.table = tf.lookup.StaticHashTable(initializer, default_value=0)
            vectors = tf.reshape(tf.range(8.0), (4, 2)) - 4.0
            self.embeddings = tf.Variable(vectors, name="embeddings")

        @tf.function(input_signature=[tf.TensorSpec((None,), "string")])
        def __call__(self, words):
            return tf.gather(self.embeddings, self.table.lookup(words))

    return Words(), None


def make_rounded():
    """A variable that no gradient reaches."""

    class Rounded(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(tf.ones((3, 2)))

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def __call__(self, inputs):
            return tf.cast(tf.cast(inputs @ self.kernel, "int32"), "float32")

    return Rounded(), None


def make_constant():
    """No variable at all."""

    class Constant(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def __call__(self, inputs):
            return 2.0 * inputs

    module = Constant()
    return module, {"doubled": module.__call__}


def make_mixed(*names):
    """Outputs of which only one has gradients."""

    class Mixed(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernels = [
                tf.Variable(tf.ones((3, 2)), name=name) for name in names or ("kernel",)
            ]

        @tf.function(input_signature=[tf.TensorSpec((None, 3))])
        def __call__(self, inputs):
            total = inputs @ tf.add_n(self.kernels)
            ids = tf.argmax(total, axis=1)
            return {"total": total, "ids": ids, "words": tf.gather(WORDS, ids)}

    return Mixed(), None


def data(rows=32):
    x = np.random.default_rng(1).normal(size=(rows, 3)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def classifier(layer, inputs=None):
    """A model of the layer and a head, the same on every run."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,)) if inputs is None else inputs
    return keras.Model(inputs, keras.layers.Dense(1, name="head")(layer(inputs)))


def fit(model, x, y, jit_compile="auto"):
    """Three epochs with Sage; what every variable of the model was before."""
    before = [to_numpy(variable) for variable in model.variables]
    model.compile(optimizer=Sage(0.01), loss="mse", jit_compile=jit_compile)
    model.fit(x, y, batch_size=8, epochs=3, verbose=0)
    return before


def moved(model, before):
    return {
        variable.path
        for variable, old in zip(model.variables, before)
        if np.abs(to_numpy(variable) - old).max() > 1e-4
    }


@tensorflow_only
@pytest.mark.parametrize("supports_jit", [False, True])
def test_trains_every_trainable_weight_and_no_other(modules, supports_jit):
    layer = HubLayer(modules("reusable"), name="hub")
    assert layer.supports_jit is False
    layer.supports_jit = supports_jit
    model = classifier(layer)
    before = fit(model, *data(), jit_compile=supports_jit or "auto")
    assert model.jit_compile is supports_jit
    paths = {"hub/block_0/dense/kernel", "hub/block_0/dense/bias"}
    assert {variable.path for variable in layer.trainable_variables} == paths
    assert set(model.optimizer.sensitivities) == paths | {"head/kernel", "head/bias"}
    # Twelve steps of training, which the module counts itself.
    assert moved(model, before) == {*paths, "head/kernel", "head/bias", "hub/calls"}
    assert [to_numpy(v) for v in layer.non_trainable_variables if "calls" in v.path] == [12.0]


@tensorflow_only
def test_patterns_of_an_optimizer_find_the_names_in_the_module(modules):
    model = classifier(HubLayer(modules("reusable")))
    model.compile(optimizer=Sage(include=[r"block_\d+/.+/kernel$"]), loss="mse")
    model.fit(*data(), verbose=0)
    [path] = model.optimizer.sensitivities
    assert path.endswith("/block_0/dense/kernel")


@tensorflow_only
def test_equals_the_module_and_shares_its_variables(modules):
    x, _ = data()
    layer = HubLayer(modules("reusable"))
    module = tf.saved_model.load(modules("reusable"))
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(module(x)))
    for variable in (layer.trainable_variables[1], module.bias):
        variable.assign([0.0, 1.0, 2.0, 3.0])
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(module(x)))
    half = keras.ops.cast(x, "float16")
    assert layer(half).dtype == "float32"  # what the module was saved for


@tensorflow_only
def test_sensitivity_of_the_weights_in_a_module(modules):
    x, y = data()
    model = classifier(HubLayer(modules("reusable"), trainable=True))
    model.compile(loss="mse")
    with tf.GradientTape() as tape:
        loss = model.compute_loss(x, y, model(x), None)
    variables = [variable.value for variable in model.trainable_variables]
    gradients = tape.gradient(loss, variables)
    found = measure_sensitivity(model, (x, y), batch_size=len(x))
    assert len(found) == 4
    for value, weight, gradient in zip(found.values(), variables, gradients):
        expected = np.abs(weight * tf.convert_to_tensor(gradient))
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 1e-3
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-7)


@tensorflow_only
def test_regularization_losses_are_added_while_it_is_trainable(modules):
    x, y = data(8)
    layer = HubLayer(modules("reusable"))
    model = classifier(layer)
    model.compile(optimizer=Sage(0.01), loss="mse")
    penalty = 0.5 * np.square(to_numpy(layer.trainable_variables[0])).sum()
    with_penalty = model.evaluate(x, y, verbose=0)
    error = np.square(to_numpy(model(x)) - y).mean()
    assert with_penalty == pytest.approx(error + penalty, rel=1e-5)
    assert [float(loss) for loss in model.losses] == [pytest.approx(penalty, rel=1e-5)]
    layer.trainable = False
    model.compile(optimizer=Sage(0.01), loss="mse")
    assert model.evaluate(x, y, verbose=0) == pytest.approx(error, rel=1e-5)


@tensorflow_only
def test_frozen_module_stays_as_it_is_and_is_not_told_of_training(modules):
    layer = HubLayer(modules("reusable"), trainable=False)
    model = classifier(layer)
    before = fit(model, *data())
    assert moved(model, before) == {"head/kernel", "head/bias"}
    layer.trainable = True
    before = fit(model, *data())
    assert len(moved(model, before)) == 5


@tensorflow_only
def test_dict_inputs_and_output_key(modules):
    x, y = data()
    inputs = {"a": keras.Input((3,), name="a"), "b": keras.Input((3,), name="b")}
    layer = HubLayer(modules("dicts"), output_key="total", name="hub")
    model = classifier(layer, inputs)
    assert model.predict({"a": x, "b": x}, verbose=0).shape == (32, 1)
    before = fit(model, {"a": x, "b": x + 1.0}, y)
    assert len(layer.variables) == 2  # without the one that is not used
    assert all(np.abs(to_numpy(v) - old).min() > 1e-4 for v, old in zip(model.variables, before))
    outputs = HubLayer(modules("dicts"))({"a": x, "b": x})
    assert {key: tuple(value.shape) for key, value in outputs.items()} == {
        "total": (32, 2),
        "first": (32, 1),
    }


@tensorflow_only
def test_variables_without_names_get_one(monkeypatch):
    module, _ = make_mixed("/", "//", ":0", "a//b/")  # TensorFlow itself saves no such names
    monkeypatch.setattr("tensorflow_hub.load", lambda handle: module)
    layer = HubLayer("nameless", output_key="total", name="hub")
    assert [variable.path for variable in layer.variables] == [*3 * ["hub/variable"], "hub/a/b"]
    model = classifier(layer)
    before = [to_numpy(variable) for variable in model.variables]
    fit(model, *data())
    assert all(np.abs(to_numpy(v) - old).min() > 1e-4 for v, old in zip(model.variables, before))


@tensorflow_only
def test_outputs_without_gradients_do_not_hinder_the_others(modules):
    layer = HubLayer(modules("mixed"))
    with tf.GradientTape() as tape:
        outputs = layer(data()[0], training=True)
        loss = tf.reduce_sum(outputs["total"])
    assert {name: output.dtype for name, output in outputs.items()} == {
        "total": "float32",
        "ids": "int64",
        "words": "string",
    }
    [gradient] = tape.gradient(loss, layer._module.kernels)
    np.testing.assert_allclose(to_numpy(gradient)[:, 0], data()[0].sum(axis=0), rtol=1e-5)


@tensorflow_only
def test_signatures_train(modules):
    x, y = data()
    layer = HubLayer(modules("signatures"), signature="serving_default", output_key="projected")
    model = classifier(layer)
    before = fit(model, x, y)
    assert len(moved(model, before)) == 3
    layer = HubLayer(modules("signatures"), signature="difference", output_key="projected")
    difference = layer({"first": x, "second": x - 1.0})
    np.testing.assert_allclose(to_numpy(difference), np.full((32, 2), 3.0), rtol=1e-5)


@tensorflow_only
def test_words_train_through_a_table(modules):
    words = np.array(8 * WORDS)
    layer = HubLayer(modules("words"))
    model = classifier(layer, keras.Input((), dtype="string"))
    before = fit(model, tf.constant(words), np.array(8 * [0.0, 1.0, 0.0, 1.0]))
    assert len(moved(model, before)) == 3


@tensorflow_only
@pytest.mark.parametrize("suffix", ["keras", "weights.h5"])
def test_weights_of_the_file_win_over_those_of_the_module(modules, tmp_path, suffix):
    x, y = data()
    model = classifier(HubLayer(modules("reusable"), name="hub"))
    fit(model, x, y)
    path = tmp_path / f"model.{suffix}"
    if suffix == "keras":
        model.save(path)
        loaded = keras.saving.load_model(path, safe_mode=False)
        layer = loaded.get_layer("hub")
        assert (layer.handle, layer.trainable) == (modules("reusable"), True)
        assert [v.path for v in layer.variables] == [
            v.path for v in model.get_layer("hub").variables
        ]
    else:
        model.save_weights(path)
        loaded = classifier(HubLayer(modules("reusable"), name="hub"))
        loaded.load_weights(path)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), model.predict(x, verbose=0))
    for one, other in zip(loaded.variables, model.variables):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    if suffix == "keras":
        histories = [m.fit(x, y, shuffle=False, verbose=0).history for m in (loaded, model)]
        assert histories[0]["loss"] == pytest.approx(histories[1]["loss"], rel=1e-6)


@tensorflow_only
def test_configuration_holds_all_arguments(modules):
    layer = HubLayer(modules("signatures"), False, "serving_default", "projected", name="hub")
    again = HubLayer.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.trainable, again.signature, again.output_key, again.name) == (
        False,
        "serving_default",
        "projected",
        "hub",
    )


@tensorflow_only
def test_safe_mode_runs_no_module_of_a_file(modules, tmp_path):
    model = classifier(HubLayer(modules("reusable")))
    model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"reusable'\. If you trust both, pass safe_mode=False"):
        keras.saving.load_model(tmp_path / "model.keras")


@tensorflow_only
def test_trained_model_exports_with_its_tables(modules, tmp_path):
    words = tf.constant(8 * WORDS)
    model = classifier(HubLayer(modules("words")), keras.Input((), dtype="string"))
    fit(model, words, np.array(8 * [0.0, 1.0, 0.0, 1.0]))
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))
    np.testing.assert_allclose(
        to_numpy(exported.serve(words)), model.predict(words, verbose=0), rtol=1e-6
    )


@tensorflow_only
def test_archive_is_fetched_once_and_read(modules, tmp_path, monkeypatch):
    import tensorflow_hub as hub

    served = tmp_path / "served"
    served.mkdir()
    with tarfile.open(served / "reusable.tar.gz", "w:gz") as archive:
        archive.add(modules("reusable"), arcname=".")
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            requests.append(self.path)

    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = functools.partial(Handler, directory=served)
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        handle = f"http://127.0.0.1:{server.server_port}/reusable.tar.gz"
        layers = [HubLayer(handle) for _ in range(2)]
        server.shutdown()
    assert len(requests) == 1
    assert hub.resolve(handle).startswith(str(tmp_path / "cache"))
    x, y = data()
    assert layers[0].get_config()["handle"] == handle
    np.testing.assert_array_equal(
        to_numpy(layers[0](x)), to_numpy(HubLayer(modules("reusable"))(x))
    )
    model = classifier(layers[1])
    assert len(moved(model, fit(model, x, y))) == 5


@tensorflow_only
@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("constant", {}, r"no trainable variables\. Pass trainable=False"),
        (
            "constant",
            {"signature": "doubled"},
            "no trainable variables under the signature 'doubled'",
        ),
        ("signatures", {}, r"cannot be called by itself.*\['difference', 'serving_default'\]"),
        ("signatures", {"signature": "other"}, r"\['difference', 'serving_default'\].*'other'"),
    ],
)
def test_refuses_modules_it_cannot_use(modules, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        HubLayer(modules(name), **arguments)


@tensorflow_only
def test_refuses_a_module_without_gradients_before_anything_moves(modules):
    x, y = data()
    model = classifier(HubLayer(modules("rounded")))
    np.testing.assert_array_equal(to_numpy(model.layers[1](x))[:, 0], np.trunc(y[:, 0]))
    before = [to_numpy(variable) for variable in model.variables]
    with pytest.raises(
        ValueError, match=r"has no gradients, and so cannot be trained\. Pass train"
    ):
        fit(model, x, y)
    assert moved(model, before) == set()
    model.layers[1].trainable = False
    assert moved(model, fit(model, x, y)) == {"head/kernel", "head/bias"}


@tensorflow_only
def test_tape_that_trains_does_not_see_how_gradients_are_looked_for(modules):
    """Below it TensorFlow would make second derivatives ready, and take minutes for a large one."""
    layer = HubLayer(modules("reusable"))
    with tf.GradientTape() as tape:
        layer._check_gradients(tf.constant(data()[0]))
    assert tape.watched_variables() == ()


@tensorflow_only
def test_frozen_module_needs_no_variables(modules):
    x, _ = data()
    layer = HubLayer(modules("constant"), trainable=False)
    np.testing.assert_array_equal(to_numpy(layer(x)), 2.0 * x)


@tensorflow_only
@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"handle": 3}, TypeError, r"handle=3 \(of type int\)"),
        ({"handle": "no/such/folder"}, ValueError, "folder of a SavedModel.*'no/such/folder'"),
        ({"handle": __file__}, ValueError, "cannot be loaded"),
        ({"handle": "x", "trainable": "yes"}, TypeError, "trainable='yes'"),
        ({"handle": "x", "signature": 1}, TypeError, "signature=1"),
        ({"handle": "x", "output_key": 1}, TypeError, "output_key=1"),
    ],
)
def test_refuses_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        HubLayer(**arguments)


@tensorflow_only
def test_refuses_calls_that_the_module_does_not_take(modules):
    x, _ = data()
    with pytest.raises(ValueError, match=r"the keys \['first', 'total'\].*output_key='last'"):
        HubLayer(modules("dicts"), output_key="last")({"a": x, "b": x})
    with pytest.raises(ValueError, match=r"has no dict.*output_key='last'"):
        HubLayer(modules("reusable"), output_key="last")(x)
    layer = HubLayer(modules("signatures"), signature="difference")
    for inputs in (x, {"first": x}):
        with pytest.raises(ValueError, match=r"dict of the keys \['first', 'second'\]"):
            layer(inputs)


@tensorflow_only
def test_names_the_extra_where_tensorflow_hub_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_hub", None)
    with pytest.raises(ImportError, match=r"sage_keras\[hub\]"):
        HubLayer("x")


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it is the backend that it needs")
def test_refuses_other_backends():
    with pytest.raises(RuntimeError, match=f"KERAS_BACKEND to tensorflow.*Received: {BACKEND}"):
        HubLayer("x")
