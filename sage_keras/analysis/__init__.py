"""What the sensitivity of a model tells, measured, read from a log, and tried by pruning."""

from sage_keras.analysis.measure import measure_sensitivity
from sage_keras.analysis.plots import (
    plot_distribution,
    plot_heat_map,
    plot_metric,
    plot_pruning_curves,
    plot_scale,
)
from sage_keras.analysis.pruning import pruned, pruning_curve
from sage_keras.analysis.report import write_report
from sage_keras.analysis.summary import summary
from sage_keras.log.reading import (
    Histogram,
    Log,
    Metrics,
    Series,
    read_dps_log,
    read_log,
    read_sparsity_log,
)
from sage_keras.scores import magnitude_scores, random_scores

__all__ = [
    "Histogram",
    "Log",
    "Metrics",
    "Series",
    "magnitude_scores",
    "measure_sensitivity",
    "plot_distribution",
    "plot_heat_map",
    "plot_metric",
    "plot_pruning_curves",
    "plot_scale",
    "pruned",
    "pruning_curve",
    "random_scores",
    "read_dps_log",
    "read_log",
    "read_sparsity_log",
    "summary",
    "write_report",
]
