"""Jobs for DPS Mix and Mixout: optimizers, columns to inject, and a small model to fit."""

import keras
import numpy as np
import twin
import twin_dps
from modes import BACKEND, Runner, to_numpy

from sage_keras import DPSMix, Mixout, SensitivityGuided, SubnetworkMixing, SubnetworkSelection
from sage_keras.callbacks import SwapTrueWeights

LEARNING_RATE = float(np.float32(1e-2))
STAGE_STEPS, CYCLES = 4, 3
STEPS = 2 * STAGE_STEPS * CYCLES
SHAPES = [(7, 5), (6,), (6, 4, 2)]
COLUMNS = [(7, 1), (6,), (6, 4, 1)]
DROP_RATE = 0.3
SETTINGS = {"learning_rate": LEARNING_RATE, "drop_rate": DROP_RATE, "seed": 0}
COMPILED = "eager" if BACKEND == "torch" else "xla"


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class SageDPSMix(SubnetworkMixing, SensitivityGuided, keras.optimizers.AdamW):
    pass


def mix(**settings):
    return DPSMix(**{**SETTINGS, "stage_steps": STAGE_STEPS, **settings})


def mixout(**settings):
    return Mixout(**{**SETTINGS, **settings})


def start():
    random = np.random.default_rng(1)
    return [random.normal(size=shape).astype("float32") for shape in SHAPES]


def make(optimizer, mode="eager", weights=None):
    weights = start() if weights is None else weights
    variables = [keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(weights)]
    return Runner(optimizer, variables, mode)


def gradients(weights, step):
    """Of a quadratic loss, and noise: they tell at which weights they were taken."""
    random = np.random.default_rng(100 + step)
    return [
        0.5 * (weight - 1.0) + random.normal(size=weight.shape).astype("float32")
        for weight in weights
    ]


def step_on(runner, step):
    runner.step([g.astype("float32") for g in gradients(runner.weights(), step)])


def inject_columns(optimizer, monkeypatch, steps=STEPS, shapes=COLUMNS, drop_rate=DROP_RATE):
    """Has the optimizer draw from a table, which is returned: step, variable, columns."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    table = np.random.default_rng(7).random((steps + 1, sum(sizes))) >= drop_rate
    tensor = keras.ops.convert_to_tensor(table.astype("float32"))

    def draw(shape, seed):
        step = 0 if isinstance(seed, int) else keras.ops.convert_to_tensor(optimizer.iterations)
        return keras.ops.take(tensor, step, axis=0)

    monkeypatch.setattr(optimizer, "_draw", draw)
    parts = np.split(table, np.cumsum(sizes)[:-1], axis=1)
    return [
        [part[step].reshape(shape) for part, shape in zip(parts, shapes)]
        for step in range(steps + 1)
    ]


def mix_twins(optimizer, weights=None, guide=False):
    return [
        twin_dps.Mix(
            twin.Adam(w, LEARNING_RATE, guide=guide, weight_decay=optimizer.weight_decay),
            getattr(optimizer, "stage_steps", 1),
            optimizer.drop_rate,
            stages=isinstance(optimizer, SubnetworkSelection),
        )
        for w in (start() if weights is None else weights)
    ]


def prepare(twins, columns):
    for one, kept in zip(twins, columns):
        one.prepare(kept)


def near(actual, expected):
    return np.max(np.abs(actual - expected)) <= 1e-5 * np.max(np.abs(expected))


def assert_follows(runner, twins):
    """What the forward pass sees, the true weights, and the masks bit by bit."""
    for variable, weight, one in zip(runner.variables, runner.weights(), twins):
        assert one.gap > 1e-4  # float32 sees which score is larger
        assert near(weight, one.effective)
        assert near(runner.slot(variable, "true_weight"), one.weight)
        np.testing.assert_array_equal(to_numpy(runner.optimizer.subnetwork(variable)), one.mask)


def assert_same(one, other):
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def compiled(optimizer, **arguments):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="dense")])
    if BACKEND == "tensorflow":  # where XLA's compilation takes longest; `make` has a mode for it
        arguments = {"jit_compile": False, **arguments}
    model.compile(optimizer=optimizer, loss="mse", **arguments)
    return model


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 4)).astype("float32")
    return x, (x @ random.normal(size=(4, 3))).astype("float32")


def fit(model, epochs=1, callbacks=(), swap=True, **arguments):
    x, y = data()
    callbacks = [*([SwapTrueWeights()] if swap else []), *callbacks]
    arguments = {"batch_size": 4, "shuffle": False, "verbose": 0, **arguments}
    return model.fit(x, y, epochs=epochs, callbacks=callbacks, **arguments)
