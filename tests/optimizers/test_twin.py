"""The optimizers against a float64 twin, step by step and running free."""

import keras
import numpy as np
import pytest
import twin
from cells import diagonals
from modes import BACKEND, MODES, Runner

import sage_keras

# An eager step of TensorFlow or JAX takes ten times as long as a compiled one.
STEPS = {"eager": 200 if BACKEND == "torch" else 50, "graph": 200, "xla": 200}
LEARNING_RATE = float(np.float32(1e-3))
# What running free may cost in float32, of max|weight|. Plain Adam strays as far as its guided
# kin: where v is tiny, a rounding of it is a large part of the step.
FREE_RUN = {"Sage": 1e-3, "SageAdam": 1e-3, "SageAdamax": 1e-5, "SageSGD": 1e-5}


def heavy_tailed_job(seed, steps):
    """Three weight arrays, and gradients that have outliers and zeros.

    The first array spans three orders of magnitude, the second has zeros. The third stays away
    from zero, for running free: a weight that crosses zero keeps an absolute rounding error and
    loses its relative one, and the sensitivity with it, in float32 NumPy as well.
    """
    random = np.random.default_rng(seed)
    weights = [
        random.normal(size=(7, 5)) * 10.0 ** random.integers(-3, 1, (7, 5)),
        np.array([0.0, 0.0, 0.01, -0.3, 1.0]),
        random.uniform(0.5, 2.0, (4, 3, 2)) * random.choice([-1.0, 1.0], (4, 3, 2)),
    ]
    weights[0][0, 0] = 1.0
    gradients = [
        [random.standard_t(2, w.shape) * (random.random(w.shape) < 0.9) for w in weights]
        for _ in range(steps)
    ]
    return _float32(weights), [_float32(g) for g in gradients]


AVERAGES = {
    "short": {"beta_3": 0.6},
    "usual": {"beta_3": 0.75},
    "long": {"beta_3": 0.9},
    "calibrated": {"beta_3": 0.75, "calibrate": True},
}


@pytest.mark.parametrize(
    ("name", "average", "bias_correction", "mode"),
    diagonals(twin.TWINS, AVERAGES, [True, False], MODES, every=3),
)
def test_follows_the_twin(name, average, bias_correction, mode):
    settings = {"bias_correction": bias_correction, **AVERAGES[average]}
    weights, gradients = heavy_tailed_job(int(settings["beta_3"] * 100), STEPS[mode])
    optimizer = getattr(sage_keras, name)(LEARNING_RATE, **settings)
    variables = [keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(weights)]
    runner = Runner(optimizer, variables, mode)

    settings |= {"learning_rate": LEARNING_RATE, "weight_decay": optimizer.weight_decay or 0.0}
    stepwise = [twin.TWINS[name](w, **settings) for w in weights]
    free = twin.TWINS[name](weights[-1], **settings)
    worst_step = worst_free = 0.0

    for gradient in gradients:
        for one, variable, weight in zip(stepwise, variables, runner.weights()):
            one.weight = weight.astype("float64")
            one.state = {slot: runner.slot(variable, slot).astype("float64") for slot in one.state}
        runner.step(gradient)
        for one, g, weight in zip(stepwise, gradient, runner.weights()):
            one.step(g)
            worst_step = max(worst_step, _distance(weight, one.weight))
        free.step(gradient[-1])
        worst_free = max(worst_free, _distance(runner.weights()[-1], free.weight))

    assert worst_step <= 1e-6
    assert worst_free <= FREE_RUN[name]
    assert runner.compilations == (STEPS[mode] if mode == "eager" else 1)


def _float32(arrays):
    return [array.astype("float32") for array in arrays]


def _distance(weight, expected):
    return np.max(np.abs(weight - expected)) / np.max(np.abs(expected))
