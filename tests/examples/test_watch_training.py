"""The example as a whole job on a tiny encoder, and its parts."""

import json
import re

import pytest
import watch_training
from common.encoders import minilm_folder, text_classifier
from example_runs import run_here, whole_job

from sage_keras.analysis import read_log

pytestmark = whole_job("torch")


def test_logs_table_pruning_and_report(tmp_path, tiny_text, capsys):
    arguments = ["--train-size", "64", "--validation-size", "16", "--epochs", "2"]
    arguments += ["--batch-size", "8", "--sequence-length", "8", "--update-freq", "4"]
    arguments += ["--learning-rate", "1e-2", "--sage-learning-rate", "2e-2"]
    output = run_here(tiny_text(watch_training), capsys, tmp_path, *arguments)

    for name, guide in {"AdamW": False, "Sage": True}.items():
        log = read_log(tmp_path / name)
        assert log.steps.tolist() == [4, 8, 12, 16]
        assert log.optimizers[0]["guide"] is guide
        # Query, key, value, attention output, and two dense layers, with their biases.
        assert len(log.groups) == 6
        assert sum(group.parameters for group in log.groups.values()) == log.model.parameters
        assert log.model.parameters == 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32)
        assert (log.model.values["scale_mean"] > 0.3).all()
        assert (log.model.values["scale_mean"] < 1.2).all()
        final = log.model.values["mean"][-1]
        row = re.search(rf"^ *{name} +16 +(\S+) +(\S+)% +(\S+)$", output, re.MULTILINE)
        assert float(row[1]) == pytest.approx(final, rel=0.01)
        # What the optimizer itself says, in the summary.
        assert f"Mean sensitivity: {final:.2e}" in output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    # Of each run three pictures, its loss and its accuracy; and those of the pruned models.
    assert page.count("<img ") == 2 * (3 + 2) + 2
    curves = re.findall(r"^ *(AdamW|Sage), by (\w+) ((?: +\d\.\d{4}){7})$", output, re.MULTILINE)
    assert [curve[:2] for curve in curves] == [
        (name, ranking) for name in ("AdamW", "Sage") for ranking in ("sensitivity", "magnitude")
    ]
    assert curves[0][2].split()[0] == curves[1][2].split()[0]  # nothing is pruned yet


@pytest.mark.extended
def test_groups_of_the_real_encoder():
    classifier = text_classifier(minilm_folder(), 2, seed=0)
    options = watch_training.parse_arguments([])
    optimizer = watch_training.make_optimizers(options)["Sage"]
    optimizer.build(classifier.trainable_variables)
    groups = {watch_training.name_sublayer(variable) for variable in optimizer.guided_variables}
    # Six layers of query, key, value, attention output, and two dense layers.
    assert len(groups) == 36
    assert {group.split("/")[0] for group in groups} == {f"layer_{n}" for n in range(6)}


def test_log_of_an_earlier_run_is_removed_and_nothing_else(tmp_path):
    for name in ("sensitivity.jsonl", "events.out.tfevents.1", "notes.txt"):
        (tmp_path / name).write_text(json.dumps(name))
    watch_training.remove_log(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    watch_training.remove_log(tmp_path / "missing")
