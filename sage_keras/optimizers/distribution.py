"""What JAX's layouts and TensorFlow's strategies have to be told of slots."""

import contextlib

import keras


def check_strategy(optimizer):
    """Says in words what TensorFlow's strategies cannot do, of which Keras blames `merge_call`."""
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
    for argument, instead in advice.items():
        value = getattr(optimizer, argument)
        if value:
            raise ValueError(
                f"Argument `{argument}` does not work in any Keras optimizer under "
                f"{type(tf.distribute.get_strategy()).__name__}, which cannot synchronize its "
                f"replicas inside a condition. {instead}. Received: {argument}={value}"
            )


def replicated(tensor, variable):
    """A tensor of which every device has a copy, where Keras lays `variable` out over devices.

    Left to itself XLA may spread a small tensor, and then move whole variables to where that is.
    """
    layout = getattr(variable, "_layout", None)
    if not isinstance(layout, keras.distribution.TensorLayout):
        return tensor
    whole = keras.distribution.TensorLayout([None] * len(tensor.shape), layout.device_mesh)
    return keras.distribution.distribute_tensor(tensor, whole)


def slot_layout(variable, shape):
    """How to lay out, over devices, a slot that broadcasts to a variable: as the variable is."""
    layout = getattr(variable, "_layout", None)
    if tuple(shape) == tuple(variable.shape):
        return layout
    if not isinstance(layout, keras.distribution.TensorLayout):
        return None
    sizes = zip(layout.axes, shape, variable.shape)
    axes = [axis if size == whole else None for axis, size, whole in sizes]
    return keras.distribution.TensorLayout(axes, layout.device_mesh)


def on_device_of(optimizer, variable):
    """A scope that places a new slot with its variable, which only TensorFlow has to be told."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    if strategy is None:
        return contextlib.nullcontext()
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return strategy.extended.colocate_vars_with(variable)
