"""The loop that benchmarks.loop times is so many steps of the optimizer."""

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy

from benchmarks import optimizers, steps

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="the loop is JAX's")
FACTORS = [0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    "name", ["AdamW", "Sage", steps.BFLOAT16, optimizers.CALIBRATED, "LayerwiseAdamW"]
)
def test_loop_is_so_many_steps(name):
    from benchmarks import loop as timed

    random = np.random.default_rng(0)
    draws, gradients = (
        [random.normal(size=shape).astype("float32") for shape in ((4, 3), (3,))] for _ in range(2)
    )
    loop, state, _ = timed.make(name, draws)
    looped, _ = loop(state, gradients, np.array(FACTORS, "float32"))
    optimizer = optimizers.make(name)
    variables = optimizers.variables(draws)
    for factor in FACTORS:
        optimizer.apply([keras.ops.array(factor * one) for one in gradients], variables)
    for one, variable, start in zip(looped, variables, draws, strict=True):
        moved = to_numpy(variable) - start
        assert np.abs(moved).max() > 5e-5
        np.testing.assert_allclose(np.asarray(one) - start, moved, atol=1e-2 * np.abs(moved).max())


def test_read_and_write_is_of_the_weights_alone():
    from benchmarks import loop as timed

    loop, state, size = timed.make(steps.COPY, [np.ones((2, 2), "float32")])
    assert size == 0
    np.testing.assert_allclose(loop(state, [], np.array(FACTORS, "float32"))[0], 0.75)
