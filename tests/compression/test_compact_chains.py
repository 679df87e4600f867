"""Neurons of Dense and Conv2D chains, cut."""

import re

import keras
import numpy as np
import pytest
from hub_models import GENERATOR, outputs, randomized
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers
from modes import BACKEND, to_numpy

from sage_keras import compression

ROWS = GENERATOR.normal(size=(4, 5)).astype("float32")
PICTURES = GENERATOR.normal(size=(2, 8, 8, 3)).astype("float32")


def dense(units=6, activation="relu", **options):
    return layers.Dense(units, activation=activation, **options)


def conv_chain():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(6, 3, use_bias=False, name="first"),
            layers.BatchNormalization(name="norm"),
            layers.Activation("relu"),
            layers.ZeroPadding2D(),
            layers.MaxPooling2D(),
            layers.Conv2D(4, 2, strides=2, activation="gelu", name="second"),
            layers.SpatialDropout2D(0.5),
            layers.Flatten(),
            layers.BatchNormalization(name="flat"),
            layers.Dropout(0.5),
            dense(10, "tanh", name="third"),
            layers.LeakyReLU(),
            dense(3, "softmax", name="head"),
        ],
        name="pictures",
    )


def branches():
    """A residual that needs its width, two heads, and a layer that can be cut before each."""
    inputs = keras.Input((5,), name="rows")
    one = dense(8, name="one")(inputs)
    residual = layers.Add(name="residual")([one, dense(8, name="two")(one)])
    left = dense(6, "sigmoid", name="left")(residual)
    right = dense(7, name="right")(residual)
    heads = {"a": dense(2, name="a")(left), "b": dense(1, name="b")(right)}
    return keras.Model({"rows": inputs}, heads, name="branches")


def test_what_follows_a_layer_is_cut_with_it(tmp_path):
    model = randomized(conv_chain())
    zeroed = compression.prune_neurons(model, fraction=0.5)
    assert {name: len(found) for name, found in zeroed.items()} == {
        "first": 3,
        "second": 2,
        "third": 5,
    }
    small = compression.compact(model)
    assert type(small) is keras.Sequential
    assert [(one.path, tuple(one.shape)) for one in small.weights] == [
        ("pictures/first/kernel", (3, 3, 3, 3)),
        ("pictures/norm/gamma", (3,)),
        ("pictures/norm/beta", (3,)),
        ("pictures/norm/moving_mean", (3,)),
        ("pictures/norm/moving_variance", (3,)),
        ("pictures/second/kernel", (2, 2, 3, 2)),
        ("pictures/second/bias", (2,)),
        ("pictures/flat/gamma", (8,)),
        ("pictures/flat/beta", (8,)),
        ("pictures/flat/moving_mean", (8,)),
        ("pictures/flat/moving_variance", (8,)),
        ("pictures/third/kernel", (8, 5)),
        ("pictures/third/bias", (5,)),
        ("pictures/head/kernel", (5, 3)),
        ("pictures/head/bias", (3,)),
    ]
    np.testing.assert_allclose(outputs(small, PICTURES), outputs(model, PICTURES), atol=1e-5)
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(outputs(loaded, PICTURES), outputs(small, PICTURES))


def test_functional_models_are_cut_where_they_can_be():
    model = randomized(branches())
    model.get_layer("right").trainable = False
    model.get_layer("b").dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    model.compile("sgd", "mse")
    expected_frozen = [one.path for one in model.trainable_variables]
    scores = {one.path: np.abs(to_numpy(one)) for one in model.trainable_variables}
    with pytest.raises(ValueError, match=r"`scores` has no entry for 'right/kernel'"):
        compression.prune_neurons(model, count=4, scores=scores)
    zeroed = compression.prune_neurons(model, count=4)
    assert {name: len(found) for name, found in zeroed.items()} == {"left": 4, "right": 4}
    kernel = model.get_layer("one").kernel
    bias = model.get_layer("one").bias
    kernel.assign(to_numpy(kernel) * np.array([0, 1] * 4))
    bias.assign(to_numpy(bias) * np.array([0, 1] * 4))
    with pytest.warns(UserWarning, match="keep their zeroed neurons:\n  one: .* read in 2 places"):
        small = compression.compact(model)
    assert [small.get_layer(name).units for name in ("one", "two", "left", "right")] == [8, 8, 2, 3]
    assert [one.path for one in small.trainable_variables] == expected_frozen
    assert small.get_layer("b").compute_dtype == "bfloat16"
    assert not small.compiled
    assert list(small.output) == ["a", "b"]
    inputs = {"rows": ROWS}
    np.testing.assert_allclose(outputs(small, inputs), outputs(model, inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "between", "silent"),
    [
        ("relu", [], True),
        ("gelu", [layers.Dropout(0.5)], True),
        ("linear", [layers.Activation("silu")], True),
        ("sigmoid", [], False),  # a half, for zero
        ("linear", [layers.Activation("softplus")], False),
        ("linear", [layers.ReLU(negative_slope=0.1, threshold=1.0)], False),
        ("relu", [layers.BatchNormalization()], False),  # adds its beta
    ],
)
def test_zero_incoming_weights_count_where_they_make_the_neuron_zero(activation, between, silent):
    first = dense(4, activation, name="first")
    model = randomized(keras.Sequential([keras.Input((5,)), first, *between, dense(2, "linear")]))
    for weight in first.weights:
        weight.assign(to_numpy(weight) * np.array([1, 0, 1, 0]))
    if not silent:
        with pytest.raises(ValueError, match="has no zeroed neurons"):
            compression.compact(model)
        model.layers[-1].kernel.assign(to_numpy(model.layers[-1].kernel) * [[1], [0], [1], [0]])
    small = compression.compact(model)
    assert small.get_layer("first").units == 2
    np.testing.assert_allclose(outputs(small, ROWS), outputs(model, ROWS), atol=1e-5)


