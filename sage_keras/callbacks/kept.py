"""What is compiled once for a model and its optimizers, and used by every `fit`."""

import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras

_kept: weakref.WeakKeyDictionary[keras.Model, dict[Any, Any]] = weakref.WeakKeyDictionary()


def kept(
    model: keras.Model,
    optimizers: Sequence[Any],
    make: Callable[..., Any],
    *arguments: Hashable,
) -> Any:
    """What `make` returned for a model, its optimizers and arguments, from the first call on.

    It goes with the model, or with an optimizer, so that it must not hold any of them but weakly.

    Args:
        model: A `keras.Model`.
        optimizers: List of optimizers.
        make: Function of `optimizers` and `arguments`.
        *arguments: What else it depends on.

    Returns:
        What `make` returned.
    """
    of_model = _kept.setdefault(model, {})
    for key in [key for key in of_model if any(one() is None for one in key[1])]:
        del of_model[key]
    key = (make, tuple(map(weakref.ref, optimizers)), arguments)
    if key not in of_model:
        of_model[key] = make(optimizers, *arguments)
    return of_model[key]
