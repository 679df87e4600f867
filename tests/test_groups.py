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


def chosen(name):
    """Groups in which one variable has this name, and the others have none."""
    return lambda variable: name if variable.path.endswith("first/bias") else None


DAMAGED = "\ud800"  # half of a character: no text file can hold it


@pytest.mark.parametrize(
    ("groups", "error", "message"),
    [
        ("kernel", TypeError, "dict of group name to regular expression.*groups='kernel'"),
        ({"all": 3}, TypeError, r"dict of group name.*groups=\{'all': 3\}"),
        ({"all": "("}, ValueError, r"malformed regular expression.*groups=\{'all': '\('\}"),
        (
            {"all": "no_such"},
            ValueError,
            r"pattern that matches no trainable variable.*groups=\{'all': 'no_such'\}[\s\S]*shared",
        ),
        ({}, ValueError, r"no variable into a group.*groups=\{\}"),
        (lambda variable: None, ValueError, "no variable into a group.*groups=<function"),
        (chosen(("a", "b")), TypeError, r"name \('a', 'b'\) \(of type tuple\)"),
        (chosen(b"a"), TypeError, r"name b'a' \(of type bytes\)"),
        (chosen(float("nan")), TypeError, r"name nan \(of type float\)"),
        ({b"a": "kernel"}, TypeError, r"name b'a' \(of type bytes\)"),
        (chosen(DAMAGED), ValueError, r"group '\\ud800' has a name that cannot be written"),
        ({DAMAGED: "kernel"}, ValueError, r"group '\\ud800' has a name that cannot be written"),
    ],
)
def test_refuses(groups, error, message):
    with pytest.raises(error, match=rf"Argument `groups`.*{message}") as caught:
        group_variables(nested_model(), groups)
    assert "include" not in str(caught.value)


def test_refuses_layers_whose_names_no_file_can_hold():
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((2,)), dense])
    dense.name = DAMAGED  # now: TensorFlow would build no such layer, the others do
    with pytest.raises(ValueError, match=r"`groups`: the layer '\\ud800' has a name"):
        group_variables(model)
    assert list(group_variables(model, {"all": "."})) == ["all"]
