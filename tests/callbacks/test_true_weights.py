"""The callback, and what others see of a model that trains on mixed weights."""

import copy
import warnings

import keras
import numpy as np
import pytest
import twin
from mixing_jobs import (
    LEARNING_RATE,
    STAGE_STEPS,
    assert_same,
    compiled,
    data,
    fit,
    inject_columns,
    mix,
    mix_twins,
    mixout,
    near,
)
from modes import BACKEND, to_numpy

from sage_keras.callbacks import SwapTrueWeights


class Look(keras.callbacks.Callback):
    """Remembers the weights that are in the model, and those that the optimizer keeps."""

    def __init__(self):
        super().__init__()
        self.seen, self.true = [], []

    def on_test_begin(self, logs=None):
        self.seen.append(self.model.get_weights())
        with self.model.optimizer.true_weights():
            self.true.append(self.model.get_weights())

    on_epoch_end = lambda self, epoch, logs=None: self.on_test_begin()  # noqa: E731


def twin_fit(optimizer, columns, start_weights, epochs):
    """The kernel under DPS Mix, the bias under Adam; their weights at the end of each epoch."""
    x, y = (array.astype("float64") for array in data())
    kernel = mix_twins(optimizer, start_weights[:1])[0]
    bias = twin.Adam(start_weights[1], LEARNING_RATE, guide=False, weight_decay=0.004)
    seen = []
    for step in range(6 * epochs):
        kernel.prepare(columns[step][0])
        batch = slice(step % 6 * 4, step % 6 * 4 + 4)
        error = 2 * (x[batch] @ kernel.effective + bias.weight - y[batch]) / y[batch].size
        kernel.step(x[batch].T @ error)
        bias.step(error.sum(axis=0))
        if step % 6 == 5:
            loss = np.mean((x @ kernel.weight + bias.weight - y) ** 2)
            seen.append((kernel.weight, bias.weight, loss))
    return seen


def test_validation_and_end_of_epoch_see_the_true_weights(monkeypatch):
    optimizer = mix(exclude=["bias"])
    columns = inject_columns(optimizer, monkeypatch, 24, [(4, 1)])
    model, look = compiled(optimizer, jit_compile="auto"), Look()
    expected = twin_fit(optimizer, columns, model.get_weights(), epochs=4)
    history = fit(model, epochs=4, callbacks=[look], validation_data=data())
    assert optimizer.stage == 1
    for epoch, (kernel, bias, loss) in enumerate(expected):
        for seen in look.seen[2 * epoch : 2 * epoch + 2]:  # in validation, at the epoch's end
            assert near(seen[0], kernel)
            assert near(seen[1], bias)
        assert history.history["val_loss"][epoch] == pytest.approx(loss, rel=1e-4)
    assert near(model.get_weights()[0], expected[-1][0])
    for seen, true in zip(look.seen, look.true):
        assert_same(seen, true)


def test_true_weights_are_in_the_model_after_fit_and_in_files(tmp_path):
    path = tmp_path / "{epoch}.keras"
    model = compiled(mixout())
    look = Look()
    checkpoint = keras.callbacks.ModelCheckpoint(path)
    fit(model, epochs=2, callbacks=[checkpoint, look])
    assert not model.optimizer.is_mixed
    true = [to_numpy(slot) for slot in model.optimizer._true_weights]
    assert_same(model.get_weights(), true)
    model.save(tmp_path / "model.keras")
    assert_same(keras.models.load_model(tmp_path / "model.keras").get_weights(), true)
    for epoch in (1, 2):
        saved = keras.models.load_model(tmp_path / f"{epoch}.keras")
        assert_same(saved.get_weights(), look.true[epoch - 1])
        assert not saved.optimizer.is_mixed


class FailsInTraining(keras.layers.Layer):
    def call(self, inputs, training=False):
        if training:
            raise RuntimeError("stopped on purpose")
        return inputs


