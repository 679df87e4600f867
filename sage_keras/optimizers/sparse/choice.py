"""Which weights train: from scores that are passed, in NumPy, and from those of a step, in tensors.

Of equal scores those that come first are taken: in the order of the variables, and within a
variable row by row.
"""

import fractions
import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Arrays, Tensor
from sage_keras.backend import positions_of
from sage_keras.scores import WITHOUT_DATA, to_numpy
from sage_keras.thresholds import largest, largest_of_arrays

BY_GRADIENTS = ("gradient", "sensitivity")
NAMES = (*BY_GRADIENTS, *WITHOUT_DATA)
_OF_A_CONFIGURATION = {"fingerprint", "counts"}


class Scores:
    """The argument `scores`: a name, arrays by path, or what a configuration keeps of arrays."""

    def __init__(self, scores: Any) -> None:
        self.name: str | None = None
        self.arrays: Arrays | None = None  # until the optimizer is built
        self.fingerprint: int | None = None
        self.counts: list[int] | None = None  # by variable, where one threshold is for all
        if isinstance(scores, str):
            self.name = arguments.choice("scores", scores, NAMES)
        elif not isinstance(scores, dict) or not scores:
            listed = ", ".join(f'"{name}"' for name in NAMES)
            raise ValueError(
                f"Argument `scores` must be {listed} or a dict of variable path to array. "
                f"Received: scores={scores!r} (of type {type(scores).__name__})"
            )
        elif set(scores) == _OF_A_CONFIGURATION:
            self.fingerprint, self.counts = scores["fingerprint"], scores["counts"]
        else:
            self.arrays = {path: _finite(path, array) for path, array in scores.items()}
            self.fingerprint = _checksum(self.arrays)

    @property
    def by_gradients(self) -> bool:
        """Whether the first steps' gradients choose: a configuration alone has no scores."""
        return self.name in BY_GRADIENTS or (self.name is None and self.arrays is None)

    def described(self) -> Any:
        """The argument as JSON can hold it."""
        return self.name or {"fingerprint": self.fingerprint, "counts": self.counts}

    def of(self, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The scores of variables, which must be there and fit; none need be of these."""
        arrays = self.arrays or {}
        missing = [path for path in paths if path not in arrays]
        if missing:
            raise ValueError(
                "Argument `scores` lacks variables that train in part. Pass a score for each, or "
                "leave them out with `include` or `exclude`. It has no scores for:"
                f"{arguments.listed(missing)}\nand has those of:{arguments.listed(list(arrays))}"
            )
        for path, shape in zip(paths, shapes):
            if arrays[path].shape != shape:
                raise ValueError(
                    f"Argument `scores` has an array of the shape {arrays[path].shape} for "
                    f"{path!r}, where the variable has {shape}."
                )
        return [arrays[path] for path in paths]


def count(size: int, fraction: float) -> int:
    """How many of `size` weights are the share `fraction`, rounded up, in decimal arithmetic.

    Example:

    >>> count(10, 0.05), count(100, 0.29), count(7, 1.0)
    (1, 29, 7)
    """
    return math.ceil(size * fractions.Fraction(str(fraction)))


def best(scores: Sequence[np.ndarray], fraction: float, scope: str) -> list[np.ndarray]:
    """The positions of the largest scores, row by row, in ascending order.

    Args:
        scores: List of arrays without NaNs.
        fraction: Float above 0 and at most 1, the share that is taken.
        scope: `"variable"` for this share of each array, or `"global"` of all together.

    Returns:
        List of integer arrays.

    Example:

    >>> scores = [np.array([1.0, 4.0, 4.0]), np.array([[5.0, 0.5, 0.5]])]
    >>> [one.tolist() for one in best(scores, 0.3, "variable")]
    [[1], [0]]
    >>> [one.tolist() for one in best(scores, 0.5, "global")]
    [[1, 2], [0]]
    """
    pools = [list(scores)] if scope == "global" else [[one] for one in scores]
    masks: list[np.ndarray] = []
    for pool in pools:
        size = sum(one.size for one in pool)
        masks += largest_of_arrays(pool, count(size, fraction))
    return [np.flatnonzero(mask) for mask in masks]


def best_of(scores: Tensor, count: int) -> Tensor:
    """The positions of the `count` largest of a tensor's scores, in ascending order."""
    (mask,) = largest([ops.cast(scores, "float32")], count)
    return positions_of(mask, count)


def with_values(tensor: Tensor, positions: Tensor, values: Tensor) -> Tensor:
    """A tensor with other values at some positions, row by row."""
    indices = ops.stack(ops.unravel_index(positions, (math.prod(tensor.shape),)), axis=-1)
    flat = ops.scatter_update(ops.reshape(tensor, (-1,)), indices, values)
    return ops.reshape(flat, tensor.shape)


def _finite(path: Any, scores: Any) -> np.ndarray:
    array = to_numpy(scores)
    if not np.isfinite(array).all():
        raise ValueError(
            f"Argument `scores` has values for {path!r} that are not finite, and cannot be ranked. "
            "Measure on data that give a finite loss."
        )
    return array


def _checksum(arrays: Arrays) -> int:
    checksum = 0
    for path in sorted(arrays):
        data = np.ascontiguousarray(arrays[path]).reshape(-1).view("uint8").data
        checksum = zlib.crc32(data, checksum)
    return checksum
