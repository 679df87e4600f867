"""The example as a whole job on GLUE's file formats, and its metrics."""

import finetune_glue
import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from common.encoders import text_classifier
from example_runs import parse_table, run_example, run_here, stopped, whole_job
from glue_files import write_mrpc, write_stsb
from matplotlib.image import imread

from sage_keras import LayerwiseAdamW, LayerwiseLearningRate, Sage

pytestmark = whole_job("jax")
SUBJECTS = ["The cat", "My old neighbour", "A black dog", "The president", "Her little brother"]
VERBS = [
    ("sleeps", "is asleep"),
    ("runs", "is running"),
    ("sings", "is singing"),
    ("eats", "dines"),
]
PLACES = ["in the garden", "at home", "near the river", "on the train", "behind the church"]


def sentence_pairs(count, seed):
    """Two sentences that say the same, or differ in who, what and where; and 1 or 0."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        (who, other), (what, others), (where, elsewhere) = (
            generator.choice(len(choices), 2, replace=False)
            for choices in (SUBJECTS, VERBS, PLACES)
        )
        first = f"{SUBJECTS[who]} {VERBS[what][0]} {PLACES[where]}."
        same = f"{SUBJECTS[who]} {VERBS[what][1]} {PLACES[where]}."
        different = f"{SUBJECTS[other]} {VERBS[others][1]} {PLACES[elsewhere]}."
        is_same = int(generator.integers(2))
        rows.append((first, same if is_same else different, is_same))
    return rows


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which TFDS prepared two tasks from raw files."""
    folder = tmp_path_factory.mktemp("tfds")
    train, validation = sentence_pairs(256, seed=0), sentence_pairs(96, seed=1)
    write_mrpc(folder, train, validation)
    # In the words of the tiny preset; only the second sentence tells.
    scored = [
        ("a question", f"a {word} sentence", score)
        for word, score in {"dull": 0.8, "bad": 0.2, "fine": 4.1, "good": 4.9}.items()
    ]
    write_stsb(folder, 64 * scored, 24 * scored)
    for task in ("mrpc", "stsb"):
        tfds.builder(f"glue/{task}", data_dir=folder).download_and_prepare()
    return str(folder)


@pytest.mark.extended
def test_quick_run_on_sentence_pairs(tmp_path, data_dir):
    output = run_example("finetune_glue.py", tmp_path, "--quick", "--data-dir", data_dir)
    table = parse_table(output)
    assert list(table) == ["AdamW", "Sage"]
    for row in table.values():
        assert row["F1 1"] == row["final F1"]
        assert float(row["final F1"]) > 0.9
        assert float(row["final accuracy"]) > 0.9
    assert table["AdamW"]["mean scale"] == "-"
    assert 0.35 < float(table["Sage"]["mean scale"]) < 0.9
    assert imread(tmp_path / "finetune_glue_mrpc.png").shape == (450, 1200, 4)


def test_scores_are_a_regression(tmp_path, data_dir, tiny_preset, capsys):
    arguments = ["--quick", "--task", "stsb", "--data-dir", data_dir, "--preset", tiny_preset]
    arguments += ["--sequence-length", "10", "--epochs", "4"]
    arguments += ["--learning-rate", "0.003", "--sage-learning-rate", "0.006"]
    arguments += ["--layer-decay", "0.9"]
    table = parse_table(run_here(finetune_glue, capsys, tmp_path, *arguments))
    columns = [*(f"Pearson {epoch}" for epoch in (1, 2, 3, 4)), "final Pearson", "final Spearman"]
    assert list(table["Sage"])[1:7] == columns
    assert all(float(row["final Pearson"]) > 0.9 for row in table.values())
    assert table["AdamW"]["mean scale"] == "-"
    assert 0.35 < float(table["Sage"]["mean scale"]) < 0.9
    assert imread(tmp_path / "finetune_glue_stsb.png").shape == (450, 1200, 4)


@pytest.mark.parametrize(("name", "kind"), [("AdamW", LayerwiseAdamW), ("Sage", Sage)])
def test_rates_fall_from_the_head_to_the_embeddings(tiny_preset, name, kind):
    model = text_classifier(tiny_preset, 2, seed=0)
    options = finetune_glue.parse_arguments(["--layer-decay", "0.5"])
    optimizer = finetune_glue.make_optimizer(name, model, options)
    assert isinstance(optimizer, kind)
    optimizer.build(model.trainable_variables)
    factors = {
        part: {factor for path, factor in optimizer.multipliers.items() if part in path}
        for part in ("embedding", "transformer_layer_0/", "pooled_dense/", "logits/")
    }
    assert factors == {
        "embedding": {0.25},
        "transformer_layer_0/": {0.5},
        "pooled_dense/": {1.0},
        "logits/": {1.0},
    }
    plain = finetune_glue.make_optimizer(name, model, finetune_glue.parse_arguments([]))
    assert not isinstance(plain, LayerwiseLearningRate)


def test_decay_that_cannot_be_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        finetune_glue.parse_arguments(["--layer-decay", "1.5"])
    assert stop.value.code == 2
    error = "argument --layer-decay: must be a number between 0 and 1. Received: 1.5"
    assert error in capsys.readouterr().err
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(SystemExit) as stop:
        finetune_glue.decay_by_depth(model, 0.9)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert "a built model with transformer blocks" in line


def test_every_task_has_the_metrics_of_glue():
    names = {task: list(metrics) for task, metrics in finetune_glue.TASKS.items()}
    assert {config.name for config in tfds.text.Glue.builder_configs.values()} >= set(names)
    assert names["cola"] == ["Matthews"]
    assert names["mrpc"] == names["qqp"] == ["F1", "accuracy"]
    assert names["stsb"] == ["Pearson", "Spearman"]
    assert all(names[task] == ["accuracy"] for task in ("mnli", "qnli", "rte", "sst2", "wnli"))


def test_metrics_against_their_definitions():
    labels, predictions = np.array([1, 1, 1, 0, 0, 1]), np.array([1, 1, 0, 1, 0, 1])
    true, false_positive, false_negative, rest = 3, 1, 1, 1
    f1 = finetune_glue.TASKS["mrpc"]["F1"](labels, predictions)
    assert f1 == pytest.approx(2 * true / (2 * true + false_positive + false_negative))
    matthews = finetune_glue.TASKS["cola"]["Matthews"](labels, predictions)
    expected = (true * rest - false_positive * false_negative) / np.sqrt(4 * 4 * 2 * 2)
    assert matthews == pytest.approx(expected)
    scores, guesses = np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.0, 1.0, 4.0, 9.0])
    correlations = finetune_glue.TASKS["stsb"]
    assert correlations["Pearson"](scores, guesses) == pytest.approx(
        np.corrcoef(scores, guesses)[0, 1]
    )
    assert correlations["Spearman"](scores, guesses) == pytest.approx(1.0)


def test_missing_set_is_one_line_and_status_2(tmp_path, capsys, monkeypatch):
    def no_network(url, timeout):
        assert timeout <= 5
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    line = stopped(finetune_glue, capsys, "--data-dir", str(tmp_path))
    assert "The data set glue/mrpc is not prepared in " in line
    assert "tfds.load('glue/mrpc')" in line


def test_missing_preset_is_one_line_and_status_2(data_dir, capsys):
    arguments = ["--data-dir", data_dir, "--preset", "no_such_preset", "--quick"]
    line = stopped(finetune_glue, capsys, *arguments)
    assert "The preset 'no_such_preset' cannot be loaded (" in line
    assert line.endswith("or the folder of one, with --preset.")
