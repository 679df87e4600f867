"""Plots that the examples share, each drawn on axes that the caller owns."""

import numpy as np
from matplotlib.ticker import MaxNLocator


def plot_validation_curves(axes, curves, figure="accuracy"):
    """Draws the validation accuracy, or another figure, by epoch.

    Args:
        axes: Matplotlib axes.
        curves: Dict of label to a list of values, one for each epoch.
        figure: String, what they are. Defaults to `"accuracy"`.
    """
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=label)
    axes.set(title=f"Validation {figure}", xlabel="epoch", ylabel=figure)
    axes.set_xlim(0.5, max(map(len, curves.values())) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()


def plot_sensitivity_histogram(axes, values):
    """Draws how many parameters have which sensitivity, in logarithmic bins.

    Parameters of no sensitivity have no place on that scale: they are counted in the title.

    Args:
        axes: Matplotlib axes.
        values: Array of sensitivities, none of them negative.
    """
    positive = values[values > 0]
    zeros = values.size - positive.size
    title = f"Sensitivity of {values.size:,} parameters ({zeros:,} at zero)"
    axes.set(title=title, xlabel="|weight x gradient|, averaged", ylabel="parameters")
    if positive.size:
        bins = np.logspace(np.log10(positive.min()), np.log10(positive.max()), 61)
        axes.hist(positive, bins=bins)
        axes.set_xscale("log")
        axes.set_yscale("log")  # or the few insensitive ones could not be seen
    axes.grid(alpha=0.3)


def plot_seeds(axes, results):
    """Draws every seed as a point, and the mean as a bar.

    Args:
        axes: Matplotlib axes.
        results: Dict of label to a list of figures, one for each seed.
    """
    for place, figures in enumerate(results.values()):
        shift = np.linspace(-0.12, 0.12, len(figures)) if len(figures) > 1 else [0.0]
        axes.plot(place + np.array(shift), figures, "o", color="black", alpha=0.6, markersize=5)
        mean = np.mean(figures)
        axes.hlines(mean, place - 0.22, place + 0.22, color="black", linewidth=2)
        axes.annotate(
            f"{mean:.3f}", (place + 0.24, mean), va="center", fontsize="small", clip_on=False
        )
    axes.set_xticks(range(len(results)), list(results))
    axes.set_xlim(-0.5, len(results) - 0.2)
    axes.grid(axis="y", alpha=0.3)


def save(figure, path):
    """Writes a picture, and says so.

    Args:
        figure: A Matplotlib figure.
        path: A `pathlib.Path`, of which the folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"Drew {path}")
