"""Weights in files in which zeros take almost no room."""

import os

import keras
import numpy as np

from sage_keras import arguments
from sage_keras.compression import files

_KIND = "sparse weights"


def save_sparse(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Writes the weights of a model into a file in which zeros take almost no room.

    Of a variable that is mostly zero only the other elements are written, and where they are; of
    the rest all. The file holds the weights as they are, to the bit, and neither the model's
    architecture nor the optimizer. With 90 % at zero it takes about 0.11 of what the weights do.

    It appears in one piece: what was there before stays until then.

    Args:
        model: A built `keras.Model`.
        path: String or path-like, the file. Its folder is made where it is missing.

    Raises:
        TypeError: If `model` is not a Keras model, or `path` no path.
        ValueError: If the model is not built, or `path` is a folder.

    Example:

    >>> import pathlib, tempfile
    >>> import keras
    >>> from sage_keras.compression import load_sparse, prune, save_sparse
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> found = prune(model, "magnitude", sparsity=0.75)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.sparse"
    >>> save_sparse(model, path)
    >>> other = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> load_sparse(other, path)
    >>> bool((other.layers[0].get_weights()[0] == model.layers[0].get_weights()[0]).all())
    True
    """
    arguments.built_model("model", model)
    entries = []
    for name, weight in zip(*files.weights_of(model)):
        bits = files.read_bits(weight)
        dtype = keras.backend.standardize_dtype(weight.dtype)
        positions = np.flatnonzero(bits)
        # A position takes about a byte, and a zero what its dtype does.
        if (len(bits) - len(positions)) * bits.dtype.itemsize > len(positions):
            entry = files.Entry(name, tuple(weight.shape), dtype, positions, bits[positions])
        else:
            entry = files.Entry(name, tuple(weight.shape), dtype, None, bits)
        entries.append(entry)
    files.write(path, _KIND, {}, entries)


def load_sparse(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Loads what `save_sparse` wrote into a model of the same architecture.

    Weights go by their paths; the numbers in names that Keras makes up, such as `dense_1`, need not
    be the same. Files are safe to read whoever they come from: nothing in them is executed, and
    what is not as it was written is refused.

    Args:
        model: A built `keras.Model`.
        path: String or path-like, the file.

    Raises:
        TypeError: If `model` is not a Keras model.
        OSError: If the file cannot be read.
        ValueError: Before anything is changed, if the model is not built, or if the file is
            damaged, of another kind, of another model or of other dtypes.
    """
    arguments.built_model("model", model)
    _, entries = files.read(path, _KIND, model)
    arrays = []
    for entry in entries:
        bits = entry.bits
        if entry.positions is not None:
            bits = np.zeros(int(np.prod(entry.shape, dtype="int64")), entry.bits.dtype)
            bits[entry.positions] = entry.bits
        arrays.append(files.as_array(bits, entry.shape, entry.dtype))
    for weight, array in zip(model.weights, arrays):
        weight.assign(array)
