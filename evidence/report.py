"""Turns the lines of `results/runs.jsonl` into docs/results.md and its pictures.

    python -m evidence.report

The same lines give the same text.
"""

import argparse
import collections
import pathlib
import statistics

from evidence import answer, report_plots
from evidence import lines as results
from evidence.arms import BASE, CALIBRATED, MEAN_SCALE, SAGE, label
from evidence.intervals import paired, pooled
from evidence.tables import difference_cells, mean, percent, table
from evidence.values import ENOUGH_SEEDS, Evidence

REDUNDANCY = results.FOLDER / "redundancy.jsonl"
LEFT_OUT = results.FOLDER / "left_out.jsonl"
REPEATED = results.FOLDER / "repeated.jsonl"
READING = pathlib.Path(__file__).parent / "reading.md"
METHOD = READING.with_name("method.md")
DOCS = METHOD.parents[1] / "docs"


def main(arguments=None):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--results", type=pathlib.Path, default=results.RESULTS, help="the lines")
    parser.add_argument(
        "--redundancy", type=pathlib.Path, default=REDUNDANCY, help="those of that benchmark"
    )
    parser.add_argument("--left-out", type=pathlib.Path, default=LEFT_OUT, help="with reasons")
    parser.add_argument("--repeated", type=pathlib.Path, default=REPEATED, help="made once more")
    parser.add_argument("--docs", type=pathlib.Path, default=DOCS, help="where results.md goes")
    options = parser.parse_args(arguments)
    lines = results.read(options.results)
    if not lines:
        raise SystemExit(f"No lines in {options.results}: run python -m evidence.grid first.")

    evidence, redundancy = Evidence(lines), results.read(options.redundancy)
    (options.docs / "images").mkdir(parents=True, exist_ok=True)
    page = write(
        evidence, redundancy, results.read(options.left_out), results.read(options.repeated)
    )
    (options.docs / "results.md").write_text(page, encoding="utf-8")
    images = options.docs / "images"
    report_plots.draw_differences(evidence, images / "results_differences.png")
    report_plots.draw_rates(evidence, images / "results_rates.png")
    if redundancy:
        report_plots.draw_redundancy(
            redundancy_groups(redundancy), images / "results_redundancy.png"
        )
    print(f"Wrote {options.docs / 'results.md'} from {len(lines)} runs")


def write(evidence, redundancy=(), left_out=(), repeated=()):
    """The page as a string.

    Args:
        evidence: An `Evidence`.
        redundancy: List of dicts, the lines of `evidence.redundancy`.
        left_out: List of dicts, lines that do not count, with the reason.
        repeated: List of dicts, lines of runs that were made once more.
    """
    parts = [
        "# Does SAGE help, and is it the sensitivity?",
        answer.bullets(evidence),
        answer.verdicts(evidence),
        READING.read_text(encoding="utf-8").strip(),
        state(evidence),
        "![Difference to tuned AdamW by task](images/results_differences.png)",
        *(task_section(evidence, task) for task in evidence.main_tasks),
        "## Learning rates\n\n![Metric by learning rate](images/results_rates.png)",
        *answer.further_section(evidence),
        *carried_section(evidence),
        *search_section(evidence),
        *redundancy_section(redundancy),
        METHOD.read_text(encoding="utf-8").strip(),
        *repeated_section(evidence, repeated),
        left_out_section(left_out),
        surroundings(evidence),
    ]
    return "\n\n".join(parts) + "\n"


def state(evidence):
    rows = [["task", "metric", "arms tuned", f"arms with {ENOUGH_SEEDS} seeds or more", "runs"]]
    for task in evidence.tasks:
        finished = [v for v in evidence.final[task].values() if len(v) >= ENOUGH_SEEDS]
        runs = sum(line["task"] == task for line in evidence.lines)
        cells = [len(evidence.tuning[task]), len(finished), runs]
        rows.append([task, evidence.metrics[task], *map(str, cells)])
    total = (
        f"{len(evidence.lines)} runs. The answers above are for the main tasks "
        f"({', '.join(evidence.main_tasks)}), where both arms are finished."
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
        "sensitive), and the metric with so many of their least sensitive weights set to zero. In "
        "the picture a line is the mean of the seeds, and each dot a seed."
    )
    picture = "![Sensitivity and pruning of each arm](images/results_redundancy.png)"
    return [f"## Redundancy\n\n{text}\n\n{table(rows)}\n\n{picture}"]


def redundancy_groups(lines):
    """The lines by task, and then by arm, as dicts."""
    groups = {}
    for line in lines:
        groups.setdefault(line["task"], {}).setdefault(results.arm_of(line), []).append(line)
    return groups


def repeated_section(evidence, lines):
    """How far apart two runs of the same are, as a list of one part or none."""
    first = {results.key(line): line for line in evidence.lines}
    pairs = [(line, first[results.key(line)]) for line in lines if results.key(line) in first]
    if not pairs:
        return []
    rows = [["task, arm", "runs", "the same to the last bit", "farthest apart", "on the mean"]]
    rows[0] += ["first", "again"]
    groups = {}
    for pair in pairs:
        groups.setdefault((pair[0]["task"], results.arm_of(pair[0])), []).append(pair)
    for (task, arm), both in groups.items():
        gaps = [again["value"] - line["value"] for again, line in both]
        places = [
            ", ".join(sorted({f"{line['date']}, {line['machine']}" for line in side}))
            for side in (*zip(*both),)[::-1]
        ]
        counts = [str(len(gaps)), str(gaps.count(0.0))]
        apart = [percent(max(map(abs, gaps))), f"{100 * statistics.fmean(gaps):+.2f}"]
        rows.append([f"{task}, {label(arm)}", *counts, *apart, *places])
    text = "Runs of the grid that were made once more on another day. Differences are in points."
    return [f"## Repeated\n\n{text}\n\n{table(rows)}"]


def left_out_section(lines):
    """How many runs do not count, and why."""
    reasons = collections.Counter((line["task"], line["arm"], line["reason"]) for line in lines)
    rows = [["task", "arm", "runs", "why"]]
    rows += [[task, arm, str(count), why] for (task, arm, why), count in reasons.items()]
    return (
        f"## Left out\n\n{len(lines)} runs, in `evidence/results/left_out.jsonl`.\n\n{table(rows)}"
    )


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


if __name__ == "__main__":
    main()
