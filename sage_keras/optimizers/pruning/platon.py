"""Pruning while training, on AdamW: PLATON, and magnitude as the plain choice."""

from typing import Any

import keras

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Patterns
from sage_keras.optimizers.pruning.gradual import GradualPruning


@keras.saving.register_keras_serializable(package="sage_keras")
class Platon(GradualPruning, keras.optimizers.AdamW):
    """AdamW that prunes the model while it trains, by sensitivity and its uncertainty (PLATON).

    After a warm-up more and more weights are zero, those of the lowest `average * uncertainty` of
    the sensitivity `|weight * gradient|`, until 80 % are. `GradualPruning` tells the rule, and
    what to expect.

    The defaults are as published: `beta_3` is the paper's first beta, and `beta_4` its second,
    which the authors choose by task from 0.65 to 0.95. Their scope is the attention and
    feed-forward layers, `include=sage_keras.TRANSFORMER_BLOCKS`; the default is every variable of
    two axes or more but embeddings and biases, whatever the model.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`. What works
            is the rate of AdamW.
        weight_decay: Float, the decoupled weight decay. Defaults to `0.004`.
        final_sparsity: Float in (0, 1), the share of the weights that is zero in the end. Defaults
            to `0.8`.
        total_steps: Integer, the number of updates of the whole training. Either this, or
            `begin_step` and `end_step`, have to be passed. Defaults to `None`.
        begin: Float in [0, 1), the share of `total_steps` before the first weight is pruned.
            Defaults to `0.1`.
        end: Float above `begin` and at most 1, the share of `total_steps` after which the
            sparsity is reached. Defaults to `0.7`.
        update_freq: Integer, the steps from one choice of weights to the next. Defaults to `10`.
        beta_3: Float, the decay of the sensitivity's average. Defaults to `0.85`.
        beta_4: Float, the decay of the uncertainty's. Defaults to `0.95`.
        include: `None` or a list of regular expressions, the variables to prune. Defaults to
            `None`.
        exclude: `None` or a list of regular expressions, the variables not to prune. Defaults to
            `None`.
        **kwargs: The other arguments of `GradualPruning` and of `keras.optimizers.AdamW`.

    Example:

    >>> import keras
    >>> from sage_keras import Platon
    >>> kernel = keras.Variable([[3.0, 1.0], [2.0, 4.0]])
    >>> optimizer = Platon(0.0, final_sparsity=0.5, begin_step=0, end_step=2, update_freq=1)
    >>> for size in (1.0, 2.0):
    ...     optimizer.apply([keras.ops.full((2, 2), size)], [kernel])
    >>> keras.ops.convert_to_numpy(kernel).tolist()
    [[3.0, 0.0], [0.0, 4.0]]

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2206.12562)
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
        final_sparsity: float = 0.8,
        score: str = "confidence",
        total_steps: int | None = None,
        begin: float = 0.1,
        end: float = 0.7,
        begin_step: int | None = None,
        end_step: int | None = None,
        update_freq: int = 10,
        scope: str = "global",
        pattern: str | None = None,
        beta_3: float = 0.85,
        beta_4: float = 0.95,
        sensitivity_dtype: str = "float32",
        seed: int = 0,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))


@keras.saving.register_keras_serializable(package="sage_keras")
class PrunedAdamW(GradualPruning, keras.optimizers.AdamW):
    """AdamW that prunes the model while it trains, by magnitude.

    The plain choice, and the baseline of every other: after a warm-up more and more of the
    smallest weights are zero. `GradualPruning` tells the rule, and what to expect.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        weight_decay: Float, the decoupled weight decay. Defaults to `0.004`.
        final_sparsity: Float in (0, 1), the share of the weights that is zero in the end. Defaults
            to `0.8`.
        score: String, what the weights are chosen by. Defaults to `"magnitude"`.
        total_steps: Integer, the number of updates of the whole training. Either this, or
            `begin_step` and `end_step`, have to be passed. Defaults to `None`.
        **kwargs: The other arguments of `GradualPruning` and of `keras.optimizers.AdamW`.

    Example:

    >>> import keras
    >>> from sage_keras import PrunedAdamW
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> optimizer = PrunedAdamW(1e-3, final_sparsity=0.5, total_steps=100)
    >>> model.compile(optimizer=optimizer, loss="mse")

    Reference:
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878)
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
        final_sparsity: float = 0.8,
        score: str = "magnitude",
        total_steps: int | None = None,
        begin: float = 0.1,
        end: float = 0.7,
        begin_step: int | None = None,
        end_step: int | None = None,
        update_freq: int = 10,
        scope: str = "global",
        pattern: str | None = None,
        beta_3: float = 0.85,
        beta_4: float = 0.95,
        sensitivity_dtype: str = "float32",
        seed: int = 0,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
