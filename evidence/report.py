"""Turns the lines of `results/runs.jsonl` into docs/results.md and its pictures.

    python -m evidence.report

The same lines give the same text.
"""

import argparse
import collections
import pathlib
import statistics

from evidence import lines as results
from evidence import report_plots
from evidence.arms import (
    BASE,
    BLOCKS,
    CALIBRATED,
    CONTROLS,
    MEAN_SCALE,
    MEAN_SCALE_BLOCKS,
    SAGE,
    label,
)
from evidence.intervals import paired, pooled

REDUNDANCY = results.FOLDER / "redundancy.jsonl"
METHOD = pathlib.Path(__file__).parent / "method.md"
DOCS = METHOD.parents[1] / "docs"
ENOUGH_SEEDS = 5


class Evidence:
    """What the lines say of each task and arm.

    Args:
        lines: List of dicts.
    """

    def __init__(self, lines):
        self.lines = lines
        there = dict.fromkeys(line["task"] for line in lines)
        self.main_tasks = [task for task in results.MAIN_TASKS if task in there]
        self.further_tasks = [task for task in there if task not in self.main_tasks]
        self.tasks = self.main_tasks + self.further_tasks
        self.metrics = {line["task"]: line["metric"] for line in lines}
        self.best = {task: results.best_rates(lines, task) for task in self.tasks}
        self.tuning = {task: results.tuning_values(lines, task) for task in self.tasks}
        self.final = {task: self.values(task, "final") for task in self.tasks}

    def values(self, task, phase):
        """The metric of a phase by arm and seed: of all runs at its rate that are not tuning.

        The further seeds stand for themselves.

        Args:
            task: String.
            phase: A key of `lines.FACTORS`.

        Returns:
            Dict of arm to a dict of seed to metric.
        """
        values = collections.defaultdict(dict)
        for line in self.lines:
            apart = "further" in (phase, line["phase"]) and phase != line["phase"]
            if line["task"] == task and line["phase"] != "tune" and not apart:
                arm = results.arm_of(line)
                if line["learning_rate"] == results.rate_of_phase(self.best[task], arm, phase):
                    values[arm][line["seed"]] = line["value"]
        return dict(values)

    def difference(self, task, arm, base=BASE):
        """An arm against another on one task, `None` where there are too few seeds."""
        final = self.final[task]
        return paired(final.get(arm, {}), final.get(base, {}))

    def compared(self, arm, base):
        """The main tasks on which both arms have all their seeds."""
        finals = {task: self.final[task] for task in self.main_tasks}
        return [
            task
            for task, final in finals.items()
            if len(final.get(arm, {}).keys() & final.get(base, {}).keys()) >= ENOUGH_SEEDS
        ]

    def pooled(self, arm, base):
        """An arm against another on all main tasks on which both are finished."""
        tasks = self.compared(arm, base)
        return pooled([(self.final[task][arm], self.final[task][base]) for task in tasks])


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--results", type=pathlib.Path, default=results.RESULTS, help="the lines")
    parser.add_argument(
        "--redundancy", type=pathlib.Path, default=REDUNDANCY, help="those of that benchmark"
    )
    parser.add_argument("--docs", type=pathlib.Path, default=DOCS, help="where results.md goes")
    options = parser.parse_args(arguments)
    lines = results.read(options.results)
    if not lines:
        raise SystemExit(f"No lines in {options.results}: run python -m evidence.grid first.")

    evidence, redundancy = Evidence(lines), results.read(options.redundancy)
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    (options.docs / "results.md").write_text(write(evidence, redundancy), encoding="utf-8")
    images = options.docs / "images"
    report_plots.draw_differences(evidence, images / "results_differences.png")
    report_plots.draw_rates(evidence, images / "results_rates.png")
    if redundancy:
        report_plots.draw_redundancy(
            redundancy_groups(redundancy), images / "results_redundancy.png"
        )
    print(f"Wrote {options.docs / 'results.md'} from {len(lines)} runs")


def write(evidence, redundancy=()):
    """The page as a string.

    Args:
        evidence: An `Evidence`.
        redundancy: List of dicts, the lines of `evidence.redundancy`.
    """
    parts = [
        "# Does SAGE help, and is it the sensitivity?",
        answer(evidence),
        state(evidence),
        "![Difference to tuned AdamW by task](images/results_differences.png)",
        *(task_section(evidence, task) for task in evidence.main_tasks),
        "## Learning rates\n\n![Metric by learning rate](images/results_rates.png)",
        *carried_section(evidence),
        *search_section(evidence),
        *redundancy_section(redundancy),
        METHOD.read_text(encoding="utf-8").strip(),
        surroundings(evidence),
    ]
    return "\n\n".join(parts) + "\n"


