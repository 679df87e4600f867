"""Models that are smaller: pruned for good, and written into small files."""

from sage_keras.compression.pruning import prune
from sage_keras.compression.zeros import Sparsity, sparsity

__all__ = [
    "Sparsity",
    "prune",
    "sparsity",
]
