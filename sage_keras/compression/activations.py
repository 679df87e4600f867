"""What is known of activations."""

from typing import Any

import keras
import numpy as np

# Those of Keras that take each number by itself. The others, such as softmax, take them together.
_ELEMENTWISE = [
    "celu",
    "elu",
    "exponential",
    "gelu",
    "hard_shrink",
    "hard_sigmoid",
    "hard_silu",
    "hard_tanh",
    "leaky_relu",
    "linear",
    "log_sigmoid",
    "mish",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_shrink",
    "softplus",
    "softsign",
    "sparse_plus",
    "sparse_sigmoid",
    "squareplus",
    "tanh",
    "tanh_shrink",
    "threshold",
]


def is_elementwise(activation: Any) -> bool:
    """Whether an activation is one of Keras's that take each number by itself."""
    return any(activation is getattr(keras.activations, name, None) for name in _ELEMENTWISE)


def is_linear(activation: Any) -> bool:
    """Whether an activation is the one that does nothing."""
    return activation is keras.activations.linear


def keeps_zero(activation: Any) -> bool:
    """Whether an activation of zero is zero, exactly."""
    value = keras.ops.convert_to_numpy(activation(keras.ops.zeros((1,))))
    return bool(np.all(value == 0))