# The answer.


def answer(evidence):
    sentences = [
        f"**Does SAGE help?** {verdict(evidence, SAGE, BASE)}",
        "With the Transformer blocks alone guided, as the authors do,",
        verdict(evidence, BLOCKS, BASE),
        "**Is it the sensitivity?**",
        *(verdict(evidence, SAGE, arm, what) for arm, what in CONTROLS.items()),
        verdict(evidence, BLOCKS, MEAN_SCALE_BLOCKS, "one mean scale for all blocks"),
    ]
    unit = "Differences are in points, hundredths of the metric, with their 95 % intervals."
    return " ".join([*sentences, unit])


def verdict(evidence, arm, base, what=None):
    """One sentence: the difference over the finished tasks, and what follows."""
    other = f"{label(base)} ({what})" if what else f"tuned {label(base)}"
    tasks = evidence.compared(arm, base)
    if not tasks:
        return f"{label(arm)} against {other}: no task is finished yet."
    difference = evidence.pooled(arm, base)
    finding = {1: "better", 0: "no difference that can be told from chance", -1: "worse"}
    single = [f"{task} {100 * evidence.difference(task, arm, base).mean:+.2f}" for task in tasks]
    return (
        f"{label(arm)} against {other}: {points(difference)}, {finding[difference.sign]} "
        f"({', '.join(single)})."
    )


def state(evidence):
    rows = [["task", "metric", "arms tuned", f"arms with {ENOUGH_SEEDS} seeds or more", "runs"]]
    for task in evidence.tasks:
        finished = [v for v in evidence.final[task].values() if len(v) >= ENOUGH_SEEDS]
        runs = sum(line["task"] == task for line in evidence.lines)
        cells = [len(evidence.tuning[task]), len(finished), runs]
        rows.append([task, evidence.metrics[task], *map(str, cells)])
    total = (
        f"{len(evidence.lines)} runs. The answer above is of the main tasks "
        f"({', '.join(evidence.main_tasks)}), as far as they are finished."
    )
    return f"## What is finished\n\n{total}\n\n{table(rows)}"


# The tables.


def task_section(evidence, task):
    header = ["arm", "best rate", "mean", "std", "worst", "seeds"]
    header += ["to AdamW", "95 % interval", "over rates", "lowest"]
    rows = [header]
    for arm, rates in evidence.tuning[task].items():
        best = evidence.best[task][arm]
        edge = " (edge)" if len(rates) > 1 and best in (min(rates), max(rates)) else ""
        cells = [label(arm), f"{best:g}{edge}", *final_cells(evidence, task, arm)]
        tuned = list(rates.values())
        rows.append([*cells, percent(statistics.fmean(tuned)), percent(min(tuned))])
    return f"## {task}\n\n{table(rows)}"


def final_cells(evidence, task, arm):
    values = list(evidence.final[task].get(arm, {}).values())
    if not values:
        return ["-"] * 6
    spread = percent(statistics.stdev(values)) if len(values) > 1 else "-"
    cells = [percent(statistics.fmean(values)), spread, percent(min(values)), str(len(values))]
    return [*cells, *difference_cells(None if arm == BASE else evidence.difference(task, arm))]


def difference_cells(difference):
    """A difference and its interval as two cells, empty ones where there is none."""
    if difference is None:
        return ["", ""]
    interval = f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}"
    return [f"{100 * difference.mean:+.2f}", interval]


def carried_section(evidence):
    """What a rate tuned for AdamW gives the calibrated arm, as a list of one part or none."""
    rows = [["task", "AdamW's rate", "Sage's rate", "Sage", "Calibrated", "to Sage", "interval"]]
    pairs = []
    for task in evidence.main_tasks:
        carried = evidence.values(task, "adamw_rate").get(CALIBRATED, {})
        own = evidence.final[task].get(SAGE, {})
        if len(carried.keys() & own.keys()) >= ENOUGH_SEEDS:
            pairs.append((carried, own))
            rates = [f"{evidence.best[task][arm]:g}" for arm in (BASE, SAGE)]
            means = [mean(own.values()), mean(carried.values())]
            rows.append([task, *rates, *means, *difference_cells(paired(carried, own))])
    if not pairs:
        return []
    rows.append(["all", *[""] * 4, *difference_cells(pooled(pairs))])
    text = (
        "Calibrated Sage at the rate that was tuned for AdamW, beside Sage at the rate that was "
        "tuned for Sage."
    )
    return [f"## A rate tuned for AdamW\n\n{text}\n\n{table(rows)}"]