def test_the_error_of_a_first_step_is_the_one_that_is_seen():
    """JAX finalizes after it, though the variables have no values then."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), FailsInTraining()])
    model.compile(optimizer=mix(), loss="mse")
    with pytest.raises(RuntimeError, match="on purpose"), model.optimizer.true_weights():
        fit(model)


def test_a_second_fit_and_resuming_in_mid_stage_two_change_no_bit(tmp_path):
    """As one fit of three epochs: the callback mixes before the first step of each."""
    expected = compiled(mix())
    fit(expected, epochs=3)  # six steps an epoch
    saved = compiled(mix())
    fit(saved)
    assert saved.optimizer.stage == 2
    assert int(saved.optimizer.iterations) % STAGE_STEPS == 2
    saved.save(tmp_path / "model.keras")
    resumed = keras.models.load_model(tmp_path / "model.keras")
    for model in (saved, resumed):
        fit(model, epochs=2)
        assert_same(model.get_weights(), expected.get_weights())
        for one, other in zip(model.optimizer.variables, expected.optimizer.variables):
            np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def warnings_of_fit(model, **arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, validation_data=data(), **arguments)
    return [str(w.message) for w in caught if "mixed weights" in str(w.message)]


def test_fit_without_the_callback_is_said():
    model = compiled(mixout())
    told = warnings_of_fit(model, swap=False)
    for words in ("`validation_data`", "`ModelCheckpoint`", "SwapTrueWeights()"):
        assert words in told[0]
    for _ in range(2):
        assert warnings_of_fit(model) == []
    assert warnings_of_fit(model, swap=False)  # though the step is compiled by now


def test_fit_of_a_loss_scale_optimizer_without_the_callback_is_said():
    model = compiled(keras.optimizers.LossScaleOptimizer(mixout()))
    assert warnings_of_fit(model) == []
    assert warnings_of_fit(model, swap=False)


@pytest.mark.filterwarnings("ignore:Between the steps")
def test_evaluation_and_prediction_between_steps_see_the_true_weights():
    model, swap = compiled(mixout()), SwapTrueWeights()
    x, y = data()
    for _ in range(3):
        model.train_on_batch(x, y)
    with model.optimizer.true_weights():
        loss, predicted = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    mixed = model.get_weights()
    assert model.evaluate(x, y, callbacks=[swap], verbose=0) == pytest.approx(loss, rel=1e-6)
    seen = model.predict(x, callbacks=[swap], verbose=0)
    np.testing.assert_allclose(seen, predicted, rtol=1e-6)
    assert_same(model.get_weights(), mixed)
    assert model.evaluate(x, y, verbose=0) != pytest.approx(loss, rel=1e-3)


def test_the_callback_asks_for_an_optimizer_that_mixes():
    with pytest.raises(ValueError, match=r"DPSMix.*Received: optimizer=<"):
        fit(compiled(keras.optimizers.SGD()))


def multi(make_optimizer):
    optimizers = {"kernel": make_optimizer(), "bias": make_optimizer()}
    return keras.optimizers.MultiOptimizer(lambda one: optimizers[one.path.split("/")[-1]])


def test_optimizers_that_are_known_after_the_first_step():
    """As those of a MultiOptimizer that is made by a function are on TensorFlow."""
    model = compiled(multi(mixout))
    seen, true = [], []

    def look(epoch, logs):
        seen.append(model.get_weights())
        true.append([to_numpy(one._true_weights[0]) for one in model.optimizer.optimizers])

    fit(model, 2, [keras.callbacks.LambdaCallback(on_epoch_end=look)], validation_data=data())
    for weights, expected in zip(seen, true):
        assert_same(weights, expected)
    assert not any(one.is_mixed for one in model.optimizer.optimizers)
    with pytest.raises(ValueError, match=r"DPSMix.*Received: optimizer=<"):
        fit(compiled(multi(keras.optimizers.SGD)))


def test_a_copy_goes_on_as_the_original():
    model = compiled(mixout())
    fit(model)
    copied = copy.deepcopy(model)
    for one, other in zip(copied.optimizer.variables, model.optimizer.variables):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    fit(copied)
    fit(model)
    assert_same(copied.get_weights(), model.get_weights())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has SavedModels")
def test_a_saved_model_trains(tmp_path):
    import tensorflow as tf

    model = compiled(mixout())
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)

    class Job(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((4, 4)), tf.TensorSpec((4, 3))])
        def train(self, x, y):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((model(x) - y) ** 2)
            variables = model.trainable_variables
            optimizer.apply(tape.gradient(loss, variables), variables)
            return loss

        @tf.function(input_signature=[])
        def true(self):
            return [tf.convert_to_tensor(one) for one in optimizer._true_weights]

    job = Job()
    job.model, job.optimizer = model, optimizer
    tf.saved_model.save(job, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    x, y = (array[:4] for array in data())
    for _ in range(3):
        assert_same([loaded.train(x, y)], [job.train(x, y)])
    assert_same(loaded.true(), job.true())
