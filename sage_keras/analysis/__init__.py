"""Measures, tables and pruning: a model's parameters seen through their sensitivity."""

from sage_keras.analysis.measure import measure_sensitivity

__all__ = ["measure_sensitivity"]
