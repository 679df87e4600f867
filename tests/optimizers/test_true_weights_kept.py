"""The true weights are kept whatever interrupts training on mixed ones."""

import warnings

import keras
import numpy as np
import pytest
from mixing_jobs import compiled, data, fit, make, mix, mixout, near, step_on
from modes import BACKEND, to_numpy

from sage_keras.callbacks import SwapTrueWeights

# Interrupted in an assignment.


class Interruption:
    """Raises KeyboardInterrupt before or after the n-th assignment to a variable."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.left = float("inf")

    def patch(self, monkeypatch):
        monkeypatch.setattr(self.optimizer, "assign", self._interrupted(self.optimizer.assign))
        assign = keras.Variable.assign
        monkeypatch.setattr(
            keras.Variable,
            "assign",
            lambda variable, value: self._interrupted(assign)(variable, value),
        )

    def _interrupted(self, assign):
        def count():
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

        def assign_or_not(*arguments):
            count()
            result = assign(*arguments)
            count()
            return result

        return assign_or_not


def set_state(variables, values):
    for variable, value in zip(variables, values):
        variable.assign(value)


def one_step(runner):
    runner.step([np.float32([[1.0], [-0.5]]), np.float32([2.0, -1.0])])


# How many steps came before, whether the weights are mixed, and what is interrupted.
OPERATIONS = {
    "first step": (0, False, one_step),
    "step": (2, True, one_step),
    "first mix": (0, False, lambda runner: runner.optimizer.mix()),
    "mix": (2, False, lambda runner: runner.optimizer.mix()),
    "unmix": (2, True, lambda runner: runner.optimizer.unmix()),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupted_in_any_assignment(name, monkeypatch):
    steps, mixed, operation = OPERATIONS[name]
    weights = [np.float32([[1.0], [-2.0]]), np.float32([0.5, 3.0])]
    runner = make(mixout(weight_decay=0.0), weights=weights)
    optimizer = runner.optimizer
    for _ in range(steps):
        one_step(runner)
    optimizer.unmix()
    state = [*runner.variables, *optimizer.variables]
    start = [to_numpy(variable) for variable in state]
    before = runner.weights()
    operation(runner)
    with optimizer.true_weights():
        after = runner.weights()
    interruption = Interruption(optimizer)
    interruption.patch(monkeypatch)
    for n in range(1, 1000):
        interruption.left = float("inf")
        set_state(state, start)
        try:
            with optimizer.true_weights():
                if mixed:
                    optimizer.mix()
                interruption.left = n
                operation(runner)
            break
        except KeyboardInterrupt:
            interruption.left = float("inf")
        for _ in range(2):
            for weight, old, new in zip(runner.weights(), before, after):
                assert np.array_equal(weight, old) or np.array_equal(weight, new), n
            assert not optimizer.is_mixed
            optimizer.unmix()
    assert n > 6


# Interrupted in `fit`.

BATCHES = 6
PLACES = {
    "epoch begin": ("on_epoch_begin", 1, BATCHES),
    "batch begin": ("on_train_batch_begin", 3, 3),
    "first batch begin": ("on_train_batch_begin", 0, 0),
    "batch end": ("on_train_batch_end", 3, 4),
    "last batch end": ("on_train_batch_end", 5, BATCHES),
    "test begin": ("on_test_begin", None, BATCHES),
    "epoch end": ("on_epoch_end", 0, BATCHES),
}


class Stop(keras.callbacks.Callback):
    """Ctrl-C in one hook, at the first call with one number."""

    def __init__(self, hook, number):
        super().__init__()

        def stop(at=None, logs=None):
            if number is None or at == number:
                raise KeyboardInterrupt

        setattr(self, hook, stop)


class Trained:
    """A model, compiled once, with the true weights that it has after each batch."""

    def __init__(self, optimizer):
        self.model = compiled(optimizer)
        self.optimizer = optimizer
        optimizer.build(self.model.trainable_variables)
        self.true = [self.model.get_weights()]
        self._start = [to_numpy(variable) for variable in self._state()]
        look = keras.callbacks.Callback()
        look.on_train_batch_end = lambda batch, logs=None: self._look(look.model)
        fit(self.model, epochs=2, callbacks=[look])

    def begin(self):
        self.optimizer.swapped_by_callback = False
        set_state(self._state(), self._start)

    def _state(self):
        return [*self.model.trainable_variables, *self.optimizer.variables]

    def _look(self, model):
        self.true.append([to_numpy(slot) for slot in model.optimizer._true_weights])


@pytest.fixture(scope="module")
def trained():
    return Trained(mix())


def assert_near(weights, expected):
    assert all(near(one, other) for one, other in zip(weights, expected))


@pytest.mark.filterwarnings("ignore:Between the steps")
@pytest.mark.parametrize("order", ["swap first", "swap last", "no swap"])
@pytest.mark.parametrize("place", PLACES)
def test_interrupted_in_fit(trained, place, order):
    hook, number, steps = PLACES[place]
    trained.begin()
    callbacks = {
        "swap first": [SwapTrueWeights(), Stop(hook, number)],
        "swap last": [Stop(hook, number), SwapTrueWeights()],
        "no swap": [Stop(hook, number)],
    }[order]
    more = {"validation_data": data()} if "test" in place else {}
    with pytest.raises(KeyboardInterrupt), trained.optimizer.true_weights():
        fit(trained.model, epochs=2, swap=False, callbacks=callbacks, **more)
    assert not trained.optimizer.is_mixed
    assert_near(trained.model.get_weights(), trained.true[steps])


@pytest.mark.filterwarnings("ignore:Between the steps")
def test_what_comes_after_an_interruption_without_the_context(trained, tmp_path):
    """JAX finalizes; elsewhere nothing of ours is called until the optimizer or callback is."""
    model, optimizer = trained.model, trained.optimizer
    trained.begin()
    x = np.random.default_rng(1).normal(size=(4, 4)).astype("float32")
    swap = SwapTrueWeights()
    with pytest.raises(KeyboardInterrupt):
        fit(model, swap=False, callbacks=[swap, Stop("on_train_batch_end", 3)])
    assert optimizer.is_mixed == (BACKEND != "jax")
    optimizer.mix()
    with pytest.warns(UserWarning, match=r"mixed ones.*unmix"):
        model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.optimizer.unmix()
    assert_near(loaded.get_weights(), trained.true[4])
    predicted = model.predict(x, callbacks=[swap], verbose=0)
    assert not optimizer.is_mixed
    assert_near(model.get_weights(), trained.true[4])
    kernel, bias = trained.true[4]
    np.testing.assert_allclose(predicted, x @ kernel + bias, rtol=1e-4, atol=1e-5)
    optimizer.mix()
    begin = []
    look = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: begin.append(model.get_weights())
    )
    fit(model, callbacks=[look])
    assert_near(begin[0], trained.true[4])


@pytest.mark.filterwarnings("ignore:Between the steps")
def test_caught_inside_the_context_they_come_back_where_it_ends(trained):
    trained.begin()
    with trained.optimizer.true_weights():
        with pytest.raises(KeyboardInterrupt):
            fit(trained.model, callbacks=[Stop("on_train_batch_begin", 4)])
        assert trained.optimizer.is_mixed == (BACKEND != "jax")
    assert_near(trained.model.get_weights(), trained.true[4])


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX deletes what a step is given")
@pytest.mark.parametrize("batch", [0, 3, 6])
@pytest.mark.parametrize("swap", [True, False])
def test_ctrl_c_in_a_step_of_jax_is_the_exception_that_is_seen(batch, swap, monkeypatch):
    model = compiled(mix())
    model.make_train_function()
    train, calls = model.train_function, []

    def interrupted(state, iterator):
        result = train(state, iterator)
        calls.append(None)
        if len(calls) > batch:
            raise KeyboardInterrupt  # the state is gone, and the new one is not yet there
        return result

    monkeypatch.setattr(model, "train_function", interrupted)
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(model.get_weights())
    )
    with pytest.raises(KeyboardInterrupt), model.optimizer.true_weights():
        fit(model, epochs=2, swap=swap, callbacks=[look])
    if batch == BATCHES and swap:  # those of the epoch before were not given to the step
        for weight, true in zip(model.get_weights(), seen[0]):
            np.testing.assert_array_equal(weight, true)


# Told, or not.


def test_weights_that_are_saved_mixed_are_told_of():
    runner = make(mixout())
    step_on(runner, 0)
    with pytest.warns(UserWarning, match="mixed ones"):
        runner.optimizer.save_own_variables({})
    with runner.optimizer.true_weights(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        runner.optimizer.save_own_variables({})


def test_a_failed_fit_hushes_no_warning(trained):
    trained.begin()
    with pytest.raises(KeyboardInterrupt):
        fit(trained.model, callbacks=[Stop("on_train_batch_end", 3)])
    with pytest.warns(UserWarning, match="Between the steps"):
        fit(trained.model, swap=False)


def test_ctrl_c_in_fit_with_the_callback_warns_of_nothing(trained):
    trained.begin()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(KeyboardInterrupt), trained.optimizer.true_weights():
            fit(trained.model, callbacks=[Stop("on_train_batch_end", 3)])
        fit(trained.model)


# Seen from any place in the list.


def seen_at_the_ends_of_epochs(trained, arrange, **arguments):
    trained.begin()
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(trained.model.get_weights())
    )
    fit(trained.model, swap=False, callbacks=arrange(look, SwapTrueWeights()), **arguments)
    return seen


ARRANGEMENTS = {
    "first": lambda look, swap: [swap, look],
    "last": lambda look, swap: [look, swap],
    "in a list": lambda look, swap: [
        look,
        keras.callbacks.CallbackList([swap, keras.callbacks.Callback()]),
    ],
}


@pytest.mark.parametrize("validates", [False, True])
@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_the_order_of_callbacks_does_not_matter(trained, name, validates, monkeypatch):
    more = {"validation_data": data()} if validates else {}
    mixes = []
    mix_weights = trained.optimizer.mix
    monkeypatch.setattr(trained.optimizer, "mix", lambda: mixes.append(mix_weights()))
    seen = seen_at_the_ends_of_epochs(trained, ARRANGEMENTS[name], epochs=2, **more)
    assert_near(seen[0], trained.true[BATCHES])
    assert_near(seen[1], trained.true[2 * BATCHES])
    assert len(mixes) == 2  # once an epoch, not once a batch


@pytest.mark.parametrize(("name", "validates"), [("first", False), ("last", True)])
def test_an_epoch_of_unknown_length(trained, name, validates):
    """Whose end Keras knows of when it has begun another batch."""
    trained.begin()
    more = {"validation_data": data()} if validates else {}
    x, y = (array.reshape(BATCHES, 4, -1) for array in data())
    seen = []
    look = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: seen.append(trained.model.get_weights())
    )
    callbacks = ARRANGEMENTS[name](look, SwapTrueWeights())
    trained.model.fit((one for one in zip(x, y)), callbacks=callbacks, verbose=0, **more)
    assert_near(seen[0], trained.true[BATCHES])


def test_an_epoch_that_is_stopped(trained):
    def arrange(look, swap):
        stop = keras.callbacks.Callback()
        stop.on_train_batch_end = lambda batch, logs=None: setattr(
            trained.model, "stop_training", batch == 2
        )
        return [swap, stop, look]

    seen = seen_at_the_ends_of_epochs(trained, arrange)
    assert_near(seen[0], trained.true[3])


def test_a_callback_that_is_not_in_a_list(trained):
    trained.begin()
    x, y = data()
    trained.model.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=SwapTrueWeights())
    assert_near(trained.model.get_weights(), trained.true[BATCHES])


def test_prediction_in_mid_epoch_does_not_disturb_training(trained):
    def arrange(look, swap):
        look.on_train_batch_end = lambda batch, logs=None: predict(look, swap)
        return [look, swap]

    predicted = []

    def predict(look, swap):
        predicted.append(look.model.predict(x, callbacks=[swap], verbose=0))

    x = data()[0][:2]
    seen = seen_at_the_ends_of_epochs(trained, arrange)
    for outputs, (kernel, bias) in zip(predicted, trained.true[1:]):
        np.testing.assert_allclose(outputs, x @ kernel + bias, rtol=1e-4, atol=1e-5)
    assert_near(seen[0], trained.true[BATCHES])


def test_what_is_kept_and_saved_by_callbacks_before_it(trained, tmp_path):
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    seen_at_the_ends_of_epochs(trained, lambda look, swap: [stop, checkpoint, swap, look], epochs=2)
    assert_near(trained.model.get_weights(), trained.true[BATCHES])  # the loss falls
    saved = keras.models.load_model(tmp_path / "1.keras")
    assert_near(saved.get_weights(), trained.true[BATCHES])
