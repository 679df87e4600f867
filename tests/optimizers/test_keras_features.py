"""What Keras offers around an optimizer goes on working with a guided one."""

import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from bases import guided
from modes import BACKEND, Runner, to_numpy

from sage_keras import Sage, SageSGD, guided_optimizers

CLASSES = ("Sage", "SageAdam", "SageAdamax", "SageSGD")


def data(count=32):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, 4)).astype("float32")
    return x, (x @ random.normal(size=(4, 1))).astype("float32")


def compiled(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(3, activation="tanh", name="hidden"),
            keras.layers.Dense(1, name="out"),
        ]
    )
    # Compiled steps are for the tests that are about them.
    arguments.setdefault("run_eagerly", BACKEND == "tensorflow")
    model.compile(optimizer=optimizer, loss="mse", **arguments)
    return model


def fit(model, epochs=1, **arguments):
    x, y = data()
    model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, **arguments)
    return model


def assert_same(one, other, **tolerance):
    for a, b in zip(one.get_weights(), other.get_weights()):
        if tolerance:
            np.testing.assert_allclose(a, b, **tolerance)
        else:
            np.testing.assert_array_equal(a, b)


def test_weight_decay_is_not_scaled_and_can_be_excluded():
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    optimizer = Sage(learning_rate=0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.apply([keras.ops.zeros((1,))] * 2, [kernel, bias])
    np.testing.assert_allclose(to_numpy(kernel), [1 - 0.1 * 0.5], rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(bias), [1.0])


class Record(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


def test_swap_ema_weights():
    """The callback evaluates on the average and trains on the weights themselves."""
    record = Record()
    model = compiled(Sage(learning_rate=0.05, use_ema=True, ema_momentum=0.5))
    x, y = data()
    seen = {}

    class Evaluate(keras.callbacks.Callback):
        def on_test_end(self, logs=None):
            seen["weights"] = self.model.get_weights()

    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=False)
    fit(model, epochs=1, callbacks=[record, Evaluate(), swap], validation_data=(x, y))
    average = record.weights[0]
    for weights in record.weights[1:]:
        average = [0.5 * old + 0.5 * new for old, new in zip(average, weights)]
    for one, other in zip(seen["weights"], average):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_learning_rate_callable_and_callback():
    expected = fit(compiled(Sage(learning_rate=0.05)))
    by_callable = compiled(Sage(learning_rate=lambda: 0.05), run_eagerly=False)
    assert_same(fit(by_callable), expected, rtol=1e-5, atol=1e-6)

    model = compiled(Sage(learning_rate=1.0), run_eagerly=False)
    halve = keras.callbacks.LearningRateScheduler(lambda epoch: [0.05, 0.0][epoch])
    fit(model, epochs=2, callbacks=[halve])
    expected = fit(compiled(Sage(learning_rate=0.05)), epochs=1)
    assert_same(model, expected, rtol=1e-5, atol=1e-6)


def test_loss_scale_optimizer_skips_an_overflow_whole():
    inner = Sage(learning_rate=0.1)
    scaled = Runner(
        # The scale is a power of two, so that every bit of the gradients is kept.
        keras.optimizers.LossScaleOptimizer(inner, initial_scale=16.0),
        [keras.Variable([1.0, -2.0])],
        "graph",
    )
    unscaled = Runner(Sage(learning_rate=0.1), [keras.Variable([1.0, -2.0])], "graph")
    for gradient in ([1.0, 3.0], [2.0, 1.0]):
        scaled.step([np.float32(gradient) * 16])
        unscaled.step([np.float32(gradient)])
    before = [to_numpy(v) for v in inner.variables]

    scaled.step([np.float32([np.inf, 1.0])])

    for one, other in zip(before, inner.variables):
        np.testing.assert_array_equal(one, to_numpy(other))
    np.testing.assert_array_equal(scaled.weights()[0], unscaled.weights()[0])
    assert int(inner.iterations) == 2
    assert guided_optimizers(scaled.optimizer) == [inner]


def test_multi_optimizer():
    make = {
        "hidden": lambda: Sage(0.05, weight_decay=0.0),
        "out": lambda: SageSGD(0.05, include=["kernel"]),
    }
    inner = {layer: optimizer() for layer, optimizer in make.items()}
    chosen = lambda variable: inner["hidden" if "hidden" in variable.path else "out"]  # noqa: E731
    together = compiled(keras.optimizers.MultiOptimizer(chosen))
    x, y = data(8)
    together.train_on_batch(x, y)

    assert guided_optimizers(together.optimizer) == list(inner.values())
    assert [len(one.sensitivities) for one in inner.values()] == [2, 1]
    for layer, optimizer in make.items():
        alone = compiled(optimizer())
        alone.train_on_batch(x, y)
        for one, other in zip(
            together.get_layer(layer).get_weights(), alone.get_layer(layer).get_weights()
        ):
            np.testing.assert_allclose(one, other, rtol=1e-6)


def test_constraints_are_applied_after_the_guided_step():
    free, held = keras.Variable([0.1, 1.0]), keras.Variable([0.1, 1.0])
    held.constraint = keras.constraints.NonNeg()
    for weight in (free, held):
        optimizer = SageSGD(learning_rate=0.1)
        optimizer.apply([keras.ops.array([1.0, 1.0])], [weight])
    np.testing.assert_allclose(to_numpy(free), [-0.2, 0.7], rtol=1e-5)
    np.testing.assert_allclose(to_numpy(held), [0.0, 0.7], rtol=1e-5)


def test_frozen_layers_own_no_slot():
    model = compiled(Sage(learning_rate=0.05))
    model.get_layer("hidden").trainable = False
    model.compile(optimizer=Sage(learning_rate=0.05), loss="mse")
    before = model.get_layer("hidden").get_weights()
    fit(model)
    assert [path.split("/")[-2] for path in model.optimizer.sensitivities] == ["out", "out"]
    for one, other in zip(before, model.get_layer("hidden").get_weights()):
        np.testing.assert_array_equal(one, other)


def test_variables_without_a_gradient_are_left_alone():
    used, unused = keras.Variable([1.0], name="used"), keras.Variable([1.0], name="unused")
    optimizer = SageSGD(learning_rate=0.1)
    with pytest.warns(UserWarning, match="Gradients do not exist for variables \\['unused'\\]"):
        optimizer.apply([keras.ops.array([1.0]), None], [used, unused])
    assert to_numpy(unused) == [1.0]
    assert [to_numpy(slot)[0] for slot in optimizer.sensitivities.values()] == [0.25, 0.0]


@pytest.mark.parametrize("how", ["keras", "pickle"])
@pytest.mark.parametrize("name", CLASSES)
def test_saved_model_resumes_bit_equal(name, how, tmp_path):
    settings = {"learning_rate": 0.02, "include": ["kernel", "out"], "beta_3": 0.9}
    make = lambda: keras.optimizers.get(  # noqa: E731
        {"class_name": f"sage_keras>{name}", "config": dict(settings)}
    )
    expected = fit(fit(compiled(make())))

    model = fit(compiled(make()))
    if how == "keras":
        model.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
    else:
        again = pickle.loads(pickle.dumps(model))
    assert again.optimizer.get_config() == model.optimizer.get_config()
    assert_same(fit(again), expected)
    assert_same_slots(again.optimizer, expected.optimizer)


def test_weights_file_resumes_bit_equal(tmp_path):
    path = tmp_path / "model.weights.h5"
    expected = fit(fit(compiled(Sage(0.02))))
    fit(compiled(Sage(0.02))).save_weights(path)
    again = compiled(Sage(0.02))
    again.optimizer.build(again.trainable_variables)
    again.load_weights(path)
    assert_same(fit(again), expected)


def test_optimizer_pickles_alone():
    again = pickle.loads(pickle.dumps(Sage(learning_rate=0.5, exclude=["bias"])))
    assert type(again) is Sage
    assert again.exclude == ("bias",)


@pytest.mark.extended
def test_saved_model_loads_where_the_package_was_imported(tmp_path):
    fit(compiled(Sage(0.02))).save(tmp_path / "model.keras")
    code = (
        "import keras, sage_keras\n"
        f"model = keras.models.load_model({str(tmp_path / 'model.keras')!r})\n"
        "print(type(model.optimizer).__name__, int(model.optimizer.iterations))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["Sage", "4"]


def test_model_saved_before_training_loads(tmp_path):
    compiled(Sage(0.02)).save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert_same(fit(again), fit(compiled(Sage(0.02))))


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs one step per execution on torch")
def test_several_steps_per_execution():
    several = fit(compiled(Sage(0.02), steps_per_execution=2, run_eagerly=False))
    assert_same(several, fit(compiled(Sage(0.02))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "Adamax", "SGD"])
def test_custom_training_loop_equals_fit(name):
    expected = fit(compiled(guided(name)(0.02)), epochs=1)
    model = compiled(guided(name)(0.02))
    x, y = data()
    step = {"tensorflow": tensorflow_step, "jax": jax_step, "torch": torch_step}[BACKEND](model)
    for start in range(0, len(x), 8):
        step(x[start : start + 8], y[start : start + 8])
    assert_same(model, expected, rtol=1e-5, atol=1e-6)


def tensorflow_step(model):
    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = keras.ops.mean(keras.ops.square(model(x, training=True) - y))
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    return step


def jax_step(model):
    import jax

    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    state = [
        [v.value for v in model.trainable_variables],
        [v.value for v in optimizer.variables],
    ]

    def loss(weights, x, y):
        predicted, _ = model.stateless_call(weights, model.non_trainable_variables, x)
        return keras.ops.mean(keras.ops.square(predicted - y))

    @jax.jit
    def update(weights, slots, x, y):
        gradients = jax.grad(loss)(weights, x, y)
        return optimizer.stateless_apply(slots, gradients, weights)

    def step(x, y):
        state[:] = update(*state, x, y)
        for variable, value in zip(model.trainable_variables, state[0]):
            variable.assign(value)

    return step


def torch_step(model):
    import torch

    def step(x, y):
        model.zero_grad()
        loss = keras.ops.mean(keras.ops.square(model(torch.tensor(x)) - torch.tensor(y)))
        loss.backward()
        gradients = [v.value.grad for v in model.trainable_variables]
        with torch.no_grad():
            model.optimizer.apply(gradients, model.trainable_variables)

    return step


def assert_same_slots(one, other):
    # Keras names the variables of a model that was loaded without the model's name.
    assert len(one.sensitivities) == len(other.sensitivities)
    for a, b in zip(one.sensitivities.values(), other.sensitivities.values()):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
