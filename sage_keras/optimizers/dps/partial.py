"""What the mixins share that train a part of each variable at a time."""

from typing import Any, ClassVar

from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Tensor, Variable
from sage_keras.optimizers.base import VariableChoice


class PartialTraining(VariableChoice):
    """Base of the mixins that train a part of each variable at a time.

    Args:
        *args: Positional arguments of the base optimizer.
        drop_rate: Float in [0, 1), the share of the weights that is left out. Defaults to `0.3`.
        **kwargs: Keyword arguments of the base optimizer, `include`, `exclude` and `on_nonfinite`.
    """

    _settings: ClassVar[tuple[str, ...]] = ("drop_rate",)

    def __init__(self, *args: Any, drop_rate: float = 0.3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_rate = arguments.number(
            "drop_rate", drop_rate, 0.0, 1.0, "0.3", low_included=True
        )

    @property
    def partial_variables(self) -> list[Variable]:
        """List of the variables that are trained in part. Empty before the optimizer is built."""
        return self._chosen_variables()

    def subnetwork(self, variable: Variable | str) -> Tensor:
        """Which weights of a variable the coming step trains.

        Args:
            variable: A variable that this optimizer trains in part, or the path of one.

        Returns:
            Boolean tensor of the variable's shape.

        Raises:
            ValueError: If the optimizer is not built, or does not know or choose this variable.
        """
        instead = "trains in part: build it, then pass one of `optimizer.partial_variables`"
        index = self._index_of_chosen(variable, instead)
        shape = tuple(self._trainable_variables[index].shape)
        return ops.broadcast_to(self._mask(index), shape)

    def _mask(self, index: int) -> Tensor:
        """Hook: which weights of the variable of this index the coming step trains."""
        raise NotImplementedError

    def _masked(self, gradient: Tensor, index: int) -> Tensor:
        return ops.where(self._mask(index), gradient, 0.0)

    def _before_clipping(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        return super()._before_clipping(self._dense(grads, variables), variables)

    def _phrases(self) -> list[str]:
        partial = f"trains {sum(self._chosen)} of {len(self._chosen)} variables in part"
        return [partial, *super()._phrases()]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        return {"partial": self._chosen_marks(), **super()._summary_columns()}
