"""Pruning for good: exactly the lowest scores, or nothing, and a table of what is zero."""

import keras
import numpy as np
import pytest

import sage_keras
from sage_keras.analysis import pruned
from sage_keras.compression import prune, sparsity

KERNEL, BIAS, HEAD = "net/dense/kernel", "net/dense/bias", "net/head/kernel"
KERNEL_VALUES = [[-1.0, 2.0, 3.0, -4.0, 5.0], [6.0, 7.0, -8.0, 9.0, 10.0]]
BIAS_VALUES = [0.5, -0.5, 0.5, 0.5, 0.5]
HEAD_VALUES = [[0.1], [-0.2], [0.3], [20.0], [30.0]]


@pytest.fixture
def net():
    dense = keras.layers.Dense(5, name="dense")
    head = keras.layers.Dense(1, use_bias=False, name="head")
    model = keras.Sequential([keras.Input((2,)), dense, head], name="net")
    model.set_weights([np.array(one) for one in (KERNEL_VALUES, BIAS_VALUES, HEAD_VALUES)])
    return model


def nonzero(model):
    return [np.count_nonzero(weight) for weight in model.get_weights()]


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"sparsity": 0.3}, [9, 5, 2]),  # 4.5 of 15, the even one: no biases
        ({"sparsity": 0.4, "include": [""]}, [10, 0, 2]),  # 8 of 20
        ({"sparsity": 0.4, "include": [""], "scope": "variable"}, [6, 3, 3]),
        ({"sparsity": 0.4, "include": [""], "scope": "layer"}, [9, 0, 3]),  # of 15 and of 5
        ({"sparsity": 0.6, "exclude": ["dense"]}, [10, 5, 2]),
        ({"sparsity": 0.0}, [10, 5, 5]),
        ({"sparsity": 1, "include": [""]}, [0, 0, 0]),
    ],
)
def test_the_lowest_magnitudes_are_zeroed_and_the_rest_keeps_its_bits(net, options, left):
    before = net.get_weights()
    found = prune(net, "magnitude", **options)
    assert nonzero(net) == left
    for old, new in zip(before, net.get_weights()):
        np.testing.assert_array_equal(new, np.where(new == 0, new, old))
    chosen = [
        size for size, path in zip((10, 5, 5), (KERNEL, BIAS, HEAD)) if matches(path, options)
    ]
    assert found.weights == sum(chosen)
    assert found.zeros == 20 - sum(left)


def matches(path, options):
    included = "include" in options or path != BIAS
    return included and not ("exclude" in options and "dense" in path)


def test_of_equal_scores_the_first_are_kept_and_unnamed_variables_stay(net):
    scores = {HEAD: np.zeros((5, 1)), BIAS: np.array([0.0, 1.0, 0.0, -1.0, 0.0])}
    prune(net, scores, 0.5, include=[""])
    # The lowest is below zero; then those that come last, first of the bias.
    np.testing.assert_allclose(net.get_weights()[1], [0, -0.5, 0, 0, 0])
    np.testing.assert_allclose(net.get_weights()[2], [[0.1], [-0.2], [0.3], [20.0], [0]])
    assert nonzero(net) == [10, 1, 4]


