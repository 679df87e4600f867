"""Ranks in proportion to sensitivity, and adapters that have them, before and after a file."""

import fractions

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from modes import to_numpy

from sage_keras.compression import enable_lora, lora_ranks
from sage_keras.compression.ranks import _shared_out


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(1, 12)), min_size=1, max_size=8), st.data()
)
def test_shares_are_in_proportion(layers, data):
    sums, most = ([float(one) for one in column] for column in zip(*layers))
    most = [int(one) for one in most]
    minimum = data.draw(st.integers(0, min(most)))
    budget = data.draw(st.integers(minimum * len(sums), sum(most)))
    ranks = _shared_out(budget, minimum, sums, most)
    assert sum(ranks) == budget
    assert all(minimum <= one <= top for one, top in zip(ranks, most))
    # Those that are not full have their shares, to less than one.
    open_ones = [at for at, (one, top) in enumerate(zip(ranks, most)) if one < top]
    weight = sum(sums[at] for at in open_ones)
    if weight and all(sum(sums) / 2 > one for one in sums):
        left = sum(ranks[at] - minimum for at in open_ones)
        for at in open_ones:
            quota = fractions.Fraction(left) * fractions.Fraction(sums[at]) / int(weight)
            assert ranks[at] - minimum <= quota + 1


@pytest.mark.parametrize(
    ("budget", "minimum", "sums", "most", "ranks"),
    [
        (10, 0, [3.0, 1.0, 1.0], [16, 16, 16], [6, 2, 2]),
        (6, 0, [5.0, 3.0, 2.0], [16, 16, 16], [3, 2, 1]),  # 3, 1.8, 1.2
        (4, 0, [1.0, 1.0, 1.0], [16, 16, 16], [2, 1, 1]),  # the first among equals
        (10, 2, [1.0, 0.0, 0.0], [16, 16, 16], [6, 2, 2]),
        (10, 0, [8.0, 1.0, 1.0], [4, 16, 16], [4, 3, 3]),  # what is over goes to the others
        (3, 0, [0.0, 0.0, 0.0], [16, 16, 16], [1, 1, 1]),
        (7, 0, [1.0, 0.0, 0.0], [5, 16, 16], [5, 1, 1]),
        (0, 0, [1.0], [4], [0]),
    ],
)
def test_largest_remainders(budget, minimum, sums, most, ranks):
    assert _shared_out(budget, minimum, sums, most) == ranks


def functional(name="net"):
    inputs = keras.Input((3,), dtype="int32")
    x = keras.layers.Embedding(6, 4, name="tokens")(inputs)
    x = keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3), bias_axes="de", name="heads")(x)
    x = keras.layers.Reshape((18,))(x)
    x = keras.layers.Dense(5, name="dense")(x)
    return keras.Model(inputs, keras.layers.Dense(2, name="head")(x), name=name)


def scores_of(model):
    values = {"tokens": 1.0, "heads": 2.0, "dense": 0.5, "head": 1.0}
    return {
        one.path: np.full(one.shape, values[one.path.split("/")[-2]])
        for one in model.trainable_variables
    }


X = np.array([[0, 1, 2], [3, 4, 5]])


def test_ranks_of_a_model(capsys):
    model = functional()
    ranks = lora_ranks(model, scores_of(model), budget=6, exclude=["head/"])
    # Sums over the kernels: 24, 48 and 45; of 6 these are 1.23, 2.46 and 2.31.
    assert {path.split("/")[-1]: rank for path, rank in ranks.items()} == {
        "tokens": 1,
        "heads": 3,
        "dense": 2,
    }
    assert (ranks.total, len(ranks)) == (6, 3)
    assert ranks.weights == 1 * (6 + 4) + 3 * (4 * 2 + 3) + 2 * (18 + 5)
    ranks.summary()
    assert capsys.readouterr().out.strip() == str(ranks)
    assert "41.0% │    3 │      33 │" in str(ranks)
    axes = ranks.plot()
    assert [bar.get_width() for bar in axes.patches] == [1, 3, 2]
    assert axes.get_xlabel() == "rank"


