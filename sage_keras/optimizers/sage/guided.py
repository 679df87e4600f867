"""The mixin that turns a Keras optimizer into a sensitivity-guided one."""

import math
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

import keras
from keras import ops

from sage_keras import arguments
from sage_keras import sensitivity as measure
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import to_dense
from sage_keras.optimizers.base import find_optimizers
from sage_keras.optimizers.measured import SensitivityAverage

if TYPE_CHECKING:
    from sage_keras.foreach import Step

# In half precision their 1 - beta_2 is lost: 0.999 rounds to 1.
_NEED_FLOAT32_VARIABLES = ("Adam", "Nadam", "Lamb")

_SMALLEST_EPSILON = 2.0**-126  # the smallest normal float32; less is flushed to zero
_LEAST_MEAN_SCALE = 0.1  # what steady gradients have saved up is not spent in one step


class SensitivityGuided(SensitivityAverage):
    """Mixin that guides a Keras optimizer by the sensitivity of each parameter (SAGE).

    Put it before a Keras optimizer in the list of bases, and that optimizer keeps its own rule
    while the learning rate of every single weight `theta` with gradient `g` is multiplied by

        s = (|I - smoothed| + epsilon) / (smoothed + epsilon),    I = |theta * g|

    where `smoothed` is the exponential moving average of the sensitivity `I`. A weight of steady
    sensitivity is well trained and slows down; one whose sensitivity varies moves on.

    `g` is the gradient after accumulation, loss unscaling and clipping, and `theta` the weight as
    the base's own rule sees it, which in Keras is after the step's weight decay. The decay itself
    is not scaled.

    Any Keras optimizer whose update is linear in the learning rate can be the base: SGD, RMSprop,
    Adagrad, Adadelta, Adam, AdamW, ScheduleFreeAdamW, Adamax, Nadam, Lion, Lamb and Muon. With
    `momentum` above 0, SGD and RMSprop put each step's already scaled rate into their velocity: a
    well-defined rule, though not the published one; ScheduleFreeAdamW averages its steps, and it is
    those that are scaled, not the average. A base of your own must be linear in the
    learning rate too, and must take a `learning_rate` tensor of the variable's shape in
    `update_step`.

    What to expect:

    - The mean of `s` is about 0.4 to 0.6 in fine-tuning, so the learning rate that works is 2 to 5
      times the one that works for the base.
    - With `bias_correction=True` the first step moves (almost) nothing, since the first
      sensitivity equals its own average; without it the first step's scale is
      `beta_3 / (1 - beta_3)`.
    - `s` never exceeds `max(1, beta_3 / (1 - beta_3))`: 3 for `beta_3=0.75`.
    - A weight of exactly zero has no sensitivity and takes the base step (`s` is 1).
    - The correction counts the optimizer's steps. A variable whose gradients begin later has a
      first scale of about `beta_3 / (1 - beta_3)`, as without the correction.
    - `s` is finite and within its bound for all finite weights and gradients. A sensitivity beyond
      2^126 counts as 2^126.
    - With `calibrate=True` the mean of `s` is about 1, and the learning rate that works is that of
      the base. `s` is divided by its mean over the variable and over the steps so far, the first
      and the present one left out, which counts as 0.1 at least. So `s` may reach ten times the
      bound above.

    Args:
        *args: Positional arguments of the base optimizer.
        beta_3: Float above 0 and at most 0.999, or 0.99 with `sensitivity_dtype="bfloat16"`, the
            decay of the moving average of the sensitivity (`beta0` in the paper). With 0.999
            float32 holds the average to a relative error of 6e-5, with 0.9 to 6e-7. Defaults to
            `0.75`; 0.6 to 0.9 is the useful range.
        sensitivity_epsilon: Float above zero that keeps `s` defined where the sensitivity is
            zero. Defaults to `1e-12`.
        bias_correction: Boolean, whether the moving average is corrected for having begun at
            zero. Defaults to `True`.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Only variables that match one are guided; the others take the plain base step, and
            no average is kept of them. `TRANSFORMER_BLOCKS` is such a list. Defaults to `None`,
            every variable.
        exclude: `None`, or a list of regular expressions. Variables that match one are not
            guided. Defaults to `None`.
        sensitivity_dtype: `"float32"` or `"bfloat16"`, the dtype in which the moving average is
            stored. The computation is in float32 at least. To bfloat16 it is rounded up or down by
            chance, which follows from the number of the step. The mean error is zero; its standard
            deviation, under noisy gradients, is 0.4 % of the average with `beta_3=0.75`, 0.5 % with
            0.9, and 1.4 % with 0.99. Defaults to `"float32"`.
        calibrate: Boolean, whether the scales of each variable are divided by their mean so far, so
            that a learning rate that was tuned for the base carries over. It takes one more scalar
            for each variable. Defaults to `False`, as in the paper.
        guide: Boolean. `False` measures only: the base trains as it would by itself, and its
            sensitivities can be looked at. Defaults to `True`.
        on_nonfinite: `"propagate"` or `"skip"`. With `"skip"` a step of which a gradient is
            infinite or not a number changes nothing, and counts in `optimizer.skipped_steps`. It
            takes a copy of weights and state during a compiled step. With `"propagate"` one such
            step spoils the moving averages for good, as it does those of Keras's optimizers.
            Defaults to `"propagate"`.
        **kwargs: Keyword arguments of the base optimizer.

    Raises:
        TypeError: Where the class is made, if the base cannot be guided or stands before the
            mixin; where an object is made, if an argument is of the wrong type.
        ValueError: If an argument is out of range, or if `include` or `exclude` matches no
            variable.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class SageLion(sage_keras.SensitivityGuided, keras.optimizers.Lion):
    ...     pass
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=SageLion(learning_rate=1e-3, beta_3=0.9), loss="mse")

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    _rank = 40
    _settings: ClassVar[tuple[str, ...]] = (
        "beta_3",
        "sensitivity_epsilon",
        "bias_correction",
        "sensitivity_dtype",
        "calibrate",
        "guide",
    )
    _supported_bases = (
        "SGD, RMSprop, Adagrad, Adadelta, Adam, AdamW, ScheduleFreeAdamW, Adamax, Nadam, Lion, "
        "Lamb or Muon"
    )
    # The rule scales the learning rate, which these do not pass through unchanged.
    _refused_bases: ClassVar = {
        "Ftrl": "keeps the learning rate inside its state, where a scaled one makes it diverge",
        "Adafactor": "caps its update after the learning rate has been chosen",
    }

    def __init__(
        self,
        *args: Any,
        beta_3: float = 0.75,
        sensitivity_epsilon: float = 1e-12,
        bias_correction: bool = True,
        sensitivity_dtype: str = "float32",
        calibrate: bool = False,
        guide: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, beta_3=beta_3, sensitivity_dtype=sensitivity_dtype, **kwargs)
        self.sensitivity_epsilon = arguments.number(
            "sensitivity_epsilon", sensitivity_epsilon, _SMALLEST_EPSILON, math.inf, "1e-12"
        )
        self.bias_correction = arguments.boolean("bias_correction", bias_correction)
        self.calibrate = arguments.boolean("calibrate", calibrate)
        self.guide = arguments.boolean("guide", guide)

    def _prepare(self, variables: list[Variable]) -> None:
        super()._prepare(variables)
        self._warn_of_half_precision(variables)

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        self._mean_scales = [
            self._add_slot(
                variable, "mean_scale", measure.compute_dtype(variable.dtype), (), "ones"
            )
            if chosen and self.calibrate
            else None
            for variable, chosen in zip(variables, self._chosen)
        ]

    def _before_clipping(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        if self.guide:
            grads = self._dense(grads, variables)
        return super()._before_clipping(grads, variables)

    def _measured(self) -> list[bool]:
        return [one or other for one, other in zip(super()._measured(), self._chosen)]

    def _use_sensitivity(
        self,
        gradient: Tensor,
        variable: Variable,
        learning_rate: Tensor,
        value: Tensor,
        average: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Scales the variable's learning rate by its sensitivity."""
        if self.guide:
            learning_rate = ops.multiply(learning_rate, self._scale(variable, value, average))
            gradient = to_dense(gradient)
        return super()._use_sensitivity(gradient, variable, learning_rate, value, average)

    def _takes_all(self) -> bool:
        own = (type(self)._scale, type(self)._scale_of)
        return (
            own == (SensitivityGuided._scale, SensitivityGuided._scale_of)
            and not self.calibrate
            and self.sensitivity_dtype == "float32"
            and super()._takes_all()
        )

    def _adjust_all(self, step: "Step") -> None:
        step.guide(
            self._sensitivities,
            self.beta_3,
            self.sensitivity_epsilon,
            self.bias_correction,
            self.guide,
        )
        super()._adjust_all(step)

    @property
    def guided_variables(self) -> list[Variable]:
        """List of the guided variables, in the order of `sensitivities`.

        Empty before the optimizer is built.
        """
        return self._chosen_variables()

    @property
    def sensitivities(self) -> dict[str, Variable]:
        """The moving averages of the sensitivity, by variable path.

        A dict of `variable.path` to the optimizer's variable, guided variables only. It holds
        the averages as stored, not bias-corrected. Where a path occurs again the later ones are
        called `path#1`, `path#2` and so on. A `tf.Variable` has no path and goes by its name.
        Empty before the optimizer is built.
        """
        if not self.built:
            return {}
        named = zip(self._names.trained, self._sensitivities)
        return {name: slot for name, slot in named if slot is not None}

    def sensitivity(self, variable: Variable | str) -> Tensor:
        """The bias-corrected moving average of a variable's sensitivity.

        It is corrected whatever `bias_correction` says, so that values of different steps and
        optimizers compare. Zeros before the first step.

        Args:
            variable: A guided variable of this optimizer, or the path of one, such as
                `"model/dense/kernel"`.

        Returns:
            A tensor of the variable's shape, float32 or float64.

        Raises:
            ValueError: If the optimizer is not built or does not guide this variable, or if
                several variables have this path.
        """
        instead = "guides: build it, then pass a variable that `optimizer.sensitivities` names"
        index = self._index_of_chosen(variable, instead)
        slot = self._sensitivities[index]
        dtype = measure.compute_dtype(self._trainable_variables[index].dtype)
        step = ops.maximum(ops.cast(self.iterations, dtype), 1)
        return measure.bias_corrected(ops.cast(slot, dtype), self.beta_3, step)

    def _phrases(self) -> list[str]:
        guided = f"guides {sum(self._chosen)} of {len(self._chosen)} variables"
        return [guided, *super()._phrases()]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        return {"guided": self._chosen_marks(), **super()._summary_columns()}

    def _warn_of_half_precision(self, variables: list[Variable]) -> None:
        names = {keras.backend.standardize_dtype(variable.dtype) for variable in variables}
        bases = tuple(getattr(keras.optimizers, name) for name in _NEED_FLOAT32_VARIABLES)
        for name in sorted(names & {"float16", "bfloat16"}):
            if isinstance(self, bases):
                warnings.warn(
                    f"{type(self).__name__} cannot train {name} variables: `1 - beta_2` is lost "
                    "in their precision, in the Keras optimizer that it builds on too. Use "
                    f'`keras.config.set_dtype_policy("mixed_{name}")`, which computes '
                    f"in {name} and keeps the variables in float32.",
                    stacklevel=3,
                )

    def _scale(self, variable: Variable, value: Tensor, average: Tensor) -> Tensor:
        """The learning-rate scale of a variable's step, from its sensitivity and moving average.

        The place to override for a scale that needs the variable, or state of its own.
        """
        scale = self._scale_of(value, average, self.iterations + 1)
        return self._calibrated(variable, scale) if self.calibrate else scale

    def _scale_of(self, value: Tensor, average: Tensor, step: Tensor) -> Tensor:
        """The scale of each element, from its sensitivity and moving average at a step.

        The place to override for another scale that follows from these alone, element by element.
        `SensitivityLogger` computes from it what the last step's scales were.
        """
        smoothed = average
        if self.bias_correction:
            smoothed = measure.bias_corrected(smoothed, self.beta_3, ops.cast(step, value.dtype))
        return measure.learning_rate_scale(value, smoothed, self.sensitivity_epsilon)

    def _calibrated(self, variable: Variable, scale: Tensor) -> Tensor:
        """The scale divided by its mean so far, to which this step's is then added.

        The first step's does not count: it is the same for all weights, whatever they are.
        """
        slot = self._mean_scales[self._get_variable_index(variable)]
        mean = ops.convert_to_tensor(slot)  # 1 as long as none has counted
        calibrated = ops.divide(scale, ops.maximum(mean, _LEAST_MEAN_SCALE))
        count = ops.cast(self.iterations, scale.dtype)
        self.assign(slot, measure.running_mean(mean, ops.mean(scale), count))
        return calibrated


def guided_optimizers(optimizer: keras.optimizers.Optimizer) -> list[SensitivityGuided]:
    """The guided optimizers in an optimizer, wrapped ones included.

    Args:
        optimizer: A Keras optimizer: a guided one, or a `LossScaleOptimizer` or `MultiOptimizer`
            that may hold some, or any other.

    Returns:
        List of `SensitivityGuided` optimizers, empty if there is none.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> wrapped = keras.optimizers.LossScaleOptimizer(sage_keras.Sage())
    >>> [type(optimizer).__name__ for optimizer in sage_keras.guided_optimizers(wrapped)]
    ['Sage']
    """
    return find_optimizers(optimizer, SensitivityGuided)
