"""Callbacks for `keras.Model.fit`."""

from sage_keras.callbacks.dps_logger import DPSLogger
from sage_keras.callbacks.keep_zeros import KeepZeros
from sage_keras.callbacks.prune_neurons import PruneNeurons
from sage_keras.callbacks.sensitivity_logger import SensitivityLogger
from sage_keras.callbacks.skipped_steps import RaiseOnSkippedSteps
from sage_keras.callbacks.sparsity_logger import SparsityLogger
from sage_keras.callbacks.true_weights import SwapTrueWeights

__all__ = [
    "DPSLogger",
    "KeepZeros",
    "PruneNeurons",
    "RaiseOnSkippedSteps",
    "SensitivityLogger",
    "SparsityLogger",
    "SwapTrueWeights",
]
