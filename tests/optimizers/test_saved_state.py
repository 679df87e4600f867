"""What is said when a saved state does not fit: by .keras, .weights.h5 and tf.train.Checkpoint."""

import json
import warnings

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy

from sage_keras import DPSDense, Sage
from sage_keras.optimizers import saved_state


def trained(optimizer, steps=2):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((3,), name="input"),
            keras.layers.Dense(2, name="first"),
            keras.layers.Dense(1, name="last"),
        ]
    )
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=BACKEND != "jax")
    x = np.random.default_rng(0).normal(size=(4 * steps, 3)).astype("float32")
    if steps:
        model.fit(x, np.ones((4 * steps, 1), "float32"), batch_size=4, verbose=0)
    return model


def saved(optimizer, tmp_path):
    path = tmp_path / "saved.weights.h5"
    trained(optimizer).save_weights(path)
    return path


def state(model):
    return [to_numpy(variable) for variable in model.optimizer.variables]


def assert_unchanged(before, model):
    for one, other in zip(before, state(model), strict=True):
        np.testing.assert_array_equal(one, other)


# What another state is, and what is said of it: when it is refused, and before it is built.
OTHERS = {
    "include": (
        lambda: Sage(include=["kernel$"]),
        lambda: Sage(include=["bias$"]),  # as many slots
        r"include=\['kernel\$'\], here include=\['bias\$'\]",
    ),
    "dtype": (
        lambda: Sage(sensitivity_dtype="bfloat16"),
        Sage,
        r"sensitivity_dtype='bfloat16', here sensitivity_dtype='float32'",
    ),
    "class": (
        lambda: DPSDense(total_steps=100),
        Sage,
        "saved by DPSDense, this is Sage",
    ),
    "base's slots": (lambda: Sage(use_ema=True), Sage, "use_ema=True, here use_ema=False"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_state_is_refused_and_says_what_differs(what, tmp_path):
    first, second, message = OTHERS[what]
    path = saved(first(), tmp_path)
    model = trained(second(), steps=1)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        model.load_weights(path)
    assert_unchanged(before, model)


@pytest.mark.parametrize("what", OTHERS)
def test_an_optimizer_that_is_not_built_says_what_differs_and_loads_the_weights(what, tmp_path):
    first, second, message = OTHERS[what]
    path = saved(first(), tmp_path)
    model = trained(second(), steps=0)
    with pytest.warns(UserWarning, match=rf"not the state of.*optimizer\.build.*{message}"):
        model.load_weights(path)
    for one, other in zip(model.get_weights(), trained(first()).get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_older_state_does_not_differ_in_what_it_lacks_and_is_off():
    present = saved_state.describe(Sage())
    older = present | {"settings": dict(present["settings"])}
    del older["settings"]["calibrate"]
    assert saved_state.differences(older, present) == []
    (sentence,) = saved_state.differences(older, saved_state.describe(Sage(calibrate=True)))
    assert sentence == "It was saved with calibrate=None, here calibrate=True."


def test_the_same_state_loads_in_silence(tmp_path):
    path = saved(Sage(include=["kernel"]), tmp_path)
    model = trained(Sage(include=["kernel"], beta_3=0.9), steps=0)
    model.optimizer.build(model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.load_weights(path)
    assert_unchanged(state(model), trained(Sage(include=["kernel"])))


@pytest.mark.parametrize("steps", [0, 1], ids=["not built", "built"])
@pytest.mark.parametrize("make", [Sage, lambda: DPSDense(total_steps=100)], ids=["Sage", "DPS"])
def test_the_weights_of_plain_adamw_load_and_its_state_is_said_not_to(make, steps, tmp_path):
    path = saved(keras.optimizers.AdamW(), tmp_path)
    model = trained(make(), steps)
    before = state(model)
    with pytest.warns(UserWarning, match=r"not the state of.*not of sage_keras.*begins from zero"):
        model.load_weights(path)
    assert_unchanged(before, model)
    expected = trained(keras.optimizers.AdamW()).get_weights()
    for one, other in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("steps", [0, 1], ids=["not built", "built"])
def test_a_newer_format_is_refused(steps, tmp_path, monkeypatch):
    monkeypatch.setattr(saved_state, "FORMAT", 3)
    path = saved(Sage(), tmp_path)
    monkeypatch.undo()
    model = trained(Sage(), steps)
    before = state(model)
    with pytest.raises(ValueError, match=r"format 3, by a newer version.*up to 2"):
        model.load_weights(path)
    assert_unchanged(before, model)


def test_the_description_is_strict_json_of_plain_values(tmp_path):
    store = {}
    trained(Sage(include=["kernel"])).optimizer.save_own_variables(store)
    description = json.loads(store["format"].tobytes())
    assert description["format"] == 2
    assert description["optimizer"] == "Sage"
    assert description["settings"]["include"] == ["kernel"]
    integer = "int64" if BACKEND == "tensorflow" else "int32"
    assert description["variables"][0] == [None, "iteration", [], integer]
    assert [path.split("/", 1)[-1] for path, _ in description["model"]][::2] == [
        "first/kernel",
        "last/kernel",
    ]
    assert [0, "sensitivity", [3, 2], "float32"] in description["variables"]


def test_plain_adamw_does_not_take_a_guided_state_for_its_own(tmp_path):
    path = saved(Sage(), tmp_path)
    model = trained(keras.optimizers.AdamW(), steps=1)
    before = state(model)
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        model.load_weights(path)
    assert_unchanged(before, model)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.train.Checkpoint is TensorFlow's")
@pytest.mark.parametrize("what", OTHERS)
def test_a_tensorflow_checkpoint_of_another_state_is_refused(what, tmp_path):
    import tensorflow as tf

    first, second, message = OTHERS[what]
    model = trained(first())
    path = tf.train.Checkpoint(optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    model = trained(second(), steps=1)
    before = state(model)
    with pytest.raises(ValueError, match=message):
        tf.train.Checkpoint(optimizer=model.optimizer).restore(path)
    assert_unchanged(before, model)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.train.Checkpoint is TensorFlow's")
def test_a_tensorflow_checkpoint_of_adamw_fails_the_assertion_that_the_guide_names(tmp_path):
    import tensorflow as tf

    model = trained(keras.optimizers.AdamW())
    path = tf.train.Checkpoint(optimizer=model.optimizer).save(str(tmp_path / "checkpoint"))
    model = trained(Sage(), steps=1)
    restored = tf.train.Checkpoint(optimizer=model.optimizer).restore(path)
    with pytest.raises(AssertionError):
        restored.assert_existing_objects_matched()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exported as a SavedModel of TensorFlow")
def test_a_model_can_still_be_exported(tmp_path):
    import tensorflow as tf

    model = trained(Sage())
    model.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(tmp_path / "exported")
    served = exported.serve(np.ones((1, 3), "float32"))
    np.testing.assert_allclose(served, model.predict(np.ones((1, 3)), verbose=0), rtol=1e-6)
