"""The mixin that trains a few chosen weights only."""

import math
import random
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from sage_keras import arguments
from sage_keras import scores as scores_of
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import (
    cond,
    is_concrete,
    on_device_of,
    outside_of_graphs,
    put_at,
    slot_layout,
    take_at,
    to_dense,
)
from sage_keras.optimizers.base import VariableChoice
from sage_keras.optimizers.sparse import choice
from sage_keras.paths import unique_paths, variable_path
from sage_keras.sensitivity import compute_dtype
from sage_keras.thresholds import MOST_SCORES

_LONGEST_SELECTION = 2**30


class SparseFineTuning(VariableChoice):
    """Mixin that trains a small part of the weights, and keeps the state of those only.

    Put it first in the list of bases. Of each variable the share `fraction` of the weights is
    chosen once, and no other weight changes in any bit. The base keeps its state for these
    weights alone: its rule, weight decay, clipping (the norm is that of the chosen gradients), EMA,
    accumulation, schedules and guidance by `SensitivityGuided` work on one small vector for each
    variable. With AdamW a chosen weight takes 16 bytes (its position, its value and two moments),
    where AdamW takes 8 for every weight.

    Which weights they are follows from `scores`:

    - `"gradient"`: the weights whose gradients have the largest absolute values in the first
      `selection_steps` steps; `"sensitivity"` takes `|theta * g|` in their place. The largest
      value and not the sum counts, since it needs no memory for the weights that are not among
      the best so far. While it chooses no weight moves, and neither `iterations` nor a schedule
      counts. Micro-steps of gradient accumulation are steps here.
    - `"magnitude"` or `"random"`: chosen when the optimizer is built, by the weights as they are
      then.
    - A dict of variable path to array, as `sage_keras.analysis.measure_sensitivity` returns it:
      chosen when the optimizer is built, by the largest scores. With `scope="global"` one
      threshold holds for all variables.

    What to expect:

    - The backward pass computes the gradients of all weights, as Keras always does. What is saved
      is the optimizer's state; the gradients and the activations are not smaller.
    - The values of the chosen weights are kept in float32 where the variables are of half
      precision, so that small steps are not lost. Weights that are set between two steps are
      taken over.
    - A saved state brings its choice. One of another fraction or of other scores is refused.
      Scores that were passed as a dict are not part of the configuration: an optimizer that is
      made from it, and gets no saved state, chooses by gradients.
    - `keras.callbacks.SwapEMAWeights` does not reach the model's variables. `use_ema` works, and
      at the end of `fit` the averages are in the model.
    - Under `tf.distribute` the gradients of the first replica choose.
    - `on_nonfinite="skip"` looks at the gradients of all weights of a variable, those that do not
      train too. A step that is skipped chooses nothing, and is none of the `selection_steps`.
    - Fewer weights need larger steps: try higher learning rates than for full fine-tuning, as
      with LoRA.

    Args:
        *args: Positional arguments of the base optimizer.
        fraction: Float above 0 and at most 1, the share of the weights that trains. Of every
            variable it is rounded up to whole weights. Defaults to `0.05`.
        scores: `"gradient"`, `"sensitivity"`, `"magnitude"`, `"random"`, or a dict of variable
            path to array. Defaults to `"gradient"`.
        scope: `"variable"` or `"global"`: whether the share holds for each variable, or for all
            together. `"global"` needs a dict of scores. Defaults to `"variable"`.
        rest: `"train"` or `"freeze"`, what becomes of the variables that `include` and `exclude`
            leave out: they train as a whole, or not at all. Defaults to `"train"`.
        selection_steps: Integer, at least 1, the number of steps whose gradients choose. Defaults
            to `10`.
        seed: Integer, at least 0, that a random choice follows from. Defaults to `None`, a random
            one, which Python's `random.seed` makes reproducible.
        include: `None`, or a list of regular expressions that are searched in `variable.path`. Of
            variables that match one a fraction trains. Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Variables that match one are left out.
            Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.

    Raises:
        TypeError: Where the class is made, if the base does not treat each weight by itself or
            stands before the mixin; where an object is made, if an argument is of the wrong type.
        ValueError: If an argument is out of range; when the optimizer is built, if `include` or
            `exclude` matches no variable, if scores are missing or of another shape, or if a
            variable has a constraint.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class SparseLion(sage_keras.SparseFineTuning, keras.optimizers.Lion):
    ...     pass
    >>> kernel = keras.Variable([1.0, -3.0, 2.0, 0.5], name="kernel")
    >>> optimizer = SparseLion(learning_rate=0.25, fraction=0.5, scores="magnitude")
    >>> optimizer.apply([keras.ops.ones((4,))], [kernel])
    >>> keras.ops.convert_to_numpy(kernel).tolist()
    [1.0, -3.25, 1.75, 0.5]

    Reference:
        - [Song et al., 2023](https://arxiv.org/abs/2312.11875) (SIFT)
    """

    _rank = 5
    _settings: ClassVar[tuple[str, ...]] = (
        "fraction",
        "scores",
        "scope",
        "rest",
        "selection_steps",
        "seed",
    )
    _supported_bases = "any Keras optimizer that treats each weight by itself"
    _refused_bases: ClassVar = {
        "Muon": "takes whole matrices, of which a few weights are none",
        "Adafactor": "takes whole matrices, of which a few weights are none",
        "ScheduleFreeAdamW": "copies the weights when it is built, before they are chosen",
    }

    def __init__(
        self,
        *args: Any,
        fraction: float = 0.05,
        scores: Any = "gradient",
        scope: str = "variable",
        rest: str = "train",
        selection_steps: int = 10,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.fraction = arguments.number("fraction", fraction, 0.0, 1.0, "0.05", high_included=True)
        self.scope = arguments.choice("scope", scope, ("variable", "global"))
        self.rest = arguments.choice("rest", rest, ("train", "freeze"))
        self.selection_steps = arguments.integer(
            "selection_steps", selection_steps, low=1, example=10, high=_LONGEST_SELECTION
        )
        self._sparse = _Sparse(choice.Scores(scores))
        if seed is None and self.scores == "random":
            seed = random.randrange(2**31)
        self.seed = None if seed is None else arguments.integer("seed", seed, low=0, example=0)
        self._by_gradients = self._sparse.scores.by_gradients
        if self.scope == "global" and self._sparse.scores.name:
            raise ValueError(
                'Argument `scope`: "global" needs scores that are known before training. Pass '
                "as `scores` a dict of variable path to array, such as "
                "`sage_keras.analysis.measure_sensitivity(model, data)`. "
                f"Received: scores={scores!r}"
            )

    @property
    def scores(self) -> Any:
        """The argument, of which a dict is kept as its fingerprint only."""
        return self._sparse.scores.described()

    # Building.

    def _frozen(self, variables: list[Variable]) -> list[bool]:
        """Those that are left out, if they shall not train, and those without a chosen weight."""
        frozen = super()._frozen(variables)
        chosen = super()._choose(variables)
        for variable, yes in zip(variables, chosen):
            if yes:
                _check(variable)
        self._count([variable for variable, yes in zip(variables, chosen) if yes], variables)
        sparse = self._sparse
        sparse.variables = variables
        keys = [self._var_key(variable) for variable in variables]
        for key, variable, yes in zip(keys, variables, chosen):
            left_out = self.rest == "freeze" and not self._overwrite_variable_with_gradient(
                variable
            )
            if sparse.counts.setdefault(key, 0) == 0 and (yes or left_out):
                sparse.frozen.add(key)
        return [already or key in sparse.frozen for already, key in zip(frozen, keys)]

    def _count(self, chosen: list[Variable], variables: list[Variable]) -> None:
        """Counts the weights to choose of each variable, and chooses them if scores were passed."""
        sparse, scores = self._sparse, self._sparse.scores
        keys = [self._var_key(variable) for variable in chosen]
        if scores.arrays is not None:
            path_of = dict(zip(map(self._var_key, variables), unique_paths(variables)))
            shapes = [tuple(variable.shape) for variable in chosen]
            arrays = scores.of([path_of[key] for key in keys], shapes)
            sparse.positions = dict(zip(keys, choice.best(arrays, self.fraction, self.scope)))
            counts = [len(sparse.positions[key]) for key in keys]
            scores.counts = counts if self.scope == "global" else None
            scores.arrays = {}  # they take as much memory as the weights
        elif scores.counts is not None:
            counts = scores.counts
            if len(counts) != len(chosen):
                raise ValueError(
                    f"The configuration of this optimizer is of {len(counts)} variables that "
                    f"train in part; here there are {len(chosen)}. Pass the scores again."
                )
        else:
            counts = [choice.count(math.prod(one.shape), self.fraction) for one in chosen]
        sparse.counts = dict(zip(keys, counts))

    def _choose(self, variables: list[Variable]) -> list[bool]:
        # As chosen among all variables: a pattern may match frozen ones only.
        return [self._sparse.counts[self._var_key(variable)] > 0 for variable in variables]

    def _stand_ins(self, variables: list[Variable]) -> list[Variable]:
        """Makes the vectors of chosen weights, which the base has in the place of variables."""
        variables = super()._stand_ins(variables)
        stand_ins: list[Variable] = []
        positions: list[Variable | None] = []
        for index, variable in enumerate(variables):
            key = self._var_key(variable)
            count = self._sparse.counts[key]
            if not count:
                stand_ins.append(variable)
                positions.append(None)
                continue
            first = self._first_positions(variable, index, count)
            position = self._add_slot(
                variable,
                "position",
                "int32",
                (count,),
                lambda shape, dtype, first=first: ops.convert_to_tensor(first, dtype),
                aggregation="only_first_replica",
            )
            positions.append(position)
            stand_in = self._stand_in(variable, count)
            self._sparse.keys[super()._var_key(stand_in)] = key
            stand_ins.append(stand_in)
        self._positions = positions
        self._steps_left = self.add_variable(
            shape=(),
            initializer=lambda shape, dtype: ops.full(
                shape, self.selection_steps if self._by_gradients else 0, dtype
            ),
            dtype="int",
            aggregation="only_first_replica",
            name="selection_steps_left",
        )
        self._sparse.positions = {}
        return stand_ins

    def _stand_in(self, variable: Variable, count: int) -> Variable:
        """A vector at the variable's own path, so that all that goes by paths is as without it."""
        *scopes, scope, name = ["", *variable_path(variable).split("/")]
        with (
            on_device_of(self, variable),
            keras.name_scope(scope, override_parent="/".join(scopes)),
        ):
            stand_in = keras.Variable(
                initializer="zeros",
                shape=(count,),
                dtype=compute_dtype(variable.dtype),
                trainable=False,
                aggregation="only_first_replica",
                layout=slot_layout(variable, (count,)),
                name=name.replace(":", "_"),  # of a raw `tf.Variable`
            )
        self._track_variable(stand_in)
        self._note_slot(variable, "value")
        return stand_in

    def _first_positions(self, variable: Variable, index: int, count: int) -> Tensor:
        """Those that are chosen, or any if gradients will choose."""
        given = self._sparse.positions.get(self._var_key(variable))
        if given is not None:
            return given
        if self._by_gradients:
            return np.arange(count, dtype="int32")
        with outside_of_graphs():
            if self.scores == "magnitude":
                score = scores_of.magnitude(ops.convert_to_tensor(variable))
            else:
                score = scores_of.random(self.seed or 0, index, tuple(variable.shape))
            return choice.best_of(score, count)

    def _var_key(self, variable: Variable) -> Any:
        # A vector of chosen weights is known by its variable's key, whoever looks for which.
        key = super()._var_key(variable)
        return self._sparse.keys.get(key, key)

    # A step.

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable] | None = None
    ) -> None:
        """Updates the chosen weights, or chooses them."""
        if len(grads) > 0:
            self._build_at_first_step(trainable_variables)
        selecting = self._selecting() if self.built else None  # before the step counts
        super().apply(grads, trainable_variables)
        if selecting is not None and len(grads) > 0:
            self._put_back(selecting)

    def stateless_apply(
        self,
        optimizer_variables: list[Tensor],
        grads: list[Tensor],
        trainable_variables: list[Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Like `apply`, for JAX: returns what the model's variables become."""
        variables = self._sparse.variables
        lengths = (len(optimizer_variables), len(trainable_variables))
        if not self.built or lengths != (len(self.variables), len(variables)):
            # Keras tells what does not fit.
            return super().stateless_apply(optimizer_variables, grads, trainable_variables)
        mapping = [*zip(variables, trainable_variables), *zip(self.variables, optimizer_variables)]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            self.apply(grads, variables)
        return (
            [scope.get_current_value(variable) for variable in variables],
            [scope.get_current_value(variable) for variable in self.variables],
        )

    def _without_frozen(
        self, grads: Sequence[Tensor], variables: Sequence[Variable] | None
    ) -> tuple[Sequence[Tensor], Sequence[Variable] | None]:
        """Takes the chosen weights too, as they are now, before a copy of the state is kept."""
        if variables is None and len(grads) == len(self._sparse.variables):
            variables = self._sparse.variables
        if not self.built or variables is None:
            return super()._without_frozen(grads, variables)
        self._take_values()
        pairs = [
            (gradient, variable)
            for gradient, variable in zip(grads, variables)
            if self._var_key(variable) not in self._sparse.frozen
        ]
        return super()._without_frozen([one for one, _ in pairs], [one for _, one in pairs])

    def _chosen_part(self, gradient: Tensor, variable: Variable) -> tuple[Tensor, Variable]:
        index = self._trainable_variables_indices.get(self._var_key(variable))
        if index is None or self._positions[index] is None:
            return gradient, variable
        if gradient is not None:
            gradient = take_at(to_dense(gradient), ops.convert_to_tensor(self._positions[index]))
        return gradient, self._trainable_variables[index]

    def _step(self, grads: Sequence[Tensor], variables: Sequence[Variable] | None) -> None:
        """Chooses, or has the base update what is chosen."""
        if variables is None:  # Keras tells what does not fit
            return super()._step(grads, variables)
        if self._by_gradients:
            self._select(grads, variables)
        pairs = [self._chosen_part(*pair) for pair in zip(grads, variables)]
        gradients, weights = [one for one, _ in pairs], [one for _, one in pairs]
        step = super()._step
        if not self._by_gradients:
            return step(gradients, weights)
        chosen = ops.logical_not(self._selecting())
        if not is_concrete(chosen):
            self._step_if(chosen, lambda: step(gradients, weights))
        elif chosen:
            step(gradients, weights)
        self._steps_left.assign(ops.maximum(self._steps_left - 1, 0))

    def _selecting(self) -> Tensor:
        return ops.greater(self._steps_left, 0)

    def _select(self, grads: Sequence[Tensor], variables: Sequence[Variable]) -> None:
        """Chooses by one more step's gradients, if it is one of the first steps.

        The best so far are kept with their scores, for which there is room in the vectors of the
        chosen weights' values as long as there are none. The largest of each weight's scores is
        exact: a weight that is among the best in the end was among them from its best step on.
        """
        several = [
            (gradient, *self._sparse_slots(variable))
            for gradient, variable in zip(grads, variables)
            if gradient is not None and self._sparse_slots(variable)
        ]

        def choose() -> list[Tensor]:
            found = []
            for gradient, variable, positions, best in several:
                score = self._score(gradient, variable)
                old = ops.convert_to_tensor(positions)
                known = ops.maximum(take_at(score, old), ops.cast(best, "float32"))
                score = choice.with_values(score, old, known)
                new = choice.best_of(score, old.shape[0])
                found += [new, ops.cast(take_at(score, new), best.dtype)]
            return found

        def keep() -> list[Tensor]:
            return [ops.convert_to_tensor(one) for _, _, *slots in several for one in slots]

        slots = [one for _, _, *slots in several for one in slots]
        for slot, value in zip(slots, cond(self._selecting(), choose, keep)):
            slot.assign(value)

    def _sparse_slots(self, variable: Variable) -> tuple[Variable, ...]:
        """The variable, the positions of its chosen weights, and their values; or nothing."""
        index = self._trainable_variables_indices.get(self._var_key(variable))
        if index is None or self._positions[index] is None:
            return ()
        return variable, self._positions[index], self._trainable_variables[index]

    def _score(self, gradient: Tensor, variable: Variable) -> Tensor:
        score = ops.cast(to_dense(gradient), "float32")
        if self.scores == "sensitivity":
            score = ops.multiply(score, ops.cast(variable, "float32"))
        # One step that is not finite must not choose for good.
        return ops.where(ops.isfinite(score), ops.abs(score), 0.0)

    def _slots_by_variable(self) -> list[tuple[Variable, Variable, Variable]]:
        return [slots for one in self._sparse.variables if (slots := self._sparse_slots(one))]

    def _take_values(self) -> None:
        """Takes the chosen weights' values out of the model's variables."""
        for variable, positions, slot in self._slots_by_variable():
            held = take_at(variable, ops.convert_to_tensor(positions))
            value = ops.convert_to_tensor(slot)
            new = ops.cast(held, slot.dtype)
            if held.dtype != value.dtype:
                # What the variable holds is the value rounded, unless somebody has set it.
                new = ops.where(ops.equal(ops.cast(value, held.dtype), held), value, new)
            if self._by_gradients:
                new = ops.where(self._selecting(), value, new)  # a score still
            slot.assign(new)

    def _put_back(self, selecting: Tensor) -> None:
        """Puts the chosen weights' values into the model's variables, unless they are scores."""
        if self._by_gradients and is_concrete(selecting) and selecting:
            return
        variables, positions, values = [], [], []
        for variable, slot, value in self._slots_by_variable():
            where = ops.convert_to_tensor(slot)
            new = ops.cast(value, variable.dtype)
            if self._by_gradients:
                new = ops.where(selecting, take_at(variable, where), new)
            variables.append(variable)
            positions.append(where)
            values.append(new)
        put_at(variables, positions, values)

    def finalize_variable_values(self, var_list: Sequence[Variable]) -> None:
        """Does what the base does at the end of training, to the chosen weights."""
        if not (self.built and self.use_ema):
            return super().finalize_variable_values(var_list)
        if self.is_selecting:  # nothing has been averaged yet
            return None
        self._take_values()
        trained = [one for one in var_list if self._var_key(one) not in self._sparse.frozen]
        super().finalize_variable_values([self._chosen_part(None, one)[1] for one in trained])
        self._put_back(self._selecting())

    # What it has chosen.

    @property
    def is_selecting(self) -> bool:
        """Whether the weights are not chosen yet: the next step's gradients have a say in it."""
        if not self.built:
            return self._by_gradients
        return bool(ops.convert_to_numpy(self._steps_left) > 0)

    @property
    def chosen_positions(self) -> dict[str, Variable]:
        """The positions of the chosen weights, row by row, in ascending order.

        A dict of `variable.path` to the optimizer's variable, of those that train in part.
        While it selects these are the best so far. Empty before the optimizer is built.
        """
        if not self.built:
            return {}
        named = zip(self._names.trained, self._positions)
        return {path: positions for path, positions in named if positions is not None}

    def _phrases(self) -> list[str]:
        chosen = [one.shape[0] for one in self._positions if one is not None]
        trained = f"trains {sum(chosen):,} weights of {len(chosen)} variables"
        return [trained, *super()._phrases()]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        counts = {path: f"{one.shape[0]:,}" for path, one in self.chosen_positions.items()}
        return {"trained": counts, **super()._summary_columns()}


class _Sparse:
    """The model's variables, and what is chosen of each, by what Keras calls their key.

    Not attributes of the optimizer, which Keras and TensorFlow would track and save with it.
    """

    def __init__(self, scores: choice.Scores) -> None:
        self.scores = scores
        self.variables: list[Variable] = []
        self.counts: dict[Any, int] = {}  # how many weights are chosen
        self.positions: dict[Any, np.ndarray] = {}  # where scores were passed, until it is built
        self.frozen: set[Any] = set()
        self.keys: dict[Any, Any] = {}  # of a vector of chosen weights: that of its variable


def _check(variable: Variable) -> None:
    """Refuses a variable of which no share can train."""
    if getattr(variable, "constraint", None) is not None:
        raise ValueError(
            f"The variable {variable_path(variable)!r} has a constraint, which would change the "
            "weights that are not chosen. Leave it out with `exclude`, or make its layer without "
            "the constraint."
        )
    if math.prod(variable.shape) > MOST_SCORES:
        raise ValueError(
            f"The variable {variable_path(variable)!r} has the shape {tuple(variable.shape)}; one "
            f"that trains in part has {MOST_SCORES} weights at most. Leave it out with `exclude`."
        )
