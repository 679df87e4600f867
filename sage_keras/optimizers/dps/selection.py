"""The selection of subnetworks, as pure functions (DPS).

Training goes in cycles of two stages of `stage_steps` updates each. In stage I every weight trains
and its squared gradients add up to its score; in stage II the subnetwork of the best scores trains:

    k         = ceil((1 - drop_rate) * n)                          `kept_count`
    threshold = the k-th largest score                             `thresholds.threshold`
    mask      = score >= threshold                                 `thresholds.at_least`

Mix scores by the drawn gradients alone, `score * frequency_factor`, and trains on the mixture of
the weights with those of a fixed point, `mixed`. It draws whole columns: see `columns`.

Nothing here has state, and nothing knows of Keras variables or optimizers.

Reference:
    - [Zhang et al., 2022](https://arxiv.org/abs/2211.01642)
"""

import fractions
import math

from keras import ops

from sage_keras.annotations import Tensor

# Twice as many updates, a cycle of two stages, are still counted in int32.
LONGEST_STAGE = 2**30 - 1
# The authors punish frequency only where a stage is long enough to tell columns apart.
_SHORTEST_PENALIZED_STAGE = 50


def steps_per_stage(total_steps: int, update_ratio: float) -> int:
    """How many updates a stage has.

    Args:
        total_steps: Integer, the number of updates of the whole training.
        update_ratio: Float in (0, 1), the share of them that a stage has.

    Returns:
        Integer, `total_steps * update_ratio` without its fraction, in decimal arithmetic. In
        binary 100 * 0.29 is below 29.

    Example:

    >>> steps_per_stage(100, 0.29), steps_per_stage(690, 0.05), steps_per_stage(10, 0.05)
    (29, 34, 0)
    """
    return math.floor(total_steps * _decimal(update_ratio))


def most_steps(update_ratio: float) -> int:
    """The largest number of updates of a training whose stages are not longer than `LONGEST_STAGE`.

    Args:
        update_ratio: Float in (0, 1), the share of the updates that a stage has.

    Returns:
        Integer.

    Example:

    >>> steps_per_stage(most_steps(0.05), 0.05) == LONGEST_STAGE
    True
    """
    return math.ceil((LONGEST_STAGE + 1) / _decimal(update_ratio)) - 1


def kept_count(size: int, drop_rate: float) -> int:
    """How many of `size` weights are kept.

    Args:
        size: Integer, the number of weights.
        drop_rate: Float in [0, 1), the share that is left out.

    Returns:
        Integer, the smallest that is at least `size * (1 - drop_rate)`, in decimal arithmetic. In
        binary 10 * (1 - 0.7) is above 3.

    Example:

    >>> kept_count(10, 0.7), kept_count(10, 0.75), kept_count(10, 0.0)
    (3, 3, 10)
    """
    return math.ceil(size * (1 - _decimal(drop_rate)))


def frequency_factor(frequencies: Tensor, stage_steps: int) -> Tensor:
    """What turns accumulated squared gradients into the score of Mix.

    It divides by how often a column was drawn, and in stages of 50 updates or more favours those
    that were drawn less: `exp(-frequency / stage_steps) / max(frequency, 1)`.

    Args:
        frequencies: Float tensor, how often each column was drawn in stage I.
        stage_steps: Integer, the number of updates of a stage.

    Returns:
        Tensor of the shape of `frequencies`.

    Example:

    >>> from keras import ops
    >>> ops.convert_to_numpy(frequency_factor(ops.array([0.0, 1.0, 4.0]), stage_steps=4)).tolist()
    [1.0, 1.0, 0.25]
    """
    factor = ops.divide(1.0, ops.maximum(frequencies, 1.0))
    if stage_steps < _SHORTEST_PENALIZED_STAGE:
        return factor
    return ops.multiply(factor, ops.exp(ops.divide(frequencies, -float(stage_steps))))


def mixed(weight: Tensor, target: Tensor, mask: Tensor, drop_rate: float) -> Tensor:
    """The mixture of weights and target that a training step of Mix runs on.

    Where the mask is true a weight is moved away from the target, so that the mean over masks is
    the weight itself; elsewhere it is the target.

    Args:
        weight: Float tensor, the true weights.
        target: Tensor of the same shape, what dropped weights are replaced by.
        mask: Boolean tensor that broadcasts to it, which weights are kept.
        drop_rate: Float in [0, 1), the share that is dropped.

    Returns:
        `(mask * weight + (1 - mask) * target - drop_rate * target) / (1 - drop_rate)`. With a
        `drop_rate` of 0, and a mask that is true, it is `weight` to the bit.

    Example:

    >>> from keras import ops
    >>> mask = ops.array([True, False])
    >>> mixture = mixed(ops.array([3.0, 3.0]), ops.array([2.0, 2.0]), mask, drop_rate=0.5)
    >>> ops.convert_to_numpy(mixture).tolist()
    [4.0, 2.0]
    """
    moved = ops.divide(ops.subtract(weight, ops.multiply(target, drop_rate)), 1.0 - drop_rate)
    return ops.where(mask, moved, target)


def _decimal(number: float) -> fractions.Fraction:
    return fractions.Fraction(str(number))