class Twice(layers.Dense):
    def call(self, inputs):
        return 2 * super().call(inputs)


class OwnModel(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.hidden, self.head = dense(), dense(1)

    def call(self, inputs):
        return self.head(self.hidden(inputs))


def own_model():
    model = OwnModel()
    model(ROWS)
    return model


def functional(function, shape=(5,)):
    inputs = keras.Input(shape)
    return keras.Model(inputs, function(inputs))


def shared(inputs):
    layer = dense(5, name="shared")
    return dense(1)(layer(layer(inputs)))


def chain(*between, shape=(5,)):
    hidden = layers.Conv2D(6, 3, name="hidden") if len(shape) > 1 else dense(name="hidden")
    head = layers.Conv2D(1, 3, name="head") if len(shape) > 1 else dense(1, name="head")
    return keras.Sequential([keras.Input(shape), hidden, *between, head])


UNCUT = {
    "a subclassed model": (
        own_model,
        r"'own' cannot be cut: it is a subclassed model \(OwnModel\)",
    ),
    "shared layer": (lambda: functional(shared), "shared: 'shared' is shared"),
    "reads a shared layer": (
        lambda: functional(lambda x: shared(dense(5, name="hidden")(x))),
        "hidden: what it returns goes into 'shared', which is shared",
    ),
    "its reader is an operation": (
        lambda: functional(lambda x: dense(1)(dense(name="hidden")(x) + 1)),
        "hidden: what it returns goes into the operation 'add",
    ),
    "normalized over neurons": (
        lambda: chain(layers.LayerNormalization(name="norm")),
        r"hidden: what it returns goes into 'norm' \(LayerNormalization\)",
    ),
    "another axis": (
        lambda: chain(layers.BatchNormalization(axis=1, name="norm"), shape=(8, 8, 3)),
        "hidden: 'norm' normalizes the axis 1",
    ),
    "softmax": (
        lambda: chain(layers.Activation("softmax", name="soft")),
        "hidden: the activation of 'soft' may not act on each number alone",
    ),
    "a class of its own": (
        lambda: chain(Twice(4, name="twice")),
        r"hidden: 'twice' is of a class of its own \(Twice\)",
    ),
    "groups": (
        lambda: chain(layers.Conv2D(6, 1, groups=2, name="split"), shape=(8, 8, 3)),
        "hidden: 'split' has groups=2",
    ),
    "only the output": (
        lambda: keras.Sequential([keras.Input((5,)), dense(name="head")]),
        "head: what it returns is the model's output",
    ),
    "no such layers": (
        lambda: keras.Sequential([keras.Input((5,)), layers.LayerNormalization()]),
        "has no Dense or Conv2D layers",
    ),
    "not built": (lambda: keras.Sequential([dense(), dense(1)], name="new"), "'new' is not built"),
}


@pytest.mark.parametrize("case", UNCUT)
def test_what_cannot_be_cut_is_refused_by_name_and_left_alone(case):
    make, message = UNCUT[case]
    model = make()
    before = [to_numpy(weight) for weight in model.weights]
    for call in (lambda: compression.prune_neurons(model, 0.5), lambda: compression.compact(model)):
        with pytest.raises(ValueError, match=message):
            call()
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)


