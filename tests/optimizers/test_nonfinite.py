"""Steps whose gradients are infinite or not a number: propagated, skipped, counted, refused."""

import keras
import numpy as np
import pytest
from modes import BACKEND, MODES, Runner, to_numpy

from sage_keras import DPSDense, DPSMix, Platon, Sage, SageSGD, SparseAdamW
from sage_keras.callbacks import RaiseOnSkippedSteps

BAD = [np.nan, np.inf, -np.inf]
GRADIENTS = [
    [np.float32([1.0, 3.0, -1.0]), np.float32([[0.5], [-2.0]])],
    [np.float32([2.0, 1.0, -3.0]), np.float32([[1.5], [-1.0]])],
    [np.float32([0.5, -2.0, 1.0]), np.float32([[-0.5], [-0.25]])],
    [np.float32([1.5, -1.0, 2.0]), np.float32([[2.5], [-0.75]])],
]
OPTIMIZERS = {
    "Sage": lambda **more: Sage(0.1, **more),
    "clipped, averaged, accumulated": lambda **more: Sage(
        0.1, global_clipnorm=1.0, use_ema=True, gradient_accumulation_steps=2, **more
    ),
    "SageSGD bfloat16": lambda **more: SageSGD(0.1, sensitivity_dtype="bfloat16", **more),
    "SageSGD calibrated": lambda **more: SageSGD(0.1, calibrate=True, **more),
    "DPSDense": lambda **more: DPSDense(0.1, stage_steps=1, drop_rate=0.5, **more),
    "DPSMix": lambda **more: DPSMix(0.1, stage_steps=1, drop_rate=0.5, seed=0, **more),
    "Platon": lambda **more: Platon(0.1, begin_step=0, end_step=3, update_freq=1, **more),
    "SparseAdamW": lambda **more: SparseAdamW(0.1, fraction=0.5, selection_steps=2, **more),
}


def variables():
    return [keras.Variable([1.0, -2.0, 0.5], name="a"), keras.Variable([[1.0], [2.0]], name="b")]


def bad(value):
    """Gradients of which one number of the last is bad."""
    gradients = [gradient.copy() for gradient in GRADIENTS[0]]
    gradients[-1][1, 0] = value
    return gradients


def state(runner, skip=()):
    # The chosen weights of a variable have its path too, and are taken out of it at each step.
    values = {v.path: to_numpy(v) for v in [*runner.optimizer.variables, *runner.variables]}
    return {path: value for path, value in values.items() if path.split("/")[-1] not in skip}


