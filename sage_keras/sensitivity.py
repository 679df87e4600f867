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

import math
from typing import Any

import keras
from keras import ops

from sage_keras.annotations import Tensor
from sage_keras.random_bits import random_bits

# Of float32 a quarter of the largest: neither an average of such values overflows, nor its
# correction, nor its rounding. The slots of float64 weights are in float32 too.
LARGEST = 2.0**126


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


def capped(value: Tensor) -> Tensor:
    """A sensitivity of which neither the average nor its correction overflows.

    Args:
        value: Tensor, non-negative.

    Returns:
        `value`, and 2^126 where it is more or infinite. What is not a number stays so.

    Example:

    >>> from keras import ops
    >>> float(capped(ops.array(float("inf")))) == 2.0**126
    True
    """
    return ops.minimum(value, LARGEST)


def moving_average(average: Tensor, value: Tensor, beta_3: float) -> Tensor:
    """The next exponential moving average.

    In float32 it is exact to 6e-8 / (1 - beta_3): where a value hardly changes the average any
    more, the change is lost in its last bit.

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
    # From the larger share towards the smaller one, whose factor is exact in any precision.
    start, end, share = average, value, 1.0 - beta_3
    if beta_3 < 0.5:
        start, end, share = value, average, beta_3
    return ops.add(start, ops.multiply(ops.subtract(end, start), share))


def as_stored(average: Tensor, dtype: str, seed: int, step: Tensor) -> Tensor:
    """A moving average as a variable of `dtype` holds it.

    To bfloat16 it is rounded up or down by chance, and the more likely to the nearer value, so that
    the errors of many steps cancel. The chance is that of `random_bits`: a step that is made again
    rounds as before.

    Args:
        average: Tensor, non-negative, of float32 or float64.
        dtype: String, the dtype of the variable.
        seed: Integer, another one for each variable.
        step: Integer or scalar tensor of integers, the number of updates so far.

    Returns:
        `average` as it is, or in bfloat16 if that is `dtype`.

    Example:

    >>> from keras import ops
    >>> stored = as_stored(ops.full((1000,), 1.002), "bfloat16", seed=0, step=0)
    >>> sorted(set(ops.convert_to_numpy(ops.cast(stored, "float32")).tolist()))
    [1.0, 1.0078125]
    """
    if dtype != "bfloat16":
        return average
    # Of the bits bfloat16 has the upper 16: where the lower ones and a random number of 16 bits
    # make more than that, one is carried.
    bits = ops.view(ops.cast(average, "float32"), "int32")
    noise = ops.bitwise_and(random_bits(seed, step, average.shape), 2**16 - 1)
    carried = ops.where(ops.isfinite(average), ops.add(bits, noise), bits)
    return ops.cast(ops.view(ops.bitwise_and(carried, -(2**16)), "float32"), dtype)


def bias_corrected(average: Tensor, beta_3: float, step: Tensor) -> Tensor:
    """A moving average that began at zero, freed of its pull towards zero.

    Args:
        average: Tensor, the moving average after `step` updates.
        beta_3: Float in (0, 1), the factor it was made with.
        step: Scalar float tensor, the number of updates, at least 1.

    Returns:
        `average / (1 - beta_3**step)`, of the shape of `average`.

    Example:

    >>> round(float(bias_corrected(2.0, beta_3=0.75, step=1.0)), 5)
    8.0
    """
    return ops.divide(average, share_so_far(beta_3, step))


def share_so_far(beta_3: float, step: Tensor) -> Tensor:
    """The share of a moving average that is not the zero it began at.

    Args:
        beta_3: Float in (0, 1), the factor it was made with.
        step: Scalar float tensor, the number of updates, at least 1.

    Returns:
        Scalar tensor, `1 - beta_3**step`.

    Example:

    >>> round(float(share_so_far(beta_3=0.75, step=1.0)), 4)
    0.25
    """
    # In this form nothing is lost of a beta_3 near 1.
    return ops.negative(ops.expm1(ops.multiply(step, math.log(beta_3))))


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
    change = ops.subtract(average, previous_average)
    return ops.add(average, ops.multiply(change, beta_3 / (1.0 - beta_3)))
