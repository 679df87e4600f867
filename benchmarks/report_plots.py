"""The pictures of docs/results.md."""

import math

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from benchmarks.report import BASE, CONTROLS, SAGE, name

SHOWN = (BASE, SAGE, *CONTROLS, ("Calibrated", 0.75), ("Adamax", None), ("SageAdamax", 0.75))


def draw_differences(evidence, path):
    """Draws each arm's difference to tuned AdamW with its interval, by main task.

    Args:
        evidence: An `Evidence`.
        path: `pathlib.Path` of the picture.
    """
    tasks = [task for task in evidence.main_tasks if evidence.final[task]] or evidence.main_tasks
    arms = list(dict.fromkeys(arm for task in tasks for arm in evidence.tuning[task]))
    arms = [arm for arm in arms if arm != BASE]
    figure = Figure(figsize=(2 + 3 * len(tasks), 1.5 + 0.3 * len(arms)))
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
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
            axes.plot([low, high], [place, place], color=color)
            axes.plot(mean, place, "o", color=color)
        axes.set(title=task, xlabel="points, to tuned AdamW")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(arms)), [name(arm) for arm in arms])
    panels[0].set_ylim(len(arms) - 0.5, -0.5)
    _save(figure, path)


def draw_rates(evidence, path):
    """Draws the metric by learning rate as it was found in tuning, a panel for each task.

    Args:
        evidence: An `Evidence`.
        path: `pathlib.Path` of the picture.
    """
    columns = min(3, len(evidence.tasks))
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
                axes.plot(list(values), metric, marker=".", label=name(arm), **style)
        axes.set_xscale("log", base=2)
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        axes.set(title=task, xlabel="learning rate", ylabel=f"{evidence.metrics[task]} x 100")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    _save(figure, path)


def _save(figure, path):
    figure.savefig(path, dpi=100, metadata={"Software": None})  # the same lines, the same bytes
