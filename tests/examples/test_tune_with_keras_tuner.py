"""The example as a whole job, and the search space that it spans."""

import keras
import keras_tuner
import numpy as np
import pytest
import tune_with_keras_tuner
from example_runs import run_here, whole_job
from matplotlib.image import imread

from sage_keras import Sage

pytestmark = whole_job("jax")


def test_quick_search(tmp_path, capsys):
    output = run_here(tune_with_keras_tuner, capsys, tmp_path, "--quick", "--verbose", "0")
    header, *rows = [
        line.split() for line in output.splitlines() if "e-0" in line or "beta" in line
    ]
    assert header == ["optimizer", "learning", "rate", "beta_3", "val", "loss", "val", "accuracy"]
    assert len(rows) == 6
    assert {row[0] for row in rows} == {"AdamW", "Sage"}
    for name, learning_rate, beta_3, _, _ in rows:
        assert 1e-4 <= float(learning_rate) <= 1e-1
        assert (beta_3 == "-") == (name == "AdamW")
        assert name == "AdamW" or 0.6 <= float(beta_3) <= 0.9
    losses, accuracies = np.array([row[3:] for row in rows], dtype=float).T
    assert (np.diff(losses) >= 0).all()  # the best comes first
    assert losses[0] < 0.4
    assert accuracies[0] > 0.9
    assert imread(tmp_path / "tune_with_keras_tuner.png").shape == (450, 700, 4)


def test_trial_has_the_optimizer_that_its_values_say():
    parameters = keras_tuner.HyperParameters()
    tune_with_keras_tuner.build_model(parameters, seed=0)
    parameters.values.update({"optimizer": "Sage", "learning_rate": 0.02, "beta_3": 0.7})
    guided = tune_with_keras_tuner.build_model(parameters, seed=0).optimizer
    assert isinstance(guided, Sage)
    assert float(guided.learning_rate) == pytest.approx(0.02)
    assert guided.beta_3 == 0.7
    parameters.values["optimizer"] = "AdamW"
    plain = tune_with_keras_tuner.build_model(parameters, seed=0).optimizer
    assert type(plain) is keras.optimizers.AdamW
    assert float(plain.learning_rate) == pytest.approx(0.02)
