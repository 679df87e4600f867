"""Smaller models: pruned for good, in small files, with few trained weights, in few bits."""

from sage_keras.compression.deltas import apply_delta, remove_delta, save_delta
from sage_keras.compression.pruning import prune
from sage_keras.compression.quantization import (
    QuantizationSensitivity,
    quantization_sensitivity,
)
from sage_keras.compression.ranks import LoraRanks, enable_lora, lora_ranks
from sage_keras.compression.shrink import compact
from sage_keras.compression.sparse_files import load_sparse, save_sparse
from sage_keras.compression.structured import prune_neurons
from sage_keras.compression.zeros import Sparsity, sparsity

__all__ = [
    "LoraRanks",
    "QuantizationSensitivity",
    "Sparsity",
    "apply_delta",
    "compact",
    "enable_lora",
    "load_sparse",
    "lora_ranks",
    "prune",
    "prune_neurons",
    "quantization_sensitivity",
    "remove_delta",
    "save_delta",
    "save_sparse",
    "sparsity",
]
