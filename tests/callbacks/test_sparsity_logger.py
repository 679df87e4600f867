"""What the logger of pruned runs reports, writes and draws."""

import keras
import numpy as np
import pytest

from sage_keras import Platon, PrunedAdamW, Sage
from sage_keras.analysis import read_log, read_sparsity_log, write_report
from sage_keras.callbacks import SensitivityLogger, SparsityLogger


def fit(optimizer, callbacks, epochs=3):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(5, name="up"), keras.layers.Dense(2, name="down")]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=keras.backend.backend() != "jax")
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    history = model.fit(x, x[:, :2], 4, epochs=epochs, verbose=0, callbacks=callbacks).history
    return model, history


def test_the_sparsity_of_model_and_layers(tmp_path):
    optimizer = PrunedAdamW(final_sparsity=0.9, begin_step=0, end_step=9, update_freq=3)
    model, history = fit(optimizer, [SparsityLogger(tmp_path, update_freq=2)])
    # Of 30 weights, at the steps 3, 6 and 9: 0.9 * (1 - (2/3)^3), 0.9 * (1 - (1/3)^3) and 0.9.
    assert [round(30 * one) for one in history["sparsity"]] == [19, 26, 27]
    log = read_sparsity_log(tmp_path)
    assert log.steps.tolist() == [2, 4, 6, 8, 10, 12]
    assert log.epochs.tolist() == [0, 0, 1, 1, 2, 2]
    counts = np.round(30 * log.model.values["sparsity"]).astype(int)
    assert counts.tolist() == [0, 19, 26, 26, 27, 27]
    assert log.model.parameters == 30
    for name, size in {"up": 20, "down": 10}.items():
        kernel = model.get_layer(name).get_weights()[0]
        assert log.groups[name].parameters == size
        assert log.groups[name].values["sparsity"][-1] == pytest.approx(np.mean(kernel == 0))
    assert log.optimizers == [
        {"class": "PrunedAdamW", "score": "magnitude", "final_sparsity": 0.9, "end_step": 9}
    ]


def test_epochs_end_with_a_report(tmp_path):
    optimizer = Platon(final_sparsity=0.5, begin_step=0, end_step=4, update_freq=4)
    _, history = fit(optimizer, [SparsityLogger(tmp_path)], epochs=2)
    assert history["sparsity"] == [0.5, 0.5]
    assert read_sparsity_log(tmp_path).steps.tolist() == [4, 8]


@pytest.mark.backend_agnostic
def test_an_optimizer_that_does_not_prune_is_refused():
    with pytest.raises(ValueError, match=r"optimizer prunes nothing.*Received: optimizer=<Sage"):
        fit(Sage(), [SparsityLogger()])


@pytest.mark.backend_agnostic
def test_the_report_shows_it(tmp_path):
    optimizer = PrunedAdamW(final_sparsity=0.9, begin_step=0, end_step=9, update_freq=3)
    fit(optimizer, [SparsityLogger(tmp_path, update_freq=1)])
    fit(Sage(), [SensitivityLogger(tmp_path)], epochs=1)
    sparse, dense = read_sparsity_log(tmp_path), read_log(tmp_path)
    alone = write_report({}, tmp_path / "alone.html", sparsity_logs={"run": sparse})
    page = alone.read_text(encoding="utf-8")
    assert page.count("<h2>") == page.count("<img") == 1
    assert 'alt="Share of zeros in each group of variables of run by step."' in page
    both = write_report({"run": dense}, tmp_path / "both.html", sparsity_logs={"run": sparse})
    assert both.read_text(encoding="utf-8").count("<h2>Sparsity</h2>") == 1
    with pytest.raises(ValueError, match="`sparsity_logs` must hold logs of a SparsityLogger"):
        write_report({}, tmp_path / "none.html", sparsity_logs={"run": dense})
