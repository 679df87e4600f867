"""The example as a whole job, where it can run at all."""

import re

import finetune_tfhub
import pytest
from example_runs import (
    parse_table,
    positive_probability,
    reloaded_accuracy,
    run_example,
    run_here,
    stopped,
)
from matplotlib.image import imread
from modes import BACKEND

tensorflow_only = pytest.mark.skipif(BACKEND != "tensorflow", reason="the example stops; see below")


@tensorflow_only
@pytest.mark.extended
def test_tiny_module_is_trained_and_saved(tmp_path, tiny_text, capsys):
    arguments = ["--train-size", "64", "--validation-size", "16", "--epochs", "3"]
    arguments += ["--batch-size", "8", "--sequence-length", "8", "--learning-rate", "1e-2"]
    arguments += ["--sage-learning-rate", "2e-2", "--text", "a good sentence"]
    output = run_here(tiny_text(finetune_tfhub), capsys, tmp_path, *arguments)
    table = parse_table(output)
    assert list(table) == ["AdamW", "Sage"]
    assert {row["final"] for row in table.values()} == {"1.0000"}
    assert 0.3 < float(table["Sage"]["mean scale"]) < 0.95
    # Three embeddings, three norms, six dense layers, and the pooled one.
    for name in table:
        assert f"{name} moved 23 of the 23 trainable weights of the module" in output
    assert reloaded_accuracy(output) == 1.0
    assert positive_probability(output, "a good sentence") > 0.5
    assert imread(tmp_path / "finetune_tfhub.png").shape == (450, 1200, 4)


@tensorflow_only
@pytest.mark.extended
def test_quick_run_on_real_text(tmp_path):
    text = "A moving, funny and gorgeous film."
    output = run_example("finetune_tfhub.py", tmp_path, "--quick", "--text", text)
    table = parse_table(output)
    assert list(table) == ["AdamW", "Sage"]
    assert all(0.6 < float(row["final"]) < 0.95 for row in table.values())
    assert 0.3 < float(table["Sage"]["mean scale"]) < 0.9
    for name in table:
        assert f"{name} moved 103 of the 103 trainable weights of the module" in output
    better = max(float(row["final"]) for row in table.values())
    reloaded = float(re.search(r"Loaded again, validation accuracy (\S+)", output)[1])
    assert reloaded == pytest.approx(better, abs=1e-4)
    assert re.search(rf"^positive \(0\.\d+\): {re.escape(text)}$", output, re.M)
    assert imread(tmp_path / "finetune_tfhub.png").shape == (450, 1200, 4)


@tensorflow_only
def test_missing_module_is_one_line_and_status_2(tmp_path, capsys):
    line = stopped(finetune_tfhub, capsys, "--handle", str(tmp_path / "no_module"))
    assert "Argument `handle` must be the URL of a module" in line


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it is the backend that it needs")
def test_other_backends_are_one_line_and_status_2(capsys):
    line = stopped(finetune_tfhub, capsys)
    assert line.endswith("needs TensorFlow as Keras's backend: set KERAS_BACKEND=tensorflow.")
