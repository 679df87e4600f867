"""All that one backend needs and the others do not: Keras's own operations come first."""

import concurrent.futures
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from sage_keras.annotations import Tensor, Variable


def to_dense(gradient: Tensor) -> Tensor:
    """A gradient as one dense tensor.

    TensorFlow gives embeddings `tf.IndexedSlices`, in which a row that was looked up twice stands
    twice; a product with the gradient, or its square, needs their sum. `keras.ops` leaves the
    duplicates apart.
    """
    if keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def is_sparse(array: Any) -> bool:
    """Whether an array is a sparse one of SciPy or a `tf.SparseTensor`, whatever the backend."""
    return hasattr(array, "tocsr") or type(array).__name__ == "SparseTensor"


def rows(array: Any, start: int, stop: int) -> Any:
    """Some rows of an array. Of the sparse ones, some cannot be sliced as they are."""
    if not is_sparse(array):
        return array[start:stop]
    if hasattr(array, "tocsr"):
        return array.tocsr()[start:stop]
    import tensorflow as tf

    stop = min(stop, array.shape[0])
    begin = [start] + [0] * (len(array.shape) - 1)
    return tf.sparse.slice(array, begin, [stop - start, *array.shape[1:]])


def dense_or_sparse_tensor(array: Any) -> Any:
    """An array as a tensor of the backend, sparse where Keras's `fit` would make it so."""
    backend = keras.backend.backend()
    if not is_sparse(array) or (backend == "tensorflow" and ops.is_tensor(array)):
        return ops.convert_to_tensor(array)
    if hasattr(array, "tocoo"):
        array = array.tocoo()
        indices, values = np.stack([array.row, array.col], axis=1), array.data
    else:
        indices, values = np.asarray(array.indices), np.asarray(array.values)
    shape = tuple(array.shape)
    if values.dtype.kind == "f":
        values = values.astype(keras.backend.floatx())
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.SparseTensor(indices, values, shape)
    if backend == "jax":
        import jax.numpy as jnp
        from jax.experimental import sparse

        return sparse.BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=shape)
    dense = np.zeros(shape, values.dtype)
    np.add.at(dense, tuple(indices.T), values)
    return ops.convert_to_tensor(dense)


def is_concrete(tensor: Tensor) -> bool:
    """Whether a tensor has its value already: outside of what is traced to be compiled."""
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return not isinstance(tensor, jax.core.Tracer)
    if backend == "tensorflow":
        return hasattr(tensor, "numpy")
    import torch

    return not torch.compiler.is_compiling()


def cond(condition: Tensor, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """`ops.cond`, which JAX would compile again at every call outside of a trace.

    Torch's compiler too: Keras gives each call a new name, and the compiler sees another program.
    """
    backend = keras.backend.backend()
    if backend == "torch" or (backend == "jax" and is_concrete(condition)):
        return then() if condition else otherwise()
    return ops.cond(condition, then, otherwise)


def computed_once(tensor: Tensor) -> Tensor:
    """A tensor that XLA stores, where it would compute it again for each of its readers.

    On JAX. TensorFlow has no public operation for it that runs without XLA too.
    """
    if keras.backend.backend() != "jax":
        return tensor
    import jax

    barrier: Callable[[Tensor], Tensor] = jax.lax.optimization_barrier
    return barrier(tensor)


def compiled_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of tensors that runs `ops.while_loop`, which JAX would compile at every call.

    Outside of a trace JAX compiles a loop for each new pair of condition and body. Under its `jit`
    it does so once for each shape. Torch's compiler would take the turns of a loop for programs of
    their own, and so does not see it.
    """
    if keras.backend.backend() == "torch":
        import torch

        disable: Any = torch.compiler.disable  # it has no types
        return disable(function)
    if keras.backend.backend() != "jax":
        return function
    jitted: Callable[..., Any] = compiled(function)
    return jitted


def compiled(function: Callable[..., Any], xla: bool = True) -> Callable[..., Any]:
    """`function` of tensors, compiled where that makes it one call on the device.

    Keras compiles its own training steps only. On torch it stays as it is: there each operation
    is a kernel of its own, and compiling takes longer than it saves.

    Args:
        function: Function of tensors.
        xla: Boolean, whether TensorFlow compiles its graph by XLA. JAX always does.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        return jax.jit(function)
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=xla, autograph=False)
    import torch

    return torch.no_grad()(function)


