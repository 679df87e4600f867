"""The mixin that turns a Keras optimizer into a sensitivity-guided one."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from sage_keras import arguments
from sage_keras import sensitivity as measure
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import to_dense
from sage_keras.optimizers.base import (
    OptimizerMixin,
    check_order,
    find_optimizers,
    print_summary,
)
from sage_keras.paths import unique_paths, variable_path

# The published rule scales the learning rate, which these bases do not pass through unchanged.
_REFUSED_BASES = {
    "Ftrl": "keeps the learning rate inside its slots, where a scaled one makes it diverge",
    "ScheduleFreeAdamW": "accumulates the learning rate into the weights of its average",
    "Adafactor": "caps its update after the learning rate has been chosen",
    "LossScaleOptimizer": "wraps another optimizer. Wrap the guided one in it instead: "
    "`keras.optimizers.LossScaleOptimizer(Sage())`",
    "MultiOptimizer": "wraps other optimizers. Put guided ones in it instead",
}
_SUPPORTED_BASES = "SGD, RMSprop, Adagrad, Adadelta, Adam, AdamW, Adamax, Nadam, Lion, Lamb or Muon"
# In half precision their 1 - beta_2 is lost: 0.999 rounds to 1.
_NEED_FLOAT32_VARIABLES = ("Adam", "Nadam", "Lamb")

_SLOT_DTYPES = ("float32", "bfloat16")
_SMALLEST_EPSILON = 2.0**-126  # the smallest normal float32; less is flushed to zero
_LEAST_MEAN_SCALE = 0.1  # what steady gradients have saved up is not spent in one step


class SensitivityGuided(OptimizerMixin):
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
    Adagrad, Adadelta, Adam, AdamW, Adamax, Nadam, Lion, Lamb and Muon. With `momentum` above 0,
    SGD and RMSprop put each step's already scaled rate into their velocity: a well-defined rule,
    though not the published one. A base of your own must be linear in the learning rate too, and
    must take a `learning_rate` tensor of the variable's shape in `update_step`.

    What to expect:

    - The mean of `s` is about 0.4 to 0.6 in fine-tuning, so the learning rate that works is 2 to 5
      times the one that works for the base.
    - With `bias_correction=True` the first step moves (almost) nothing, since the first
      sensitivity equals its own average; without it the first step's scale is
      `beta_3 / (1 - beta_3)`.
    - `s` never exceeds `max(1, beta_3 / (1 - beta_3))`: 3 for `beta_3=0.75`.
    - A weight of exactly zero has no sensitivity and takes the base step (`s` is 1).
    - With `calibrate=True` the mean of `s` is about 1, and the learning rate that works is that of
      the base. `s` is divided by its mean over the variable and over the steps so far, the first
      and the present one left out, which counts as 0.1 at least. So `s` may reach ten times the
      bound above.

    Args:
        *args: Positional arguments of the base optimizer.
        beta_3: Float in (0, 1), the decay of the moving average of the sensitivity (`beta0` in the
            paper). Defaults to `0.75`; 0.6 to 0.9 is the useful range.
        sensitivity_epsilon: Float above zero that keeps `s` defined where the sensitivity is
            zero. Defaults to `1e-12`.
        bias_correction: Boolean, whether the moving average is corrected for having begun at
            zero. Defaults to `True`.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Only variables that match one are guided; the others take the plain base step and own
            no slot. `TRANSFORMER_BLOCKS` is such a list. Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Variables that match one are not
            guided. Defaults to `None`.
        sensitivity_dtype: `"float32"` or `"bfloat16"`, the dtype in which the moving average is
            stored. The computation is in float32 at least. With `"bfloat16"` the stored average,
            and so `s`, is off by up to 0.4 %. Defaults to `"float32"`.
        calibrate: Boolean, whether the scales of each variable are divided by their mean so far, so
            that a learning rate that was tuned for the base carries over. It takes one more scalar
            for each variable. Defaults to `False`, as in the paper.
        guide: Boolean. `False` measures only: the base trains as it would by itself, and its
            sensitivities can be looked at. Defaults to `True`.
        on_nonfinite: `"propagate"` or `"skip"`. With `"skip"` a step of which a gradient is
            infinite or not a number changes nothing, and counts in `optimizer.skipped_steps`. It
            takes a copy of weights and state during the step. With `"propagate"` one such step
            spoils the moving averages for good, as it does those of Keras's optimizers. Defaults
            to `"propagate"`.
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

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _check_bases(cls)

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
        super().__init__(*args, **kwargs)
        self.beta_3 = arguments.number("beta_3", beta_3, 0.0, 1.0, "0.75")
        self.sensitivity_epsilon = arguments.number(
            "sensitivity_epsilon", sensitivity_epsilon, _SMALLEST_EPSILON, math.inf, "1e-12"
        )
        self.bias_correction = arguments.boolean("bias_correction", bias_correction)
        self.sensitivity_dtype = arguments.choice(
            "sensitivity_dtype", sensitivity_dtype, _SLOT_DTYPES
        )
        self.calibrate = arguments.boolean("calibrate", calibrate)
        self.guide = arguments.boolean("guide", guide)

    def build(self, variables):
        """Creates the base's slots, and those of every guided variable.

        One for the sensitivity, and with `calibrate` a scalar for the mean scale.

        Args:
            variables: List of the variables to train.

        Raises:
            ValueError: If no pattern of `include`, or none of `exclude`, matches a variable.
        """
        if self.built:
            return
        variables = list(variables)
        guided = self._select(variables)
        self._warn_of_half_precision(variables)
        super().build(variables)
        self._sensitivities = [
            self._add_slot(variable, "sensitivity", self.sensitivity_dtype) if chosen else None
            for variable, chosen in zip(variables, guided)
        ]
        self._mean_scales = [
            self._add_slot(
                variable, "mean_scale", measure.compute_dtype(variable.dtype), (), "ones"
            )
            if chosen and self.calibrate
            else None
            for variable, chosen in zip(variables, guided)
        ]

    def update_step(self, gradient, variable, learning_rate):
        """Measures the variable's sensitivity, then makes the base's step at the guided rate.

        Args:
            gradient: The gradient of the variable.
            variable: The variable to update.
            learning_rate: The learning rate, a scalar.
        """
        slot = self._slot(variable)
        if slot is None:
            return super().update_step(gradient, variable, learning_rate)

        dense_gradient = to_dense(gradient)
        dtype = measure.compute_dtype(variable.dtype)
        value = measure.sensitivity(ops.cast(variable, dtype), ops.cast(dense_gradient, dtype))
        average = measure.moving_average(ops.cast(slot, dtype), value, self.beta_3)
        self.assign(slot, average)
        if self.guide:
            learning_rate = ops.multiply(learning_rate, self._scale(variable, value, average))
            gradient = dense_gradient
        super().update_step(gradient, variable, learning_rate)

    @property
    def guided_variables(self) -> list[Variable]:
        """List of the guided variables, in the order of `sensitivities`.

        Empty before the optimizer is built.
        """
        if not self.built:
            return []
        slots = zip(self._trainable_variables, self._sensitivities)
        return [variable for variable, slot in slots if slot is not None]

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
        names = unique_paths(self._trainable_variables)
        return {name: slot for name, slot in zip(names, self._sensitivities) if slot is not None}

    def sensitivity(self, variable: Variable) -> Tensor:
        """The bias-corrected moving average of a variable's sensitivity.

        It is corrected whatever `bias_correction` says, so that figures of different steps and
        optimizers compare. Zeros before the first step.

        Args:
            variable: A guided variable of this optimizer.

        Returns:
            A tensor of the variable's shape, float32 or float64.

        Raises:
            ValueError: If the optimizer is not built or does not guide this variable.
        """
        slot = None
        if self.built and self._var_key(variable) in self._trainable_variables_indices:
            slot = self._slot(variable)
        if slot is None:
            raise ValueError(
                "Argument `variable` must be one that this optimizer guides: build the optimizer, "
                "then pass a variable that `optimizer.sensitivities` names. "
                f"Received: variable={variable_path(variable)}"
            )
        dtype = measure.compute_dtype(variable.dtype)
        step = ops.maximum(ops.cast(self.iterations, dtype), 1)
        return measure.bias_corrected(ops.cast(slot, dtype), self.beta_3, step)

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Prints which variables are guided.

        Args:
            print_fn: Function that is called with each line. Defaults to `print`.
        """
        guided = [slot is not None for slot in self._sensitivities] if self.built else ()
        print_summary(self, guided, ("guided", "plain"), print_fn)

    def get_config(self):
        """Returns the base's configuration and the arguments of the guidance."""
        config = super().get_config()
        config.update(
            {
                "beta_3": self.beta_3,
                "sensitivity_epsilon": self.sensitivity_epsilon,
                "bias_correction": self.bias_correction,
                "sensitivity_dtype": self.sensitivity_dtype,
                "calibrate": self.calibrate,
                "guide": self.guide,
            }
        )
        return config

    def __repr__(self):
        guided = "not built"
        if self.built:
            count = sum(slot is not None for slot in self._sensitivities)
            guided = f"guides {count} of {len(self._sensitivities)} variables"
        settings = ", ".join(
            f"{name}={getattr(self, name)!r}"
            for name in ("beta_3", "bias_correction", "include", "exclude", "calibrate", "guide")
        )
        return f"<{type(self).__name__}({settings}), {guided}>"

    def _slot(self, variable):
        return self._sensitivities[self._get_variable_index(variable)]

    def _warn_of_half_precision(self, variables):
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

    def _scale(self, variable, value, average):
        """The learning-rate scale of a variable's step, from its sensitivity and moving average.

        The place to override for a scale that needs the variable, or state of its own.
        """
        scale = self._scale_of(value, average, self.iterations + 1)
        return self._calibrated(variable, scale) if self.calibrate else scale

    def _scale_of(self, value, average, step):
        """The scale of each element, from its sensitivity and moving average at a step.

        The place to override for another scale that follows from these alone, element by element.
        `SensitivityLogger` computes from it what the last step's scales were.
        """
        smoothed = measure.as_stored(average, self.sensitivity_dtype)
        if self.bias_correction:
            smoothed = measure.bias_corrected(smoothed, self.beta_3, ops.cast(step, value.dtype))
        return measure.learning_rate_scale(value, smoothed, self.sensitivity_epsilon)

    def _calibrated(self, variable, scale):
        """The scale divided by its mean so far, to which this step's is then added.

        The first step's does not count: it is the same for all weights, whatever they are.
        """
        slot = self._mean_scales[self._get_variable_index(variable)]
        mean = ops.convert_to_tensor(slot)  # 1 as long as none has counted
        calibrated = ops.divide(scale, ops.maximum(mean, _LEAST_MEAN_SCALE))
        count = ops.cast(self.iterations, scale.dtype)
        self.assign(slot, measure.running_mean(mean, ops.mean(scale), count))
        return calibrated

    def _filter_empty_gradients(self, grads, vars):
        # Before Keras scales and clips: the norm of a sparse gradient counts duplicate rows apart.
        grads, variables = super()._filter_empty_gradients(grads, vars)
        if self.guide:
            grads = [
                gradient if self._slot(variable) is None else to_dense(gradient)
                for gradient, variable in zip(grads, variables)
            ]
        return grads, variables


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


def _check_bases(cls):
    check_order(cls, SensitivityGuided, _SUPPORTED_BASES)
    for name, reason in _REFUSED_BASES.items():
        base = getattr(keras.optimizers, name, None)
        if base is not None and issubclass(cls, base):
            raise TypeError(
                f"`{cls.__name__}` cannot be guided: its base `{name}` {reason}. "
                f"Use {_SUPPORTED_BASES} as the base."
            )
