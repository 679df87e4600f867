"""The example as a whole job on real text, and its parts."""

import json
import re
import subprocess
import sys

import pytest
import watch_training

from sage_keras.analysis import read_log


def test_quick_run_on_real_text(examples, tmp_path):
    script = str(examples / "watch_training.py")
    command = [sys.executable, script, "--quick", "--output", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    for name, guide in {"AdamW": False, "Sage": True}.items():
        log = read_log(tmp_path / name)
        assert log.steps.tolist() == [4, 8, 12, 16]
        assert log.optimizers[0]["guide"] is guide
        # Six layers of query, key, value, attention output, and two dense layers.
        assert len(log.groups) == 36
        assert sum(group.parameters for group in log.groups.values()) == log.model.parameters
        assert log.model.parameters == 10_637_568
        assert (log.model.values["scale_mean"] > 0.3).all()
        assert (log.model.values["scale_mean"] < 0.8).all()
        final = log.model.values["mean"][-1]
        row = re.search(rf"^ *{name} +16 +(\S+) +(\S+)% +(\S+)$", run.stdout, re.MULTILINE)
        assert float(row[1]) == pytest.approx(final, rel=0.01)
        # What the optimizer itself says, in the summary.
        assert f"Mean sensitivity: {final:.2e}" in run.stdout
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    # Three pictures of each run, and the loss and accuracy of the pruned models.
    assert page.count("<img ") == 8
    curves = re.findall(
        r"^ *(AdamW|Sage), by (\w+) ((?: +\d\.\d{4}){7})$", run.stdout, re.MULTILINE
    )
    assert [curve[:2] for curve in curves] == [
        (name, ranking) for name in ("AdamW", "Sage") for ranking in ("sensitivity", "magnitude")
    ]
    assert curves[0][2].split()[0] == curves[1][2].split()[0]  # nothing is pruned yet


def test_log_of_an_earlier_run_is_removed_and_nothing_else(tmp_path):
    for name in ("sensitivity.jsonl", "events.out.tfevents.1", "notes.txt"):
        (tmp_path / name).write_text(json.dumps(name))
    watch_training.remove_log(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    watch_training.remove_log(tmp_path / "missing")
