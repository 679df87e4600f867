"""The columns of weight matrices: which axes of a kernel index inputs, and which outputs."""

import re
from collections.abc import Sequence

# EinsumDense kernels that project to (heads, head size). The authors' have the heads in one axis.
_SPLIT_INTO_HEADS = r"(?:query|key|value)[^/]*/kernel$"


def column_shape(path: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a mask that has one element for each column.

    A column is what one input of a layer is multiplied by: all of a weight matrix's weights that
    go from that input to the outputs. The last axis of Keras's kernels is an output, and the
    others index inputs. Of the queries, keys and values of attention, whose kernels are of shape
    `(inputs, heads, head size)`, or `(heads, inputs, head size)` as in Gemma, the axis of the heads
    is an output as well. The elements of biases, vectors and scalars are columns by themselves.

    Args:
        path: String, the path of the variable.
        shape: Tuple of integers, its shape.

    Returns:
        Tuple of integers that broadcasts to `shape`.

    Example:

    >>> column_shape("dense/kernel", (8, 32))
    (8, 1)
    >>> column_shape("attention/query/kernel", (8, 2, 4))
    (8, 1, 1)
    >>> column_shape("attention/attention_output/kernel", (2, 4, 8))
    (2, 4, 1)
    >>> column_shape("attention/query/bias", (2, 4))
    (2, 4)
    """
    shape = tuple(shape)
    if len(shape) < 2 or path.endswith("bias"):
        return shape
    if len(shape) == 3 and re.search(_SPLIT_INTO_HEADS, path):
        # There are more inputs than heads.
        return (shape[0], 1, 1) if shape[0] >= shape[1] else (1, shape[1], 1)
    return (*shape[:-1], 1)
