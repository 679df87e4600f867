"""Pruning: exactly the least sensitive weights, and every bit back afterwards."""

import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import BACKEND, to_numpy

from sage_keras import Sage
from sage_keras.analysis import (
    magnitude_scores,
    measure_sensitivity,
    pruned,
    pruning_curve,
    random_scores,
)

HIDDEN, OUT = "net/hidden/kernel", "net/out/kernel"
FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # the default
# Negative zero, the smallest denormal, a quiet NaN with a payload, infinity.
ODD = np.array([0x80000000, 0x00000001, 0x7FC01234, 0x7F800000], dtype="uint32").view("float32")
few = settings(deadline=None, max_examples=30)


def net():
    keras.utils.set_random_seed(0)
    hidden = keras.layers.Dense(5, "relu", use_bias=False, name="hidden")
    out = keras.layers.Dense(3, use_bias=False, name="out")
    model = keras.Sequential([keras.Input((4,)), hidden, out], name="net")
    model.compile(loss="mse", metrics=["mae"])
    return model


MODEL = net()


def examples(count=40):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(count, 4)), random.normal(size=(count, 3))
    return x.astype("float32"), y.astype("float32")


def bits(model):
    return [to_numpy(variable).view("uint32").copy() for variable in model.trainable_variables]


def assert_same_bits(one, other):
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


@st.composite
def cases(draw):
    """Weights with odd values, sensitivities with many ties, and hundredths as fractions."""
    seed = draw(st.integers(0, 2**32 - 1))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    random = np.random.default_rng(seed)
    weights = [random.normal(size=size).astype("float32") for size in (20, 15)]
    for weight in weights:
        weight[random.integers(0, weight.size, len(ODD))] = ODD
    scores = [random.integers(0, levels, shape).astype("float32") for shape in ((4, 5), (5, 3))]
    weights = [weight.reshape(score.shape) for weight, score in zip(weights, scores)]
    return weights, dict(zip((HIDDEN, OUT), scores)), draw(st.integers(0, 100))


def least_first(scores):
    flat = np.concatenate([score.ravel() for score in scores])
    return flat.size - 1 - np.argsort(flat[::-1], kind="stable")


def assert_pruned(before, during, scores, percent):
    """Exactly the least sensitive are zero, the last among equals, and the rest is as before."""
    size = sum(score.size for score in scores)
    exactly = round(percent * size / 100)
    wanted = np.concatenate([values.ravel() for values in before])
    wanted[least_first(scores)[:exactly]] = 0
    np.testing.assert_array_equal(np.concatenate([values.ravel() for values in during]), wanted)


@few
@given(cases())
def test_global_pruning(case):
    weights, sensitivities, percent = case
    MODEL.set_weights(weights)
    before = bits(MODEL)
    with pruned(MODEL, sensitivities, percent / 100):
        during = bits(MODEL)
    assert_pruned(before, during, list(sensitivities.values()), percent)
    assert_same_bits(bits(MODEL), before)


@few
@given(cases())
def test_pruning_by_layer(case):
    weights, sensitivities, percent = case
    MODEL.set_weights(weights)
    before = bits(MODEL)
    with pruned(MODEL, sensitivities, percent / 100, scope="layer"):
        during = bits(MODEL)
    for one, other, scores in zip(before, during, sensitivities.values()):
        assert_pruned([one], [other], [scores], percent)
    assert_same_bits(bits(MODEL), before)


@pytest.mark.parametrize(
    ("fraction", "size", "count"),
    [
        (0.7, 10, 7),  # 0.7 * 10 is 6.999... in exact arithmetic on the float
        (1 - 0.9, 10, 1),
        (0.1 + 0.2, 10, 3),
        (0.29, 100, 29),  # int(0.29 * 100) is 28
        (0.15, 10, 2),  # a half goes to the even one, as round() does
        (0.25, 10, 2),
        (0.07, 150, 10),  # 10.5; in floats 10.500000000000002
        (np.float32(0.1), 10, 1),
        (1, 3, 3),
        (0, 3, 0),
        (1e-9, 3, 0),
    ],
)
def test_count_is_exact(fraction, size, count):
    dense = keras.layers.Dense(size, use_bias=False, kernel_initializer="ones", name="dense")
    model = keras.Sequential([keras.Input((1,)), dense], name="net")
    with pruned(model, random_scores(model), fraction):
        assert size - np.count_nonzero(model.get_weights()[0]) == count


