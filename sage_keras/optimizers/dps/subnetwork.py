"""The mixin that makes a Keras optimizer train the subnetworks it selects (DPS Dense)."""

import math
from typing import TYPE_CHECKING, Any, ClassVar

from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import cond
from sage_keras.optimizers.dps import selection
from sage_keras.optimizers.dps.partial import PartialTraining
from sage_keras.thresholds import at_least, threshold

if TYPE_CHECKING:
    from sage_keras.foreach import Step


class SubnetworkSelection(PartialTraining):
    """Mixin that makes a Keras optimizer train the subnetworks that it selects (DPS, Dense).

    Put it before a Keras optimizer in the list of bases. Training then goes in cycles of two
    stages of `stage_steps` updates each. In stage I every weight trains, and its squared gradients
    are added up to a score. In stage II the weights of the best scores train, the share
    `1 - drop_rate` of each variable; the gradients of the others are zero.

    A score counts the gradients after accumulation, loss unscaling and clipping. Weights of the
    same score are kept or dropped together, so that ties may keep a few more.

    What to expect:

    - The base's moments are neither masked nor reset. A weight outside the subnetwork still
      drifts on old momentum, and decays. Both are the authors' behaviour.
    - `drop_rate` is the share that is left out: 0.3 trains 70 %. The authors' flag `reserve_p`
      means this too, whatever its name says.
    - Stages count updates of the weights. Gradient accumulation does not shorten them.
    - The authors select in the weight matrices of attention, feed-forward, pooler and head, which
      is `include=sage_keras.TRANSFORMER_MATRICES`. The default is every variable.

    To guide the rate of what is selected as well, put `SensitivityGuided` next:
    `class SageDPS(SubnetworkSelection, SensitivityGuided, keras.optimizers.AdamW)`. Both then act
    on the variables that `include` and `exclude` choose.

    Args:
        *args: Positional arguments of the base optimizer.
        total_steps: Integer, the number of updates of the whole training, of which a stage takes
            the share `update_ratio`. Either this or `stage_steps` has to be passed. Defaults to
            `None`.
        update_ratio: Float in (0, 1), the share of `total_steps` that a stage takes. Defaults to
            `0.05`, ten cycles of two stages.
        stage_steps: Integer, the number of updates of a stage. Defaults to `None`:
            `total_steps * update_ratio` without its fraction.
        drop_rate: Float in [0, 1), the share of the weights that is left out of the subnetwork.
            With `0.0` the base trains as it would by itself. Defaults to `0.3`.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Subnetworks are selected in variables that match one; the others always train.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Variables that match one always train.
            Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.

    Raises:
        TypeError: Where the class is made, if its bases stand in the wrong order; where an object
            is made, if an argument is of the wrong type.
        ValueError: If an argument is out of range, if `total_steps` are too few for the ratio, or
            if `include` or `exclude` matches no variable.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class DPSLion(sage_keras.SubnetworkSelection, keras.optimizers.Lion):
    ...     pass
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=DPSLion(learning_rate=1e-4, total_steps=1000), loss="mse")

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2211.01642)
    """

    _rank = 30
    _settings: ClassVar[tuple[str, ...]] = ("total_steps", "update_ratio", "stage_steps")

    def __init__(
        self,
        *args: Any,
        total_steps: int | None = None,
        update_ratio: float = 0.05,
        stage_steps: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.update_ratio = arguments.number("update_ratio", update_ratio, 0.0, 1.0, "0.05")
        if (total_steps is None) == (stage_steps is None):
            raise ValueError(
                "Pass one of the arguments `total_steps`, the number of updates of the whole "
                "training (such as epochs * steps per epoch), and `stage_steps`, the number of "
                f"updates of a stage. Received: total_steps={total_steps!r}, "
                f"stage_steps={stage_steps!r}"
            )
        if total_steps is None:
            self.total_steps = None
            self.stage_steps = arguments.integer(
                "stage_steps", stage_steps, low=1, example=50, high=selection.LONGEST_STAGE
            )
        else:
            most = selection.most_steps(self.update_ratio)
            self.total_steps = arguments.integer(
                "total_steps", total_steps, low=1, example=1000, high=most
            )
            self.stage_steps = selection.steps_per_stage(self.total_steps, self.update_ratio)
        if self.stage_steps == 0:
            raise ValueError(
                "Arguments `total_steps` and `update_ratio` leave no update for a stage: their "
                "product must be 1 at least. Raise one of them, or pass `stage_steps`. Received: "
                f"total_steps={total_steps!r}, update_ratio={update_ratio!r}"
            )

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        self._scores = self._slots(variables, "score", "float32")
        self._thresholds = self.add_variable(
            shape=(len(variables),),
            dtype="int",
            aggregation="only_first_replica",
            name="thresholds",
        )

    def _adjust(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adds to the scores in stage I, and masks the gradient."""
        index = self._get_variable_index(variable)
        slot = self._scores[index]
        if slot is not None:
            # In this order XLA updates the scores in place. Where they select they do not change.
            square = ops.square(ops.cast(gradient, slot.dtype))
            self._accumulate(slot, square, self._score_factor(index))
            gradient = self._masked(gradient, index)
        return super()._adjust(gradient, variable, learning_rate)

    def _adjust_all(self, step: "Step") -> None:
        step.select(
            self._scores,
            int(self._step_of_cycle()),
            self.stage_steps,
            self._thresholds,
        )
        super()._adjust_all(step)

    def _end_step(self, updated: Tensor) -> None:
        """Selects the subnetworks when stage I is over."""
        super()._end_step(updated)
        begins = ops.equal(self._step_of_cycle(), self.stage_steps)
        # A micro-step of accumulation would select the same once more.
        self._begin_stage_two(ops.logical_and(updated, begins))

    @property
    def stage(self) -> int:
        """The stage of the coming step: 1, in which all weights train, or 2."""
        return 1 if bool(ops.convert_to_numpy(self._in_stage_one())) else 2

    def _own_settings(self) -> dict[str, Any]:
        settings = super()._own_settings()
        if self.total_steps is not None:  # from which stage_steps follow
            settings["stage_steps"] = None
        return settings

    def _step_of_cycle(self) -> Tensor:
        """The place of the coming step in its cycle, from 0 on."""
        return ops.mod(self.iterations, 2 * self.stage_steps)

    def _in_stage_one(self) -> Tensor:
        return ops.less(self._step_of_cycle(), self.stage_steps)

    def _score_factor(self, index: int) -> Tensor | None:
        """Hook: what a score is multiplied by once this step's gradient is added to it, in stage I.

        Here already, and not where stage II begins: what the step stores of a score is then all
        that it needs of it, and XLA keeps no copy of the old one.
        """
        return None

    def _accumulate(self, slot: Variable, value: Tensor, factor: Tensor | None = None) -> None:
        """Adds to a slot in stage I, at whose first step it begins again."""
        so_far = ops.convert_to_tensor(slot)
        first = ops.equal(self._step_of_cycle(), 0)
        total = ops.add(ops.where(first, 0.0, so_far), value)
        if factor is not None:
            total = ops.multiply(total, factor)
        self.assign(slot, ops.where(self._in_stage_one(), total, so_far))

    def _begin_stage_two(self, begins: Tensor) -> None:
        """Takes the thresholds of the new subnetworks, if stage II `begins`, a boolean tensor."""
        scores = [None if slot is None else ops.convert_to_tensor(slot) for slot in self._scores]

        def select() -> Tensor:
            return ops.stack(
                [
                    ops.convert_to_tensor(0, "int32")
                    if one is None
                    else threshold(one, selection.kept_count(math.prod(one.shape), self.drop_rate))
                    for one in scores
                ]
            )

        thresholds = ops.cast(self._thresholds, "int32")
        self._thresholds.assign(cond(begins, select, lambda: thresholds))

    def _mask(self, index: int) -> Tensor:
        least = ops.cast(self._thresholds[index], "int32")
        # Every score reaches zero.
        return at_least(self._scores[index], ops.where(self._in_stage_one(), 0, least))
