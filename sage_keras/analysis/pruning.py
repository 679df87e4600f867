"""Pruning: what a model loses when its least sensitive weights are zero."""

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras.analysis.data import check_data, count_batches
from sage_keras.annotations import Arrays, Scores
from sage_keras.compression.pruning import SCOPES, masks, zero
from sage_keras.scores import by_path, read_sortable


def pruned(
    model: keras.Model, sensitivities: Scores | str, fraction: float, scope: str = "global"
) -> contextlib.AbstractContextManager[None]:
    """Zeroes the least sensitive weights of a model inside a `with` block.

    On leaving the block, after an exception too, each variable that `sensitivities` names is as
    it was, bit for bit, whatever happened to it inside. `sage_keras.compression.prune` zeroes them
    for good.

    Of `n` weights, `fraction * n` are zeroed, rounded to the nearest integer (a half to the even
    one). `fraction` is taken as the decimal number that is written, so that 0.7 of 10 is 7. Of
    equal sensitivities, those that come first are kept: in the order of `sensitivities`, within a
    variable row by row.

    Args:
        model: A built `keras.Model`.
        sensitivities: Dict of variable path to an array of the variable's shape, as
            `measure_sensitivity`, `magnitude_scores` and `random_scores` return it; or
            `"magnitude"` or `"random"`. Variables that the dict does not name are left alone:
            drop from it what shall not be pruned.
        fraction: Float in [0, 1], the fraction of weights to zero.
        scope: `"global"` to take the least sensitive weights of all the named variables
            together, `"layer"` to take the same fraction of each layer, or `"variable"` of each
            variable. Defaults to `"global"`.

    Returns:
        A context manager for one `with` block. It warns if it is dropped without one, since
        nothing was pruned then.

    Raises:
        ValueError: Before anything is changed, if `fraction` or `scope` is out of range, if the
            model does not have a path, or if an array is of another shape or has NaNs.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")
    >>> model = keras.Sequential([keras.Input((4,)), dense], name="tiny")
    >>> sensitivities = {"tiny/dense/kernel": [[3.0], [1.0], [4.0], [2.0]]}
    >>> with pruned(model, sensitivities, fraction=0.5):
    ...     print(model.get_weights()[0].ravel())
    [1. 0. 1. 0.]
    >>> print(model.get_weights()[0].ravel())
    [1. 1. 1. 1.]

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """
    fraction = arguments.share("fraction", fraction, example=0.2)
    arguments.choice("scope", scope, SCOPES)
    scores = read_sortable(model, sensitivities)
    return _Pruned(_zeroed(model, masks(model, scores, fraction, scope)))


class _Pruned(contextlib.AbstractContextManager[None]):
    """A context manager that warns if nobody has entered it."""

    def __init__(self, block: contextlib.AbstractContextManager[None]) -> None:
        self._block = block
        self._entered = False

    def __enter__(self) -> None:
        self._entered = True
        self._block.__enter__()

    def __exit__(self, *exception: Any) -> bool | None:
        return self._block.__exit__(*exception)

    def __del__(self) -> None:
        if not self._entered:
            warnings.warn(
                "`pruned` was called without `with`, and has pruned nothing. Write `with "
                "pruned(...):` and what is to see the pruned model in the block. To zero weights "
                "for good, call `sage_keras.compression.prune`.",
                stacklevel=2,
            )


@contextlib.contextmanager
def _zeroed(model: keras.Model, chosen: Arrays) -> Iterator[None]:
    variables = by_path(model)
    before = {path: ops.copy(variables[path].value) for path in chosen}
    try:
        zero(model, chosen)
        yield
    finally:
        for path, value in before.items():
            variables[path].assign(value)


def pruning_curve(
    model: keras.Model,
    data: Any,
    sensitivities: Scores | str,
    fractions: Sequence[float] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    scope: str = "global",
    batch_size: int | None = None,
    verbose: int = 1,
) -> Arrays:
    """Evaluates a model with more and more of its least sensitive weights zeroed.

    The weights are those that `pruned` chooses, and are restored as there.

    Args:
        model: A compiled and built `keras.Model`.
        data: What `model.evaluate` takes: a tuple of arrays `(x, y)` or
            `(x, y, sample_weight)`, a `tf.data.Dataset`, a `keras.utils.PyDataset` or a torch
            DataLoader; or a list of batches. It is read once for each fraction.
        sensitivities: Dict of variable path to an array of the variable's shape, as
            `measure_sensitivity` returns it, or `"magnitude"` or `"random"` for the baselines.
        fractions: Floats in [0, 1], the fractions of weights to zero. Defaults to
            `(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)`.
        scope: `"global"`, `"layer"` or `"variable"`, as in `pruned`. Defaults to `"global"`.
        batch_size: Int, the batch size for arrays; other data comes in batches. Defaults to
            `None`, which is 32 for arrays.
        verbose: `1` for a progress bar, `0` for silence. Defaults to `1`.

    Returns:
        Dict of NumPy arrays of one length: `"fraction"`, and `"loss"` and each compiled metric
        by its name.

    Raises:
        ValueError: Before anything is changed, if `sensitivities`, a fraction or `scope` is
            refused by `pruned`, or if `data` can be read only once or never ends.
        TypeError: If `data` is of another kind.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")
    >>> model = keras.Sequential([keras.Input((2,)), dense])
    >>> model.compile(loss="mae")
    >>> data = np.array([[1.0, 2.0]]), np.array([[3.0]])
    >>> curve = pruning_curve(model, data, "magnitude", (0.0, 0.5, 1.0), verbose=0)
    >>> curve["loss"].tolist()
    [0.0, 2.0, 3.0]

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """
    fractions = [arguments.share("fractions", fraction, example=0.2) for fraction in fractions]
    if not fractions:
        raise ValueError("Argument `fractions` must not be empty. Write, such as, (0.0, 0.2, 0.4).")
    arguments.choice("scope", scope, SCOPES)
    scores = read_sortable(model, sensitivities)
    _check_repeatable(data, batch_size)

    bar = keras.utils.Progbar(len(fractions), verbose=verbose, stateless_metrics=[])
    curve = {"fraction": np.array(fractions)}
    for done, fraction in enumerate(fractions, start=1):
        with pruned(model, scores, fraction, scope):
            logs = _evaluate(model, data, batch_size)
        for name, value in logs.items():
            curve.setdefault(name, np.empty(len(fractions)))[done - 1] = value
        bar.update(done, [("fraction", fraction), *logs.items()])
    return curve


def _check_repeatable(data: Any, batch_size: int | None) -> None:
    check_data(data, batch_size)
    if hasattr(data, "__next__"):
        raise ValueError(
            "Argument `data` is read once for each fraction, and an iterator can be read only "
            f"once. Pass a list of its batches. Received: {type(data).__name__}"
        )
    if count_batches(data, batch_size) == float("inf"):
        raise ValueError(
            "Argument `data` never ends. Limit it, such as `dataset.take(100)`, for an evaluation."
        )


def _evaluate(model: keras.Model, data: Any, batch_size: int | None) -> Any:
    options: dict[str, Any] = {"batch_size": batch_size, "verbose": 0, "return_dict": True}
    if isinstance(data, tuple):
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        return model.evaluate(x, y, sample_weight=sample_weight, **options)
    return model.evaluate(_Batches(data) if isinstance(data, list) else data, **options)


class _Batches(keras.utils.PyDataset):
    """A list of batches, which `model.evaluate` takes in no other form."""

    def __init__(self, batches: list[Any]) -> None:
        super().__init__()
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(self._batches[index])
