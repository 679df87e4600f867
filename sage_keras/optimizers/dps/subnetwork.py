"""The mixin that makes a Keras optimizer train the subnetworks it selects (DPS Dense)."""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import cond, to_dense
from sage_keras.optimizers.base import OptimizerMixin, check_order, print_summary
from sage_keras.optimizers.dps import selection
from sage_keras.optimizers.sage.guided import SensitivityGuided
from sage_keras.paths import variable_path

_WRAPPERS = ("LossScaleOptimizer", "MultiOptimizer")


class PartialTraining(OptimizerMixin):
    """Base of the mixins that train a part of each variable at a time.

    Args:
        *args: Positional arguments of the base optimizer.
        drop_rate: Float in [0, 1), the share of the weights that is left out. Defaults to `0.3`.
        **kwargs: Keyword arguments of the base optimizer, `include`, `exclude` and `on_nonfinite`.
    """

    # What `repr` shows.
    _settings: tuple[str, ...] = ("drop_rate", "include", "exclude")

    def __init__(self, *args: Any, drop_rate: float = 0.3, **kwargs: Any) -> None:
        if not isinstance(self, keras.optimizers.Optimizer):
            name = type(self).__name__
            raise TypeError(
                f"`{name}` is a mixin and has no update of its own. Put it before a Keras "
                f"optimizer: `class MyOptimizer({name}, keras.optimizers.AdamW)`."
            )
        super().__init__(*args, **kwargs)
        self.drop_rate = arguments.number(
            "drop_rate", drop_rate, 0.0, 1.0, "0.3", low_included=True
        )

    def build(self, variables):
        """Creates the slots of the base and those of the chosen variables.

        Args:
            variables: List of the variables to train.

        Raises:
            ValueError: If no pattern of `include`, or none of `exclude`, matches a variable.
        """
        if self.built:
            return
        variables = list(variables)
        self._chosen = self._select(variables)
        super().build(variables)

    @property
    def partial_variables(self) -> list[Variable]:
        """List of the variables that are trained in part. Empty before the optimizer is built."""
        if not self.built:
            return []
        return [one for one, chosen in zip(self._trainable_variables, self._chosen) if chosen]

    def subnetwork(self, variable: Variable) -> Tensor:
        """Which weights of a variable the coming step trains.

        Args:
            variable: A variable that this optimizer trains in part.

        Returns:
            Boolean tensor of the variable's shape.

        Raises:
            ValueError: If the optimizer is not built, or does not know or choose this variable.
        """
        index = None
        if self.built and self._var_key(variable) in self._trainable_variables_indices:
            index = self._get_variable_index(variable)
        if index is None or not self._chosen[index]:
            raise ValueError(
                "Argument `variable` must be one that this optimizer trains in part: build the "
                "optimizer, then pass a variable that `optimizer.summary()` calls partial. "
                f"Received: variable={variable_path(variable)}"
            )
        return ops.broadcast_to(self._mask(index), tuple(variable.shape))

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Prints which variables are trained in part.

        Args:
            print_fn: Function that is called with each line. Defaults to `print`.
        """
        print_summary(self, self._chosen if self.built else (), ("partial", "plain"), print_fn)

    def get_config(self):
        """Returns the base's configuration and the drop rate."""
        config = super().get_config()
        config["drop_rate"] = self.drop_rate
        return config

    def __repr__(self):
        partial = "not built"
        if self.built:
            partial = f"trains {sum(self._chosen)} of {len(self._chosen)} variables in part"
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._settings)
        return f"<{type(self).__name__}({settings}), {partial}>"

    def _mask(self, index):
        """Which weights of the variable of this index the coming step trains."""
        raise NotImplementedError

    def _masked(self, gradient, index):
        return ops.where(self._mask(index), gradient, 0.0)

    def _filter_empty_gradients(self, grads, vars):
        # Before Keras scales and clips: the norm of a sparse gradient counts duplicate rows apart.
        grads, variables = super()._filter_empty_gradients(grads, vars)
        grads = [
            to_dense(gradient) if self._chosen[self._get_variable_index(variable)] else gradient
            for gradient, variable in zip(grads, variables)
        ]
        return grads, variables


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

    _settings = ("stage_steps", *PartialTraining._settings)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        check_bases(cls, SubnetworkSelection, before=[SensitivityGuided])

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

    def build(self, variables):
        """Creates the base's slots, and for every chosen variable a slot and a threshold.

        Args:
            variables: List of the variables to train.

        Raises:
            ValueError: If no pattern of `include`, or none of `exclude`, matches a variable.
        """
        if self.built:
            return
        variables = list(variables)
        super().build(variables)
        self._scores = [
            self._add_slot(variable, "score", "float32") if chosen else None
            for variable, chosen in zip(variables, self._chosen)
        ]
        self._thresholds = self.add_variable(
            shape=(len(variables),),
            dtype="int",
            aggregation="only_first_replica",
            name="thresholds",
        )

    def apply(self, grads, trainable_variables=None):
        """Updates the variables, and selects the subnetworks when stage I is over.

        Args:
            grads: List of gradients.
            trainable_variables: List of the variables to update. Defaults to those that the
                optimizer was built with.
        """
        if len(grads) == 0:
            return
        before = ops.copy(self.iterations)  # torch counts in place
        super().apply(grads, trainable_variables)
        # Micro-steps of gradient accumulation do not count.
        updated = ops.not_equal(self.iterations, before)
        begins = ops.equal(self._step_of_cycle(), self.stage_steps)
        self._begin_stage_two(ops.logical_and(updated, begins))

    def update_step(self, gradient, variable, learning_rate):
        """Adds to the scores in stage I, then makes the base's step on the masked gradient.

        Args:
            gradient: The gradient of the variable.
            variable: The variable to update.
            learning_rate: The learning rate, a scalar.
        """
        index = self._get_variable_index(variable)
        slot = self._scores[index]
        if slot is None:
            return super().update_step(gradient, variable, learning_rate)

        # In this order XLA updates the scores in place. Where they select they do not change.
        self._accumulate(slot, ops.square(ops.cast(gradient, slot.dtype)))
        super().update_step(self._masked(gradient, index), variable, learning_rate)

    @property
    def stage(self) -> int:
        """The stage of the coming step: 1, in which all weights train, or 2."""
        return 1 if bool(ops.convert_to_numpy(self._in_stage_one())) else 2

    def get_config(self):
        """Returns the base's configuration and the arguments of the selection."""
        config = super().get_config()
        config.update(
            {
                "total_steps": self.total_steps,
                "update_ratio": self.update_ratio,
                "stage_steps": self.stage_steps if self.total_steps is None else None,
            }
        )
        return config

    def _step_of_cycle(self):
        """The place of the coming step in its cycle, from 0 on."""
        return ops.mod(self.iterations, 2 * self.stage_steps)

    def _in_stage_one(self):
        return ops.less(self._step_of_cycle(), self.stage_steps)

    def _accumulate(self, slot, value):
        """Adds to a slot in stage I, at whose first step it begins anew."""
        so_far = ops.convert_to_tensor(slot)
        first = ops.equal(self._step_of_cycle(), 0)
        total = ops.add(ops.where(first, 0.0, so_far), value)
        self.assign(slot, ops.where(self._in_stage_one(), total, so_far))

    def _begin_stage_two(self, begins):
        """Takes the thresholds of the new subnetworks, if stage II `begins`, a boolean tensor."""
        scores = [None if slot is None else ops.convert_to_tensor(slot) for slot in self._scores]

        def select():
            return ops.stack(
                [
                    ops.convert_to_tensor(0, "int32")
                    if one is None
                    else selection.threshold(
                        one, selection.kept_count(math.prod(one.shape), self.drop_rate)
                    )
                    for one in scores
                ]
            )

        thresholds = ops.cast(self._thresholds, "int32")
        self._thresholds.assign(cond(begins, select, lambda: thresholds))

    def _mask(self, index):
        threshold = ops.cast(self._thresholds[index], "int32")
        # Every score reaches zero.
        threshold = ops.where(self._in_stage_one(), 0, threshold)
        return selection.at_least(self._scores[index], threshold)


def check_bases(cls, mixin, before):
    """Refuses, where an optimizer class is made, a mixin that stands in the wrong place.

    Args:
        cls: The class that is being made.
        mixin: The mixin.
        before: List of the mixins that have to come later.

    Raises:
        TypeError: If one of them, or the Keras optimizer, comes first, or the optimizer wraps
            others.
    """
    if not issubclass(cls, keras.optimizers.Optimizer):
        return  # a mixin made of mixins
    check_order(cls, mixin, "any Keras optimizer that wraps no other")
    for other in before:
        if issubclass(cls, other) and cls.__mro__.index(other) < cls.__mro__.index(mixin):
            raise TypeError(
                f"`{mixin.__name__}` must come before `{other.__name__}` in the bases of "
                f"`{cls.__name__}`: the first base acts first. Write `class {cls.__name__}("
                f"{mixin.__name__}, {other.__name__}, keras.optimizers.AdamW)`."
            )
    for name in _WRAPPERS:
        if issubclass(cls, getattr(keras.optimizers, name)):
            raise TypeError(
                f"`{cls.__name__}` cannot build on `{name}`, which wraps other optimizers. Pass "
                f"a `{mixin.__name__}` to it instead."
            )
