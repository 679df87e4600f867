"""The true weights are kept whatever interrupts training on mixed ones."""

import keras
import numpy as np
import pytest
from mixing_jobs import assert_same, compiled, fit, make, mix, mixout, near
from modes import to_numpy

from sage_keras.callbacks import SwapTrueWeights

# Interrupted in an assignment.


class Interruption:
    """Raises KeyboardInterrupt in the n-th assignment, where a variable is assigned to or not yet."""

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
    assert n > 8


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
        fit(self.model, callbacks=[look])

    def begin(self):
        self.optimizer.swapped_by_callback = False
        set_state(self._state(), self._start)

    def _state(self):
        return [*self.model.trainable_variables, *self.optimizer.variables]

    def _look(self, model):
        with model.optimizer.true_weights():
            self.true.append(model.get_weights())


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
    data = {"validation_data": (np.ones((4, 4)), np.ones((4, 3)))} if "test" in place else {}
    with pytest.raises(KeyboardInterrupt), trained.optimizer.true_weights():
        fit(trained.model, epochs=2, swap=False, callbacks=callbacks, **data)
    assert not trained.optimizer.is_mixed
    assert_near(trained.model.get_weights(), trained.true[steps])
