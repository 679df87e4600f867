"""Tools that look at what was measured."""

from sage_keras.analysis.log import read_log

__all__ = ["read_log"]