def test_of_equal_scores_those_are_kept_that_are_kept_in_training(net):
    weights = [np.ones_like(one) for one in net.get_weights()]
    net.set_weights(weights)
    prune(net, "magnitude", 0.4, include=[""])
    at_once = net.get_weights()
    net.set_weights(weights)
    schedule = {"begin_step": 0, "end_step": 1}
    optimizer = sage_keras.PrunedAdamW(0.0, 0.0, final_sparsity=0.4, include=[""], **schedule)
    gradients = [keras.ops.ones(one.shape) for one in weights]
    optimizer.apply(gradients, net.trainable_variables)
    assert nonzero(net) == [10, 2, 0]
    for one, other in zip(at_once, net.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_it_zeroes_what_pruned_zeroes_on_trial(net):
    random = np.random.default_rng(0)
    scores = {
        path: random.integers(0, 4, shape)
        for path, shape in ((KERNEL, (2, 5)), (BIAS, (5,)), (HEAD, (5, 1)))
    }
    for scope in ("global", "layer", "variable"):
        with pruned(net, scores, 0.35, scope):
            trial = net.get_weights()
        copy = keras.models.clone_model(net)
        copy.set_weights(net.get_weights())
        prune(copy, scores, 0.35, scope, include=[""])
        for one, other in zip(copy.get_weights(), trial):
            np.testing.assert_array_equal(one, other)


def test_low_precision_stays():
    dense = keras.layers.Dense(4, use_bias=False, dtype="bfloat16", name="dense")
    model = keras.Sequential([keras.Input((4,)), dense], name="net")
    prune(model, "magnitude", 0.75)
    assert dense.kernel.dtype == "bfloat16"
    assert sparsity(model).total == 0.75


def test_the_mixed_weights_of_an_optimizer_are_not_pruned(net, monkeypatch):
    net.compile(sage_keras.DPSMix(1e-3, stage_steps=2, seed=0), "mse")
    monkeypatch.setattr(sage_keras.DPSMix, "is_mixed", True)
    with pytest.raises(ValueError, match="holds the mixed weights of DPSMix"):
        prune(net, "magnitude", 0.5)
    assert nonzero(net) == [10, 5, 5]
    monkeypatch.setattr(sage_keras.DPSMix, "is_mixed", False)
    assert prune(net, "magnitude", 0.4).total == 0.4


REFUSED = [
    ((1.5,), {}, ValueError, "`sparsity` must be a number from 0 to 1"),
    ((-0.1,), {}, ValueError, "`sparsity` must be a number from 0 to 1"),
    (("0.5",), {}, ValueError, "`sparsity` must be a number from 0 to 1"),
    ((float("nan"),), {}, ValueError, "`sparsity` must be a number from 0 to 1"),
    ((0.5, "neuron"), {}, ValueError, '`scope` must be "global" or "layer" or "variable"'),
    ((0.5,), {"include": "kernel"}, TypeError, "`include` must be None or a list"),
    ((0.5,), {"include": ["attention"]}, ValueError, "`include` matches no variable"),
    ((0.5,), {"exclude": ["("]}, ValueError, "`exclude` holds a malformed regular expression"),
    (
        (0.5,),
        {"scores": {BIAS: np.ones(5)}},
        ValueError,
        "`include` and `exclude` leave no variable",
    ),
    ((0.5,), {"exclude": [""]}, ValueError, "`include` and `exclude` leave no variable"),
    ((0.5,), {"scores": "movement"}, ValueError, "`scores`: 'movement' follows from gradients"),
    ((0.5,), {"scores": {}}, ValueError, "`scores` must be a dict .* without entries"),
    ((0.5,), {"scores": {"net/none": np.ones(3)}}, ValueError, "`scores` names variables"),
    ((0.5,), {"scores": {BIAS: np.ones(4)}}, ValueError, r"shape \(4,\) for 'net/dense/bias'"),
    ((0.5,), {"scores": {BIAS: np.full(5, np.nan)}}, ValueError, "`scores` has NaNs"),
]


@pytest.mark.parametrize(("positional", "named", "kind", "message"), REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_changed(
    net, positional, named, kind, message
):
    with pytest.raises(kind, match=message):
        prune(net, named.pop("scores", "magnitude"), *positional, **named)
    assert nonzero(net) == [10, 5, 5]


def test_only_built_models_are_pruned():
    with pytest.raises(ValueError, match="is not built"):
        prune(keras.Sequential([keras.layers.Dense(1)]), "magnitude", 0.5)
    with pytest.raises(TypeError, match=r"`model` must be a `keras.Model`. Received: Dense"):
        sparsity(keras.layers.Dense(1))


def test_frozen_weights_and_statistics_are_counted_and_nested_layers_named(capsys):
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="deep")], name="inner")
    norm = keras.layers.BatchNormalization(name="norm")
    model = keras.Sequential([keras.Input((2,)), inner, norm], name="[net]")
    inner.layers[0].set_weights([np.array([[1.0, 0.0], [0.0, -0.0]]), np.array([0.0, 1.0])])
    inner.trainable = False
    found = sparsity(model)
    assert [(one.name, one.weights, one.zeros) for one in found.layers] == [
        ("inner/deep", 6, 4),
        ("norm", 8, 4),  # beta and the moving mean
    ]
    assert (found.weights, found.zeros, found.total) == (14, 8, 8 / 14)
    assert [one.sparsity for one in found.layers] == [4 / 6, 0.5]
    assert sparsity(model, include=["kernel"], exclude=["norm"]).total == 0.75

    found.summary()
    assert capsys.readouterr().out.strip() == str(found)
    found.summary(print_fn=print)
    assert capsys.readouterr().out.strip() == str(found)
    assert 'Model: "[net]"' in str(found)
    assert "│ inner/deep │       6 │     4 │    66.7% │" in str(found)
    assert "Sparsity: 57.1%" in str(found)
