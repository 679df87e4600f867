"""The zeros of a pruned model stay, by a mixin or by a callback."""

import keras
import numpy as np
import pytest
from modes import BACKEND, Runner, to_numpy

import sage_keras
from sage_keras import callbacks

FEATURES = {
    "plain": {},
    "EMA": {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 3},
    "accumulation": {"gradient_accumulation_steps": 2},
}


class SparseSage(sage_keras.SensitivityGuided, sage_keras.KeepZeros, keras.optimizers.AdamW):
    pass


def start():
    random = np.random.default_rng(0)
    kernel = random.normal(size=(6, 4)).astype("float32")
    kernel[random.random((6, 4)) < 0.5] = 0
    return [kernel, np.zeros(4, "float32")]


@pytest.mark.parametrize("feature", FEATURES)
def test_zeros_stay_and_all_else_trains_as_the_base_does(feature):
    kernel, bias = start()
    weights = []
    for cls in (SparseSage, sage_keras.Sage):
        own = [keras.Variable(kernel, name="kernel"), keras.Variable(bias, name="bias")]
        optimizer = cls(0.01, **FEATURES[feature])
        runner = Runner(optimizer, own, "eager" if BACKEND == "torch" else "xla")
        random = np.random.default_rng(1)
        for _ in range(6):
            runner.step([random.normal(size=one.shape).astype("float32") for one in own])
        optimizer.finalize_variable_values(own)
        weights.append(runner.weights())
    (kept, trained_bias), (expected, expected_bias) = weights
    np.testing.assert_array_equal(kept == 0, kernel == 0)
    np.testing.assert_allclose(kept, np.where(kernel == 0, 0, expected), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(trained_bias, expected_bias, rtol=1e-5, atol=1e-7)
    assert np.all(trained_bias != 0)


class InterruptedAdam(keras.optimizers.Adam):
    def _backend_apply_gradients(self, grads, trainable_variables):
        super()._backend_apply_gradients(grads, trainable_variables)
        raise KeyboardInterrupt


class Interrupted(sage_keras.KeepZeros, InterruptedAdam):
    pass


def test_a_step_that_is_interrupted_leaves_the_zeros():
    weight = keras.Variable(start()[0], name="kernel")
    with pytest.raises(KeyboardInterrupt):
        Interrupted(0.1).apply([keras.ops.ones((6, 4))], [weight])
    np.testing.assert_array_equal(to_numpy(weight) == 0, start()[0] == 0)


class Zeros(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(to_numpy(self.model.layers[0].kernel) == 0)

    on_test_begin = on_train_begin


def test_the_callback_keeps_them_for_any_optimizer():
    kernel, bias = start()
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4)])
    model.set_weights([kernel, bias])
    optimizer = keras.optimizers.Adam(0.1, use_ema=True, ema_overwrite_frequency=2)
    model.compile(optimizer=optimizer, loss="mse")
    x = np.random.default_rng(2).normal(size=(16, 6)).astype("float32")
    zeros = Zeros()
    model.fit(x, x[:, :4], 4, verbose=0, callbacks=[callbacks.KeepZeros(), zeros])
    assert len(zeros.seen) == 4
    for seen in zeros.seen:
        np.testing.assert_array_equal(seen, kernel == 0)
    trained, trained_bias = model.get_weights()
    np.testing.assert_array_equal(trained == 0, kernel == 0)
    assert np.all(np.abs(trained - kernel)[kernel != 0] > 1e-3)
    assert np.all(trained_bias != 0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="elsewhere Keras builds it before")
def test_the_callback_refuses_a_model_without_weights():
    model = keras.Sequential([keras.layers.Dense(4)])
    model.compile(loss="mse")
    with pytest.raises(ValueError, match="keeps the zeros that a model has when training begins"):
        model.fit(np.ones((4, 2)), np.ones((4, 4)), callbacks=[callbacks.KeepZeros()], verbose=0)


@pytest.mark.backend_agnostic
def test_what_it_looks_at_is_told():
    optimizer = SparseSage()
    optimizer.build([keras.Variable(one, name=name) for one, name in zip(start(), "ab")])
    expected = (
        "<SparseSage(learning_rate=0.001) on AdamW, guides 2 of 2 variables, "
        "keeps the zeros of 1 of 2 variables>"
    )
    assert repr(optimizer) == expected
    lines = []
    optimizer.summary(lines.append)
    assert [line.split() for line in lines[1:]] == [
        ["guided", "keeps", "zeros", "path", "shape"],
        ["yes", "yes", "a", "(6,", "4)"],
        ["yes", "no", "b", "(4,)"],
    ]
