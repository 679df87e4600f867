"""The sensitivity of any compiled model's parameters on a set of data."""

import inspect
import itertools
import warnings
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

import keras
import numpy as np
from keras import ops

from sage_keras import arguments, scores
from sage_keras import sensitivity as measure
from sage_keras.analysis.data import (
    Batch,
    check_data,
    count_batches,
    read_batches,
    read_examples,
    to_tensors,
)
from sage_keras.annotations import Arrays, Tensor
from sage_keras.optimizers.base import find_optimizers
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.paths import unique_paths

_Added: TypeAlias = tuple[list[Tensor], Tensor, Tensor]  # sums, loss, whether it was added
_Sum: TypeAlias = Callable[[list[Tensor], Batch, Tensor], _Added]
Score: TypeAlias = Callable[[Tensor, Tensor], Tensor]  # of a weight and its gradient

_SCORES: dict[str, Score] = {
    "sensitivity": scores.sensitivity,
    "movement": scores.movement,
    "fisher": lambda weight, gradient: scores.fisher(gradient),
}


def measure_sensitivity(
    model: keras.Model,
    data: Any,
    batches: int | None = None,
    per: str = "batch",
    batch_size: int | None = None,
    verbose: int = 1,
    score: str = "sensitivity",
) -> Arrays:
    """Measures the mean sensitivity |theta * gradient| of each trainable parameter over data.

    Any compiled model can be measured, whatever trained it. The loss is the compiled one, with
    sample weights, regularization and `add_loss`. The gradient is not clipped. The model runs
    as in evaluation (`training=False`): dropout is off, and batch normalization takes its moving
    statistics. So the result is the same on every call. The model and its optimizer are left
    untouched, bit for bit.

    The result is `mean(|theta * gradient(batch)|)` over batches, each counting the same whatever
    its size, or over examples with `per="example"`. The gradients of examples partly cancel in
    that of a batch, so the two differ, and the former depends on the batch size.

    With a `LossScaleOptimizer` the loss is scaled as in training, and the scale is halved until
    no gradient overflows; the result is free of it. Sensitivities that are still not finite are
    returned as they are.

    Args:
        model: A compiled and built `keras.Model`.
        data: A tuple of arrays `(x, y)` or `(x, y, sample_weight)`, in which each may be a
            dict or list of arrays; a `tf.data.Dataset`; a `keras.utils.PyDataset`; a torch
            DataLoader; or any iterable of batches `(x, y)` or `(x, y, sample_weight)`. `x` is what
            the model itself takes: of a keras-hub task, what its preprocessor returns. Sparse
            arrays reach the model as in `fit`: sparse on TensorFlow and JAX, dense on torch.
        batches: Int, how many batches to read, or `None` for all. Defaults to `None`.
        per: `"batch"`, or `"example"` for the gradients of single examples. Those are taken one
            by one, in as much memory as a batch of one needs: one backward pass for each example
            in place of one for each batch. Defaults to `"batch"`.
        batch_size: Int, the batch size for arrays; other data comes in batches. Defaults to
            `None`, which is 32 for arrays.
        verbose: `1` for a progress bar with the mean loss, `0` for silence. Defaults to `1`.
        score: What to measure in place of it: `"movement"`, which is `-theta * gradient`, or
            `"fisher"`, the squared gradient. Defaults to `"sensitivity"`.

    Returns:
        Dict of variable path to a NumPy array of the variable's shape, for each trainable
        variable: float32, or float64 for float64 variables. Where a path occurs again the later
        ones are called `path#1`, `path#2` and so on.

    Raises:
        TypeError: If `model` is not a Keras model, `data` is of another kind, or an argument is of
            the wrong type.
        ValueError: If the model is not built, not compiled or without a loss, if there is no
            data, or fewer batches than asked for, or if an argument is out of range.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> dense = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones", name="dense")
    >>> model = keras.Sequential([keras.Input((2,)), dense], name="tiny")
    >>> model.compile(loss="mse")
    >>> x, y = np.array([[1.0, 2.0]]), np.array([[1.0]])
    >>> measure_sensitivity(model, (x, y), verbose=0)["tiny/dense/kernel"].tolist()
    [[4.0], [8.0]]

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """
    measured = _SCORES[arguments.choice("score", score, list(_SCORES))]
    means = mean_scores(model, data, measured, None, batches, per, batch_size, verbose)
    return dict(zip(unique_paths(model.trainable_variables), means))


