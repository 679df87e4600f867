"""Sage at the rates of the layers."""

from typing import Any

import keras

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Patterns
from sage_keras.optimizers.layerwise.layerwise import LayerwiseLearningRate
from sage_keras.optimizers.sage.sage import Sage


@keras.saving.register_keras_serializable(package="sage_keras")
class LayerwiseSage(LayerwiseLearningRate, Sage):
    """Sage with learning rates by layer.

    Each weight's learning rate is that of its layer, times the scale of its sensitivity.
    `LayerwiseLearningRate` tells the rule of the one, `SensitivityGuided` that of the other.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        weight_decay: Float, the decoupled weight decay. It is multiplied by the rate of the layer,
            not by the scale. Defaults to `0.004`.
        learning_rate_multipliers: Dict of regular expression, which is searched in
            `variable.path`, to factor, a float of at least 0. The first match counts; 0 freezes.
            `layerwise_decay` makes one.
        beta_3: Float, the decay of the sensitivity's moving average. Defaults to `0.75`.
        calibrate: Boolean, whether the scales of each variable are divided by their mean so far,
            so that the learning rate of AdamW carries over. Defaults to `False`.
        guide: Boolean, `False` to measure only. Defaults to `True`.
        **kwargs: The other arguments of `Sage` and of `keras.optimizers.AdamW`.

    Example:

    >>> import keras
    >>> from sage_keras import LayerwiseSage
    >>> hidden = keras.layers.Dense(4, name="hidden")
    >>> model = keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1, name="head")])
    >>> rates = {"hidden/": 0.1}
    >>> model.compile(LayerwiseSage(1e-3, learning_rate_multipliers=rates), loss="mse")

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
        - [Howard and Ruder, 2018](https://arxiv.org/abs/1801.06146)
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        use_ema: bool = False,
        ema_momentum: float = 0.99,
        ema_overwrite_frequency: int | None = None,
        loss_scale_factor: float | None = None,
        gradient_accumulation_steps: int | None = None,
        name: str | None = None,
        *,
        learning_rate_multipliers: dict[str, float],
        beta_3: float = 0.75,
        sensitivity_epsilon: float = 1e-12,
        bias_correction: bool = True,
        include: Patterns = None,
        exclude: Patterns = None,
        sensitivity_dtype: str = "float32",
        calibrate: bool = False,
        guide: bool = True,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
