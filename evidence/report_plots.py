"""The pictures of docs/results.md."""

import math

import numpy as np
from matplotlib.figure import Figure

from evidence.arms import BASE, CONTROLS, SAGE, label

SHOWN = (BASE, SAGE, *CONTROLS, ("Calibrated", 0.75), ("Adamax", None), ("SageAdamax", 0.75))


def draw_differences(evidence, path):
    """Draws each arm's difference to tuned AdamW, with its seeds and interval, by main task.

    Args:
        evidence: An `Evidence`.
        path: `pathlib.Path` of the picture.
    """
    tasks = [task for task in evidence.main_tasks if evidence.final[task]] or evidence.main_tasks
    # In the order of the task that has most of them.
    fullest = sorted(tasks, key=lambda task: -len(evidence.tuning[task]))
    arms = list(dict.fromkeys(arm for task in fullest for arm in evidence.tuning[task]))
    arms = [arm for arm in arms if arm != BASE]
    figure = Figure(figsize=(2 + 3 * len(tasks), 1.5 + 0.3 * len(arms)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(tasks), sharex=True, sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks):
        axes.axvline(0, color="0.6", linewidth=1)
        for place, arm in enumerate(arms):
            difference = evidence.difference(task, arm)
            if difference is None:
                continue
            low, mean, high = (
                100 * value for value in (difference.low, difference.mean, difference.high)
            )
            color = "C1" if arm == SAGE else "C0"
            seeds = 100 * evidence.seed_differences(task, arm)
            axes.plot(seeds, np.full(len(seeds), place), "o", color=color, alpha=0.4, markersize=4)
            axes.plot([low, high], [place, place], color=color)
            axes.plot(mean, place, "|", color=color, markersize=11, markeredgewidth=2)
        axes.set(title=task, xlabel="points, to tuned AdamW")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(arms)), [label(arm) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    farthest = max(map(abs, panels[0].get_xlim()))
    panels[0].set_xlim(-farthest, farthest)  # zero in the middle, of all panels
    _save(figure, path)


def draw_rates(evidence, path):
    """Draws the metric by learning rate as it was found in tuning, a panel for each task.

    Args:
        evidence: An `Evidence`.
        path: `pathlib.Path` of the picture.
    """
    columns = math.ceil(math.sqrt(len(evidence.tasks)))
    rows = math.ceil(len(evidence.tasks) / columns)
    figure = Figure(figsize=(4.5 * columns + 2, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(evidence.tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(panels, evidence.tasks):
        rates = sorted({rate for one in evidence.tuning[task].values() for rate in one})
        for place, arm in enumerate(SHOWN):
            values = evidence.tuning[task].get(arm)
            if values:
                style = (
                    {"color": "black", "linewidth": 2} if arm == BASE else {"color": f"C{place}"}
                )
                metric = [100 * value for value in values.values()]
                axes.plot(list(values), metric, marker=".", label=label(arm), **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
        axes.set_ylim(0, 100)
        axes.set(title=task, xlabel="learning rate", ylabel=f"{evidence.metrics[task]} x 100")
        axes.grid(alpha=0.3)
    found = [zip(*reversed(axes.get_legend_handles_labels())) for axes in panels]
    handles = {label: handle for pairs in found for label, handle in pairs}
    labels = [label(arm) for arm in SHOWN if label(arm) in handles]
    figure.legend([handles[label] for label in labels], labels, loc="outside right upper")
    _save(figure, path)


def draw_redundancy(groups, path):
    """Draws how the sensitivity is distributed and what pruning costs, a row for each task.

    Args:
        groups: Dict of task to a dict of arm to lines, of `report.redundancy_groups`.
        path: `pathlib.Path` of the picture.
    """
    figure = Figure(figsize=(10, 3.5 * len(groups)), layout="constrained")
    rows = figure.subplots(len(groups), 2, squeeze=False)
    for (distribution, pruning), (task, arms) in zip(rows, groups.items()):
        for place, (arm, lines) in enumerate(arms.items()):
            style = {"color": "black" if arm == BASE else f"C{place}", "marker": "."}
            levels = [100 * float(level) for level in lines[0]["quantiles"]]
            quantiles = np.array([list(line["quantiles"].values()) for line in lines])
            distribution.plot(levels, quantiles.mean(axis=0), label=label(arm), **style)
            zeroed = [100 * float(fraction) for fraction in lines[0]["pruning"]]
            metric = 100 * np.array([list(line["pruning"].values()) for line in lines])
            pruning.plot(zeroed, metric.mean(axis=0), label=label(arm), **style)
            for seed in metric:
                pruning.plot(zeroed, seed, "o", color=style["color"], alpha=0.4, markersize=3)
        distribution.set_yscale("log")
        distribution.set(
            title=f"{task}: how the sensitivity is distributed",
            xlabel="% of the weights that have less",
            ylabel="sensitivity / its mean",
        )
        pruning.set(
            title=f"{task}: what pruning costs",
            xlabel="% of the weights set to zero, the least sensitive first",
            ylabel=f"{lines[0]['metric']} x 100",
        )
        pruning.set_ylim(0, 100)
        for axes in (distribution, pruning):
            axes.grid(alpha=0.3)
            axes.legend()
    _save(figure, path)


def _save(figure, path):
    figure.savefig(path, dpi=100, metadata={"Software": None})  # the same lines, the same bytes
