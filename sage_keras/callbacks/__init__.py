"""Callbacks for `keras.Model.fit`."""

from sage_keras.callbacks.true_weights import SwapTrueWeights

__all__ = ["SwapTrueWeights"]