def mean_scores(
    model: keras.Model,
    data: Any,
    score: Score,
    directions: list[np.ndarray] | None = None,
    batches: int | None = None,
    per: str = "batch",
    batch_size: int | None = None,
    verbose: int = 1,
) -> list[np.ndarray]:
    """The means over batches of a score of each trainable variable.

    Args:
        model: A compiled and built model. The arguments that are not here are those of
            `measure_sensitivity`.
        score: Function of a tensor and the gradient.
        directions: List of arrays, which stand in the place of the weights in `score`, one for each
            trainable variable. Defaults to `None`, the weights themselves.

    Returns:
        List of arrays.
    """
    arguments.choice("per", per, ("batch", "example"))
    _check_model(model)
    _warn_of_mixed_weights(model)
    check_data(data, batch_size)
    total = _total(count_batches(data, batch_size), batches)

    sums = [
        ops.cast(ops.zeros_like(variable.value), measure.compute_dtype(variable.dtype))
        for variable in model.trainable_variables
    ]
    add = _compiled_sum(model, score, directions)
    loss_scale = _loss_scale(model)
    bar = keras.utils.Progbar(total, verbose=verbose)
    read = measured = 0
    for batch in itertools.islice(read_batches(data, batch_size), batches):
        losses = []
        for part in read_examples(batch) if per == "example" else [batch]:
            sums, loss, loss_scale = _add_unless_overflown(add, sums, to_tensors(part), loss_scale)
            losses.append(loss)
        measured += len(losses)
        read += 1
        bar.update(read, [("loss", np.mean(losses))] if losses else [])
    if total is None:
        bar.update(read, finalize=True)
    _check_read(read, measured, batches)
    return [_divide(ops.convert_to_numpy(value), measured) for value in sums]


def _divide(array: np.ndarray, count: int) -> np.ndarray:
    # NumPy makes numbers of arrays without dimensions, and before 2.0 float64 ones.
    return np.asarray(np.divide(array, count, dtype=array.dtype))


def _add_unless_overflown(
    add: _Sum, sums: list[Tensor], batch: Batch, loss_scale: float
) -> tuple[list[Tensor], float, float]:
    while True:
        sums, loss, added = add(sums, batch, ops.convert_to_tensor(loss_scale, "float32"))
        if bool(added):
            return sums, float(loss), loss_scale
        loss_scale /= 2


def _compiled_sum(model: keras.Model, score: Score, directions: list[np.ndarray] | None) -> _Sum:
    """A function that adds one batch's scores to their sums, compiled where that helps.

    Keras has no gradient of its own, so that each backend's stands here: called with the sums, a
    batch and the loss scale, it returns the new sums, the loss, and whether the batch was added,
    which it is not where the scaled gradient overflows.
    """
    make = {"tensorflow": _tensorflow_sum, "jax": _jax_sum, "torch": _torch_sum}
    backend = keras.backend.backend()
    if backend not in make:
        raise ValueError(f"The backend {backend} has no gradients. Use one of {', '.join(make)}.")
    tensors = None if directions is None else [ops.convert_to_tensor(one) for one in directions]
    return make[backend](model, score, tensors)