def all_finite(gradients: Sequence[Tensor]) -> Tensor:
    """Whether no gradient holds an infinity or a not-a-number, on any replica.

    Args:
        gradients: List of gradients, at least one.

    Returns:
        Boolean scalar.
    """
    finite = ops.all(ops.stack([ops.all(ops.isfinite(to_dense(one))) for one in gradients]))
    if not _replicated():
        return finite
    import tensorflow as tf

    # On TensorFlow the gradients that `apply` gets are still those of one replica.
    bad = tf.cast(tf.logical_not(finite), "float32")
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, bad) == 0


def take_back(variables: Sequence[Variable], before: Sequence[Tensor], finite: Tensor) -> None:
    """Gives the variables back the values they had, unless `finite`.

    Args:
        variables: List of variables.
        before: List of tensors, their values before the step.
        finite: Boolean scalar.
    """
    if not _replicated():
        for variable, value in zip(variables, before):
            variable.assign(ops.where(finite, ops.convert_to_tensor(variable), value))
        return
    import tensorflow as tf

    def on_device(variable: Any, value: Any, finite: Any) -> None:
        variable.assign(tf.where(finite, variable, value))

    def on_all_devices(distribution: Any, variables: Any, before: Any, finite: Any) -> None:
        for variable, value in zip(variables, before):
            distribution.extended.update(variable, on_device, args=(value, finite), group=False)

    # A replica cannot assign to a slot: tf.distribute would have to know how to add up.
    native = [getattr(variable, "value", variable) for variable in variables]
    tf.distribute.get_replica_context().merge_call(on_all_devices, args=(native, before, finite))


def outside_of_graphs() -> Any:
    """A scope in which TensorFlow computes at once, where it traces a function around it too."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def positions_of(mask: Tensor, count: int) -> Tensor:
    """Where a mask is true.

    Args:
        mask: Boolean tensor, true `count` times.
        count: Integer, which makes the shape of the result known before the mask is.

    Returns:
        Int32 tensor of the shape `(count,)`, the positions row by row, in ascending order.
    """
    mask = ops.reshape(mask, (-1,))
    backend = keras.backend.backend()
    if backend == "jax":
        import jax.numpy as jnp

        return jnp.nonzero(mask, size=count)[0].astype("int32")
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.ensure_shape(tf.cast(tf.where(mask)[:count, 0], "int32"), (count,))
    return ops.cast(mask.nonzero()[:, 0], "int32")


def take_at(tensor: Tensor, positions: Tensor) -> Tensor:
    """The elements of a tensor at some positions.

    It is indexed axis by axis: a reshaped tensor XLA would bring together from all devices.

    Args:
        tensor: Tensor or variable.
        positions: Int32 tensor of one axis, the positions row by row.

    Returns:
        Tensor of the shape of `positions`.
    """
    tensor, indices = _indexed(tensor, positions)
    if keras.backend.backend() != "tensorflow":
        return tensor[tuple(indices)]
    import tensorflow as tf

    return tf.gather_nd(tensor, tf.stack(indices, axis=-1))


def put_at(
    variables: Sequence[Variable], positions: Sequence[Tensor], values: Sequence[Tensor]
) -> None:
    """Gives variables new values at some positions, and leaves every other bit.

    Args:
        variables: List of variables.
        positions: List of int32 tensors of one axis, each position once.
        values: List of tensors of the shapes of `positions`.
    """
    if not _replicated():
        for variable, where, value in zip(variables, positions, values):
            _put_at(variable, where, value)
        return
    import tensorflow as tf

    def on_all_devices(distribution: Any, native: Any, positions: Any, values: Any) -> None:
        for variable, *arguments in zip(native, positions, values):
            distribution.extended.update(variable, _put_at, args=arguments, group=False)

    # A replica's assignment would be averaged over all, and a mean may differ in its last bit.
    native = [getattr(variable, "value", variable) for variable in variables]
    context = tf.distribute.get_replica_context()
    context.merge_call(on_all_devices, args=(native, positions, values))


def _put_at(variable: Variable, positions: Tensor, values: Tensor) -> None:
    tensor, indices = _indexed(variable, positions)
    values = ops.cast(values, tensor.dtype)
    if keras.backend.backend() == "torch":
        import torch

        with torch.no_grad():
            tensor[tuple(indices)] = values  # in place: a view of what the variable holds
        return
    tensor = ops.scatter_update(tensor, ops.stack(indices, axis=-1), values)
    variable.assign(ops.reshape(tensor, variable.shape))


def _indexed(tensor: Tensor, positions: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
    """A tensor of at least one axis, and the positions by axis."""
    tensor = ops.convert_to_tensor(tensor)
    if len(tensor.shape) < 2:
        return ops.reshape(tensor, (-1,)), [positions]
    return tensor, ops.unravel_index(positions, tuple(tensor.shape))


def _replicated() -> bool:
    """Whether this is one of several replicas of tf.distribute, which share their variables."""
    if keras.backend.backend() != "tensorflow":
        return False
    import tensorflow as tf

    return tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()


def check_strategy(optimizer: keras.optimizers.Optimizer) -> None:
    """Says what TensorFlow's strategies cannot do, of which Keras blames `merge_call`."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    # As Keras itself finds out; True without a strategy.
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        return
    advice = {
        "gradient_accumulation_steps": "Use a batch size as many times as large, or accumulate in "
        "a training loop of your own",
        "ema_overwrite_frequency": "Leave it out, and use `keras.callbacks.SwapEMAWeights` to "
        "evaluate and save the averages",
    }
    if hasattr(optimizer, "_backend_maybe_overwrite_model_variables"):  # Keras 3.16 can
        del advice["ema_overwrite_frequency"]
    for argument, instead in advice.items():
        value = getattr(optimizer, argument)
        if value:
            raise ValueError(
                f"Argument `{argument}` does not work in any Keras optimizer under "
                f"{type(tf.distribute.get_strategy()).__name__}, which cannot synchronize its "
                f"replicas inside a condition. {instead}. Received: {argument}={value}"
            )


