"""Groups of variables."""

import keras
import pytest

from sage_keras.groups import group_variables


def nested_model():
    inner = keras.Sequential(
        [
            keras.Input((2,)),
            keras.layers.Dense(2, name="first"),
            keras.layers.Dense(2, name="last"),
        ],
        name="inner",
    )
    inputs = keras.Input((2,))
    shared = keras.layers.Dense(2, use_bias=False, name="shared")
    return keras.Model(inputs, shared(inner(shared(inputs))), name="outer")


def test_by_layer_opens_nested_models_and_counts_a_shared_layer_once():
    model = nested_model()
    groups = group_variables(model)
    assert {name: len(group) for name, group in groups.items()} == {
        "shared": 1,
        "inner/first": 2,
        "inner/last": 2,
    }
    grouped = [id(variable) for group in groups.values() for variable in group]
    assert sorted(grouped) == sorted(id(variable) for variable in model.trainable_variables)


def test_frozen_layers_are_left_out():
    model = nested_model()
    model.get_layer("inner").trainable = False
    assert list(group_variables(model)) == ["shared"]


def test_variables_outside_of_layers_go_by_the_models_name():
    class Scaled(keras.Model):
        def __init__(self):
            super().__init__(name="scaled")
            self.dense = keras.layers.Dense(1, name="dense")
            self.scale = self.add_weight(shape=(), name="scale", initializer="ones")

        def call(self, inputs):
            return self.scale * self.dense(inputs)

    model = Scaled()
    model(keras.ops.ones((1, 2)))
    groups = group_variables(model)
    assert {name: len(group) for name, group in groups.items()} == {"dense": 2, "scaled": 1}


def test_by_pattern_and_by_function():
    model = nested_model()
    by_pattern = group_variables(model, {"kernels": "kernel$", "first": "first/", "all": "."})
    assert {name: len(group) for name, group in by_pattern.items()} == {
        "kernels": 3,
        "first": 2,
        "all": 5,
    }
    by_function = group_variables(
        model, lambda variable: variable.name if "bias" in variable.path else None
    )
    assert {name: len(group) for name, group in by_function.items()} == {"bias": 2}


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("kernel", TypeError, "groups='kernel'"),
        ({"all": 3}, TypeError, r"`groups` must give each group .*groups={'all': 3}"),
        ({("a", "b"): "."}, TypeError, r"`groups` must give names .*\('a', 'b'\)"),
        (lambda variable: ("a", 1), TypeError, r"`groups` must give names that are strings"),
        (lambda variable: b"a", TypeError, r"`groups` must give names that are strings.*b'a'"),
        (lambda variable: float("nan"), TypeError, "`groups` must give names that are strings"),
        (lambda variable: None, ValueError, "`groups` must give a name to one variable at least"),
        (lambda variable: "\ud800", ValueError, r"`groups` must give names.*'\\ud800'"),
        ({"all": "("}, ValueError, "malformed regular expression"),
        ({"all": "no_such"}, ValueError, "`groups` matches no variable"),
    ],
)
def test_refuses(groups, error, message):
    with pytest.raises(error, match=message):
        group_variables(nested_model(), groups)
