"""Files of single weights: which ones, and their bits. Nothing in them is ever executed.

A file holds, one after the other:

    magic       16 bytes
    length      of the header, 8 bytes, the least significant first
    header      JSON: the format, the kind of file, the variables, and what the kind adds
    parts       for each variable the gaps between its positions, then the bits at these
    digest      SHA-256 of all before, 32 bytes

Each part is an array of unsigned integers, of which first the lowest bytes stand together, then the
next ones, compressed by zlib: the upper bytes of weights and gaps are much alike. A variable whose
elements are all there has no gaps.
"""

import dataclasses
import hashlib
import json
import math
import os
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import ml_dtypes
import numpy as np

from sage_keras import atomic
from sage_keras.annotations import Variable
from sage_keras.optimizers.saved_state import match_variables
from sage_keras.paths import unique_paths

FORMAT = 1
_MAGIC = b"sage_keras file\n"
_LENGTH_BYTES = 8
_DIGEST_BYTES = 32
_LEVEL = 1  # of zlib: higher ones take several times as long for some hundredths
_WRITERS = {"sparse weights": "save_sparse", "delta": "save_delta"}
_READERS = {"sparse weights": "load_sparse", "delta": "apply_delta"}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Elements of one variable.

    Args:
        path: String, the path of the variable.
        shape: Tuple of ints, its shape.
        dtype: String, its dtype.
        positions: Array of int64, ascending, which elements these are, row by row; or `None` for
            all.
        bits: Array of unsigned integers of the size of the dtype, the bits of these elements.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    positions: np.ndarray | None
    bits: np.ndarray


def read_bits(variable: Any) -> np.ndarray:
    """The elements of a variable or array, row by row, as unsigned integers of the same bits."""
    array = np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).reshape(-1)
    return array.view(_unsigned(array.dtype.itemsize))


def as_array(bits: np.ndarray, shape: Sequence[int], dtype: str) -> np.ndarray:
    """The array of which all elements have these bits."""
    return bits.view(_numpy_dtype(dtype)).reshape(tuple(shape))


def fingerprint(shapes: Sequence[tuple[int, ...]], bits: Sequence[np.ndarray]) -> str:
    """What tells weights from others: SHA-256 of their shapes and bits, in hexadecimal digits."""
    digest = hashlib.sha256()
    for shape, one in zip(shapes, bits):
        digest.update(f"{list(shape)} {one.dtype.itemsize} ".encode())
        digest.update(one.astype(one.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str], kind: str, more: dict[str, Any], entries: Sequence[Entry]
) -> None:
    """Writes a file, in one piece.

    Args:
        path: The file.
        kind: String, `"sparse weights"` or `"delta"`.
        more: Dict of what the header has beside the variables.
        entries: List of `Entry`.
    """
    parts: list[bytes] = []
    variables = []
    for entry in entries:
        gaps = b"" if entry.positions is None else _pack(_gaps(entry.positions))
        values = _pack(entry.bits)
        parts += [gaps, values]
        variables.append(
            {
                "path": entry.path,
                "shape": list(entry.shape),
                "dtype": entry.dtype,
                "count": None if entry.positions is None else len(entry.positions),
                "bytes": [len(gaps), len(values)],
            }
        )
    header = json.dumps({"format": FORMAT, "kind": kind, "variables": variables, **more}).encode()
    content = b"".join([_MAGIC, len(header).to_bytes(_LENGTH_BYTES, "little"), header, *parts])
    target = atomic.target_file("path", path, "model.sparse")
    atomic.write(target, content + hashlib.sha256(content).digest())


def read(
    path: str | os.PathLike[str], kind: str, model: keras.Model
) -> tuple[dict[str, Any], list[Entry]]:
    """Reads a file that was written for a model's weights.

    Args:
        path: The file.
        kind: String, the kind that it has to be of.
        model: The model. Nothing of it is changed.

    Returns:
        The header, and a list of `Entry`, one for each of `model.weights`, in that order.

    Raises:
        ValueError: If the file is damaged, foreign, of another kind, of a newer format or of
            another model.
    """
    with open(path, "rb") as file:
        content = file.read()
    header, begin = _read_header(path, content, kind)
    try:
        saved = [_check_variable(one) for one in header["variables"]]
        ends = np.cumsum([begin, *(sum(one["bytes"]) for one in saved)]).tolist()
        if ends[-1] != len(content) - _DIGEST_BYTES:
            raise ValueError("its parts are of another length")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"its header cannot be read ({error})") from error
    # Before a part is unpacked: it is then no larger than a weight that is here.
    entries = []
    for index in _order(path, saved, model.weights):
        one = saved[index]
        middle = ends[index] + one["bytes"][0]
        try:
            entries.append(
                _unpack_entry(one, content[ends[index] : middle], content[middle : ends[index + 1]])
            )
        except (ValueError, zlib.error) as error:
            raise _damaged(path, f"{one['path']} cannot be read ({error})") from error
    return header, entries


def weights_of(model: keras.Model) -> tuple[list[str], list[Variable]]:
    """The weights that a file is about, and their paths."""
    return unique_paths(model.weights), model.weights


