"""Callbacks that watch the training."""

from sage_keras.callbacks.sensitivity_logger import SensitivityLogger

__all__ = ["SensitivityLogger"]