def test_scores_in_double_precision_are_told_apart():
    dense = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", name="dense")
    model = keras.Sequential([keras.Input((1,)), dense], name="net")
    scores = {"net/dense/kernel": np.array([[1.0, 1.0 + 2.0**-40]])}
    # In float32 they are equal, and of equal ones the first would stay.
    with pruned(model, scores, 0.5):
        assert model.get_weights()[0].tolist() == [[0.0, 1.0]]
    # And they stay so beside scores of half the precision.
    with_bias = keras.Sequential(
        [keras.Input((1,)), keras.layers.Dense(2, name="dense")], name="net"
    )
    with_bias.set_weights([np.ones((1, 2)), np.ones(2)])
    scores["net/dense/bias"] = np.array([2.0, 2.0], "float32")
    with pruned(with_bias, scores, 0.25):
        assert with_bias.get_weights()[0].tolist() == [[0.0, 1.0]]


def test_a_layer_is_all_of_its_named_variables():
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(2, bias_initializer="ones", name="dense")
    head = keras.layers.Dense(1, bias_initializer="ones", name="head")
    model = keras.Sequential([keras.Input((4,)), dense, head], name="net")
    scores = {
        "net/dense/bias": np.zeros(2),
        "net/dense/kernel": np.ones((4, 2)),
        "net/head/bias": np.ones(1),
    }
    with pruned(model, scores, 0.2, scope="layer"):  # 2 of 10, and 0 of 1
        assert [np.count_nonzero(weight) for weight in model.get_weights()] == [8, 0, 2, 1]
    with pruned(model, scores, 1):  # the head's kernel is not named
        assert [np.count_nonzero(weight) for weight in model.get_weights()] == [0, 0, 2, 0]


def test_single_numbers_and_empty_variables():
    class Odd(keras.Model):
        def __init__(self):
            super().__init__(name="odd")
            for name, shape in {"one": (), "none": (0, 2), "two": (2,)}.items():
                setattr(self, name, self.add_weight(shape=shape, initializer="ones", name=name))

        def call(self, inputs):
            return inputs * self.one * keras.ops.sum(self.two)

    model = Odd()
    model.compile(loss="mae")
    x = np.ones((1, 1))
    model(x)
    sensitivities = measure_sensitivity(model, (x, 0 * x), verbose=0)  # the loss is one * two * 2
    assert {path: value.tolist() for path, value in sensitivities.items()} == {
        "odd/one": 2.0,
        "odd/none": [],
        "odd/two": [1.0, 1.0],
    }
    for fraction, kept in ((0.34, [1, 1]), (0.67, [1, 0]), (1, [0, 0])):
        with pruned(model, sensitivities, fraction):
            assert [int(to_numpy(model.one)), int(to_numpy(model.two).sum())] == kept
    np.testing.assert_array_equal(to_numpy(model.one), 1)


def test_weights_return_after_an_exception_and_after_training_inside():
    model = net()
    before = bits(model)
    with pytest.raises(ZeroDivisionError), pruned(model, magnitude_scores(model), 0.5):
        model.fit(*examples(), verbose=0)
        1 / 0  # noqa: B018
    assert_same_bits(bits(model), before)
    model.fit(*examples(), verbose=0)


def test_takes_the_averages_of_an_optimizer():
    model = net()
    model.compile(optimizer=Sage(0.01), loss="mse")
    model.fit(*examples(), verbose=0)
    sensitivities = model.optimizer.sensitivities
    scores = np.concatenate([to_numpy(slot).ravel() for slot in sensitivities.values()])
    with pruned(model, sensitivities, 0.4):
        zeros = np.concatenate([weight.ravel() == 0 for weight in model.get_weights()])
    assert set(np.flatnonzero(zeros)) == set(np.argsort(scores)[:14])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights(dtype):
    dense = keras.layers.Dense(3, use_bias=False, dtype=dtype, name="dense")
    model = keras.Sequential([keras.Input((2,)), dense], name="net")
    before = to_numpy(dense.kernel).copy()
    with pruned(model, magnitude_scores(model), 0.5):
        during = to_numpy(dense.kernel)
        kept = during != 0
        assert kept.sum() == 3
        np.testing.assert_array_equal(during[kept], before[kept])
    np.testing.assert_array_equal(to_numpy(dense.kernel), before)


