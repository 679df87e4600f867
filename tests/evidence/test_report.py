"""The report: numbers by hand, the same text from the same lines, honest about what is missing."""

import numpy as np
import pytest
from scipy import stats

from evidence import intervals, report
from evidence import lines as results
from evidence.arms import label

pytestmark = pytest.mark.backend_agnostic

RATES = (1e-4, 2e-4, 4e-4)
SEEDS = range(5)


def make_lines(task="vit", gains=None, final_seeds=SEEDS):
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


def read_redundancy():
    return results.read(report.REDUNDANCY)


def write(lines):
    return report.write(report.Evidence(lines))


def test_same_lines_give_the_same_files(tmp_path, capsys):
    path = tmp_path / "runs.jsonl"
    for line in make_lines() + make_lines("cola"):
        results.append(path, line)
    pages = []
    for name in ("one", "two"):
        report.main(["--results", str(path), "--docs", str(tmp_path / name)])
        files = sorted((tmp_path / name).rglob("*.*"))
        pages.append([file.read_bytes() for file in files])
        assert [file.name for file in files][-1] == "results.md"
    assert len(pages[0]) == 4
    assert pages[0] == pages[1]


def test_published_page_is_the_one_that_the_lines_give():
    others = results.read(report.LEFT_OUT), results.read(report.REPEATED)
    page = report.write(published(), read_redundancy(), *others)
    assert page == (report.DOCS / "results.md").read_text(encoding="utf-8")


def test_published_runs_that_were_made_twice_gave_the_same_metric():
    """The redundancy was measured on runs of the grid, made again by another process."""
    grid = {results.key(line): line for line in results.read(results.RESULTS)}
    twice = [(line, grid[results.key(line | {"phase": "final"})]) for line in read_redundancy()]
    assert len(twice) >= 9
    for again, first in twice:
        assert again["machine"] == first["machine"]
        assert again["value"] == first["value"]


def published():
    return report.Evidence(results.read(results.RESULTS))


def test_page_begins_with_three_bullets_and_a_verdict_for_each_question():
    page = write(make_lines()).split("\n\n")
    first, second, third = page[1].splitlines()
    assert first == (
        "- **Does Sage train better than a tuned AdamW?** Better with all weights guided (1 task)."
    )
    assert second.endswith("as the authors do?** Not finished.")
    assert third.endswith(
        "weights of the blocks; against AdamW with the blocks at half the rate. "
        "Not distinguishable from chance with all weights guided, against one mean scale for "
        "all (1 task)."
    )
    rows = page[2].splitlines()
    verdict = "| Sage 0.75 against AdamW: all weights guided | better | +2.00 | +2.00 to +2.00 |"
    assert verdict in rows[2]
    control = "| Sage 0.75 against MeanScale 0.75: one mean scale for the whole model | not "
    assert any(row.startswith(control) for row in rows)
    unfinished = "| Sage 0.75 against RandomScale 0.75: scales dealt out at random | not finished |"
    assert any(row.startswith(unfinished) for row in rows)


def test_page_says_how_to_read_before_its_tables():
    headings = [line for line in write(make_lines()).splitlines() if line.startswith("## ")]
    assert headings[:3] == [
        "## What follows",
        "## The arms, and how to read the tables",
        "## What is finished",
    ]


def test_bullet_names_the_tasks_where_it_is_not_chance():
    lines = make_lines() + make_lines("vit_320", {("Sage", 0.75): 0})
    first = write(lines).split("\n\n")[1].splitlines()[0]
    assert "(2 tasks: better on vit, not distinguishable on the others)." in first


def by_hand(lines, arm, base):
    """The mean difference of two arms, task by task, from the lines alone; and its interval."""
    means, errors = [], []
    for task in dict.fromkeys(line["task"] for line in lines):
        metrics = []
        for name in (arm, base):
            own = [
                one for one in lines if (one["task"], one["arm"], one["beta_3"]) == (task, *name)
            ]
            tuned = {one["learning_rate"]: one["value"] for one in own if one["phase"] == "tune"}
            if not tuned:
                break
            best = min(tuned, key=lambda rate: (-tuned[rate], rate))
            metrics.append(
                {
                    one["seed"]: one["value"]
                    for one in own
                    if one["phase"] not in ("tune", "further") and one["learning_rate"] == best
                }
            )
        else:
            gaps = [100 * (metrics[0][seed] - metrics[1][seed]) for seed in metrics[0]]
            assert len(gaps) == 5
            means.append(np.mean(gaps))
            errors.append(np.std(gaps, ddof=1) ** 2 / 5)
    freedom = sum(errors) ** 2 / sum(one**2 / 4 for one in errors)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(sum(errors)) / len(means)
    return np.mean(means), np.mean(means) - half, np.mean(means) + half