def _read_header(
    path: str | os.PathLike[str], content: bytes, kind: str
) -> tuple[dict[str, Any], int]:
    """The header, if the file is whole and of this kind, and where the parts begin."""
    begin = len(_MAGIC) + _LENGTH_BYTES
    if not content.startswith(_MAGIC):
        raise ValueError(
            f"The file {os.fspath(path)!r} is none that `{_WRITERS[kind]}` wrote, or it is damaged."
        )
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    if len(body) < begin or hashlib.sha256(body).digest() != digest:
        raise _damaged(path, "it is not as it was written, or not whole")
    end = begin + int.from_bytes(body[len(_MAGIC) : begin], "little")
    try:
        header = json.loads(body[begin:end])
        if type(header["format"]) is not int or type(header["kind"]) is not str:
            raise TypeError("it has no format or no kind")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its header cannot be read ({error})") from error
    if header["format"] != FORMAT:
        raise ValueError(
            f"The file {os.fspath(path)!r} is of format {header['format']}, and this version of "
            f"sage_keras reads format {FORMAT}. Install the version that wrote it."
        )
    if header["kind"] != kind:
        reader = _READERS.get(header["kind"])
        advice = f" Read it with `{reader}`." if reader else ""
        raise ValueError(
            f"The file {os.fspath(path)!r} is of another kind: it holds {header['kind']!r}, and "
            f"not {kind!r}.{advice}"
        )
    return header, end


def _check_variable(one: Any) -> dict[str, Any]:
    path, shape, dtype, count = (one[name] for name in ("path", "shape", "dtype", "count"))
    if type(path) is not str:
        raise TypeError("a path is no string")
    if type(shape) is not list or not all(_is_size(size) for size in shape):
        raise TypeError("a shape is no list of sizes")
    _numpy_dtype(dtype)
    if not (count is None or (_is_size(count) and count <= math.prod(shape))):
        raise TypeError("a count is out of range")
    if len(one["bytes"]) != 2 or not all(_is_size(size) for size in one["bytes"]):
        raise TypeError("the length of a part is none")
    return dict(one)


def _order(
    path: str | os.PathLike[str], saved: list[dict[str, Any]], weights: list[Variable]
) -> list[int]:
    """Which of the saved variables belongs to each weight, if they are of one model."""
    present = [(name, list(weight.shape)) for name, weight in zip(unique_paths(weights), weights)]
    same = match_variables([(one["path"], one["shape"]) for one in saved], present)
    if len(same) < len(present) or len(saved) != len(present):
        here = [f"{name} {tuple(shape)}" for name, shape in present]
        there = [f"{one['path']} {tuple(one['shape'])}" for one in saved]
        missing = [one for at, one in enumerate(here) if at not in same]
        left_out = [one for at, one in enumerate(there) if at not in same.values()]
        raise ValueError(
            f"The file {os.fspath(path)!r} is of another model. In the model only: "
            f"{', '.join(missing[:8]) or 'nothing'}. In the file only: "
            f"{', '.join(left_out[:8]) or 'nothing'}."
        )
    for index, weight in enumerate(weights):
        dtype = saved[same[index]]["dtype"]
        if keras.backend.standardize_dtype(weight.dtype) != dtype:
            raise ValueError(
                f"The file {os.fspath(path)!r} holds {dtype} for {present[index][0]}, where the "
                f"model has {weight.dtype}. Build the model with the dtypes that it was saved with."
            )
    return [same[index] for index in range(len(weights))]


def _unpack_entry(one: dict[str, Any], gaps: bytes, values: bytes) -> Entry:
    size, count = math.prod(one["shape"]), one["count"]
    positions = None
    if count is not None:
        # Of uint32 no sum of as many overflows.
        positions = np.cumsum(_unpack(gaps, count, "uint32"), dtype="int64")
        positions += np.arange(count)
        if count and positions[-1] >= size:
            raise ValueError("a position is beyond its end")
    elif gaps:
        raise ValueError("it has positions and needs none")
    unsigned = _unsigned(_numpy_dtype(one["dtype"]).itemsize)
    bits = _unpack(values, size if count is None else count, unsigned)
    return Entry(one["path"], tuple(one["shape"]), one["dtype"], positions, bits)


def _gaps(positions: np.ndarray) -> np.ndarray:
    """How many elements lie between each position and the one before."""
    gaps = np.diff(positions, prepend=-1) - 1
    if len(gaps) and gaps.max() >= 2**32:
        raise ValueError("Weights of which 2^32 elements in a row are left out cannot be written.")
    return gaps.astype("uint32")


def _pack(array: np.ndarray) -> bytes:
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    planes = little.view("uint8").reshape(-1, array.dtype.itemsize).T
    return zlib.compress(np.ascontiguousarray(planes).data, _LEVEL)


def _unpack(packed: bytes, count: int, dtype: str) -> np.ndarray:
    little = np.dtype(dtype).newbyteorder("<")
    length = count * little.itemsize
    stream = zlib.decompressobj()
    planes = stream.decompress(packed, length + 1)  # never more than is asked for, and one byte
    if len(planes) != length or not stream.eof or stream.unused_data:
        raise ValueError("it is of another length")
    array = np.frombuffer(planes, "uint8").reshape(little.itemsize, count).T
    return np.ascontiguousarray(array).reshape(-1).view(little).astype(dtype, copy=False)


def _unsigned(itemsize: int) -> str:
    return f"uint{8 * itemsize}"


def _numpy_dtype(name: Any) -> np.dtype:
    """The NumPy dtype of one of Keras's names."""
    if type(name) is not str or keras.backend.standardize_dtype(name) != name or name == "string":
        raise TypeError(f"{name!r} is no dtype")
    return np.dtype(getattr(ml_dtypes, name, name))


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 0


def _damaged(path: str | os.PathLike[str], why: str) -> ValueError:
    return ValueError(f"The file {os.fspath(path)!r} is damaged: {why}. Nothing was changed.")
