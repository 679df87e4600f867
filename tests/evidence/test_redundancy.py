"""Redundancy of a trained model: the numbers of a run, and a file that is added to once."""

import keras
import numpy as np
import pytest

from evidence import lines as results
from evidence import redundancy
from evidence.arms import ARMS
from evidence.tasks import Data, Task


def make_model():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(6, activation="relu", name="block_0")(inputs)
    return keras.Model(inputs, keras.layers.Dense(2, name="logits")(x))


def load():
    x = np.random.default_rng(0).normal(size=(128, 4)).astype("float32")
    y = (x[:, 0] > 0).astype("int32")
    return Data((x[:64], y[:64]), (x[64:], y[64:]))


def draw_weights(model, seed):
    keras.utils.set_random_seed(seed)
    model.set_weights(make_model().get_weights())


TASK = Task("tiny", load, make_model, draw_weights, epochs=30)


@pytest.mark.extended
def test_measure(monkeypatch):
    monkeypatch.setattr("sage_keras.TRANSFORMER_BLOCKS", ("block_0/kernel",))
    monkeypatch.setattr(redundancy, "FRACTIONS", (0.0, 0.5, 1.0))
    line = next(redundancy.measure(TASK, ARMS[0], 0.05, [1]))
    assert line["parameters"] == 24  # the block's kernel alone
    assert line["pruning"]["0.0"] == line["value"] > 0.8
    # With a kernel of zeros all examples look the same.
    assert line["pruning"]["1.0"] == pytest.approx(0.5, abs=0.2)
    assert 0.0 < line["gini"] < 1.0
    assert line["quantiles"]["0.5"] < 1.0 < line["quantiles"]["0.99"]


@pytest.mark.backend_agnostic
def test_runs_that_are_there_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr("evidence.tasks.make_tasks", lambda folder: {"tiny": TASK})
    monkeypatch.setattr(redundancy, "COMPARED", ("AdamW",))
    asked = []

    def measure(task, arm, learning_rate, seeds):
        asked.append((arm.name, learning_rate, list(seeds)))
        yield {"task": task.name, "arm": arm.name, "seed": seeds[0]}

    monkeypatch.setattr(redundancy, "measure", measure)
    tuned, path = tmp_path / "runs.jsonl", tmp_path / "redundancy.jsonl"
    command = [
        "--tasks",
        "tiny",
        "--tuned",
        str(tuned),
        "--results",
        str(path),
        "--seeds",
        "0",
        "1",
    ]
    with pytest.raises(SystemExit, match="AdamW is not tuned on tiny"):
        redundancy.main(command)
    for rate, value in ((0.1, 0.5), (0.2, 0.6)):
        line = {"task": "tiny", "arm": "AdamW", "beta_3": None, "phase": "tune"}
        results.append(tuned, line | {"learning_rate": rate, "value": value})
    redundancy.main(command)
    redundancy.main(command)
    assert asked == [("AdamW", 0.2, [0, 1]), ("AdamW", 0.2, [1])]