def test_each_layer_has_adapters_of_its_rank_and_the_rest_is_frozen(tmp_path):
    model = functional()
    before = to_numpy(model(X))
    ranks = lora_ranks(model, scores_of(model), budget=6, exclude=["head/"])
    enable_lora(model, {**ranks, "tokens": 0}, train=["head/"])
    np.testing.assert_array_equal(to_numpy(model(X)), before)
    trained = {"/".join(one.path.split("/")[-2:]): one.shape for one in model.trainable_variables}
    assert trained == {
        "heads/lora_kernel_a": (4, 2, 3),
        "heads/lora_kernel_b": (3, 3),
        "dense/lora_kernel_a": (18, 2),
        "dense/lora_kernel_b": (2, 5),
        "head/kernel": (5, 2),
        "head/bias": (2,),
    }
    assert not model.get_layer("tokens").lora_enabled
    for name in ("heads", "dense"):  # as if it had been trained
        second = model.get_layer(name).lora_kernel_b
        second.assign(np.full(second.shape, 4.0))
    assert np.abs(to_numpy(model(X)) - before).max() > 0.1

    # Keras merges what it saves, and sets the adapters that it loads to zero.
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    dense, after = loaded.get_layer("dense"), to_numpy(model(X))
    assert (dense.lora_rank, loaded.get_layer("heads").lora_rank) == (2, 3)
    assert not np.any(to_numpy(dense.lora_kernel_a))
    enable_lora(loaded, {**ranks, "tokens": 0}, train=["head/"])
    np.testing.assert_allclose(to_numpy(loaded(X)), after, rtol=1e-6, atol=1e-7)
    assert np.abs(to_numpy(dense.lora_kernel_a)).min() > 0
    assert [one.shape for one in loaded.trainable_variables] == list(trained.values())
    with pytest.raises(ValueError, match="has adapters of the rank 2 already"):
        enable_lora(loaded, {"dense": 3})


NET = functional("refused")


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"budget": 0}, ValueError, "`budget` must be at least 1"),
        ({"budget": 4.0}, TypeError, "`budget` must be an integer"),
        ({"budget": 15}, ValueError, "`budget` must be at least 0.* and at most 14"),
        ({"budget": 6, "minimum": 2}, ValueError, "`budget` must be at least 8"),
        ({"budget": 12, "minimum": 3}, ValueError, "of which the least is 2"),
        ({"budget": 6, "minimum": -1}, ValueError, "`minimum` must be at least 0"),
        ({"budget": 6, "include": ["bias"]}, ValueError, "`include` matches no variable"),
        ({"budget": 6, "sensitivities": "fisher"}, ValueError, "follows from gradients"),
        (
            {"budget": 6, "sensitivities": {NET.weights[2].path: np.ones((2, 3))}},
            ValueError,
            "names no kernel of a layer that can have an adapter",
        ),
        (
            {"budget": 6, "sensitivities": {NET.weights[0].path: -np.ones((6, 4))}},
            ValueError,
            "must have finite sums of at least 0",
        ),
    ],
)
def test_ranks_that_cannot_be_are_refused(change, kind, message):
    arguments = {"sensitivities": scores_of(NET), **change}
    with pytest.raises(kind, match=message):
        lora_ranks(NET, **arguments)


@pytest.mark.parametrize(
    ("ranks", "train", "kind", "message"),
    [
        ({}, None, TypeError, "`ranks` must be a dict of the path"),
        ([("dense", 2)], None, TypeError, "`ranks` must be a dict of the path"),
        (
            {"dense": 2, "other": 2},
            None,
            ValueError,
            "names 'other', which is the path of 0 layers",
        ),
        ({"dense": 2.5}, None, TypeError, r"`ranks\['dense'\]` must be an integer"),
        ({"dense": -1}, None, ValueError, r"`ranks\['dense'\]` must be at least 0"),
        ({"dense": 2}, ["nothing"], ValueError, "`train` matches no variable"),
        ({"dense": 2}, "head", TypeError, "`train` must be None or a list"),
    ],
)
def test_adapters_that_cannot_be_are_refused_before_anything_is_changed(
    ranks, train, kind, message
):
    with pytest.raises(kind, match=message):
        enable_lora(NET, ranks, train)
    assert len(NET.trainable_variables) == 7


def test_a_constraint_is_refused_before_anything_is_changed():
    layers = [
        keras.layers.Dense(2, name="plain"),
        keras.layers.Dense(2, kernel_constraint="non_neg", name="bound"),
    ]
    model = keras.Sequential([keras.Input((2,)), *layers])
    with pytest.raises(ValueError, match="has a constraint"):
        enable_lora(model, {"plain": 1, "bound": 1})
    assert len(model.trainable_variables) == 4