SHARDED = """
import keras
import numpy as np
from sage_keras.analysis import magnitude_scores, measure_sensitivity, pruned

mesh = keras.distribution.DeviceMesh((2,), ["model"], keras.distribution.list_devices())
layout_map = keras.distribution.LayoutMap(mesh)
layout_map[".*kernel"] = (None, "model")
x, y = np.ones((6, 3), "float32"), np.ones((6, 4), "float32")


def make():
    dense = keras.layers.Dense(4, kernel_initializer=keras.initializers.GlorotNormal(seed=0))
    model = keras.Sequential([keras.Input((3,)), dense], name="net")
    model.compile(loss="mse")
    return model


alone = measure_sensitivity(make(), (x, y), batch_size=4, verbose=0)
keras.distribution.set_distribution(keras.distribution.ModelParallel(layout_map=layout_map))
model = make()
together = measure_sensitivity(model, (x, y), batch_size=4, verbose=0)
for one, other in zip(alone.values(), together.values()):
    np.testing.assert_allclose(one, other, rtol=1e-5)

kernel = model.trainable_variables[0]
sharding = kernel.value.sharding
with pruned(model, magnitude_scores(model), 0.5):
    print(kernel.value.sharding.is_equivalent_to(sharding, 2))
print(kernel.value.sharding.is_equivalent_to(sharding, 2), *sharding.spec)
"""


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX shards by layout")
def test_weights_stay_sharded():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    run = subprocess.run(
        [sys.executable, "-c", SHARDED], capture_output=True, text=True, env=environment
    )
    assert run.stdout.splitlines() == ["True", "True None model"], run.stderr


def curve_by_hand(model, scores, fractions):
    """The figures of a relu net in float64, zeroed by sorting."""
    x, y = (array.astype("float64") for array in examples())
    weights = [weight.astype("float64") for weight in model.get_weights()]
    order = least_first(scores)
    curve = {"loss": [], "mae": []}
    for fraction in fractions:
        flat = np.concatenate([weight.ravel() for weight in weights])
        flat[order[: round(fraction * flat.size)]] = 0
        w_1, w_2 = flat[:20].reshape(4, 5), flat[20:].reshape(5, 3)
        error = np.maximum(x @ w_1, 0) @ w_2 - y
        curve["loss"].append(np.mean(error**2))
        curve["mae"].append(np.mean(np.abs(error)))
    return curve


def test_curve_against_float64():
    model = net()
    before = bits(model)
    for scores in (
        measure_sensitivity(model, examples(), verbose=0),
        magnitude_scores(model),
        random_scores(model, seed=3),
    ):
        curve = pruning_curve(model, examples(), scores, verbose=0)
        assert list(curve) == ["fraction", "loss", "mae"]
        np.testing.assert_array_equal(curve["fraction"], FRACTIONS)
        exact = curve_by_hand(model, list(scores.values()), FRACTIONS)
        for name, values in exact.items():
            np.testing.assert_allclose(curve[name], values, rtol=1e-5)
        assert_same_bits(bits(model), before)


def test_curve_reads_each_kind_of_data():
    model = net()
    x, y = examples()
    batches = [[x[i : i + 16], y[i : i + 16]] for i in range(0, 40, 16)]
    tensorflow = pytest.importorskip("tensorflow")
    dataset = tensorflow.data.Dataset.from_tensor_slices((x, y)).batch(16)
    scores = magnitude_scores(model)
    expected = pruning_curve(model, (x, y), scores, (0.0, 0.5), batch_size=40, verbose=0)
    for data in ((x, y), batches, dataset):
        curve = pruning_curve(model, data, scores, (0.0, 0.5), verbose=0)
        np.testing.assert_allclose(curve["loss"], expected["loss"], rtol=1e-5)


def test_curve_shows_its_progress(capsys):
    model = net()
    curve = pruning_curve(model, examples(), magnitude_scores(model), (0.0, 0.5))
    shown = capsys.readouterr().out
    assert "2/2" in shown
    assert f"loss: {curve['loss'][1]:.4f}" in shown  # the last one, not the mean


