"""Pruning, and models that are smaller for it."""

from sage_keras.compression.shrink import compact
from sage_keras.compression.structured import prune_neurons

__all__ = ["compact", "prune_neurons"]
