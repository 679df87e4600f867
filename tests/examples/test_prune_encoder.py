"""The example as a whole job on real text and a tiny encoder, and its parts."""

import json
import re

import prune_encoder
import pytest
from common import repeated
from example_runs import stopped, whole_job
from matplotlib.image import imread


@whole_job("tensorflow")
@pytest.mark.extended
def test_runs_have_the_sparsity_that_they_are_named_after(tmp_path, tiny_preset, capsys):
    arguments = ["--quick", "--preset", tiny_preset, "--output", str(tmp_path)]
    arguments += ["--sparsities", "0.75", "--size", "20"]
    prune_encoder.main(arguments)
    output = capsys.readouterr().out
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    zeros = {line["run"]["arm"]: line["result"]["zeros"] for line in lines}
    assert zeros["AdamW"] < 0.01
    assert zeros["PrunedAdamW"] == pytest.approx(0.75, abs=1e-3)
    assert zeros["Platon"] == pytest.approx(0.75, abs=1e-3)
    assert re.search(r"^ +Platon +75\.0% +\d\.\d{4} +- ", output, re.MULTILINE)
    assert imread(tmp_path / "prune_encoder.png").shape == (440, 700, 4)

    prune_encoder.main(arguments)  # all of it is there
    assert "seed" not in capsys.readouterr().out


def test_differences_are_of_pairs_of_one_seed(capsys):
    accuracies = {
        ("AdamW", 0.0): (0.8, 0.9),
        ("PrunedAdamW", 0.5): (0.6, 0.7),
        ("Platon", 0.5): (0.8, 0.7),
    }
    results = {key: [{"accuracy": one} for one in pair] for key, pair in accuracies.items()}
    prune_encoder.print_differences(results)
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if len(row) > 1] == [
        ["difference", "sparsity", "pairs", "mean", "std error"],
        ["PrunedAdamW - AdamW", "50%", "2", "-0.2000", "0.0000"],
        ["Platon - AdamW", "50%", "2", "-0.1000", "0.1000"],
        ["Platon - PrunedAdamW", "50%", "2", "+0.1000", "0.1000"],
    ]


def test_the_optimizers_differ_in_nothing_but_how_they_prune():
    options = prune_encoder.parse_arguments([])
    dense, magnitude, platon = (
        prune_encoder.make_optimizer(arm, 0.8, options).get_config()
        for arm in ("AdamW", "PrunedAdamW", "Platon")
    )
    differing = {name for name in platon if platon[name] != magnitude[name]}
    assert differing == {"name", "score"}
    assert all(platon[name] == dense[name] for name in dense if name != "name")
    assert (platon["total_steps"], platon["final_sparsity"]) == (8 * 62, 0.8)


def test_other_settings_are_other_runs(tmp_path):
    parse = prune_encoder.parse_arguments
    runs = repeated.Runs(tmp_path / "runs.jsonl")
    [key] = prune_encoder.keys("Platon", 0.8, parse(["--seeds", "1"]))
    runs.add(key, {"accuracy": 0.5})
    for more in (["--epochs", "9"], ["--size", "500"], ["--learning-rate", "1e-3"]):
        [other] = prune_encoder.keys("Platon", 0.8, parse(["--seeds", "1", *more]))
        assert other not in runs
    assert prune_encoder.keys("Platon", 0.5, parse(["--seeds", "1"]))[0] not in runs


def test_what_the_optimizers_refuse_ends_with_status_2(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    line = stopped(prune_encoder, capsys, "--size", "16", "--epochs", "1", *output)
    assert "total_steps" in line
    assert not (tmp_path / "out").exists()
