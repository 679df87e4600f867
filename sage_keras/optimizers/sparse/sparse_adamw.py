"""AdamW that trains a few chosen weights only."""

from typing import Any

import keras

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Patterns
from sage_keras.optimizers.sparse.fine_tuning import SparseFineTuning


@keras.saving.register_keras_serializable(package="sage_keras")
class SparseAdamW(SparseFineTuning, keras.optimizers.AdamW):
    """AdamW that trains a small part of the weights, and keeps the state of those only.

    `SparseFineTuning` tells how they are chosen.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        weight_decay: Float, the decoupled weight decay of the chosen weights. Defaults to `0.004`.
        fraction: Float above 0 and at most 1, the share of the weights that trains. Defaults to
            `0.05`.
        scores: `"gradient"`, `"sensitivity"`, `"magnitude"`, `"random"`, or a dict of variable
            path to array. Defaults to `"gradient"`.
        scope: `"variable"` or `"global"`. Defaults to `"variable"`.
        rest: `"train"` or `"freeze"`, what becomes of variables that are left out. Defaults to
            `"train"`.
        selection_steps: Integer, at least 1, the number of steps whose gradients choose. Defaults
            to `10`.
        seed: Integer, that a random choice follows from. Defaults to `None`, a random one.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: The other arguments of `keras.optimizers.AdamW`: `beta_1`, `beta_2`, `epsilon`,
            `amsgrad`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Example:

    >>> import keras
    >>> from sage_keras import SparseAdamW
    >>> kernel = keras.Variable([1.0, 1.0, 1.0, 1.0], name="kernel")
    >>> optimizer = SparseAdamW(0.5, fraction=0.25, selection_steps=1, weight_decay=0.0)
    >>> for step in range(2):  # one step to choose, one to train
    ...     optimizer.apply([keras.ops.array([1.0, 0.0, -4.0, 2.0])], [kernel])
    >>> [round(weight, 3) for weight in keras.ops.convert_to_numpy(kernel).tolist()]
    [1.0, 1.0, 1.5, 1.0]

    Reference:
        - [Song et al., 2023](https://arxiv.org/abs/2312.11875) (SIFT)
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
        fraction: float = 0.05,
        scores: Any = "gradient",
        scope: str = "variable",
        rest: str = "train",
        selection_steps: int = 10,
        seed: int | None = None,
        include: Patterns = None,
        exclude: Patterns = None,
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