def assert_equal_states(one, other):
    assert list(one) == list(other)
    for path in one:
        np.testing.assert_allclose(one[path], other[path], rtol=1.2e-7, atol=1.5e-8, err_msg=path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_skipped_step_equals_a_dropped_batch(name, mode):
    if mode == "graph" and name != "Sage":
        pytest.skip("one optimizer is enough for the graph, which lies between eager and XLA")
    if BACKEND == "torch" and mode == "xla" and name != "Sage":
        pytest.skip("one compilation by inductor is enough: it takes twenty seconds")
    skipping = Runner(OPTIMIZERS[name](on_nonfinite="skip", name="one"), variables(), mode)
    dropping = Runner(OPTIMIZERS[name](name="one"), variables(), mode)
    for step, gradients in enumerate(GRADIENTS):
        skipping.step(gradients)
        dropping.step(gradients)
        before = state(skipping, skip=["skipped_steps"])
        skipping.step(bad(BAD[step % 3]))
        assert skipping.optimizer.skipped_steps == step + 1
        after = state(skipping, skip=["skipped_steps"])
        for path, value in before.items():
            np.testing.assert_array_equal(after[path], value, err_msg=path)
        assert_equal_states(after, state(dropping))


@pytest.mark.parametrize("mode", ["eager"])
def test_a_bad_first_step_is_skipped_too(mode):
    runner = Runner(Sage(0.1, on_nonfinite="skip"), variables(), mode)
    runner.step(bad(np.nan))
    assert runner.optimizer.skipped_steps == 1
    assert int(runner.optimizer.iterations) == 0
    np.testing.assert_array_equal(runner.weights()[0], [1.0, -2.0, 0.5])


def test_gradients_of_weights_that_are_not_chosen_count():
    scores = {"a": [3.0, 2.0, 1.0], "b": [[1.0], [0.0]]}  # the bad one is of the lowest
    runner = Runner(SparseAdamW(0.1, scores=scores, on_nonfinite="skip"), variables(), "eager")
    runner.step(GRADIENTS[0])
    before = runner.weights()
    runner.step(bad(np.inf))
    assert runner.optimizer.skipped_steps == 1
    assert int(runner.optimizer.iterations) == 1
    for one, other in zip(before, runner.weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_bad_step_is_not_begun_so_that_no_interrupt_can_leave_half_of_it(monkeypatch):
    runner = Runner(Sage(0.1, on_nonfinite="skip"), variables(), "eager")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner.optimizer, "_step", interrupted)
    runner.step(bad(np.nan))
    assert runner.optimizer.skipped_steps == 1
    np.testing.assert_array_equal(runner.weights()[0], [1.0, -2.0, 0.5])


def test_by_default_a_bad_step_spoils_the_average_for_good():
    runner = Runner(Sage(0.1), variables(), "eager")
    runner.step(bad(np.nan))
    for gradients in GRADIENTS:
        runner.step(gradients)
    assert runner.optimizer.skipped_steps == 0
    b = runner.variables[1]
    spoilt = np.isnan(to_numpy(runner.optimizer.sensitivity(b)))
    np.testing.assert_array_equal(spoilt, [[False], [True]])


def test_gradients_that_are_missing_are_no_bad_ones():
    runner = Runner(Sage(0.1, on_nonfinite="skip"), variables(), "eager")
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        runner.optimizer.apply([keras.ops.ones(3), None], runner.variables)
    assert runner.optimizer.skipped_steps == 0
    assert int(runner.optimizer.iterations) == 1


def test_refuses_another_word():
    with pytest.raises(ValueError, match=r"`on_nonfinite`.*propagate.*skip.*'raise'"):
        Sage(on_nonfinite="raise")


def compiled(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse", **arguments)
    return model


def batches(bad_ones, count=8):
    x = np.random.default_rng(0).normal(size=(count, 4, 3)).astype("float32")
    x[bad_ones] = np.nan
    return x.reshape(-1, 3), np.ones((4 * count, 1), "float32")


def fit(model, data, **arguments):
    model.fit(*data, batch_size=4, shuffle=False, verbose=0, **arguments)
    return model


def test_fit_skips_bad_batches_and_counts_them():
    model = fit(compiled(Sage(0.1, on_nonfinite="skip")), batches([2, 5]))
    x, y = batches([])
    good = np.delete(np.arange(8), [2, 5])
    x, y = x.reshape(8, 4, 3)[good].reshape(-1, 3), y[: 4 * len(good)]
    expected = fit(compiled(Sage(0.1)), (x, y))
    assert model.optimizer.skipped_steps == 2
    assert int(model.optimizer.iterations) == 6
    for one, other in zip(model.get_weights(), expected.get_weights()):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_the_count_is_saved(tmp_path):
    model = fit(compiled(Sage(0.1, on_nonfinite="skip")), batches([1]))
    model.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").optimizer.skipped_steps == 1


@pytest.mark.parametrize("update_freq", ["batch", "epoch", 3])
def test_the_callback_raises_where_too_many_are_skipped(update_freq):
    model = compiled(Sage(0.1, on_nonfinite="skip"))
    fit(model, batches([1]), callbacks=[RaiseOnSkippedSteps(2, update_freq)])
    fit(model, batches([1]), callbacks=[RaiseOnSkippedSteps(2, update_freq)])  # counts anew
    seen = []
    counting = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda b, logs: seen.append(b))
    with pytest.raises(FloatingPointError, match=r"limit=2.*learning rate"):
        fit(model, batches([0, 1, 2]), callbacks=[RaiseOnSkippedSteps(2, update_freq), counting])
    assert len(seen) == {"batch": 2, "epoch": 8, 3: 3}[update_freq]


def test_the_callback_refuses_an_optimizer_that_does_not_skip():
    with pytest.raises(ValueError, match=r"on_nonfinite=\"skip\""):
        fit(compiled(Sage()), batches([]), callbacks=[RaiseOnSkippedSteps()])
    with pytest.raises(ValueError, match=r"`limit`.*at least 1"):
        RaiseOnSkippedSteps(limit=0)
