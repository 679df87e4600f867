"""The sensitivity of parameters, as pure functions of tensors.

For a weight `theta` with gradient `g` of the loss at step `t`:

    I_t      = |theta * g|                               `sensitivity`
    average  = beta_3 * average + (1 - beta_3) * I_t     `moving_average`
    smoothed = average / (1 - beta_3^t)                  `bias_corrected`
    U_t      = |I_t - smoothed|                          the local temporal variation
    s_t      = (U_t + epsilon) / (smoothed + epsilon)    `learning_rate_scale`
    mean     = mean + (s_t - mean) / count               `running_mean`

I_t is the first-order estimate of how much the loss would change if the weight were set to zero.
s_t multiplies the learning rate of that one weight.

Nothing here has state, and nothing knows of Keras variables or optimizers. Every function works
element by element in the dtype of its arguments; `compute_dtype` names the one to work in.

Reference:
    - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
"""

from typing import Any

import keras
from keras import ops

from sage_keras.annotations import Tensor


def compute_dtype(dtype: Any) -> str:
    """The dtype in which the sensitivity of weights of `dtype` is computed.

    At least float32: an epsilon of 1e-12 is zero in float16, and 0 / 0 would follow.

    Args:
        dtype: The dtype of the weights, as a string or a backend's own.

    Returns:
        `"float64"` for float64, otherwise `"float32"`.

    Example:

    >>> compute_dtype("bfloat16")
    'float32'
    """
    return "float64" if keras.backend.standardize_dtype(dtype) == "float64" else "float32"


def sensitivity(weight: Tensor, gradient: Tensor) -> Tensor:
    """The sensitivity `|weight * gradient|` of every element.

    Args:
        weight: Tensor, the weights at which the gradient was taken.
        gradient: Tensor of the same shape, the gradient of the loss.

    Returns:
        A non-negative tensor of the same shape.

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(sensitivity(ops.array([2.0, 0.0]), ops.array([-3.0, 5.0]))).tolist()
    [6.0, 0.0]
    """
    return ops.abs(ops.multiply(weight, gradient))


def moving_average(average: Tensor, value: Tensor, beta_3: float) -> Tensor:
    """The next exponential moving average.

    Args:
        average: Tensor, the average so far; zeros before the first step.
        value: Tensor of the same shape, the new value.
        beta_3: Float in (0, 1), how much of the average is kept.

    Returns:
        `beta_3 * average + (1 - beta_3) * value`.

    Example:

    >>> float(moving_average(0.0, 8.0, beta_3=0.75))
    2.0
    """
    return ops.add(ops.multiply(average, beta_3), ops.multiply(value, 1.0 - beta_3))


def as_stored(average: Tensor, dtype: str) -> Tensor:
    """A moving average as a slot of `dtype` holds it, in its own dtype again.

    Args:
        average: Tensor, non-negative.
        dtype: String, the dtype of the slot.

    Returns:
        `average`, rounded to bfloat16 if that is `dtype`, otherwise as it is.

    Example:

    >>> from keras import ops
    >>> float(as_stored(ops.array(1.01), "bfloat16"))
    1.0078125
    """
    if dtype != "bfloat16":
        return average
    # Through the bits: XLA takes a cast and its reverse for nothing, leaves both out, and then
    # has to copy the old slot and the weights to read them beside the new ones.
    bits = ops.cast(ops.view(ops.cast(average, dtype), "int16"), "int32")
    return ops.cast(ops.view(ops.left_shift(bits, 16), "float32"), average.dtype)


def bias_corrected(average: Tensor, beta_3: float, step: Tensor) -> Tensor:
    """A moving average that began at zero, freed of its pull towards zero.

    Args:
        average: Tensor, the moving average after `step` updates.
        beta_3: Float in (0, 1), the factor it was made with.
        step: Scalar float tensor, the number of updates, at least 1.

    Returns:
        `average / (1 - beta_3**step)`, of the shape of `average`.

    Example:

    >>> float(bias_corrected(2.0, beta_3=0.75, step=1.0))
    8.0
    """
    return ops.divide(average, ops.subtract(1.0, ops.power(beta_3, step)))


def learning_rate_scale(value: Tensor, smoothed: Tensor, epsilon: float = 1e-12) -> Tensor:
    """The factor `s` by which each weight's learning rate is multiplied.

    It is small where the sensitivity is steady, and large where it varies. `epsilon` stands in
    both places, so that a weight that has no sensitivity (a zero weight) takes the base step:
    there `s` is 1.

    Args:
        value: Tensor, this step's sensitivity.
        smoothed: Tensor of the same shape, its moving average, this step's value included.
        epsilon: Float above zero. Defaults to `1e-12`.

    Returns:
        `(|value - smoothed| + epsilon) / (smoothed + epsilon)`.

    Example:

    >>> from keras import ops
    >>> s = learning_rate_scale(ops.array([3.0, 0.0]), ops.array([2.0, 0.0]))
    >>> ops.convert_to_numpy(s).tolist()
    [0.5, 1.0]
    """
    variation = ops.abs(ops.subtract(value, smoothed))
    return ops.divide(ops.add(variation, epsilon), ops.add(smoothed, epsilon))


def running_mean(mean: Tensor, value: Tensor, count: Tensor) -> Tensor:
    """The mean of a series so far, from the mean before its last value.

    Args:
        mean: Tensor, the mean of the values before.
        value: Tensor of the same shape, the new value.
        count: Scalar float tensor, the number of values with the new one. At zero, where the series
            has not begun, the mean stays as it is.

    Returns:
        `mean + (value - mean) / count`.

    Example:

    >>> float(running_mean(2.0, 5.0, count=3.0))
    3.0
    """
    share = ops.divide(ops.minimum(count, 1.0), ops.maximum(count, 1.0))
    return ops.add(mean, ops.multiply(ops.subtract(value, mean), share))


def last_value(average: Tensor, previous_average: Tensor, beta_3: float) -> Tensor:
    """The value that took one moving average to the next: the inverse of `moving_average`.

    Args:
        average: Tensor, the moving average after a step.
        previous_average: Tensor of the same shape, the moving average before it.
        beta_3: Float in (0, 1), the factor they were made with.

    Returns:
        `(average - beta_3 * previous_average) / (1 - beta_3)`.

    Example:

    >>> float(last_value(moving_average(4.0, 8.0, beta_3=0.75), 4.0, beta_3=0.75))
    8.0
    """
    return ops.divide(ops.subtract(average, ops.multiply(previous_average, beta_3)), 1.0 - beta_3)
