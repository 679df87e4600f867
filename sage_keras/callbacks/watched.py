"""The optimizers of a model that a callback looks at."""

from typing import Any


def not_known_yet(optimizer: Any) -> bool:
    """Whether an optimizer is, or wraps, one that knows its optimizers only once it is built.

    That is a `MultiOptimizer` made by a function, which on TensorFlow the first step builds.

    Args:
        optimizer: A Keras optimizer.

    Returns:
        Boolean.
    """
    inner = getattr(optimizer, "inner_optimizer", None)
    if inner is not None:
        return not_known_yet(inner)
    return getattr(optimizer, "optimizers", None) == []
