"""One self-contained page about the logs of several runs."""

import base64
import html
import io
import math
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any, TypeAlias

from sage_keras import atomic
from sage_keras.analysis.plots import (
    plot_distribution,
    plot_heat_map,
    plot_metric,
    plot_pruning_curves,
    plot_scale,
    require_matplotlib,
)
from sage_keras.analysis.text import printable
from sage_keras.annotations import Arrays
from sage_keras.log.format import SENSITIVITY, check_settings
from sage_keras.log.reading import Log, Metrics, Series

_PIXELS_PER_DOT = 2  # for sharp pictures on dense screens
_Table: TypeAlias = tuple[list[list[tuple[str, int]]], list[list[str]]]  # header and rows
_UNKNOWN = "–"  # noqa: RUF001, an en dash, as in printed tables

_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 84rem; }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
p, figcaption { max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border: 1px solid #8886; padding: 0.25rem 0.6rem; text-align: right; }
th[scope=row] { text-align: left; font-weight: normal; overflow-wrap: break-word;
  max-width: 24rem; }
thead th { background: #8882; vertical-align: bottom; }
thead th:first-child { text-align: left; }
th[scope=colgroup] { text-align: center; }
.pictures { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 34rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figure h3 { margin: 0.5rem 0; overflow-wrap: anywhere; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
"""


def write_report(
    logs: Mapping[str, Log],
    output: str | os.PathLike[str] = "report.html",
    pruning_curves: Mapping[str, Arrays] | None = None,
    sparsity_logs: Mapping[str, Log] | None = None,
) -> pathlib.Path:
    """Writes a page that shows and compares runs: tables and pictures, all in one file.

    The page needs no network and no other file. It is written whole or not at all. A file that is
    there keeps its mode, and a symbolic link to it stays one.

    Args:
        logs: Dict of the run's name to its `Log`, as `read_log` returns it.
        output: Path of the file; its folder is created where it is missing. Defaults to
            `"report.html"`.
        pruning_curves: Dict of name to what `pruning_curve` returned, to be shown too, or
            `None`. Defaults to `None`.
        sparsity_logs: Dict of name to the `Log` of a run that was pruned, as `read_sparsity_log`
            returns it, or `None`. With these `logs` may be empty. Defaults to `None`.

    Returns:
        The `pathlib.Path` of the file.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there are no logs, if one is not of a `SensitivityLogger`, or, of
            `sparsity_logs`, of a `SparsityLogger`, or if `output` is something else than a file.

    Example:

    >>> import pathlib, tempfile
    >>> import numpy as np
    >>> from sage_keras.analysis import Log, Series, write_report
    >>> series = Series(parameters=8, values={"mean": np.array([0.5])}, histogram=None)
    >>> log = Log(np.array([3]), np.array([0]), [], model=series, groups={"dense": series})
    >>> path = write_report({"first": log}, pathlib.Path(tempfile.mkdtemp()) / "report.html")
    >>> "<td>5.00e-01</td>" in path.read_text(encoding="utf-8")
    True
    """
    sparsity_logs = sparsity_logs or {}
    if not logs and not sparsity_logs:
        raise ValueError("Argument `logs` must not be empty. Pass {name: read_log(log_dir)}.")
    for name, log in logs.items():
        _check_log(name, log)
    for name, log in sparsity_logs.items():
        if "sparsity" not in log.model.values:
            raise ValueError(
                "Argument `sparsity_logs` must hold logs of a SparsityLogger, as "
                f"`read_sparsity_log` returns them. The one called {name!r} is none: it has no "
                f"'sparsity', only {sorted(log.model.values)}."
            )
    target = atomic.target_file("output", output, "report.html")
    require_matplotlib()
    content = _page(logs, pruning_curves or {}, sparsity_logs)
    atomic.write(target, content.encode())
    return pathlib.Path(output)


def _check_log(name: str, log: Log) -> None:
    """Refuses what `read_log` does not return."""
    message = (
        "Argument `logs` must hold logs of a SensitivityLogger, as `read_log` returns them. "
        f"The one called {name!r} is none: "
    )
    try:
        for number, settings in enumerate(log.optimizers):
            check_settings(f"optimizers[{number}]", settings, SENSITIVITY)
    except ValueError as error:
        raise ValueError(f"{message}{error}.") from error
    if "mean" not in log.model.values:
        raise ValueError(f"{message}it has no 'mean', only {sorted(log.model.values)}.")


def _page(
    logs: Mapping[str, Log],
    pruning_curves: Mapping[str, Arrays],
    sparsity_logs: Mapping[str, Log],
) -> str:
    names = ", ".join(map(printable, dict.fromkeys([*logs, *sparsity_logs])))
    sections = [
        _section("Runs", _RUNS, _table(*_runs(logs))) if logs else "",
        _metrics(logs),
        _distributions(logs),
        _heat_maps(logs),
        _scales(logs),
        _pruning(pruning_curves),
        _sparsities(sparsity_logs),
        _section("Groups of variables", _GROUPS, _table(*_groups(logs))) if logs else "",
    ]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sensitivity of {html.escape(names)}</title>
<link rel="icon" href="data:,">
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>Sensitivity of {html.escape(names)}</h1>
{"".join(sections)}</main>
</body>
</html>
"""


_RUNS = (
    "Values of the last report, over all guided parameters. Sensitivity is |weight x gradient|, "
    "averaged over the last steps: about how much the loss would change if the weight were zero. "
    "The redundant share is that of the parameters under 1 % of the mean. The Gini index is 0 "
    "where all sensitivities are alike and 1 where one parameter has it all. The scale is what "
    "the learning rate is multiplied by, or would be in a run that is only watched."
)
_METRICS = (
    "As in the progress bar: of the training data the mean of the epoch so far, of the validation "
    "data the value at the end of each epoch. Beside it the mean sensitivity of the model."
)
_DISTRIBUTION = (
    "How many parameters have which sensitivity. A line that moves to the left is a model that "
    "depends less on each of its weights; a hump far to the left is weights that it does not use."
)
_HEAT_MAP = (
    "Where in the model the sensitivity is, and when. The colours mean the same in each picture."
)
_SCALE = (
    "Small where the sensitivity is steady, so that the weight counts as well trained; large "
    "where it varies."
)
_PRUNING = "What happens when the weights of the lowest ranks are set to zero."
_SPARSITY = (
    "The share of weights that pruning has set to zero, by step. Of all pruned weights it is what "
    "the schedule says; where it is less, weights were worth more than elsewhere."
)
_GROUPS = (
    "Values of the last report. The redundant share counts parameters under 1 % of the mean of "
    "the whole model."
)


def _section(title: str, text: str, content: str) -> str:
    return (
        f"<section>\n<h2>{html.escape(title)}</h2>\n<p>{html.escape(text)}</p>\n"
        f"{content}\n</section>\n"
    )


def _runs(logs: Mapping[str, Log]) -> _Table:
    """The header and the rows of the table of runs."""
    header = ["Run", "Optimizer", "Steps", "Parameters", "Mean sensitivity"]
    header += ["Redundant share", "Gini index", "Mean scale"]
    metrics = _metric_names(logs)
    rows = [
        [
            name,
            ", ".join(map(_optimizer, log.optimizers)) or _UNKNOWN,
            f"{log.steps[-1]:,}",
            f"{log.model.parameters:,}",
            _last(log.model, "mean", "{:.2e}"),
            _last(log.model, "redundant_share", "{:.1%}"),
            _last(log.model, "gini", "{:.3f}"),
            _last(log.model, "scale_mean", "{:.3f}"),
            *(_last(log.metrics, metric, "{:.4g}") for metric in metrics),
        ]
        for name, log in logs.items()
    ]
    return [[(title, 1) for title in [*header, *metrics]]], rows


def _metric_names(logs: Mapping[str, Log]) -> list[str]:
    names = dict.fromkeys(
        name for log in logs.values() if log.metrics for name in log.metrics.values
    )
    return sorted(names, key="loss".__ne__)  # that first


def _groups(logs: Mapping[str, Log]) -> _Table:
    """The header and the rows of the table of groups, with the runs side by side."""
    styles = {"mean": "{:.2e}", "redundant_share": "{:.1%}", "scale_mean": "{:.3f}"}
    titles = ["Mean sensitivity", "Redundant share", "Mean scale"]
    header = [
        [("", 2), *((name, len(styles)) for name in logs)],
        [("Group", 1), ("Parameters", 1), *((title, 1) for _ in logs for title in titles)],
    ]
    rows = []
    for name in {name: None for log in logs.values() for name in log.groups}:
        groups = [log.groups.get(name) for log in logs.values()]
        parameters = next(group.parameters for group in groups if group)
        cells = [_last(group, *value) for group in groups for value in styles.items()]
        rows.append([name, f"{parameters:,}", *cells])
    return header, rows


def _optimizer(settings: dict[str, Any]) -> str:
    guide = "" if settings["guide"] else ", watched"
    return f"{settings['class']} (β₃ {settings['beta_3']:g}{guide})"


def _last(series: Series | Metrics | None, name: str, style: str) -> str:
    value = series.values.get(name, [math.nan])[-1] if series else math.nan
    return style.format(value) if math.isfinite(value) else _UNKNOWN


def _table(header: list[list[tuple[str, int]]], rows: list[list[str]]) -> str:
    """A table whose header has rows of (title, columns), and whose rows begin with a name."""
    lines = ['<div class="scroll" tabindex="0">', "<table>", "<thead>"]
    for titles in header:
        heads = [
            f'<th scope="{"col" if span == 1 else "colgroup"}" colspan="{span}">'
            f"{html.escape(printable(title))}</th>"
            for title, span in titles
        ]
        lines.append(f"<tr>{''.join(heads)}</tr>")
    lines += ["</thead>", "<tbody>"]
    for name, *values in rows:
        cells = "".join(f"<td>{html.escape(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{html.escape(printable(name))}</th>{cells}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", "</div>"])


def _metrics(logs: Mapping[str, Log]) -> str:
    """A picture for each run and each metric, that of the validation data in the same one."""
    names = _metric_names(logs)
    drawn: dict[str, Any] = {}
    for name in names:
        if name.startswith("val_") and name.removeprefix("val_") in names:
            continue
        of_runs = {
            f"{name} of {run}": plot_metric(log, name)
            for run, log in logs.items()
            if log.metrics and {name, f"val_{name}"} & log.metrics.values.keys()
        }
        _share_limits(of_runs.values(), "y")
        _share_limits([axes.figure.axes[1] for axes in of_runs.values()], "y")
        drawn |= of_runs
    return _pictures("Loss and metrics", _METRICS, drawn, "The {} by step, and the sensitivity.")


def _distributions(logs: Mapping[str, Log]) -> str:
    drawn = {name: plot_distribution(log) for name, log in logs.items() if log.model.histogram}
    _share_limits(drawn.values(), "x")
    _share_limits(drawn.values(), "y")
    text = "Share of parameters by sensitivity at several steps of {}."
    return _pictures("Distribution of the sensitivity", _DISTRIBUTION, drawn, text)


def _heat_maps(logs: Mapping[str, Log]) -> str:
    drawn = {name: plot_heat_map(log) for name, log in logs.items() if log.groups}
    limits = [axes.collections[0].get_clim() for axes in drawn.values()]
    limits = [pair for pair in limits if None not in pair]
    for axes in drawn.values() if limits else []:
        axes.collections[0].set_clim(min(low for low, _ in limits), max(high for _, high in limits))
    text = "Mean sensitivity of each group of variables in {} by step."
    return _pictures("Sensitivity by group", _HEAT_MAP, drawn, text)


def _scales(logs: Mapping[str, Log]) -> str:
    drawn = {
        name: plot_scale(log) for name, log in logs.items() if "scale_mean" in log.model.values
    }
    _share_limits(drawn.values(), "y")
    text = "Mean, quantiles and maximum of the learning-rate scale of {} by step, below its bound."
    return _pictures("Learning-rate scale", _SCALE, drawn, text)


def _pruning(curves: Mapping[str, Arrays]) -> str:
    drawn = {}
    if curves:
        metrics = [name for name in next(iter(curves.values())) if name != "fraction"]
        shared = [name for name in metrics if all(name in curve for curve in curves.values())]
        drawn = {name: plot_pruning_curves(curves, name) for name in shared}
    text = "The {} by share of weights set to zero, of " + ", ".join(map(printable, curves)) + "."
    return _pictures("Pruning", _PRUNING, drawn, text)


def _sparsities(logs: Mapping[str, Log]) -> str:
    drawn = {name: plot_heat_map(log, "sparsity") for name, log in logs.items()}
    for axes in drawn.values():
        axes.collections[0].set_clim(0, 1)
    text = "Share of zeros in each group of variables of {} by step."
    return _pictures("Sparsity", _SPARSITY, drawn, text)


def _share_limits(all_axes: Collection[Any], dimension: str) -> None:
    """Gives all axes the limits that hold what each of them shows."""
    limits = [getattr(axes, f"get_{dimension}lim")() for axes in all_axes]
    for axes in all_axes:
        set_limits = getattr(axes, f"set_{dimension}lim")
        set_limits(min(low for low, _ in limits), max(high for _, high in limits))


def _pictures(title: str, text: str, drawn: Mapping[str, Any], description: str) -> str:
    """A section of pictures, axes by name; nothing where there are none."""
    if not drawn:
        return ""
    pictures = []
    for name, axes in drawn.items():
        name = printable(name)
        width, height = axes.figure.get_size_inches() * axes.figure.dpi
        picture = io.BytesIO()
        axes.figure.savefig(picture, format="png", dpi=axes.figure.dpi * _PIXELS_PER_DOT)
        data = base64.b64encode(picture.getvalue()).decode()
        alternative = html.escape(description.replace("{}", name))
        pictures.append(
            f"<figure>\n<h3>{html.escape(name)}</h3>\n"
            f'<img width="{width:.0f}" height="{height:.0f}" alt="{alternative}" '
            f'src="data:image/png;base64,{data}">\n</figure>'
        )
    return _section(title, text, '<div class="pictures">\n' + "\n".join(pictures) + "\n</div>")
