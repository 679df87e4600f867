"""The grid: which runs are missing, whole lines, and runs that can be repeated."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_task import ARM, TASK, load

from evidence import grid, training
from evidence import lines as results
from evidence.tasks import matthews

RATES = grid.FINE_TUNING_RATES


ALL_EXAMPLES = dataclasses.replace(TASK, train_size=None)


def make_line(arm="AdamW", beta_3=None, rate=1e-4, seed=100, phase="tune", value=0.5, task="tiny"):
    return {
        "task": task,
        "arm": arm,
        "beta_3": beta_3,
        "learning_rate": rate,
        "seed": seed,
        "phase": phase,
        "metric": "accuracy",
        "value": value,
    }


def tuned(best, **kwargs):
    return [make_line(rate=r, value=0.9 if r == best else 0.5, **kwargs) for r in RATES]


@pytest.mark.extended
@pytest.mark.parametrize("name", ["RandomScale 0.75", "DPSMix"])
def test_run_does_not_depend_on_the_runs_before_it(name):
    trainer = training.Trainer(TASK, load(), ARM.get(name))
    first, other, again = (trainer.run(3e-2, seed) for seed in (1, 2, 1))
    faster = trainer.run(6e-2, 1)
    assert first["train_loss"] == again["train_loss"]
    assert first["value"] == again["value"]
    assert len({one["train_loss"] for one in (first, other, faster)}) == 3
    # Nor on what trained before it: a new model gives the same.
    assert training.Trainer(TASK, load(), ARM[name]).run(3e-2, 1)["train_loss"] == pytest.approx(
        first["train_loss"], rel=1e-6
    )


def test_training_learns_and_takes_whole_batches():
    trainer = training.Trainer(TASK, load(), ARM["AdamW"])
    assert trainer.steps == 3
    slow, fast = trainer.run(1e-6, 1), trainer.run(1e-1, 1)
    assert fast["train_loss"] < slow["train_loss"] - 0.1
    assert int(trainer.optimizer.iterations) == 9


@pytest.mark.backend_agnostic
def test_examples_are_shuffled_in_another_way_in_each_epoch():
    _, labels = training.in_order(np.arange(70), np.arange(70), steps=2, epochs=3, seed=0)
    epochs = labels.reshape(3, 64)
    assert all(len(set(epoch)) == 64 for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    again = training.in_order(np.arange(70), np.arange(70), steps=2, epochs=3, seed=0)
    np.testing.assert_array_equal(again[1], labels)


@pytest.mark.backend_agnostic
def test_each_seed_draws_other_training_examples():
    draws = [TASK.draw_examples(load(), seed) for seed in (0, 0, 1)]
    assert all(len(labels) == 100 for _, labels in draws)
    np.testing.assert_array_equal(draws[0][0], draws[1][0])
    assert not np.array_equal(draws[0][0], draws[2][0])


@pytest.mark.backend_agnostic
def test_wrong_labels_are_another_class_for_their_share():
    task = dataclasses.replace(TASK, train_size=None, wrong_labels=0.2)
    right, wrong = (one.draw_examples(load(), 3) for one in (ALL_EXAMPLES, task))
    np.testing.assert_array_equal(right[0], wrong[0])
    assert np.count_nonzero(right[1] != wrong[1]) == 26


@pytest.mark.backend_agnostic
def test_phases_beyond_the_best_rate_and_at_that_of_adamw(tmp_path):
    path = tmp_path / "runs.jsonl"
    sage = {"arm": "Sage", "beta_3": 0.75}
    for line in tuned(best=4e-4, **sage):
        results.append(path, line)
    runs = grid.Grid(path, [ARM["Sage 0.75"]], seeds=[0])
    assert runs.missing(TASK, "adamw_rate")[0][1] is None
    for line in tuned(best=2e-4):
        results.append(path, line)
    runs = grid.Grid(path, [ARM["Sage 0.75"]], seeds=[0])
    rates = {phase: runs.missing(TASK, phase)[0][1] for phase in results.FACTORS}
    beyond = {"final": 4e-4, "twice": 8e-4, "four_times": 1.6e-3, "adamw_rate": 2e-4}
    assert rates == beyond | {"further": 4e-4}
    assert [run[1] for run in runs.missing(TASK, "further", [5e-4, 6e-4])] == [5e-4, 6e-4]
    # A run that was made for another reason is there.
    results.append(path, make_line(rate=2e-4, seed=0, phase="final", **sage))
    runs = grid.Grid(path, [ARM["Sage 0.75"]], seeds=[0])
    assert runs.missing(TASK, "adamw_rate") == []
    assert runs.missing(TASK, "final") != []


@pytest.mark.backend_agnostic
def test_missing_runs_are_those_without_a_line(tmp_path):
    path = tmp_path / "runs.jsonl"
    for line in tuned(best=4e-4)[:3]:
        results.append(path, line)
    runs = grid.Grid(path, [ARM["AdamW"], ARM["Sage 0.75"]])
    missing = [(str(arm), rate) for arm, rate, *_ in runs.missing(TASK, "tune")]
    assert missing == [
        *(("AdamW", rate) for rate in RATES[3:]),
        *(("Sage 0.75", rate) for rate in RATES),
    ]
    results.append(path, make_line(rate=4e-4, seed=2, phase="final"))
    final = grid.Grid(path, [ARM["AdamW"]]).missing(TASK, "final")
    assert [(rate, seed) for _, rate, seed, _ in final] == [(4e-4, seed) for seed in (0, 1, 3, 4)]


@pytest.mark.backend_agnostic
def test_all_arms_are_given_another_rate_where_the_best_of_one_is_at_the_edge():
    middle, high = tuned(4e-4), tuned(1.6e-3, arm="Sage", beta_3=0.75)
    assert grid.rates_to_try(middle, "tiny") == list(RATES)
    assert grid.rates_to_try(middle + high, "tiny") == [*RATES, 3.2e-3]
    # An arm of which less has been tried says nothing yet.
    assert grid.rates_to_try(middle + high[:1], "tiny") == list(RATES)
    further = [
        make_line("Sage", 0.75, rate, value=rate * 100) for rate in (3.2e-3, 6.4e-3, 1.28e-2)
    ]
    assert grid.rates_to_try(middle + high + further, "tiny")[-1] == 1.28e-2, "no end"
    assert grid.rates_to_try(tuned(1e-4), "tiny") == [5e-5, *RATES]


@pytest.mark.backend_agnostic
def test_best_rate_is_that_of_the_highest_mean_and_the_lowest_among_equals():
    lines = [make_line(rate=r, value=v) for r, v in ((1e-4, 0.7), (2e-4, 0.7), (4e-4, 0.6))]
    assert results.best_rates(lines, "tiny") == {("AdamW", None): 1e-4}
    lines.append(make_line(rate=1e-4, seed=101, value=0.6))
    assert results.best_rates(lines, "tiny") == {("AdamW", None): 2e-4}


@pytest.mark.extended
def test_command_makes_the_runs_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("evidence.tasks.make_tasks", lambda folder: {"tiny": TASK})
    monkeypatch.setattr(grid, "FINE_TUNING_RATES", (1e-3, 1e-2))
    monkeypatch.setattr(grid, "EXTENSIONS", 0)
    path = tmp_path / "runs.jsonl"
    command = ["--results", str(path), "--arms", "AdamW", "--tasks", "tiny", "--limit"]
    grid.main([*command, "1"])
    first = path.read_text()
    assert first.count("\n") == 1
    grid.main([*command, "20"])
    grid.main([*command, "20"])
    assert path.read_text().startswith(first)
    lines = results.read(path)
    assert [line["phase"] for line in lines] == 2 * ["tune"] + 5 * ["final"]
    assert len({results.key(line) for line in lines}) == 7
    assert {line["learning_rate"] for line in lines[2:]} == set(
        results.best_rates(lines, "tiny").values()
    )
    wanted = {*results.KEY, "metric", "value", "train_loss", "seconds", "machine", "versions"}
    assert wanted | {"commit"} <= set(json.loads(first))


@pytest.mark.backend_agnostic
def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(SystemExit, match="--arms must be among AdamW"):
        grid.main(["--arms", "Sgae", "--results", str(tmp_path / "runs.jsonl")])


@pytest.mark.backend_agnostic
def test_matthews_is_zero_for_a_constant_answer():
    labels = np.array([0, 1, 1, 0])
    assert matthews(labels, np.array([[0.0, np.nan]] * 4))["value"] == 0.0
    assert matthews(labels, np.eye(2)[labels])["value"] == 1.0
