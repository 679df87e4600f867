"""The example as a whole job on real text and a tiny encoder, and its parts."""

import json
import re

import finetune_dps
import numpy as np
import pytest
from common import repeated
from example_runs import stopped, whole_job
from matplotlib.image import imread

pytestmark = whole_job("torch")
MADE_UP = [0.25, 0.75]


def options_of(output, preset):
    arguments = ["--quick", "--preset", preset, "--output", str(output)]
    return [*arguments, "--sizes", "20", "40", "--seeds", "2", "--update-ratio", "0.2"]


def run(arguments, capsys):
    """The table as a dict of size and optimizer to the other cells, and the runs of the file."""
    finetune_dps.main(arguments)
    output = capsys.readouterr().out
    rows = re.findall(r"^ *(\d+) +(\w+) +(\S+) +(\S+) +(\S+) +(\S+) +(\S+)$", output, re.M)
    table = {(int(size), arm): [float(cell) for cell in cells] for size, arm, *cells in rows}
    path = finetune_dps.parse_arguments(arguments).output / "runs.jsonl"
    trained = re.findall(r"^(\w+), (\d+) sentences, seed (\d)$", output, re.M)
    return table, path, trained


def test_finished_runs_are_kept_and_a_seed_reproduces(tmp_path, tiny_preset, capsys):
    arguments = options_of(tmp_path, tiny_preset)
    options = finetune_dps.parse_arguments(arguments)
    runs = repeated.Runs(tmp_path / "runs.jsonl")
    for arm in finetune_dps.ARMS:
        for key, accuracy in zip(finetune_dps.keys(arm, 20, options), MADE_UP):
            runs.add(key, {"accuracy": accuracy, "loss": 1.0, "s": 2.0})
    with open(tmp_path / "runs.jsonl", "a") as file:
        file.write('{"run": {"arm": "Ada')  # of a run that was killed

    table, path, trained = run(arguments, capsys)
    assert list(table) == [(size, arm) for size in (20, 40) for arm in finetune_dps.ARMS]
    assert trained == [(arm, "40", seed) for arm in finetune_dps.ARMS for seed in "01"]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 16
    for (size, arm), (rate, mean, deviation, worst, seconds) in table.items():
        assert rate == (3e-4 if arm == "Sage" else 2e-4)
        found = [
            line["result"]
            for line in lines
            if (line["run"]["size"], line["run"]["arm"]) == (size, arm)
        ]
        accuracies = [one["accuracy"] for one in found]
        if size == 20:
            assert accuracies == MADE_UP
            assert (mean, deviation, worst, seconds) == (0.5, 0.3536, 0.25, 2.0)
        assert all(0 <= one <= 1 for one in accuracies)
        assert mean == pytest.approx(np.mean(accuracies), abs=1e-4)
        assert worst == pytest.approx(min(accuracies), abs=1e-4)
        losses = [one["loss"] for one in found]
        assert size == 20 or abs(losses[0] - losses[1]) > 1e-4  # seeds differ
    assert imread(tmp_path / "finetune_dps.png").shape == (420, 780, 4)

    # The last run came after another on the same compiled model, and now is the first.
    path.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    _, _, trained = run(arguments, capsys)
    assert trained == [("DPSMix", "40", "1")]
    again = json.loads(path.read_text().splitlines()[-1])
    assert again["run"] == lines[-1]["run"]
    assert again["result"]["loss"] == pytest.approx(lines[-1]["result"]["loss"], rel=1e-6)


def test_differences_are_of_pairs(capsys):
    accuracies = {"AdamW": (0.5, 0.6), "Sage": (0.6, 0.8), "DPSDense": (0.4, 0.5), "DPSMix": (0, 1)}
    results = {
        (arm, size): [{"accuracy": one + size} for one in pair]
        for size in (0.0, 0.1)
        for arm, pair in accuracies.items()
    }
    finetune_dps.print_differences(results)
    rows = [line.split() for line in capsys.readouterr().out.strip().splitlines()]
    assert rows == [
        ["to", "AdamW", "pairs", "mean", "std", "error"],
        ["Sage", "4", "+0.1500", "0.0289"],  # of 0.1, 0.2, 0.1, 0.2
        ["DPSDense", "4", "-0.1000", "0.0000"],
        ["DPSMix", "4", "-0.0500", "0.2598"],
    ]


def test_other_settings_are_other_runs(tmp_path):
    parse = finetune_dps.parse_arguments
    runs = repeated.Runs(tmp_path / "runs.jsonl")
    (key,) = finetune_dps.keys("DPSMix", 300, parse(["--seeds", "1"]))
    runs.add(key, {"accuracy": 0.5})
    again = repeated.Runs(tmp_path / "runs.jsonl")
    assert again[key] == {"accuracy": 0.5}
    for argument, value in {
        "--drop-rate": "0.5",
        "--learning-rate": "1e-3",
        "--epochs": "9",
    }.items():
        (other,) = finetune_dps.keys("DPSMix", 300, parse(["--seeds", "1", argument, value]))
        assert other not in again


def test_a_smaller_size_is_part_of_a_larger_one():
    pool = repeated.movie_snippets(400, 10, seed=0).train
    small, large = (repeated.draw_examples(pool, size, seed=3) for size in (30, 50))
    assert large.texts[:30] == small.texts
    assert repeated.draw_examples(pool, 30, seed=4).texts != small.texts
    labels = dict(zip(pool.texts, pool.labels))
    assert all(labels[text] == label for text, label in zip(large.texts, large.labels))


def test_every_epoch_has_whole_batches_in_an_order_of_its_own():
    examples = repeated.Examples([str(i) for i in range(10)], np.arange(10) % 2)
    passes = repeated.all_epochs(examples, epochs=2, batch_size=4, seed=0)
    first, second = passes.texts[:8], passes.texts[8:]
    assert len(set(first)) == len(set(second)) == 8
    assert first != second
    assert passes.labels.tolist() == [int(text) % 2 for text in passes.texts]


def test_what_the_optimizer_refuses_ends_with_status_2(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    line = stopped(finetune_dps, capsys, "--sizes", "80", "--epochs", "1", *output)
    assert "`total_steps` and `update_ratio` leave no update" in line
    assert not (tmp_path / "out").exists()
