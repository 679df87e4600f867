"""The arms of benchmarks.step do what their names say."""

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy

from benchmarks import steps

SHAPES = [(4, 3), (3,)]
MODE = {"tensorflow": "graph", "jax": "xla", "torch": "eager"}[BACKEND]


@pytest.mark.parametrize(
    ("name", "slots"), [("AdamW", 2), ("Sage", 3), ("SageSGD", 1), (steps.BFLOAT16, 2.5)]
)
def test_state_is_one_more_value_for_each_parameter(name, slots):
    arms = steps.Arms(SHAPES)
    assert arms.make(f"{MODE} {name}") == slots * 4 * 15
    assert arms.seconds(f"{MODE} {name}", calls=2) > 0


@pytest.mark.parametrize(("name", "slots"), [("DPSDense", 3), ("DPSMix", 6)])
@pytest.mark.parametrize(("ending", "stage"), [("", 1), (steps.STAGE_II, 2)])
def test_dps_is_timed_in_both_stages(name, slots, ending, stage, monkeypatch):
    arms = steps.Arms(SHAPES)
    kind = f"_{BACKEND}_{MODE}"
    compiled = getattr(arms, kind)
    found = []

    def noted(optimizer, variables):
        found.append((type(optimizer).__name__, optimizer.stage))
        return compiled(optimizer, variables)

    monkeypatch.setattr(arms, kind, noted)
    state = arms.make(f"{MODE} {name}{ending}")
    assert arms.seconds(f"{MODE} {name}{ending}", calls=2) > 0
    assert found == [(name, stage)]
    assert slots * 4 * 15 <= state < slots * 4 * 15 + 120  # and what a column or a variable has


def test_bandwidth_is_measured_on_the_weights_alone():
    arms = steps.Arms(SHAPES)
    assert arms.make(f"{MODE} {steps.COPY}") == 0
    assert arms.seconds(f"{MODE} {steps.COPY}", calls=2) > 0


@pytest.mark.skipif(BACKEND != "torch", reason="the literal rendering is in torch")
def test_literal_rendering_is_sage():
    arms = steps.Arms(SHAPES)
    weights = []
    random = arms._random

    def remembered(size, seed):
        weights.append(random(size, seed))
        return weights[-1]

    arms._random = remembered
    arms.make(f"eager {steps.LITERAL}")
    arms.seconds(f"eager {steps.LITERAL}", calls=4)
    optimizer = steps.make_optimizer("Sage")
    variables = [keras.Variable(w) for w in random(0.02, seed=0)]
    for _ in range(5):
        optimizer.apply(arms.gradients, variables)
    # The literal one updates in place the arrays that it began with.
    for literal, variable, start in zip(weights[0], variables, random(0.02, seed=0)):
        moved = to_numpy(variable) - start
        np.testing.assert_allclose(literal - start, moved, atol=2e-3 * np.abs(moved).max())
