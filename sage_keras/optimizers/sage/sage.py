"""SAGE on the optimizers that its authors used, and on plain SGD."""

from typing import Any

import keras

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Patterns
from sage_keras.optimizers.sage.guided import SensitivityGuided


@keras.saving.register_keras_serializable(package="sage_keras")
class Sage(SensitivityGuided, keras.optimizers.AdamW):
    """AdamW with a sensitivity-guided learning rate for every parameter (AdamW-SAGE).

    Each weight's learning rate is multiplied by a scale that is small where the weight's
    sensitivity `|weight * gradient|` is steady, and large where it varies. `SensitivityGuided`
    tells the rule, and what to expect of the learning rate and of the first step.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`. What works
            is 2 to 5 times the rate that works for AdamW, or that rate with `calibrate=True`.
        weight_decay: Float, the decoupled weight decay. It is multiplied by the learning rate,
            not by the scale. Defaults to `0.004`.
        beta_1: Float, the decay of the first moment. Defaults to `0.9`.
        beta_2: Float, the decay of the second moment. Defaults to `0.999`.
        beta_3: Float, the decay of the sensitivity's moving average. Defaults to `0.75`.
        sensitivity_epsilon: Float, see `SensitivityGuided`. Defaults to `1e-12`.
        bias_correction: Boolean, whether the sensitivity's moving average is bias-corrected.
            Defaults to `True`, as in the authors' code.
        include: `None` or a list of regular expressions, the variables to guide. Defaults to
            `None`, all of them.
        exclude: `None` or a list of regular expressions, the variables not to guide. Defaults to
            `None`.
        sensitivity_dtype: `"float32"` or `"bfloat16"`. Defaults to `"float32"`.
        calibrate: Boolean, whether the scales of each variable are divided by their mean so far.
            Defaults to `False`, as in the paper.
        guide: Boolean, `False` to measure only. Defaults to `True`.
        on_nonfinite: `"propagate"` or `"skip"`, what to do with a step of which a gradient is
            infinite or not a number. Defaults to `"propagate"`.
        **kwargs: The other arguments of `keras.optimizers.AdamW`: `epsilon`, `amsgrad`,
            `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Example:

    >>> import keras
    >>> from sage_keras import Sage
    >>> weight = keras.Variable([1.0, 2.0])
    >>> optimizer = Sage(learning_rate=0.1, weight_decay=0.0)
    >>> for gradient in ([1.0, 1.0], [1.0, 3.0]):
    ...     optimizer.apply([keras.ops.array(gradient)], [weight])
    >>> [round(float(w), 4) for w in weight.numpy()]  # the steady weight stays
    [1.0, 1.9633]

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
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


@keras.saving.register_keras_serializable(package="sage_keras")
class SageAdam(SensitivityGuided, keras.optimizers.Adam):
    """Adam with a sensitivity-guided learning rate for every parameter.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        beta_1: Float, the decay of the first moment. Defaults to `0.9`.
        beta_2: Float, the decay of the second moment. Defaults to `0.999`.
        beta_3: Float, the decay of the sensitivity's moving average. Defaults to `0.75`.
        bias_correction: Boolean, whether the sensitivity's moving average is bias-corrected.
            Defaults to `True`.
        **kwargs: The other arguments of `SensitivityGuided` and of `keras.optimizers.Adam`.

    Example:

    >>> import keras
    >>> from sage_keras import SageAdam
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=SageAdam(learning_rate=3e-4), loss="mse")

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        weight_decay: float | None = None,
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


@keras.saving.register_keras_serializable(package="sage_keras")
class SageAdamax(SensitivityGuided, keras.optimizers.Adamax):
    """Adamax with a sensitivity-guided learning rate for every parameter (Adamax-SAGE).

    The authors' Adamax does not correct its first moment for having begun at zero; the Keras one,
    which this class builds on, does.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        beta_1: Float, the decay of the first moment. Defaults to `0.9`.
        beta_2: Float, the decay of the infinity norm. Defaults to `0.999`.
        beta_3: Float, the decay of the sensitivity's moving average. Defaults to `0.75`.
        bias_correction: Boolean, whether the sensitivity's moving average is bias-corrected.
            Defaults to `False`, as in the authors' code.
        **kwargs: The other arguments of `SensitivityGuided` and of `keras.optimizers.Adamax`.

    Example:

    >>> import keras
    >>> from sage_keras import SageAdamax
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=SageAdamax(learning_rate=2e-4, beta_3=0.85), loss="mse")

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
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
        beta_3: float = 0.75,
        sensitivity_epsilon: float = 1e-12,
        bias_correction: bool = False,
        include: Patterns = None,
        exclude: Patterns = None,
        sensitivity_dtype: str = "float32",
        calibrate: bool = False,
        guide: bool = True,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))


@keras.saving.register_keras_serializable(package="sage_keras")
class SageSGD(SensitivityGuided, keras.optimizers.SGD):
    """SGD with a sensitivity-guided learning rate for every parameter.

    With `momentum` above 0 each step's scaled rate enters the velocity: a well-defined rule, but
    not the one of the paper, which scales the whole update.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.01`.
        momentum: Float, at least 0. Defaults to `0.0`.
        nesterov: Boolean, whether the momentum is Nesterov's. Defaults to `False`.
        beta_3: Float, the decay of the sensitivity's moving average. Defaults to `0.75`.
        bias_correction: Boolean, whether the sensitivity's moving average is bias-corrected.
            Defaults to `False`, as in the paper.
        **kwargs: The other arguments of `SensitivityGuided` and of `keras.optimizers.SGD`.

    Example:

    >>> import keras
    >>> from sage_keras import SageSGD
    >>> weight = keras.Variable([1.0])
    >>> optimizer = SageSGD(learning_rate=0.1)
    >>> optimizer.apply([keras.ops.array([1.0])], [weight])
    >>> round(float(weight.numpy()[0]), 4)  # the first scale is 3
    0.7

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
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
        beta_3: float = 0.75,
        sensitivity_epsilon: float = 1e-12,
        bias_correction: bool = False,
        include: Patterns = None,
        exclude: Patterns = None,
        sensitivity_dtype: str = "float32",
        calibrate: bool = False,
        guide: bool = True,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
