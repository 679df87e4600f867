"""Models that are smaller: pruned for good, and written into small files."""

from sage_keras.compression.deltas import apply_delta, remove_delta, save_delta
from sage_keras.compression.pruning import prune
from sage_keras.compression.sparse_files import load_sparse, save_sparse
from sage_keras.compression.zeros import Sparsity, sparsity

__all__ = [
    "Sparsity",
    "apply_delta",
    "load_sparse",
    "prune",
    "remove_delta",
    "save_delta",
    "save_sparse",
    "sparsity",
]