def test_sensitivity_beats_random_on_a_trained_model():
    """Weights without influence are found: half of the inputs are constant zeros."""
    random = np.random.default_rng(0)
    x = random.normal(size=(64, 8)).astype("float32")
    x[:, ::2] = 0
    dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")
    model = keras.Sequential([keras.Input((8,)), dense], name="net")
    model.compile(loss="mse")
    data = x, 2 * x.sum(axis=1, keepdims=True)
    loss = {
        name: pruning_curve(model, data, scores, (0.0, 0.5), verbose=0)["loss"]
        for name, scores in {
            "sensitivity": measure_sensitivity(model, data, verbose=0),
            "random": random_scores(model),
        }.items()
    }
    np.testing.assert_allclose(loss["sensitivity"][1], loss["sensitivity"][0], rtol=1e-6)
    assert loss["random"][1] > 1.5 * loss["random"][0]


def test_baselines():
    model = net()
    for score, weight in zip(magnitude_scores(model).values(), model.get_weights()):
        np.testing.assert_array_equal(score, np.abs(weight))
    first, again, other = (random_scores(model, seed) for seed in (1, 1, 2))
    assert list(first) == [HIDDEN, OUT]
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
        assert not np.array_equal(first[path], other[path])
        assert first[path].min() >= 0
        assert first[path].max() < 1


GOOD = {HIDDEN: np.ones((4, 5)), OUT: np.ones((5, 3))}


@pytest.mark.parametrize(
    ("sensitivities", "fraction", "scope", "message"),
    [
        (GOOD, -0.1, "global", "`fraction`.*-0.1"),
        (GOOD, 1.01, "global", "`fraction`.*1.01"),
        (GOOD, float("nan"), "global", "`fraction`.*nan"),
        (GOOD, "half", "global", "`fraction`.*'half'"),
        (GOOD, True, "global", "`fraction`.*True"),
        (GOOD, 0.5, "model", "`scope`.*'model'"),
        ({**GOOD, "net/other/kernel": np.ones(3)}, 0.5, "global", "net/other/kernel.*net/out"),
        ({**GOOD, OUT: np.ones((3, 5))}, 0.5, "global", r"\(3, 5\).*net/out/kernel.*\(5, 3\)"),
        ({**GOOD, OUT: np.full((5, 3), np.nan)}, 0.5, "global", "NaNs.*net/out/kernel"),
        ({}, 0.5, "global", "`sensitivities`.*without entries"),
        ([np.ones((4, 5))], 0.5, "global", "`sensitivities`.*list"),
    ],
)
def test_refuses_before_anything_is_changed(sensitivities, fraction, scope, message):
    before = bits(MODEL)
    with pytest.raises(ValueError, match=message), pruned(MODEL, sensitivities, fraction, scope):
        raise AssertionError("the block has begun")
    with pytest.raises(ValueError, match=message.replace("fraction", "fractions")):
        pruning_curve(MODEL, examples(), sensitivities, (0.0, fraction), scope, verbose=0)
    assert_same_bits(bits(MODEL), before)


class Endless(keras.utils.PyDataset):
    num_batches = None

    def __getitem__(self, index):
        return examples()


@pytest.mark.parametrize(
    ("data", "arguments", "error", "message"),
    [
        (iter([examples()]), {}, ValueError, "read only once.*list"),
        (Endless(), {}, ValueError, "never ends"),
        (examples()[0], {}, TypeError, "`data`.*ndarray"),
        ([examples()], {"batch_size": 2}, ValueError, "batch_size=2"),
        (examples(), {"fractions": ()}, ValueError, "`fractions` must not be empty"),
    ],
)
def test_curve_refuses(data, arguments, error, message):
    with pytest.raises(error, match=message):
        pruning_curve(MODEL, data, GOOD, verbose=0, **arguments)


def test_pruned_without_with_is_warned_of_and_prunes_nothing():
    model = net()
    before = bits(model)
    with pytest.warns(UserWarning, match=r"`pruned` was called without `with`.*compression\.prune"):
        pruned(model, "magnitude", 0.5)
    assert_same_bits(before, bits(model))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        block = pruned(model, "magnitude", 0.5)
        with block:
            assert sum(np.count_nonzero(one == 0) for one in bits(model)) == 18
        del block
    assert not any("pruned" in str(one.message) for one in caught)
    assert_same_bits(before, bits(model))
    with pytest.raises(ValueError, match="`fraction` must be a number from 0 to 1"):
        pruned(model, "magnitude", 2)
