"""Dynamic parameter selection (DPS), and Mixout of which it is made, on AdamW."""

from typing import Any

import keras

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Patterns
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.optimizers.dps.subnetwork import SubnetworkSelection
from sage_keras.optimizers.dps.subnetwork_mixing import SubnetworkMixing


@keras.saving.register_keras_serializable(package="sage_keras")
class DPSDense(SubnetworkSelection, keras.optimizers.AdamW):
    """AdamW that trains the subnetworks it selects (DPS, Dense).

    Cycles of two stages: in stage I all weights train, and their squared gradients are added up;
    in stage II those weights train of which the sums are largest, 70 % of each variable.
    `SubnetworkSelection` tells the rule, and what to expect.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`. The authors
            fine-tune with 2e-5.
        weight_decay: Float, the decoupled weight decay. Defaults to `0.004`.
        total_steps: Integer, the number of updates of the whole training. Either this or
            `stage_steps` has to be passed. Defaults to `None`.
        update_ratio: Float in (0, 1), the share of `total_steps` that a stage takes. Defaults to
            `0.05`.
        stage_steps: Integer, the number of updates of a stage. Defaults to `None`:
            `total_steps * update_ratio` without its fraction.
        drop_rate: Float in [0, 1), the share of the weights that stage II leaves out. Defaults to
            `0.3`.
        include: `None` or a list of regular expressions, the variables to select in. Defaults to
            `None`, all of them; `TRANSFORMER_MATRICES` are those of the authors.
        exclude: `None` or a list of regular expressions, the variables that always train. Defaults
            to `None`.
        **kwargs: `on_nonfinite`, and the other arguments of `keras.optimizers.AdamW`: `beta_1`,
            `beta_2`, `epsilon`, `amsgrad`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`,
            `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`, `name`.

    Example:

    >>> import keras
    >>> from sage_keras import DPSDense
    >>> weight = keras.Variable([0.0, 0.0, 0.0, 0.0])
    >>> optimizer = DPSDense(learning_rate=0.1, stage_steps=1, drop_rate=0.5)
    >>> optimizer.apply([keras.ops.array([4.0, 1.0, -3.0, 2.0])], [weight])
    >>> optimizer.stage
    2
    >>> keras.ops.convert_to_numpy(optimizer.subnetwork(weight)).tolist()
    [True, False, True, False]

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2211.01642)
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
        total_steps: int | None = None,
        update_ratio: float = 0.05,
        stage_steps: int | None = None,
        drop_rate: float = 0.3,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))


@keras.saving.register_keras_serializable(package="sage_keras")
class DPSMix(SubnetworkMixing, keras.optimizers.AdamW):
    """AdamW that trains the subnetworks it selects, on mixed weights (DPS, Mix).

    Cycles of two stages: in stage I each step replaces some of the inputs' weights by the initial
    ones, and adds up the squared gradients of the rest; in stage II those weights train that have
    the best scores, 70 % of each variable, and the others are replaced by what they were when the
    stage began. `SubnetworkMixing` and `WeightMixing` tell the rule. Between two steps the model
    holds mixed weights: see `WeightMixing` for how to validate and save, and list
    `sage_keras.callbacks.SwapTrueWeights()` first among the callbacks of `fit`.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`. The authors
            fine-tune with 2e-5.
        weight_decay: Float, the decoupled weight decay. Defaults to `0.004`.
        total_steps: Integer, the number of updates of the whole training. Either this or
            `stage_steps` has to be passed. Defaults to `None`.
        update_ratio: Float in (0, 1), the share of `total_steps` that a stage takes. Defaults to
            `0.05`.
        stage_steps: Integer, the number of updates of a stage. Defaults to `None`:
            `total_steps * update_ratio` without its fraction.
        drop_rate: Float in [0, 1), the share of the weights that is dropped. Defaults to `0.3`.
        seed: Integer, at least 0, that the masks of stage I follow from. Defaults to `None`, a
            random one.
        include: `None` or a list of regular expressions, the variables to mix. Defaults to `None`,
            all of them; `TRANSFORMER_MATRICES` are those of the authors.
        exclude: `None` or a list of regular expressions, the variables that always train. Defaults
            to `None`.
        **kwargs: `on_nonfinite`, and the other arguments of `keras.optimizers.AdamW`.

    Example:

    >>> import keras
    >>> from sage_keras import DPSMix
    >>> kernel = keras.Variable([[1.0], [2.0]])
    >>> optimizer = DPSMix(learning_rate=0.1, stage_steps=1, drop_rate=0.5, seed=0)
    >>> for step in range(3):
    ...     optimizer.apply([keras.ops.ones((2, 1))], [kernel])
    >>> optimizer.stage, optimizer.is_mixed
    (2, True)

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2211.01642)
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
        total_steps: int | None = None,
        update_ratio: float = 0.05,
        stage_steps: int | None = None,
        drop_rate: float = 0.3,
        seed: int | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))


@keras.saving.register_keras_serializable(package="sage_keras")
class Mixout(WeightMixing, keras.optimizers.AdamW):
    """AdamW that trains on weights mixed with the initial ones (Mixout).

    What stage I of `DPSMix` does, at every step and without scores. `WeightMixing` tells the rule,
    and how to validate and save: list `sage_keras.callbacks.SwapTrueWeights()` first among the
    callbacks of `fit`.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        weight_decay: Float, the decoupled weight decay. Defaults to `0.004`.
        drop_rate: Float in [0, 1), the probability of a column to be replaced. Defaults to `0.3`.
        seed: Integer, at least 0, that the masks follow from. Defaults to `None`, a random one.
        include: `None` or a list of regular expressions, the variables to mix. Defaults to `None`,
            all of them.
        exclude: `None` or a list of regular expressions, the variables not to mix. Defaults to
            `None`.
        **kwargs: `on_nonfinite`, and the other arguments of `keras.optimizers.AdamW`.

    Example:

    >>> import keras
    >>> from sage_keras import Mixout
    >>> from sage_keras.callbacks import SwapTrueWeights
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Mixout(learning_rate=1e-4, exclude=["bias"]), loss="mse")
    >>> x, y = keras.ops.ones((8, 2)), keras.ops.ones((8, 1))
    >>> history = model.fit(x, y, callbacks=[SwapTrueWeights()], verbose=0)

    Reference:
        - [Lee et al., 2020](https://arxiv.org/abs/1909.11299)
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
        drop_rate: float = 0.3,
        seed: int | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
