"""Runs at once are the runs one by one."""

import dataclasses

import numpy as np
import pytest
from modes import BACKEND
from tiny_task import ARM, TASK, load

from evidence import training

pytestmark = [
    pytest.mark.extended,
    pytest.mark.skipif(BACKEND != "jax", reason="runs at once need JAX"),
]
RUNS = [(3e-2, 1), (6e-2, 1), (3e-2, 2)]


@pytest.mark.parametrize("name", ["Sage 0.75", "MeanScale 0.75", "DPSDense", "RandomScale 0.75"])
def test_runs_at_once_are_the_runs_one_by_one(name, monkeypatch):
    from evidence.at_once import Batch

    arm = ARM[name]
    if name == "DPSDense":
        # The gradients of two logits differ in their sign alone: rounding would choose among them.
        arguments = {"stage_steps": 4, "exclude": ["logits"]}
        arm = dataclasses.replace(arm, arguments=lambda total, warmup: arguments)
    monkeypatch.setattr(training, "VALIDATION_BATCH_SIZE", 32)
    monkeypatch.setattr("evidence.at_once.VALIDATION_BATCH_SIZE", 32)
    found = Batch(TASK, load(), arm, count=4).run(RUNS)
    trainer = training.Trainer(TASK, load(), arm)
    wanted = [trainer.run(*run) for run in RUNS]
    assert len({one["train_loss"] for one in wanted}) == 3
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one["train_loss"], other["train_loss"], rtol=1e-5)
        assert one["value"] == other["value"]


def test_arms_that_mix_weights_are_refused():
    from evidence.at_once import Batch

    arm = dataclasses.replace(ARM["DPSMix"], arguments=lambda total, warmup: {"stage_steps": 4})
    with pytest.raises(ValueError, match="DPSMix mixes weights"):
        Batch(TASK, load(), arm, count=1)
