"""Reads the kinds of data that Keras trains on, one batch at a time, on every backend."""

import math
from collections.abc import Iterator
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops, tree

from sage_keras import arguments
from sage_keras.backend import dense_or_sparse_tensor, is_sparse, rows

Batch: TypeAlias = Any  # (x, y, sample_weight), each a tensor, an array or nested ones

_KERAS_BATCH_SIZE = 32
_KINDS = (
    "a tuple of arrays (x, y) or (x, y, sample_weight), a `tf.data.Dataset`, a "
    "`keras.utils.PyDataset`, a torch DataLoader, or an iterable of batches (x, y) or "
    "(x, y, sample_weight)"
)


def check_data(data: Any, batch_size: int | None = None) -> None:
    """Refuses what cannot be read, and a batch size for data that comes in batches."""
    arrays = isinstance(data, tuple)
    if not arrays and batch_size is not None:
        raise ValueError(
            "Argument `batch_size` is for arrays only; other data comes in batches. Leave it out. "
            f"Received: batch_size={batch_size!r} with data of type {type(data).__name__}"
        )
    if batch_size is not None:
        arguments.integer("batch_size", batch_size, low=1, example=32)
    if arrays:
        if not 1 <= len(data) <= 3:
            raise ValueError(
                "Argument `data` as a tuple must be (x, y) or (x, y, sample_weight). To pass "
                f"several batches, write a list of tuples. Received a tuple of {len(data)}."
            )
        _length(data)
        return
    one_array = hasattr(data, "__array__") or isinstance(data, (str, bytes, dict))
    one_array = one_array or is_sparse(data)
    no_batches = isinstance(data, list) and data and not isinstance(data[0], (tuple, list))
    if one_array or no_batches or not hasattr(data, "__iter__"):
        raise TypeError(f"Argument `data` must be {_KINDS}. Received: {type(data).__name__}")


def count_batches(data: Any, batch_size: int | None = None) -> float | None:
    """How many batches there are: an int, infinity, or `None` where nobody knows."""
    if isinstance(data, tuple):
        return math.ceil(_length(data) / (batch_size or _KERAS_BATCH_SIZE))
    if isinstance(data, keras.utils.PyDataset):
        return math.inf if data.num_batches is None else data.num_batches
    if hasattr(data, "cardinality"):  # of tf.data: -1 is infinite, -2 unknown
        cardinality = int(data.cardinality())
        return {-1: math.inf, -2: None}.get(cardinality, cardinality)
    try:
        return len(data)
    except TypeError:
        return None


def read_batches(data: Any, batch_size: int | None = None) -> Iterator[Batch]:
    """Yields (x, y, sample_weight) whose leaves are NumPy arrays, backend tensors or `None`."""
    if isinstance(data, tuple):
        data = _cut(_readable(data), batch_size or _KERAS_BATCH_SIZE)
    for batch in data:
        yield keras.utils.unpack_x_y_sample_weight(_readable(batch))


def read_examples(batch: Batch) -> Iterator[Batch]:
    """Yields each example of a batch as a batch of one."""
    return _cut(batch, 1)


def to_tensors(batch: Batch) -> Batch:
    """The batch as tensors of the backend."""
    return tree.map_structure(
        lambda leaf: None if leaf is None else dense_or_sparse_tensor(leaf), batch
    )


def _readable(batch: Any) -> Any:
    # A backend takes no other backend's tensors; they all go by way of NumPy.
    def read(leaf: Any) -> Any:
        keep = leaf is None or ops.is_tensor(leaf) or is_sparse(leaf)
        return leaf if keep else np.asarray(leaf)

    return tree.map_structure(read, batch)


def _cut(arrays: Any, size: int) -> Iterator[Any]:
    for start in range(0, _length(arrays), size):
        yield tree.map_structure(
            lambda leaf, start=start: None if leaf is None else rows(leaf, start, start + size),
            arrays,
        )


def _length(arrays: Any) -> int:
    shapes: list[Any] = [np.shape(leaf) for leaf in tree.flatten(arrays) if leaf is not None]
    lengths: set[Any] = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(
            "Argument `data`: all arrays must have the same first dimension, the number of "
            f"examples. Received arrays of the shapes {shapes}."
        )
    (length,) = lengths
    return int(length)
