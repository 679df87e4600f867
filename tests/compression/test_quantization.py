"""The estimated loss is of what Keras really rounds, and the filters leave the worst alone."""

import warnings

import keras
import numpy as np
import pytest
from modes import to_numpy

from sage_keras.analysis.measure import mean_scores
from sage_keras.compression import QuantizationSensitivity, quantization_sensitivity
from sage_keras.compression.quantization import LayerLoss, _matrices, _rounding
from sage_keras.scores import movement


def built(layer, shape, dtype="float32"):
    model = keras.Sequential([keras.Input(shape, dtype=dtype), layer])
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(random.normal(size=weight.shape))
    return model


def kernel_by_outputs(model, kind):
    """What a layer without bias multiplies by, found out with inputs of one at a time."""
    size = 300
    if kind == "embedding":
        return to_numpy(model(np.arange(6)))
    inputs = np.eye(size, dtype="float32")
    if kind == "output":
        return to_numpy(model(inputs.reshape(size, 1, 2, size // 2)))[:, 0]
    if kind == "query":
        return to_numpy(model(inputs[:, None]))[:, 0]
    return to_numpy(model(inputs))


KINDS = {
    "dense": lambda: built(keras.layers.Dense(3, use_bias=False), (300,)),
    "query": lambda: built(keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (1, 300)),
    "output": lambda: built(keras.layers.EinsumDense("abcd,cde->abe", (None, 3)), (1, 2, 150)),
    "embedding": lambda: built(keras.layers.Embedding(6, 300), (), "int32"),
}


FAST = {("dense", "int8"), ("query", "int4"), ("output", "int8"), ("embedding", "int4")}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        pytest.param(kind, mode, marks=[] if (kind, mode) in FAST else pytest.mark.extended)
        for kind in KINDS
        for mode in ("int8", "int4")
    ],
)
def test_rounding_is_that_of_keras(kind, mode):
    model = KINDS[kind]()
    layer = model.layers[-1]
    [(variable, axes)] = _matrices(layer)
    rounding, shape = _rounding(layer, variable, axes, mode), variable.shape
    expected = to_numpy(variable) - rounding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the input layer
        model.quantize(mode)
    found = kernel_by_outputs(model, kind).reshape(shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    step = 0.02 if mode == "int8" else 0.3
    assert 0.1 * step < np.abs(rounding).max() < step


def net():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3, "relu", name="first"), keras.layers.Dense(2, name="second")]
    model = keras.Sequential([keras.Input((4,)), *layers], name="net")
    model.compile(loss="mse")
    return model


MODEL = net()
RANDOM = np.random.default_rng(1)
DATA = RANDOM.normal(size=(8, 4)).astype("float32"), RANDOM.normal(size=(8, 2)).astype("float32")


def gradient_of_second(x, y):
    """By hand: of the mean squared error of the last layer."""
    first, bias, second, last = MODEL.get_weights()
    hidden = np.maximum(x @ first + bias, 0)
    error = hidden @ second + last - y
    return hidden.T @ (2 * error / error.size)


@pytest.fixture(scope="module")
def found():
    return quantization_sensitivity(MODEL, DATA, batch_size=4, verbose=0)


def test_the_loss_is_gradient_times_rounding(found, capsys):
    second = MODEL.layers[1]
    rounding = np.abs(_rounding(second, second.kernel, (0,), "int8"))
    gradients = [
        gradient_of_second(DATA[0][part], DATA[1][part]) for part in (slice(4), slice(4, 8))
    ]
    expected = np.mean([np.sum(np.abs(one) * rounding) for one in gradients])
    assert [one.path.split("/")[-1] for one in found.layers] == ["first", "second"]
    assert [one.weights for one in found.layers] == [12, 6]
    assert found.layers[1].loss == pytest.approx(expected, rel=1e-4)
    assert found.total == pytest.approx(sum(one.loss for one in found.layers))

    found.summary()
    assert capsys.readouterr().out.strip() == str(found)
    assert "Mode: int8" in str(found)
    assert [bar.get_width() for bar in found.plot().patches] == [one.loss for one in found.layers]
    more = quantization_sensitivity(MODEL, DATA, mode="int4", batches=1, verbose=0)
    assert more.total > 5 * found.total  # in steps 17 times as wide


def test_filters_keep_the_worst_within_the_share(found):
    worst = max(found.layers, key=lambda one: one.loss / one.weights)
    other = next(one for one in found.layers if one is not worst)
    assert found.kept(1.0) == [worst.path, other.path]
    assert found.kept(0.0) == []
    share = worst.weights / 18
    assert found.kept(share) == [worst.path]
    filters = found.filters(keep=share)
    assert [filters(one.layer) for one in (worst, other)] == [False, True]
    assert filters(keras.layers.Dense(2, name=worst.layer.name))  # another layer of its name
    with pytest.raises(ValueError, match="`keep` must be a number from 0 to 1"):
        found.filters(keep=10)


def test_a_layer_that_does_not_fit_leaves_room_for_another():
    sizes_and_losses = {"large": (80, 400.0), "small": (10, 20.0), "least": (10, 1.0)}
    layers = tuple(
        LayerLoss(path, size, loss, path) for path, (size, loss) in sizes_and_losses.items()
    )
    made_up = QuantizationSensitivity("net", "int8", layers)
    assert made_up.kept(0.1) == ["small"]
    assert made_up.kept(0.79) == ["small", "least"]
    assert made_up.kept(0.9) == ["large", "small"]
    assert made_up.kept(0.8) == ["large"]


def test_the_model_is_left_as_it_is(found):
    before = MODEL.get_weights()
    quantization_sensitivity(MODEL, DATA, verbose=0)
    for one, other in zip(MODEL.get_weights(), before):
        np.testing.assert_array_equal(one, other)
    assert [layer.quantization_mode for layer in MODEL.layers] == [None, None]


def test_scores_may_have_a_sign_and_directions_of_their_own():
    directions = [np.ones(one.shape, "float32") for one in MODEL.trainable_variables]
    x, y = (array[:4] for array in DATA)
    means = mean_scores(MODEL, (x, y), movement, directions, verbose=0)
    np.testing.assert_allclose(means[2], -gradient_of_second(x, y), rtol=1e-4, atol=1e-6)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match='`mode` must be "int8" or "int4"'):
        quantization_sensitivity(MODEL, DATA, mode="float8")
    norm = keras.Sequential([keras.Input((2,)), keras.layers.LayerNormalization()])
    norm.compile(loss="mse")
    with pytest.raises(ValueError, match="has no layer that can be quantized"):
        quantization_sensitivity(norm, DATA)
    frozen = net()
    frozen.layers[0].trainable = False
    with pytest.raises(ValueError, match="first' is frozen"):
        quantization_sensitivity(frozen, DATA)
    frozen.layers[0].trainable = True
    frozen.layers[1].enable_lora(1)
    with pytest.raises(ValueError, match="second' has LoRA adapters"):
        quantization_sensitivity(frozen, DATA)
    with pytest.raises(ValueError, match="is not built"):
        quantization_sensitivity(keras.Sequential([keras.layers.Dense(1)]), DATA)
