"""Pictures of what a `SensitivityLogger` wrote, and of pruning; they need matplotlib.

Each is drawn on the axes that the caller passes, or on a new figure that no pyplot state keeps:
`axes.figure.savefig("picture.png")` writes it. All are readable without colour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sage_keras.analysis.text import printable
from sage_keras.annotations import Arrays
from sage_keras.log.reading import Histogram, Log

if TYPE_CHECKING:  # an extra, imported on use
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

# One style for each line of a picture; the dashes tell them apart where the colours do not.
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1.5, 2)), (0, (4, 1.5, 1, 1.5, 1, 1.5)))
_MARKERS = ("o", "s", "^", "D", "v", "P")
_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_MOST_LINES = 5  # of a distribution, where no steps are asked for
_INCHES_PER_ROW = 0.16  # of a heat map: enough for a label
_MOST_TICKS = 8
_LABEL_LENGTH = 46


def require_matplotlib() -> Any:
    """Imports matplotlib, or says how to install it."""
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            "The pictures of `sage_keras.analysis` need matplotlib. Install it with "
            '`pip install "sage_keras[analysis]"`.'
        ) from error
    return matplotlib


def plot_distribution(
    log: Log, steps: Sequence[int] | None = None, axes: Axes | None = None
) -> Axes:
    """Draws how the sensitivity of the parameters is distributed, at several steps.

    The area under a line is the share of parameters, on the logarithmic axis, which leaves out up
    to 1 % of the parameters of each line, at either end half of them. Parameters of no sensitivity
    have no place there: the legend states their share.

    Args:
        log: A `Log`, of a `SensitivityLogger` with histograms.
        steps: List of ints, the steps of reports, or `None` for up to 5 from the first to the
            last. Defaults to `None`.
        axes: Matplotlib axes to draw on, or `None` for a new figure. Defaults to `None`.

    Returns:
        The axes.

    Raises:
        ValueError: If the log has no histogram, or none at one of the steps.
    """
    histogram, rows = _histogram_at(log, steps)
    axes = axes or _new_axes()
    # The bins are of unlike widths, so counts alone would go up and down from bin to bin.
    decades = np.diff(np.log10(histogram.edges))
    centres = np.sqrt(histogram.edges[:-1] * histogram.edges[1:])
    colors = _shades(len(rows))
    lines: list[Line2D] = []
    labels = []
    for position, row in enumerate(rows):
        total = histogram.counts[row].sum() + histogram.zeros[row]
        density = histogram.counts[row] / max(total, 1) / decades
        dashes = _DASHES[::-1][(position - len(rows)) % len(_DASHES)]  # the last one is solid
        lines += axes.plot(centres, density, color=colors[position], linestyle=dashes)
        zeros = histogram.zeros[row] / max(total, 1)
        labels.append(f"{log.steps[row]:,}" + (f" ({zeros:.1%} at zero)" if zeros else ""))
    axes.set(
        xscale="log",
        xlabel="sensitivity |weight x gradient|, averaged",
        ylabel="share of parameters per factor of ten",
        title="Distribution of the sensitivity",
    )
    axes.set_ylim(bottom=0)
    axes.set_xlim(_ends(histogram.edges, histogram.counts[list(rows)]))
    axes.grid(alpha=0.3)
    axes.legend(lines, labels, title="step")
    return axes


def plot_heat_map(log: Log, name: str = "mean", axes: Axes | None = None) -> Axes:
    """Draws one of the values of each group of variables, by step.

    Sensitivities have a logarithmic colour scale, other values a linear one. Its lightness rises
    with the value. Cells without a value are hatched, and sensitivities of zero are white.

    Args:
        log: A `Log`.
        name: String, the name of the values, such as `"mean"`, `"redundant_share"` or
            `"scale_mean"`. Defaults to `"mean"`.
        axes: Matplotlib axes to draw on, or `None` for a new figure that is high enough for the
            groups, up to 12 inches. Defaults to `None`.

    Returns:
        The axes.

    Raises:
        ValueError: If the log does not have these values, or has no groups.
    """
    _check_name(log, name)
    if not log.groups:
        raise ValueError("The log has no groups to draw. Log with SensitivityLogger(groups=None).")
    nothing = np.full(len(log.steps), np.nan)
    values = np.array([group.values.get(name, nothing) for group in log.groups.values()])
    axes = axes or _new_axes(height=min(max(_INCHES_PER_ROW * len(values) + 1.4, 3), 12))

    logarithmic = name == "mean" or name.startswith("q")  # these are sensitivities
    zero = (values == 0) & logarithmic
    missing = ~np.isfinite(values)
    columns, rows = _edges_around(log.steps), np.arange(len(values) + 1) - 0.5
    axes.patch.set(facecolor="0.85", hatch="////", edgecolor="0.6")
    mesh = axes.pcolormesh(
        columns,
        rows,
        np.ma.masked_array(values, missing | zero),
        norm="log" if logarithmic and (values > 0).any() else "linear",
        cmap="cividis",
    )
    axes.pcolormesh(columns, rows, np.ma.masked_array(values, ~zero), cmap="Greys", vmin=0, vmax=1)
    axes.invert_yaxis()  # the model's first layer on top
    axes.set(xlabel="step", title=f"{_title(name)} by group")
    axes.figure.colorbar(mesh, ax=axes, label=_title(name))
    _name_rows(axes, list(log.groups), "groups")
    _ticks_at(axes, log.steps)
    _explain_gaps(axes, bool(zero.any()), bool(missing.any()))
    return axes


def plot_scale(log: Log, axes: Axes | None = None) -> Axes:
    """Draws the learning-rate scale of the whole model over time, and its upper bound.

    The scale cannot be above `max(1, beta_3 / (1 - beta_3))`; with bias correction, at step `t`,
    above `max(1, (beta_3 - beta_3^t) / (1 - beta_3))`. Of several guided optimizers the highest
    bound is drawn.

    Args:
        log: A `Log` with values of the scale.
        axes: Matplotlib axes to draw on, or `None` for a new figure. Defaults to `None`.

    Returns:
        The axes.

    Raises:
        ValueError: If the log has no values of the scale.
    """
    _check_name(log, "scale_mean")
    axes = axes or _new_axes()
    values = log.model.values
    quantiles = sorted(float(name.removeprefix("scale_q")) for name in values if "scale_q" in name)
    if len(quantiles) > 1:
        low, high = (values[f"scale_q{one:g}"] for one in (quantiles[0], quantiles[-1]))
        label = f"from {quantiles[0]:.4g} to {quantiles[-1]:.4g} quantile"
        axes.fill_between(log.steps, low, high, color="tab:blue", alpha=0.2, lw=0, label=label)
    marks = _marks(log.steps)
    axes.plot(log.steps, values["scale_mean"], "-", color="tab:blue", label="mean", **marks)
    if "scale_max" in values:
        style: dict[str, Any] = {"linestyle": _DASHES[2], "color": "0.15"}
        axes.plot(log.steps, values["scale_max"], **style, **marks, label="maximum")
    if log.optimizers:
        bound = np.max([_bound(one, log.steps) for one in log.optimizers], axis=0)
        axes.plot(log.steps, bound, linestyle=_DASHES[1], color="tab:red", label="bound")
    axes.set(xlabel="step", ylabel="learning-rate scale s", title="Learning-rate scale")
    axes.set_ylim(0, 1.05 * axes.dataLim.ymax or 1)
    _ticks_at(axes, log.steps)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=4, frameon=False)
    return axes


def plot_metric(log: Log, name: str = "loss", axes: Axes | None = None) -> Axes:
    """Draws the loss or a metric of a run over time, beside the mean sensitivity.

    The values of the training data are means of the epoch so far, as in the progress bar. Those
    of the validation data, called `val_` and the name, are of the ends of epochs.

    Args:
        log: A `Log` of a `SensitivityLogger`.
        name: String, the name in Keras's `logs`, such as `"loss"` or `"accuracy"`. Defaults to
            `"loss"`.
        axes: Matplotlib axes to draw on, or `None` for a new figure. The sensitivity has an axis
            of its own, on the right. Defaults to `None`.

    Returns:
        The axes of the metric.

    Raises:
        ValueError: If the log does not have the metric.
    """
    metrics = {} if log.metrics is None else log.metrics.values
    names = [one for one in (name, f"val_{name}") if one in metrics]
    if log.metrics is None or not names:
        raise ValueError(
            f"Argument `name` must be one of the metrics of the log, which are {sorted(metrics)}. "
            f"Received: name={name!r}"
        )
    axes = axes or _new_axes()
    right = axes.twinx()
    lines: list[Line2D] = []
    for position, one in enumerate(names):
        known = np.isfinite(metrics[one])
        steps = log.metrics.steps[known]
        style: dict[str, Any] = {"color": _COLORS[position], "linestyle": _DASHES[position]}
        lines += axes.plot(steps, metrics[one][known], **style, **_marks(steps))
    style = {"color": "0.4", "linestyle": _DASHES[2]}
    means = np.ma.masked_less_equal(log.model.values["mean"], 0)  # has no logarithm
    lines += right.plot(log.steps, means, **style, **_marks(log.steps))
    right.set_ylabel("mean sensitivity")
    if (log.model.values["mean"] > 0).any():
        right.set_yscale("log")
    axes.set(xlabel="step")
    axes.set_ylabel(printable(name), parse_math=False)
    axes.set_title(_shortened(name), parse_math=False)
    _ticks_at(axes, np.union1d(log.steps, log.metrics.steps))
    axes.grid(alpha=0.3)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.15), "ncols": 3, "frameon": False}
    _plain_legend(axes, lines, [*names, "mean sensitivity"], **place)
    return axes


def plot_pruning_curves(
    curves: Mapping[str, Arrays], metric: str = "loss", axes: Axes | None = None
) -> Axes:
    """Draws what models lose when more and more of their weights are zero.

    Args:
        curves: Dict of name to what `pruning_curve` returned: of several runs, or of one with
            several rankings.
        metric: String, which of its entries to draw. Defaults to `"loss"`.
        axes: Matplotlib axes to draw on, or `None` for a new figure. Defaults to `None`.

    Returns:
        The axes.

    Raises:
        ValueError: If there are no curves, or one does not have the metric.
    """
    if not curves:
        raise ValueError("Argument `curves` must not be empty. Pass {name: pruning_curve(...)}.")
    for name, curve in curves.items():
        if metric not in curve:
            known = sorted(set(curve) - {"fraction"})
            raise ValueError(
                f"Argument `metric` must be in each curve; the one called {name!r} has {known}. "
                f"Received: metric={metric!r}"
            )
    axes = axes or _new_axes()
    lines: list[Line2D] = []
    for position, curve in enumerate(curves.values()):
        lines += axes.plot(
            100 * np.asarray(curve["fraction"]),
            curve[metric],
            color=_COLORS[position % len(_COLORS)],
            linestyle=_DASHES[position % len(_DASHES)],
            marker=_MARKERS[position % len(_MARKERS)],
            markersize=5,
        )
    axes.set(xlabel="weights set to zero (%)", title="Pruning")
    axes.set_ylabel(printable(metric), parse_math=False)
    axes.grid(alpha=0.3)
    _plain_legend(axes, lines, list(curves))
    return axes


def plot_bars(
    values: Mapping[str, float], xlabel: str, title: str, axes: Axes | None = None
) -> Axes:
    """Draws one value of each layer as a bar, the first layer on top.

    Args:
        values: Dict of the layer's name to its value.
        xlabel: String, what the values are.
        title: String.
        axes: Matplotlib axes to draw on, or `None` for a new figure that is high enough for the
            layers, up to 12 inches. Defaults to `None`.

    Returns:
        The axes.
    """
    axes = axes or _new_axes(height=min(max(_INCHES_PER_ROW * len(values) + 1.4, 3), 12))
    axes.barh(range(len(values)), list(values.values()), color="tab:blue")
    axes.set(xlabel=xlabel, title=title)
    axes.grid(axis="x", alpha=0.3)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    _name_rows(axes, list(values), "bars")
    return axes


def _new_axes(height: float = 4.0) -> Axes:
    require_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(6.4, height), dpi=100, layout="constrained").subplots()


def _histogram_at(log: Log, steps: Sequence[int] | None) -> tuple[Histogram, Sequence[int]]:
    """The histogram, and its rows of the reports at `steps`, or of a few that have one."""
    histogram = log.model.histogram
    there = [] if histogram is None else np.flatnonzero(np.isfinite(histogram.zeros)).tolist()
    if histogram is None or not there:
        raise ValueError(
            "The log has no histogram to draw. Log with SensitivityLogger(..., histograms=True)."
        )
    if steps is None:
        chosen = np.linspace(0, len(there) - 1, min(_MOST_LINES, len(there)))
        return histogram, [there[position] for position in np.rint(chosen).astype(int)]
    known = log.steps[there].tolist()
    unknown = sorted(set(steps) - set(known))
    if unknown:
        raise ValueError(
            f"Argument `steps` must be steps of reports with a histogram, of which the log has "
            f"{len(known)} from {known[0]} to {known[-1]}. It has none at {unknown}."
        )
    return histogram, [there[known.index(step)] for step in steps]


def _check_name(log: Log, name: str) -> None:
    if name not in log.model.values:
        raise ValueError(
            f"The log has no values {name!r}. It has {sorted(log.model.values)}. (A log "
            "has no scale with a sensitivity in bfloat16 or with `steps_per_execution` above 1.)"
        )


def _shades(count: int) -> Any:
    """Colours from light to dark, none of them too light for a line on white."""
    return require_matplotlib().colormaps["viridis"](np.linspace(0.8, 0.1, count))


def _ends(edges: np.ndarray, counts: np.ndarray) -> tuple[float, float] | None:
    """Between what there is all of each row but half a percent on either side, or None."""
    shares = [np.cumsum(row) / row.sum() for row in counts if row.sum()]
    if not shares:
        return None
    first = min(int(np.searchsorted(share, 0.005, side="right")) for share in shares)
    last = max(int(np.searchsorted(share, 0.995)) for share in shares)
    return edges[first] / 1.5, edges[last + 1] * 1.5


def _edges_around(steps: np.ndarray) -> np.ndarray:
    """The edges of cells around the steps, halfway between neighbours."""
    steps = steps.astype("float64")  # twice a large integer may be none
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])


def _bound(optimizer: dict[str, Any], steps: np.ndarray) -> np.ndarray:
    """The most that the scale can be: all of the average is the last sensitivity, or none is."""
    beta_3 = optimizer["beta_3"]
    fading = beta_3**steps if optimizer["bias_correction"] else np.zeros(len(steps))
    return np.maximum(1.0, (beta_3 - fading) / (1 - beta_3))


def _title(name: str) -> str:
    words = {
        "mean": "mean sensitivity",
        "gini": "Gini index of the sensitivity",
        "redundant_share": "redundant share",
        "scale_mean": "mean learning-rate scale",
        "scale_max": "maximum learning-rate scale",
        "sparsity": "sparsity",
    }
    text = words.get(name, f"{name} of the sensitivity")
    return text[0].upper() + text[1:]


def _name_rows(axes: Axes, names: list[str], rows: str) -> None:
    """Labels the rows of a picture, and only so many as there is room for."""
    figure: Any = axes.figure
    height = axes.get_position().height * figure.get_figheight()
    every = max(1, math.ceil(len(names) * 0.8 * _INCHES_PER_ROW / height))
    axes.set_yticks(
        range(0, len(names), every),
        [_shortened(name) for name in names[::every]],
        fontsize=8,
        parse_math=False,
    )
    if every > 1:
        axes.set_ylabel(f"one name in {every} of {len(names)} {rows}")


def _shortened(name: str) -> str:
    """The name with its middle left out, where it is too long for a label."""
    name = printable(name)
    begin = _LABEL_LENGTH // 3  # names differ most at their ends
    end = _LABEL_LENGTH - begin - 1
    return name if len(name) <= _LABEL_LENGTH else f"{name[:begin]}…{name[-end:]}"


def _explain_gaps(axes: Axes, zero: bool, missing: bool) -> None:
    from matplotlib.patches import Patch

    handles = []
    if zero:
        handles.append(Patch(facecolor="white", edgecolor="0.4", label="zero"))
    if missing:
        gap: dict[str, Any] = {"facecolor": "0.85", "edgecolor": "0.6", "hatch": "////"}
        handles.append(Patch(**gap, label="no value"))
    if handles:
        axes.figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8)


def _marks(steps: np.ndarray) -> dict[str, Any]:
    """Points, where they are few: a lone report is no line."""
    return {"marker": "o", "markersize": 3} if len(steps) <= 30 else {}


def _ticks_at(axes: Axes, steps: np.ndarray) -> None:
    """Puts ticks at steps, and only so many as there is room for; cuts the axis off there."""
    apart = (float(steps[-1]) - float(steps[0])) / _MOST_TICKS
    ticks = [steps[-1]]
    for step in steps[-2::-1]:  # the last step has a tick always
        if float(ticks[-1]) - float(step) >= apart:
            ticks.append(step)
    axes.set_xticks(ticks[::-1], [f"{step:,}" for step in ticks[::-1]])
    axes.margins(x=0.02)


def _plain_legend(axes: Axes, lines: Sequence[Line2D], names: Sequence[str], **place: Any) -> None:
    """A legend in which a dollar sign is a dollar sign."""
    for text in axes.legend(lines, list(map(printable, names)), **place).get_texts():
        text.set_parse_math(False)