def give_back_state(model: Any) -> None:
    """Has a model's variables hold their values in the middle of `fit`, where JAX keeps them out.

    What is assigned to them then counts in the next step.
    """
    if keras.backend.backend() == "jax":
        model.jax_state_sync()


def has_value(variable: Variable) -> bool:
    """Whether a variable can be read outside of a step.

    On JAX `fit` takes the values out of the variables, and a step deletes the arrays that it is
    given: an exception may leave variables without values, or with deleted ones.
    """
    value = variable._value
    deleted = getattr(value, "is_deleted", None)  # of JAX's arrays
    return value is not None and not (deleted is not None and deleted())


def is_laid_out(variable: Variable) -> bool:
    """Whether Keras lays a variable out over devices, or a copy of it on each."""
    return isinstance(getattr(variable, "_layout", None), keras.distribution.TensorLayout)


def replicated(tensor: Tensor, variable: Variable) -> Tensor:
    """A tensor of which every device has a copy, where Keras lays `variable` out over devices.

    Left to itself XLA may spread a small tensor, and then move whole variables to where that is.
    """
    if not is_laid_out(variable):
        return tensor
    layout = variable._layout
    whole = keras.distribution.TensorLayout([None] * len(tensor.shape), layout.device_mesh)
    return keras.distribution.distribute_tensor(tensor, whole)


def slot_layout(variable: Variable, shape: Sequence[int]) -> Any:
    """How to lay out, over devices, a slot that broadcasts to a variable: as the variable is.

    One of another number of axes is on every device.
    """
    layout: Any = getattr(variable, "_layout", None)
    if tuple(shape) == tuple(variable.shape):
        return layout
    if not is_laid_out(variable):
        return None
    axes = [None] * len(shape)
    if len(shape) == len(variable.shape):
        sizes = zip(layout.axes, shape, variable.shape)
        axes = [axis if size == whole else None for axis, size, whole in sizes]
    return keras.distribution.TensorLayout(axes, layout.device_mesh)


def outside_of_traces(make: Callable[..., None], *arguments: Any) -> None:
    """Calls what makes variables, on TensorFlow before what is being traced.

    A `tf.function` that makes variables is traced twice, and each takes operations in its graph.
    It gets hold of all that its thread makes, in `tf.init_scope` too: another thread makes them.
    A strategy makes its variables in its replicas.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.executing_eagerly() and not tf.distribute.has_strategy():
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                return pool.submit(make, *arguments).result()
    make(*arguments)


def on_device_of(optimizer: keras.optimizers.Optimizer, variable: Variable) -> Any:
    """A scope that places a new slot with its variable, which only TensorFlow has to be told."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    if strategy is None:
        return contextlib.nullcontext()
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return strategy.extended.colocate_vars_with(variable)
