"""The report: figures by hand, the same text from the same lines, honest about what is missing."""

import numpy as np
import pytest

from benchmarks import intervals, report
from benchmarks import lines as results

RATES = (1e-4, 2e-4, 4e-4)
SEEDS = range(5)


def make_lines(task="tiny", gains=None, final_seeds=SEEDS):
    """Arms that are better than AdamW by so many points at every seed."""
    gains = {("AdamW", None): 0, ("Sage", 0.75): 2, ("MeanScale", 0.75): 2} | (gains or {})
    runs = [(rate, 100, "tune", rate == 2e-4) for rate in RATES]
    runs += [(2e-4, seed, "final", 0) for seed in final_seeds]
    return [
        {
            "task": task,
            "arm": arm,
            "beta_3": beta_3,
            "learning_rate": rate,
            "seed": seed,
            "phase": phase,
            "metric": "accuracy",
            "value": 0.5 + gain / 100 + seed / 1000 + best / 10,
            "train_loss": 0.1,
            "seconds": 1.0,
            "machine": "some processor, 2 cores",
            "backend": "jax",
            "versions": {"keras": "3.15.1"},
        }
        for (arm, beta_3), gain in gains.items()
        for rate, seed, phase, best in runs
    ]


def write(lines):
    return report.write(report.Evidence(lines))


def test_same_lines_give_the_same_files(tmp_path, capsys):
    path = tmp_path / "glue.jsonl"
    for line in make_lines() + make_lines("other"):
        results.append(path, line)
    pages = []
    for name in ("one", "two"):
        report.main(["--results", str(path), "--docs", str(tmp_path / name)])
        files = sorted((tmp_path / name).rglob("*.*"))
        pages.append([file.read_bytes() for file in files])
        assert [file.name for file in files][-1] == "results.md"
    assert len(pages[0]) == 3
    assert pages[0] == pages[1]


def test_published_page_is_the_one_that_the_lines_give():
    evidence = report.Evidence(results.read(results.RESULTS))
    page = report.write(evidence, results.read(report.REDUNDANCY))
    assert page == (report.DOCS / "results.md").read_text(encoding="utf-8")


def test_first_paragraph_answers_with_intervals():
    answer = write(make_lines()).split("\n\n")[1]
    assert "Sage 0.75 against tuned AdamW: +2.00 [+2.00, +2.00], better (tiny)." in answer
    control = "Sage 0.75 against MeanScale 0.75 (one mean scale for the whole model): "
    assert control + "+0.00 [+0.00, +0.00], no difference that can be told" in answer
    assert "RandomScale 0.75 (scales dealt out at random): no task is finished yet." in answer


def test_unfinished_tasks_are_left_out_of_the_answer_and_shown():
    page = write(make_lines() + make_lines("other", {("Sage", 0.75): -9}, final_seeds=range(3)))
    assert "better (tiny)." in page.split("\n\n")[1]
    assert "| other | accuracy | 3 | 0 | 18 |" in page


def test_tables_have_the_figures_of_the_final_seeds_at_the_best_rate():
    lines = make_lines()
    lines.append(lines[-1] | {"learning_rate": 4e-4, "value": 9.0})  # final, of another rate
    row = next(line for line in write(lines).splitlines() if line.startswith("| Sage 0.75"))
    mean, std, worst = 52.2, 100 * np.std(np.arange(5) / 1000, ddof=1), 52.0
    assert f"| 0.0002 | {mean:.2f} | {std:.2f} | {worst:.2f} | 5 | +2.00 |" in row
    assert row.endswith(f"| {62 + 10 / 3:.2f} | 62.00 |")  # over the rates tried


def test_what_is_left_beyond_the_best_rate():
    lines = make_lines()
    assert "Beyond the best rate" not in write(lines)
    lines.append(lines[0] | {"phase": "twice", "learning_rate": 4e-4, "value": 0.25})
    lines.append(lines[0] | {"phase": "twice", "learning_rate": 2e-4, "value": 0.9})  # of old
    assert "| tiny, AdamW | 0.0002 | 50.20 | 25.00 | - |" in write(lines)


def test_redundancy_is_the_mean_over_seeds():
    line = {"task": "tiny", "arm": "Sage", "beta_3": 0.75, "gini": 0.8}
    lines = [
        line | {"seed": 0, "pruning": {"0.0": 0.9, "0.6": 0.7}},
        line | {"seed": 1, "gini": 0.9, "pruning": {"0.0": 0.8, "0.6": 0.5}},
    ]
    page = report.write(report.Evidence(make_lines()), lines)
    assert "| task, arm | seeds | Gini index | 0% | 60% |" in page
    assert "| tiny, Sage 0.75 | 2 | 0.8500 | 85.00 | 60.00 |" in page


def test_bootstrap_interval_is_of_paired_differences():
    random = np.random.default_rng(0)
    noise, gain = random.normal(size=400), random.normal(0.5, 0.1, size=400)
    values = dict(enumerate(noise + gain))
    difference = intervals.paired(values, dict(enumerate(noise)))
    half = 1.96 * gain.std() / np.sqrt(400)
    assert difference.mean == pytest.approx(gain.mean())
    assert difference.low == pytest.approx(gain.mean() - half, abs=0.1 * half)
    assert difference.high == pytest.approx(gain.mean() + half, abs=0.1 * half)
    assert difference.sign == 1


def test_pooled_counts_every_task_the_same():
    one = ({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})
    other = (dict.fromkeys(range(10), 0.0), dict.fromkeys(range(10), 0.0))
    assert intervals.pooled([one, other]).mean == 0.5
    assert intervals.paired({0: 1.0}, {0: 0.0}) is None


def test_interval_of_five_seeds_holds_the_truth_in_84_of_100_cases():
    """As the page says. Student's distribution gives the same for differences that are normal."""
    draws = np.random.default_rng(0).normal(size=(1000, 5))
    found = [intervals.paired(dict(enumerate(draw)), dict.fromkeys(range(5), 0)) for draw in draws]
    assert abs(np.mean([one.sign == 0 for one in found]) - 0.84) < 0.025
