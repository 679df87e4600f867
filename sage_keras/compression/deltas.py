"""What fine-tuning changed in a model, as a small file that is put on and taken off."""

import os
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from sage_keras import arguments
from sage_keras.compression import files

_KIND = "delta"
_BASE, _TUNED = "base", "tuned"


def save_delta(
    model: keras.Model,
    base: keras.Model | Sequence[np.ndarray],
    path: str | os.PathLike[str],
) -> None:
    """Writes what tells a fine-tuned model's weights from those it began with.

    The file holds the weights that changed, where they are, and a fingerprint of all weights before
    and after. `apply_delta` makes the fine-tuned model of the base, and `remove_delta` the base of
    the fine-tuned model, both to the bit. So one base model in memory serves many tasks, each of
    which has a small file.

    Of each changed weight the file has the bits that changed: it takes about 4 bytes, with 1 % of
    the weights. A delta is small if few weights changed: if the optimizer trains few, or layers are
    frozen.

    Args:
        model: A built `keras.Model`, the fine-tuned one.
        base: A built `keras.Model` of the same architecture, or what `model.get_weights()` returned
            before the fine-tuning.
        path: String or path-like, the file. Its folder is made where it is missing.

    Raises:
        TypeError: If `model` is not a Keras model, or `base` neither one nor a list of arrays.
        ValueError: If a model is not built, if the weights of both are not of the same shapes and
            dtypes, or if `path` is a folder.

    Example:

    >>> import pathlib, tempfile
    >>> import keras
    >>> from sage_keras.compression import apply_delta, remove_delta, save_delta
    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> before = model.get_weights()
    >>> _ = model.layers[0].bias.assign([0.0, 0.0, 1.0, 0.0])
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "task.delta"
    >>> save_delta(model, before, path)
    >>> remove_delta(model, path)
    >>> apply_delta(model, path)
    """
    arguments.built_model("model", model)
    old = _base_bits(model, base)
    names, weights = files.weights_of(model)
    shapes = [tuple(weight.shape) for weight in weights]
    new = [files.read_bits(weight) for weight in weights]
    entries = []
    for name, weight, shape, one, other in zip(names, weights, shapes, old, new):
        changes = np.bitwise_xor(one, other)
        positions = np.flatnonzero(changes)
        dtype = keras.backend.standardize_dtype(weight.dtype)
        entries.append(files.Entry(name, shape, dtype, positions, changes[positions]))
    prints = {_BASE: files.fingerprint(shapes, old), _TUNED: files.fingerprint(shapes, new)}
    files.write(path, _KIND, prints, entries)


def apply_delta(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Makes the fine-tuned model of the base that a delta was made from.

    Args:
        model: A built `keras.Model` with the weights of the base, to the bit.
        path: String or path-like, a file of `save_delta`.

    Raises:
        TypeError: If `model` is not a Keras model.
        OSError: If the file cannot be read.
        ValueError: Before anything is changed, if the model is not built, if the file is damaged,
            of another kind or of another model, or if the weights are not those of the base.
    """
    _change(model, path, _BASE, _TUNED)


def remove_delta(model: keras.Model, path: str | os.PathLike[str]) -> None:
    """Makes the base of a model that a delta was applied to, or was made from.

    Args:
        model: A built `keras.Model` with the weights of the fine-tuned model, to the bit.
        path: String or path-like, a file of `save_delta`.

    Raises:
        TypeError: If `model` is not a Keras model.
        OSError: If the file cannot be read.
        ValueError: Before anything is changed, if the model is not built, if the file is damaged,
            of another kind or of another model, or if the weights are not those of the fine-tuned
            model.
    """
    _change(model, path, _TUNED, _BASE)


def _change(model: keras.Model, path: str | os.PathLike[str], expected: str, wanted: str) -> None:
    arguments.built_model("model", model)
    header, entries = files.read(path, _KIND, model)
    shapes = [entry.shape for entry in entries]
    bits = [files.read_bits(weight).copy() for weight in model.weights]
    found = files.fingerprint(shapes, bits)
    if found != header.get(expected):
        if found == header.get(wanted):
            what = "was applied already" if wanted == _TUNED else "is not applied"
            raise ValueError(f"The delta {os.fspath(path)!r} {what}. Nothing was changed.")
        raise ValueError(
            f"The delta {os.fspath(path)!r} is of other weights than the model has: they differ "
            f"from those of the {expected} model that it was made from. Load these first, without "
            "the delta of another task. Nothing was changed."
        )
    for one, entry in zip(bits, entries):
        one[slice(None) if entry.positions is None else entry.positions] ^= entry.bits
    if files.fingerprint(shapes, bits) != header.get(wanted):
        raise ValueError(f"The delta {os.fspath(path)!r} is damaged. Nothing was changed.")
    for weight, one, entry in zip(model.weights, bits, entries):
        if entry.positions is None or len(entry.positions):
            weight.assign(files.as_array(one, entry.shape, entry.dtype))


def _base_bits(model: keras.Model, base: Any) -> list[np.ndarray]:
    """The weights of the base, if they are of the same shapes and dtypes."""
    if isinstance(base, keras.Model):
        base = arguments.built_model("base", base).weights
    elif not isinstance(base, (list, tuple)):
        raise TypeError(
            "Argument `base` must be a `keras.Model` or what its `get_weights()` returned. "
            f"Received: {type(base).__name__}"
        )
    arrays = [keras.ops.convert_to_numpy(one) for one in base]
    if len(arrays) != len(model.weights):
        raise ValueError(
            f"Argument `base` has {len(arrays)} weights, and the model {model.name!r} "
            f"{len(model.weights)}. Both must be of one architecture."
        )
    for array, weight, path in zip(arrays, model.weights, files.weights_of(model)[0]):
        here = tuple(weight.shape), keras.backend.standardize_dtype(weight.dtype)
        there = array.shape, keras.backend.standardize_dtype(array.dtype)
        if here != there:
            raise ValueError(
                f"Argument `base` has the shape {there[0]} and the dtype {there[1]} for {path!r}, "
                f"where the model has {here[0]} and {here[1]}. Both must be of one architecture."
            )
    return [files.read_bits(array) for array in arrays]