@pytest.mark.parametrize(
    ("bullet", "arm", "base"),
    [
        (0, ("Sage", 0.75), ("AdamW", None)),
        (1, ("SageBlocks", 0.75), ("AdamW", None)),
        (2, ("SageBlocks", 0.75), ("MeanScaleBlocks", 0.75)),
        (2, ("SageBlocks", 0.75), ("LayerwiseAdamW", None)),
        (2, ("Sage", 0.75), ("MeanScale", 0.75)),
    ],
)
def test_published_bullets_say_what_the_lines_say(bullet, arm, base):
    page = (report.DOCS / "results.md").read_text(encoding="utf-8")
    lines = [one for one in results.read(results.RESULTS) if one["task"] in results.MAIN_TASKS]
    mean, low, high = by_hand(lines, arm, base)
    finding = "better" if low > 0 else "worse" if high < 0 else "not distinguishable from chance"
    verdict = f"| {finding} | {mean:+.2f} | {low:+.2f} to {high:+.2f} |"
    _, bullets, table, *_ = page.split("\n\n")
    names = f"| {label(arm)} against {label(base)}:"
    [row] = [one for one in table.splitlines() if one.startswith(names)]
    assert verdict in row
    assert finding.capitalize() in bullets.splitlines()[bullet]


def test_unfinished_tasks_are_left_out_of_the_answer_and_shown():
    page = write(make_lines() + make_lines("cola", {("Sage", 0.75): -9}, final_seeds=range(3)))
    assert "| better | +2.00 | +2.00 to +2.00 | vit +2.00 |" in page.split("\n\n")[2]
    assert "| cola | accuracy | 3 | 0 | 18 |" in page


def test_further_seeds_stand_for_themselves():
    blocks, control = ("SageBlocks", 0.75), ("MeanScaleBlocks", 0.75)
    lines = make_lines(gains={blocks: 1, control: 1})
    assert "## Further seeds" not in write(lines)
    for arm, gain in ((blocks, 4), (control, 0)):
        for rate in (0.002, 0.004):
            lines += [
                line
                | {"phase": "further", "learning_rate": rate, "seed": 1000 + line["seed"]}
                | {"value": line["value"] + (gain + 1000 * (rate - 0.003)) / 100}
                for line in lines
                if (line["arm"], line["phase"]) == (arm[0], "final")
            ]
    lines.append(lines[-1] | {"seed": 1005})  # of one rate alone: not counted
    page = write(lines)
    row = "| vit | 0.002, 0.004 | 5 of 20 | 55.20 | 51.20 | +4.00 | +4.00 to +4.00 |"
    assert row in page
    assert "Under way: it decides nothing before all 3 tasks have 20 seeds." in page
    verdict = "| SageBlocks 0.75 against MeanScaleBlocks 0.75: one mean scale for all blocks | not"
    assert verdict in page.split("\n\n")[2]
    # At the best rate too they have no part in the other tables.
    at_best = lines[-1] | {"learning_rate": 2e-4, "value": 9.0}
    for text in (page, write([*lines, at_best])):
        assert "| MeanScaleBlocks 0.75 | 0.0002 | 51.20 | 0.16 | 51.00 | 5 |" in text


def test_repeated_runs_are_compared_with_the_first():
    lines = [line | {"date": "2026-01-01"} for line in make_lines()]
    assert "## Repeated" not in write(lines)
    again = [line | {"date": "2026-01-02"} for line in lines[3:5]]  # AdamW's first final seeds
    again[1]["value"] += 0.02
    strange = again[0] | {"seed": 77}
    page = report.write(report.Evidence(lines), repeated=[*again, strange])
    days = [f"2026-01-0{day}, some processor, 2 cores" for day in (1, 2)]
    assert f"| vit, AdamW | 2 | 1 | 2.00 | +1.00 | {days[0]} | {days[1]} |" in page


def test_runs_that_are_left_out_are_counted_with_their_reason():
    line = {"task": "vit", "arm": "Sage", "reason": "a lamp fell on it"}
    page = report.write(report.Evidence(make_lines()), (), [line, line])
    assert "2 runs, in `evidence/results/left_out.jsonl`." in page
    assert "| vit | Sage | 2 | a lamp fell on it |" in page


def test_tables_have_the_values_of_the_final_seeds_at_the_best_rate():
    lines = make_lines()
    lines.append(lines[-1] | {"learning_rate": 4e-4, "value": 9.0})  # final, of another rate
    row = next(line for line in write(lines).splitlines() if line.startswith("| Sage 0.75 |"))
    mean, std, worst = 52.2, 100 * np.std(np.arange(5) / 1000, ddof=1), 52.0
    assert f"| 0.0002 | {mean:.2f} | {std:.2f} | {worst:.2f} | 5 | +2.00 |" in row
    assert row.endswith(f"| {62 + 10 / 3:.2f} | 62.00 |")  # over the rates tried


