"""Models that hold what optimizers seldom see: each goes as it goes with Keras's own AdamW."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops
from modes import BACKEND, to_numpy

from sage_keras import ChildTuningAdamW, DPSDense, DPSMix, Platon, Sage, SparseAdamW

RATE = 0.05
OURS = {
    "Sage": lambda: Sage(RATE),
    "DPSDense": lambda: DPSDense(RATE, stage_steps=2),
    "DPSMix": lambda: DPSMix(RATE, stage_steps=2, seed=0),
}
CHOOSING = {
    "Platon": lambda: Platon(RATE, begin_step=0, end_step=4, update_freq=1),
    "SparseAdamW": lambda: SparseAdamW(RATE, fraction=0.5, selection_steps=1),
    "ChildTuningAdamW": lambda: ChildTuningAdamW(RATE, seed=0),
}
pytestmark = pytest.mark.filterwarnings("ignore:Between the steps")


def compiled(optimizer, layers, run_eagerly=BACKEND != "jax"):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), *layers()])
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=run_eagerly)
    return model


def fit(model, epochs=1):
    x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
    model.fit(x, np.ones((16, 1), "float32"), batch_size=4, epochs=epochs, verbose=0)
    return model


class Tied(keras.layers.Layer):
    """A kernel that is multiplied by on the way in and, transposed, on the way out."""

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], 2), name="kernel")

    def call(self, x):
        hidden = ops.matmul(x, self.kernel)
        return ops.sum(ops.matmul(hidden, ops.transpose(self.kernel)), axis=-1, keepdims=True)


class ScalarAndEmpty(keras.layers.Layer):
    """A factor without a dimension, and a kernel without an entry."""

    def build(self, shape):
        self.factor = self.add_weight(shape=(), initializer="ones", name="factor")
        self.empty = self.add_weight(shape=(0, 4), name="empty")

    def call(self, x):
        return self.factor * x + ops.sum(self.empty)


class Unused(keras.layers.Layer):
    """A weight that no loss depends on."""

    def build(self, shape):
        self.unused = self.add_weight(shape=(2,), initializer="ones", name="unused")

    def call(self, x):
        return x


def dense():
    return keras.layers.Dense(1)


MODELS = {
    "tied weights": lambda: [Tied()],
    "scalar and empty variables": lambda: [ScalarAndEmpty(), dense()],
    "a variable of no loss": lambda: [Unused(), dense()],
}


def outcome(run):
    """The type of error or the weights that came of it, and the first words of the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            weights = [to_numpy(one) for one in run().weights]
        except Exception as error:  # whatever Keras raises is what we have to raise
            return type(error), str(error)[:30], None
    messages = {str(one.message)[:40] for one in caught if "Between" not in str(one.message)}
    return None, messages, weights


def assert_as_keras(scenario, ours=OURS | CHOOSING):
    """Each gives the same error or the same warnings; and, if it trains, finite weights."""
    expected_error, expected_words, expected_weights = outcome(
        lambda: scenario(keras.optimizers.AdamW(RATE))
    )
    for name, make in ours.items():
        error, words, weights = outcome(lambda make=make: scenario(make()))
        assert (error, words) == (expected_error, expected_words), name
        if weights is not None:
            assert [one.shape for one in weights] == [one.shape for one in expected_weights], name
            assert all(np.isfinite(one).all() for one in weights), name
    return expected_error


@pytest.mark.parametrize("what", MODELS)
def test_trains(what):
    error = assert_as_keras(
        lambda optimizer: fit(compiled(optimizer, MODELS[what], run_eagerly=False), epochs=2), OURS
    )
    assert error is None


@pytest.mark.parametrize("what", MODELS)
def test_trains_where_weights_are_chosen(what):
    error = assert_as_keras(
        lambda optimizer: fit(compiled(optimizer, MODELS[what]), epochs=2), CHOOSING
    )
    assert error is None


@pytest.mark.parametrize("what", MODELS)
def test_measuring_changes_nothing(what):
    measured = fit(compiled(Sage(RATE, guide=False, weight_decay=0.004), MODELS[what]), epochs=2)
    plain = fit(compiled(keras.optimizers.AdamW(RATE), MODELS[what]), epochs=2)
    for one, other in zip(measured.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_model_without_trainable_variables():
    def scenario(optimizer):
        model = compiled(optimizer, lambda: [keras.layers.Dense(1, trainable=False)])
        return fit(model)

    assert_as_keras(scenario)


def test_a_layer_frozen_after_the_first_fit():
    def scenario(optimizer):
        model = fit(compiled(optimizer, lambda: [keras.layers.Dense(2), dense()]))
        model.layers[0].trainable = False
        model.train_function = None  # or nobody would notice
        return fit(model)

    assert_as_keras(scenario)


def test_a_layer_added_after_the_first_fit():
    def scenario(optimizer):
        model = fit(compiled(optimizer, lambda: [dense()]))
        model.add(keras.layers.Dense(1))
        model.compile(optimizer=optimizer, loss="mse", run_eagerly=BACKEND != "jax")
        return fit(model)

    assert_as_keras(scenario)  # an error but on JAX, which goes by position


def test_one_optimizer_for_two_models():
    def scenario(optimizer):
        fit(compiled(optimizer, lambda: [dense()]))
        return fit(compiled(optimizer, lambda: [dense()]))

    assert_as_keras(scenario)  # an error but on JAX, which goes by position
