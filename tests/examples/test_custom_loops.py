"""The loop of this backend as a whole job; the three end near the same accuracy."""

import importlib
import re

import keras
import numpy as np
import pytest


def test_loop_learns_the_digits(capsys):
    importlib.import_module(f"custom_loop_{keras.backend.backend()}").main()
    output = capsys.readouterr().out
    epochs = re.findall(r"^epoch \d+: loss (\S+), validation accuracy (\S+)$", output, re.M)
    losses, accuracies = np.array(epochs, dtype=float).T
    assert len(losses) == 20
    assert losses[0] > 1.0
    assert losses[-1] < 0.2
    assert 0.95 < accuracies[-1] < 0.99
    sensitivities = re.findall(r"^(\S+): mean sensitivity (\S+)$", output, re.M)
    # Keras counts the names that it makes up, over all models of a process.
    paths = [re.sub(r"_\d+/", "/", path.partition("/")[2]) for path, _ in sensitivities]
    assert paths == ["dense/kernel", "dense/bias"] * 2
    assert all(1e-5 < float(value) < 1e-1 for _, value in sensitivities)


@pytest.mark.backend_agnostic
def test_what_is_there_to_be_copied_needs_nothing_else_of_the_examples(examples):
    names = {path.name for path in examples.glob("*.py") if "common" not in path.read_text()}
    loops = {f"custom_loop_{backend}.py" for backend in ("jax", "tensorflow", "torch")}
    assert names == {*loops, "resume_training.py"}
