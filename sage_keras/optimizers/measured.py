"""What the mixins share that need the moving average of the sensitivity: one slot for all."""

from typing import TYPE_CHECKING, Any, ClassVar

from keras import ops

from sage_keras import arguments
from sage_keras import sensitivity as measure
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import to_dense
from sage_keras.optimizers.base import VariableChoice

if TYPE_CHECKING:
    from sage_keras.foreach import Step

_SLOT_DTYPES = ("float32", "bfloat16")
# With more the average is off by more than 6e-5, and in bfloat16 by some 2 %.
_LARGEST_BETA_3 = {"float32": 0.999, "bfloat16": 0.99}


class SensitivityAverage(VariableChoice):
    """Base of the mixins that need the moving average of the sensitivity.

    It is measured once a step, whatever uses it.

    Args:
        *args: Positional arguments of the base optimizer.
        beta_3: Float above 0 and at most 0.999, or 0.99 with `sensitivity_dtype="bfloat16"`, the
            decay of the moving average. Defaults to `0.75`.
        sensitivity_dtype: `"float32"` or `"bfloat16"`, the dtype in which it is stored.
            Defaults to `"float32"`.
        **kwargs: Keyword arguments of the base optimizer, `include`, `exclude` and `on_nonfinite`.
    """

    _settings: ClassVar[tuple[str, ...]] = ("beta_3", "sensitivity_dtype")

    def __init__(
        self,
        *args: Any,
        beta_3: float = 0.75,
        sensitivity_dtype: str = "float32",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.sensitivity_dtype = arguments.choice(
            "sensitivity_dtype", sensitivity_dtype, _SLOT_DTYPES
        )
        self.beta_3 = arguments.number(
            "beta_3",
            beta_3,
            0.0,
            _LARGEST_BETA_3[self.sensitivity_dtype],
            "0.75",
            high_included=True,
        )

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        self._sensitivities = [
            self._add_slot(variable, "sensitivity", self.sensitivity_dtype) if measured else None
            for variable, measured in zip(variables, self._measured())
        ]

    def _measured(self) -> list[bool]:
        """Hook: of which variables the average is needed."""
        return [False] * len(self._chosen)

    def _adjust(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Measures the variable's sensitivity, and moves its average."""
        index = self._get_variable_index(variable)
        slot = self._sensitivities[index]
        if slot is not None:
            dtype = measure.compute_dtype(variable.dtype)
            value = measure.capped(
                measure.sensitivity(ops.cast(variable, dtype), ops.cast(to_dense(gradient), dtype))
            )
            average = measure.moving_average(ops.cast(slot, dtype), value, self.beta_3)
            average = measure.as_stored(average, self.sensitivity_dtype, index, self.iterations)
            self.assign(slot, average)
            gradient, learning_rate = self._use_sensitivity(
                gradient, variable, learning_rate, value, ops.cast(average, dtype)
            )
        return super()._adjust(gradient, variable, learning_rate)

    def _adjust_all(self, step: "Step") -> None:
        # The one mixin that takes all variables at once moves the averages as well.
        super()._adjust_all(step)

    def _use_sensitivity(
        self,
        gradient: Tensor,
        variable: Variable,
        learning_rate: Tensor,
        value: Tensor,
        average: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Hook: gradient and learning rate, with this step's sensitivity and its average."""
        return gradient, learning_rate
