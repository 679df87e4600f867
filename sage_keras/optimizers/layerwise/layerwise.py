"""Learning rates by layer: the mixin, and AdamW with it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import keras
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import LearningRate, Tensor, Variable
from sage_keras.optimizers.base import OptimizerMixin
from sage_keras.paths import variable_path

if TYPE_CHECKING:
    from sage_keras.foreach import Step


class LayerwiseLearningRate(OptimizerMixin):
    """Mixin that gives the layers of a model learning rates of their own.

    Put it first in the list of bases. The learning rate of every variable is then multiplied by
    the factor of the first pattern that is found in the variable's path, and by 1 if there is none:

        rate = factor * learning_rate

    It is the whole rate that is multiplied, as if each layer had an optimizer of its own: the
    base's step, and its decoupled weight decay, which is `rate * weight_decay * weight`.

    What to expect:

    - A factor of 0 freezes. The variable keeps every bit, the optimizer keeps no state for it,
      and its gradient does not count in `global_clipnorm`. For the rest of the optimizer it does
      not exist. The backward pass still computes its gradient, unless the backend's compiler
      drops it; `layer.trainable = False` spares that everywhere.
    - The first pattern that matches wins, so that exceptions go first:
      `{"bias": 2.0, "layer_1/": 0.5}`. Close the names of layers with a slash, since `"layer_1"`
      is found in `layer_10/kernel` too. `summary` prints what came of it.
    - Schedules and callbacks that set `optimizer.learning_rate` move all rates together.

    Any Keras optimizer that wraps no other can be the base, and so can this package's, such as
    `DPSDense`. `LayerwiseAdamW` and `LayerwiseSage` are there already.

    Args:
        *args: Positional arguments of the base optimizer.
        learning_rate_multipliers: Dict of regular expression, which is searched in
            `variable.path`, to factor, a float of at least 0. `layerwise_decay` makes one.
        **kwargs: Keyword arguments of the base optimizer.

    Raises:
        TypeError: Where the class is made, if its bases stand in the wrong order; where an object
            is made, if `learning_rate_multipliers` is no dict.
        ValueError: If `learning_rate_multipliers` is empty, if a pattern is malformed or matches no
            variable, if a factor is no finite number of at least 0, or if all variables would be
            frozen.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class LayerwiseLion(sage_keras.LayerwiseLearningRate, keras.optimizers.Lion):
    ...     pass
    >>> hidden = keras.layers.Dense(4, name="hidden")
    >>> model = keras.Sequential([keras.Input((2,)), hidden, keras.layers.Dense(1, name="head")])
    >>> rates = {"hidden/": 0.1}
    >>> model.compile(LayerwiseLion(1e-4, learning_rate_multipliers=rates), loss="mse")

    Reference:
        - [Howard and Ruder, 2018](https://arxiv.org/abs/1801.06146)
    """

    _rank = 10
    _settings: ClassVar[tuple[str, ...]] = ("learning_rate_multipliers",)
    _rate_multiplier = 1.0  # of the learning rate that the base's weight decay sees

    def __init__(
        self, *args: Any, learning_rate_multipliers: dict[str, float], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.learning_rate_multipliers = arguments.factors(
            "learning_rate_multipliers", learning_rate_multipliers
        )

    def _frozen(self, variables: list[Variable]) -> list[bool]:
        """Those of factor 0."""
        paths = [variable_path(variable) for variable in variables]
        multipliers = arguments.first_match(
            "learning_rate_multipliers",
            self.learning_rate_multipliers,
            paths,
            default=1.0,
            strict=self._strict_patterns,
        )
        if variables and not any(multipliers):
            raise ValueError(
                "Argument `learning_rate_multipliers` freezes every variable. Leave one out, or "
                "give it a factor above 0. Received: "
                f"learning_rate_multipliers={dict(self.learning_rate_multipliers)}"
            )
        self._multipliers = {
            self._var_key(variable): one for variable, one in zip(variables, multipliers)
        }
        return [not one for one in multipliers]

    def _without_frozen(
        self, grads: Sequence[Tensor], variables: Sequence[Variable] | None
    ) -> tuple[Sequence[Tensor], Sequence[Variable] | None]:
        if variables is not None:
            variables = list(variables)
            grads, variables = self._trained(grads, variables), self._trained(variables, variables)
        elif self.built and len(grads) == len(self._multipliers):
            grads = [grad for grad, yes in zip(grads, self._multipliers.values()) if yes]
        return super()._without_frozen(grads, variables)

    def stateless_apply(
        self,
        optimizer_variables: list[Tensor],
        grads: list[Tensor],
        trainable_variables: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Like `apply`, for JAX: returns what the variables become, the frozen ones too."""
        if not self.built or len(trainable_variables) != len(self._multipliers):
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)
        trained = list(self._multipliers.values())
        updated, optimizer_variables = super().stateless_apply(
            optimizer_variables,
            grads,
            [value for value, yes in zip(trainable_variables, trained) if yes],
        )
        updated = iter(updated)
        return [
            next(updated) if yes else value for value, yes in zip(trainable_variables, trained)
        ], optimizer_variables

    def _adjust(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Takes the rate of the variable's layer."""
        multiplier = self._multipliers[self._var_key(variable)]
        if multiplier != 1.0:
            learning_rate = ops.multiply(learning_rate, multiplier)
        return super()._adjust(gradient, variable, learning_rate)

    def _adjust_all(self, step: "Step") -> None:
        trained = [one for one in self._multipliers.values() if one]
        step.factors = [
            factor * trained[index] for factor, index in zip(step.factors, step.indices)
        ]
        super()._adjust_all(step)

    def finalize_variable_values(self, var_list: Sequence[Variable]) -> None:
        """Does what the base does at the end of training, to the variables that are not frozen."""
        if self.built:
            var_list = self._trained(var_list, var_list)
        super().finalize_variable_values(var_list)

    @property
    def multipliers(self) -> dict[str, float]:
        """The factor of every variable, frozen ones included, as a dict by `variable.path`.

        Where a path occurs again the later ones are called `path#1`, `path#2` and so on. Empty
        before the optimizer is built.
        """
        return dict(zip(self._names.shapes, self._multipliers.values())) if self.built else {}

    def _phrases(self) -> list[str]:
        multipliers = self._multipliers.values()
        own = sum(one not in (0.0, 1.0) for one in multipliers)
        frozen = sum(one == 0.0 for one in multipliers)
        rates = f"own rates for {own} and {frozen} frozen of {len(multipliers)} variables"
        return [*super()._phrases(), rates]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        rates = {
            path: f"{multiplier:.4g}" if multiplier else "frozen"
            for path, multiplier in self.multipliers.items()
        }
        return {**super()._summary_columns(), "rate": rates}

    def _trained(self, values: Sequence[Any], variables: Sequence[Variable]) -> list[Any]:
        """The values of the variables that are not frozen; Keras refuses unknown ones."""
        factors = [self._multipliers.get(self._var_key(variable), 1.0) for variable in variables]
        return [value for value, yes in zip(values, factors) if yes]

    def _apply_weight_decay(self, variables: Sequence[Variable]) -> None:
        groups: dict[float, list[Variable]] = {}
        for variable in variables:
            if self._use_weight_decay(variable):
                multiplier = self._multipliers[self._var_key(variable)]
                groups.setdefault(multiplier, []).append(variable)
        try:
            for multiplier, group in groups.items():
                self._rate_multiplier = multiplier
                super()._apply_weight_decay(group)
        finally:
            self._rate_multiplier = 1.0

    def _get_current_learning_rate(self) -> Tensor:
        rate = super()._get_current_learning_rate()
        return rate if self._rate_multiplier == 1.0 else ops.multiply(rate, self._rate_multiplier)


@keras.saving.register_keras_serializable(package="sage_keras")
class LayerwiseAdamW(LayerwiseLearningRate, keras.optimizers.AdamW):
    """AdamW with learning rates by layer.

    `LayerwiseLearningRate` tells the rule. In fine-tuning the rates mostly fall with the distance
    from the head, and `layerwise_decay` gives these factors.

    Args:
        learning_rate: A float, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable
            that takes no arguments and returns the value to use. Defaults to `0.001`.
        weight_decay: Float, the decoupled weight decay. It is multiplied by the rate of the layer.
            Defaults to `0.004`.
        learning_rate_multipliers: Dict of regular expression, which is searched in
            `variable.path`, to factor, a float of at least 0. The first match counts; 0 freezes.
        **kwargs: The other arguments of `keras.optimizers.AdamW`: `beta_1`, `beta_2`, `epsilon`,
            `amsgrad`, `clipnorm`, `clipvalue`, `global_clipnorm`, `use_ema`, `ema_momentum`,
            `ema_overwrite_frequency`, `loss_scale_factor`, `gradient_accumulation_steps`, `name`.

    Example:

    >>> import keras
    >>> from sage_keras import LayerwiseAdamW
    >>> weights = [keras.Variable([1.0], name=name) for name in ("embedding", "block", "head")]
    >>> rates = {"embedding": 0.0, "block": 0.5}
    >>> optimizer = LayerwiseAdamW(0.1, weight_decay=0.0, learning_rate_multipliers=rates)
    >>> optimizer.apply([keras.ops.array([4.0])] * 3, weights)
    >>> [round(float(weight.numpy()[0]), 4) for weight in weights]
    [1.0, 0.95, 0.9]

    Reference:
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
        on_nonfinite: str = "propagate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**arguments.passed(locals()))
