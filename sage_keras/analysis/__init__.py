"""Measures, tables and pruning: a model's parameters seen through their sensitivity."""

from sage_keras.analysis.measure import measure_sensitivity
from sage_keras.analysis.pruning import pruned, pruning_curve
from sage_keras.analysis.scores import magnitude_scores, random_scores
from sage_keras.analysis.summary import summary

__all__ = [
    "magnitude_scores",
    "measure_sensitivity",
    "pruned",
    "pruning_curve",
    "random_scores",
    "summary",
]