BAD = {
    "neither": ({}, "Pass one of the arguments `fraction` and `count`"),
    "both": ({"fraction": 0.5, "count": 2}, "Pass one of the arguments"),
    "all of them": ({"fraction": 1.0}, "`fraction` must be at least 0 and below 1"),
    "negative": ({"fraction": -0.1}, "`fraction` must be at least 0"),
    "not a number": ({"fraction": "half"}, "`fraction` must be a float"),
    "NaN": ({"fraction": float("nan")}, "`fraction` must be"),
    "too many": ({"count": 6}, "`count` must be below 6, the number of neurons of 'hidden'"),
    "a negative count": ({"count": -1}, "`count` must be at least 0"),
    "a broken count": ({"count": 1.5}, "`count` must be an integer"),
    "an unknown score": ({"count": 1, "scores": "size"}, '`scores` must be "magnitude"'),
    "no scores": ({"count": 1, "scores": {}}, "`scores` must be a dict"),
    "another model's": ({"count": 1, "scores": {"x": [1.0]}}, "`scores` names variables that"),
    "another shape": (
        {"count": 1, "scores": {"bad/hidden/kernel": np.ones((6, 5))}},
        r"`scores` has an array of the shape \(6, 5\)",
    ),
    "some only": (
        {"count": 1, "scores": {"bad/hidden/kernel": np.ones((5, 6))}},
        "`scores` has no entry for 'bad/head/kernel'",
    ),
    "NaNs": (
        {
            "count": 1,
            "scores": {
                "bad/hidden/kernel": np.full((5, 6), np.nan),
                "bad/head/kernel": np.ones((6, 1)),
            },
        },
        "`scores` has NaNs for 'bad/hidden/kernel'",
    ),
}


@pytest.fixture(scope="module")
def victim():
    model = keras.Sequential(
        [keras.Input((5,)), dense(name="hidden"), dense(1, name="head")], name="bad"
    )
    return randomized(model)


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_refused_and_change_nothing(case, victim):
    arguments, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message):
        compression.prune_neurons(victim, **arguments)
    assert all(to_numpy(weight).all() for weight in victim.weights)


def test_bad_arguments_of_compact_are_refused(victim):
    for arguments, message in [
        ({}, "'bad' has no zeroed neurons to cut. Call"),
        ({"drop_layers": 1}, "`drop_layers` is for the blocks of a backbone"),
        ({"drop_layers": -1}, "`drop_layers` must be at least 0"),
        ({"drop_layers": 0.5}, "`drop_layers` must be an integer"),
    ]:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            compression.compact(victim, **arguments)
    with pytest.raises(TypeError, match="`model` must be a"):
        compression.compact([])


BETWEEN = {
    "normalized": layers.BatchNormalization,
    "dropped": lambda: layers.Dropout(0.3),
    "rectified": lambda: layers.ReLU(max_value=6.0),
    "tanh": lambda: layers.Activation("tanh"),
}


@pytest.mark.extended
@settings(max_examples=6 if BACKEND == "jax" else 25)  # there each chain is compiled op by op
@given(data=st.data())
def test_random_chains_are_pruned_cut_saved_and_loaded(data, tmp_path_factory):
    pictures = data.draw(st.booleans())
    activations = st.sampled_from(["relu", "gelu", "sigmoid", "linear", "softplus"])
    parts = [keras.Input((6, 6, 2) if pictures else (4,))]
    widths = data.draw(st.lists(st.integers(1, 7), min_size=1, max_size=3))
    for index, width in enumerate(widths):
        convolution = pictures and index == 0
        activation = data.draw(activations)
        parts.append(
            layers.Conv2D(width, data.draw(st.integers(1, 3)), activation=activation)
            if convolution
            else layers.Dense(width, activation=activation, use_bias=data.draw(st.booleans()))
        )
        between = data.draw(st.lists(st.sampled_from(sorted(BETWEEN)), max_size=2))
        parts += [BETWEEN[name]() for name in between]
        if convolution:
            parts.append(
                data.draw(st.sampled_from([layers.Flatten, layers.GlobalAveragePooling2D]))()
            )
    model = randomized(keras.Sequential([*parts, layers.Dense(2)]), data.draw(st.integers(0, 9)))
    fraction = data.draw(st.floats(0, 0.99))
    zeroed = compression.prune_neurons(model, fraction)
    inputs = PICTURES[:, :6, :6, :2] if pictures else ROWS[:, :4]
    numbers = [len(found) for found in zeroed.values()]
    assert numbers == [min(round(fraction * width), width - 1) for width in widths]
    if not any(numbers):
        return
    small = compression.compact(model)
    kept = [layer.kernel.shape[-1] for layer in small.layers if hasattr(layer, "kernel")]
    assert kept == [width - number for width, number in zip(widths, numbers)] + [2]
    np.testing.assert_allclose(outputs(small, inputs), outputs(model, inputs), atol=1e-5)
    path = tmp_path_factory.mktemp("chain") / "small.keras"
    small.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(outputs(loaded, inputs), outputs(small, inputs))