def test_search_shows_further_tasks_and_higher_rates_and_the_answer_leaves_them_out():
    lines = make_lines()
    assert "Where it might pay" not in write(lines)
    # The rate of a best one that is no longer the best: not counted.
    lines.append(lines[0] | {"phase": "twice", "learning_rate": 3e-4, "value": 0.9})
    for line in lines[3:8], lines[11:16], lines[19:24]:  # the final runs of each arm
        lines += [
            one | {"phase": "twice", "learning_rate": 4e-4, "value": one["value"] / 2}
            for one in line
        ]
    page = write(lines + make_lines("vit_wrong", {("Sage", 0.75): -1}))
    rates = "0.0002, 0.0002, 0.0002"
    further = f"| vit_wrong | {rates} | 50.20 | -1.00 | -1.00 to -1.00 | +2.00 | +2.00 to +2.00 |"
    higher = f"| vit, twice the rate | {rates} | 25.10 | +1.00 | +1.00 to +1.00 | +1.00 | +1.00"
    assert further in page and higher in page
    assert "four times the rate |" not in page
    assert "| better | +2.00 | +2.00 to +2.00 | vit +2.00 |" in page.split("\n\n")[2]
    assert "## vit_wrong" not in page


def test_calibrated_at_the_rate_of_adamw_beside_sage_at_its_own():
    calibrated = ("Calibrated", 0.75)
    lines = make_lines(gains={calibrated: 3})
    assert "| vit | 0.0002 | 0.0002 | 52.20 | 53.20 | +1.00 | +1.00 to +1.00 |" in write(lines)
    assert "| all |  |  |  |  | +1.00 | +1.00 to +1.00 |" in write(lines)
    # Where its own best rate is another one, the runs of that phase count.
    lines.append(lines[-1] | {"phase": "tune", "learning_rate": 4e-4, "value": 0.99, "seed": 100})
    lines = [one for one in lines if (one["arm"], one["phase"]) != ("Calibrated", "final")]
    assert "## A rate tuned for AdamW" not in write(lines)
    final = [one for one in lines if (one["arm"], one["phase"]) == ("Sage", "final")]
    lines += [one | {"arm": "Calibrated", "phase": "adamw_rate"} for one in final]
    assert "| vit | 0.0002 | 0.0002 | 52.20 | 52.20 | +0.00 | +0.00 to +0.00 |" in write(lines)


def test_redundancy_is_the_mean_over_seeds():
    line = {"task": "vit", "arm": "Sage", "beta_3": 0.75, "gini": 0.8}
    lines = [
        line | {"seed": 0, "pruning": {"0.0": 0.9, "0.6": 0.7}},
        line | {"seed": 1, "gini": 0.9, "pruning": {"0.0": 0.8, "0.6": 0.5}},
    ]
    page = report.write(report.Evidence(make_lines()), lines)
    assert "| task, arm | seeds | Gini index | 0% | 60% |" in page
    assert "| vit, Sage 0.75 | 2 | 0.8500 | 85.00 | 60.00 |" in page


def test_interval_is_students_of_paired_differences():
    random = np.random.default_rng(0)
    noise, gain = random.normal(size=7), random.normal(0.5, 0.1, size=7)
    difference = intervals.paired(dict(enumerate(noise + gain)), dict(enumerate(noise)))
    wanted = stats.ttest_rel(noise + gain, noise).confidence_interval(0.95)
    assert difference.mean == pytest.approx(gain.mean())
    assert (difference.low, difference.high) == pytest.approx((wanted.low, wanted.high))
    assert difference.sign == 1


def test_pooled_interval_is_welchs_for_two_tasks():
    random = np.random.default_rng(0)
    one, other = random.normal(1, 1, size=5), random.normal(0, 3, size=9)
    wanted = stats.ttest_ind(one, -other, equal_var=False).confidence_interval(0.95)
    zeros = dict.fromkeys(range(9), 0.0)
    found = intervals.pooled([(dict(enumerate(one)), zeros), (dict(enumerate(other)), zeros)])
    assert (found.low, found.high) == pytest.approx((wanted.low / 2, wanted.high / 2))


def test_pooled_counts_every_task_the_same():
    one = ({0: 1.0, 1: 1.0}, {0: 0.0, 1: 0.0})
    other = (dict.fromkeys(range(10), 0.0), dict.fromkeys(range(10), 0.0))
    assert intervals.pooled([one, other]).mean == 0.5
    assert intervals.paired({0: 1.0}, {0: 0.0}) is None


@pytest.mark.parametrize(
    ("draw", "spreads", "coverage"),
    [
        (lambda random: random.normal(size=5), [1], 0.95),
        (lambda random: random.normal(size=5), [1, 1, 3, 0.5], 0.95),
        (lambda random: random.exponential(size=5) - 1, [1], 0.89),
    ],
    ids=["normal", "four tasks", "skewed"],
)
def test_interval_of_five_seeds_holds_the_truth_as_often_as_the_page_says(draw, spreads, coverage):
    random = np.random.default_rng(0)
    zeros = dict.fromkeys(range(5), 0.0)
    held = [
        intervals.pooled([(dict(enumerate(draw(random) * one)), zeros) for one in spreads]).sign
        == 0
        for _ in range(1500)
    ]
    assert abs(np.mean(held) - coverage) < 0.015