def search_section(evidence):
    """Where guiding might pay, as a list of one part or none."""
    header = ["task", "best rate of AdamW, Sage, MeanScale", "AdamW"]
    rows = [[*header, "Sage", "interval", "MeanScale", "interval"]]
    for task, phase in searched(evidence):
        values = evidence.values(task, phase)
        best = [evidence.best[task].get(arm) for arm in (BASE, SAGE, MEAN_SCALE)]
        rates = ", ".join("-" if rate is None else f"{rate:g}" for rate in best)
        cells = [row_name(task, phase), rates, mean(values.get(BASE, {}).values())]
        for arm in (SAGE, MEAN_SCALE):
            cells += difference_cells(paired(values.get(arm, {}), values.get(BASE, {})))
        rows.append(cells)
    text = (
        "AdamW's metric, and the difference to it of Sage 0.75 and of MeanScale 0.75, each tuned "
        "for itself, in other surroundings and at twice and four times its best rate."
    )
    return [f"## Where it might pay\n\n{text}\n\n{table(rows)}"] if len(rows) > 1 else []


def searched(evidence):
    """The further tasks at the best rates, and all tasks beyond them, where there are runs."""
    pairs = [(task, "final") for task in evidence.further_tasks]
    pairs += [(task, phase) for task in evidence.tasks for phase in ("twice", "four_times")]
    return [
        (task, phase)
        for task, phase in pairs
        if {BASE, SAGE} <= evidence.values(task, phase).keys()
    ]


def row_name(task, phase):
    return task if phase == "final" else f"{task}, {phase.replace('_', ' ')} the rate"


def redundancy_section(lines):
    """How even the sensitivity is and what pruning costs, as a list of one part or none."""
    if not lines:
        return []
    fractions = list(lines[0]["pruning"])
    rows = [["task, arm", "seeds", "Gini index", *(f"{float(f):.0%}" for f in fractions)]]
    for task, arms in redundancy_groups(lines).items():
        for arm, some in arms.items():
            gini = f"{statistics.fmean(line['gini'] for line in some):.4f}"
            kept = [mean([line["pruning"][fraction] for line in some]) for fraction in fractions]
            rows.append([f"{task}, {label(arm)}", str(len(some)), gini, *kept])
    text = (
        "The Gini index of the sensitivity of the trained blocks (0 where all weights are equally "
        "sensitive), and the metric with so many of their least sensitive weights zeroed. In the "
        "picture the mean of the seeds, and from the worst to the best of them."
    )
    picture = "![Sensitivity and pruning of each arm](images/results_redundancy.png)"
    return [f"## Redundancy\n\n{text}\n\n{table(rows)}\n\n{picture}"]


def redundancy_groups(lines):
    """The lines by task, and then by arm, as dicts."""
    groups = {}
    for line in lines:
        groups.setdefault(line["task"], {}).setdefault(results.arm_of(line), []).append(line)
    return groups


def surroundings(evidence):
    """Which machines and versions made the lines."""
    machines = collections.Counter((line["machine"], line["backend"]) for line in evidence.lines)
    versions = {
        f"{package} {number}"
        for line in evidence.lines
        for package, number in line["versions"].items()
    }
    made = [f"- {count} runs on {on}, {backend}" for (on, backend), count in machines.items()]
    return "\n".join(["## Machines", "", *made, "", f"Versions: {', '.join(sorted(versions))}."])


def mean(values):
    """The mean of metrics as it is written, a dash where there are none."""
    return percent(statistics.fmean(values)) if len(values) else "-"


def percent(value):
    return f"{100 * value:.2f}"


def points(difference):
    mean, low, high = (
        f"{100 * value:+.2f}" for value in (difference.mean, difference.low, difference.high)
    )
    return f"{mean} [{low}, {high}]"


def table(rows):
    rows = [rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


if __name__ == "__main__":
    main()