def _tensorflow_sum(model: keras.Model, score: Score, directions: list[Tensor] | None) -> _Sum:
    import tensorflow as tf

    def add(sums: list[Tensor], batch: Batch, loss_scale: Tensor) -> _Added:
        # The variables and not their values: a module of TensorFlow Hub reads them by itself.
        weights = [variable.value for variable in model.trainable_variables]
        others = [tf.convert_to_tensor(variable) for variable in model.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = _scaled_loss(weights, model, others, batch, loss_scale)
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        gradients = [tf.convert_to_tensor(gradient) for gradient in gradients]  # sparse ones
        values = directions or [tf.convert_to_tensor(weight) for weight in weights]
        return _add(score, sums, values, gradients, loss, loss_scale)

    return add if model.run_eagerly else tf.function(add, reduce_retracing=True)


def _jax_sum(model: keras.Model, score: Score, directions: list[Tensor] | None) -> _Sum:
    import jax

    def add(
        sums: list[Tensor],
        weights: list[Tensor],
        others: list[Tensor],
        directions: list[Tensor] | None,
        batch: Batch,
        loss_scale: Tensor,
    ) -> _Added:
        value_and_gradients = jax.value_and_grad(_scaled_loss)
        loss, gradients = value_and_gradients(weights, model, others, batch, loss_scale)
        return _add(score, sums, directions or weights, gradients, loss, loss_scale)

    if not model.run_eagerly:
        add = jax.jit(add, donate_argnums=0)

    def add_with_state(sums: list[Tensor], batch: Batch, loss_scale: Tensor) -> _Added:
        weights = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        # Not out of the closure: XLA would compile them in as constants.
        return add(sums, weights, others, directions, batch, loss_scale)

    return add_with_state


def _torch_sum(model: keras.Model, score: Score, directions: list[Tensor] | None) -> _Sum:
    import torch

    def add(sums: list[Tensor], batch: Batch, loss_scale: Tensor) -> _Added:
        weights = [variable.value for variable in model.trainable_variables]
        others = [variable.value for variable in model.non_trainable_variables]
        with torch.enable_grad():
            loss = _scaled_loss(weights, model, others, batch, loss_scale)
        # Unlike backward(), this leaves the parameters' own .grad alone.
        gradients = list(torch.autograd.grad(loss, weights, materialize_grads=True))
        with torch.no_grad():
            return _add(score, sums, directions or weights, gradients, loss, loss_scale)

    return add


def _scaled_loss(
    weights: list[Tensor],
    model: keras.Model,
    others: list[Tensor],
    batch: Batch,
    loss_scale: Tensor,
) -> Tensor:
    """The compiled loss of a batch, as a function of the weights that changes no variable."""
    x, y, sample_weight = batch
    variables = model.trainable_variables + model.non_trainable_variables
    state = list(zip(variables, [*weights, *others]))
    with keras.StatelessScope(state_mapping=state, collect_losses=True):
        predicted = model(x, training=False)
        if (
            model.loss is None
            and not model.losses
            and type(model).compute_loss is keras.Model.compute_loss
        ):
            raise ValueError(
                f"The model {model.name!r} has no loss to measure. Pass one to its `compile`, "
                'such as model.compile(loss="mse").'
            )
        # As Keras calls it: `training` came with Keras 3.3, and an override may be older.
        takes_training = "training" in inspect.signature(model.compute_loss).parameters
        options = {"training": False} if takes_training else {}
        loss = model.compute_loss(x, y, predicted, sample_weight, **options)
    return ops.multiply(loss, ops.cast(loss_scale, loss.dtype))


def _add(
    score: Score,
    sums: list[Tensor],
    weights: list[Tensor],
    gradients: list[Tensor],
    loss: Tensor,
    loss_scale: Tensor,
) -> _Added:
    added = loss_scale <= 1.0  # a gradient without scale that overflows is reported, not hidden
    values = []
    finite = []
    for total, weight, gradient in zip(sums, weights, gradients):
        gradient = ops.divide(ops.cast(gradient, total.dtype), ops.cast(loss_scale, total.dtype))
        finite.append(ops.all(ops.isfinite(gradient)))
        values.append(score(ops.cast(weight, total.dtype), gradient))
    added = ops.logical_or(added, ops.all(ops.stack(finite)))
    sums = [ops.where(added, total + value, total) for total, value in zip(sums, values)]
    return sums, ops.divide(loss, ops.cast(loss_scale, loss.dtype)), added


def _loss_scale(model: keras.Model) -> float:
    optimizer = getattr(model, "optimizer", None)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return float(optimizer.scale_loss(ops.ones((), "float32")))
    # Not by `scale_loss`: an optimizer may take that for a step of training.
    return float(getattr(optimizer, "loss_scale_factor", None) or 1.0)


def _warn_of_mixed_weights(model: keras.Model) -> None:
    mixed = [one for one in find_optimizers(model.optimizer, WeightMixing) if one.is_mixed]
    if mixed:
        warnings.warn(
            f"The model {model.name!r} holds the mixed weights of {type(mixed[0]).__name__}, and "
            "those are measured. To measure the true ones, do it inside "
            "`with optimizer.true_weights():`.",
            stacklevel=3,
        )


def _check_model(model: Any) -> None:
    arguments.built_model("model", model)
    if not model.compiled:
        raise ValueError(
            f"The model {model.name!r} is not compiled, so that it has no loss to measure. "
            'Compile it, such as model.compile(loss="mse").'
        )
    if not model.trainable_variables:
        raise ValueError(f"The model {model.name!r} has no trainable variables to measure.")


def _total(available: float | None, batches: int | None) -> float | None:
    if batches is None:
        if available == float("inf"):
            raise ValueError(
                "Argument `data` never ends. Say how much to read of it, such as batches=100."
            )
        return available
    arguments.integer("batches", batches, low=1, example=100)
    if available is not None and available < batches:
        _refuse_too_few(available, batches)
    return batches


def _check_read(read: int, measured: int, batches: int | None) -> None:
    if batches is not None and read < batches:
        _refuse_too_few(read, batches)
    if not measured:
        raise ValueError(
            "Argument `data` is empty: there is nothing to measure. An iterator that was read "
            "before has to be made again."
        )


def _refuse_too_few(available: float, batches: int) -> NoReturn:
    raise ValueError(
        f"Argument `batches` asks for more than there is: `data` has {available} batches. "
        f"Write batches=None for all of them. Received: batches={batches}"
    )
