"""The scores are those of their formulas, and a name stands for the same one everywhere."""

import keras
import numpy as np
import pytest
from keras import ops
from modes import to_numpy

from sage_keras import scores
from sage_keras.analysis import magnitude_scores, measure_sensitivity, pruned, random_scores
from sage_keras.random_bits import random_bits


def model():
    keras.utils.set_random_seed(0)
    dense = keras.layers.Dense(3, name="dense")
    return keras.Sequential([keras.Input((4,)), dense], name="net")


def test_they_are_those_of_their_formulas():
    weight, gradient = np.array([2.0, -3.0, 0.0]), np.array([-1.0, -4.0, 5.0])
    average, value = np.array([1.0, 4.0, 2.0]), np.array([3.0, 1.0, 2.0])
    found = {
        "magnitude": scores.magnitude(ops.array(weight)),
        "sensitivity": scores.sensitivity(ops.array(weight), ops.array(gradient)),
        "uncertainty": scores.uncertainty(ops.array(value), ops.array(average)),
        "confidence": scores.confidence(ops.array(average), ops.array(value)),
        "movement": scores.movement(ops.array(weight), ops.array(gradient)),
        "fisher": scores.fisher(ops.array(gradient)),
    }
    assert {name: to_numpy(score).tolist() for name, score in found.items()} == {
        "magnitude": [2.0, 3.0, 0.0],
        "sensitivity": [2.0, 12.0, 0.0],
        "uncertainty": [2.0, 3.0, 0.0],
        "confidence": [3.0, 4.0, 4.0],
        "movement": [2.0, -12.0, 0.0],
        "fisher": [1.0, 16.0, 25.0],
    }


def test_each_name_is_a_function():
    assert all(callable(getattr(scores, name)) for name in scores.SCORES)


def test_random_scores_are_the_lowest_bits_of_the_random_ones():
    drawn = to_numpy(scores.random(3, 5, (40, 30)))
    bits = to_numpy(random_bits(3, 5, (40, 30))).view("uint32") % 2**24
    np.testing.assert_array_equal(drawn, (bits / 2**24).astype("float32"))
    assert abs(drawn.mean() - 0.5) < 0.03
    # Of a model each variable draws its own, and they are known for good.
    of_model = random_scores(model(), seed=1)
    np.testing.assert_allclose(of_model["net/dense/kernel"][0, :2], [0.43556124, 0.48624557])
    assert not np.array_equal(of_model["net/dense/kernel"][0], of_model["net/dense/bias"])


def test_names_stand_for_scores_of_the_model():
    net = model()
    for name, arrays in (("magnitude", magnitude_scores(net)), ("random", random_scores(net))):
        for path, array in scores.read_scores(net, name).items():
            np.testing.assert_array_equal(array, arrays[path])
        with pruned(net, arrays, 0.5):
            expected = net.get_weights()
        with pruned(net, name, 0.5):
            for one, other in zip(net.get_weights(), expected):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fisher", "'fisher' follows from gradients"),
        ("confidence", "'confidence' follows from gradients"),
        ("largest", '`sensitivities` must be "magnitude" or .* or "random". Received: .*largest'),
    ],
)
def test_names_that_say_too_little_are_refused(name, message):
    with pytest.raises(ValueError, match=message), pruned(model(), name, 0.5):
        pass


def test_a_seed_is_an_integer():
    with pytest.raises(TypeError, match="`seed` must be an integer"):
        random_scores(model(), seed="1")


def test_other_scores_are_measured_as_the_sensitivity_is():
    dense = keras.layers.Dense(1, use_bias=False, name="dense")
    tiny = keras.Sequential([keras.Input((2,)), dense], name="tiny")
    dense.kernel.assign([[1.0], [2.0]])
    tiny.compile(loss="mse")
    data = [
        (np.array([[1.0, 0.0]]), np.array([[2.0]])),
        (np.array([[0.0, 1.0]]), np.array([[0.0]])),
    ]
    found = {  # the gradients are (-2, 0) and (0, 4)
        score: measure_sensitivity(tiny, data, verbose=0, score=score)["tiny/dense/kernel"].tolist()
        for score in ("sensitivity", "movement", "fisher")
    }
    assert found == {
        "sensitivity": [[1.0], [4.0]],
        "movement": [[1.0], [-4.0]],
        "fisher": [[2.0], [8.0]],
    }
    with pytest.raises(ValueError, match='`score` must be "sensitivity" or "movement" or "fisher"'):
        measure_sensitivity(tiny, data, score="confidence")
