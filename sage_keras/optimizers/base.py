"""What the mixins for Keras optimizers share: one step, one state, one way to print them.

A mixin fills in hooks, whose names begin with an underscore, and calls `super()` in each, so that
the mixins of one class act one after the other, in the order of the bases:

    _frozen(variables)              which variables shall not exist for the optimizer
    _without_frozen(grads, ...)     what is left of the arguments of `apply`
    _prepare(variables)             checks and choices, before anything is made
    _stand_ins(variables)           what the rest of the optimizer has in the place of variables
    _add_slots(variables)           the mixin's own optimizer variables
    _begin_step(), _end_step(...)   what surrounds Keras's `apply`
    _before_clipping(grads, ...)    changes all gradients, before Keras scales and clips them
    _adjust(gradient, ...)          changes one variable's gradient and learning rate
    _adjust_all(step)               does the same to all variables at once, on torch
    _phrases(), _summary_columns()  what `repr` and `summary` print
"""

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import keras
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Patterns, Tensor, Variable
from sage_keras.backend import (
    all_finite,
    check_strategy,
    is_concrete,
    on_device_of,
    outside_of_traces,
    slot_layout,
    take_back,
    to_dense,
)
from sage_keras.optimizers import printing, saved_state
from sage_keras.paths import unique_paths, variable_path

if TYPE_CHECKING:  # what the mixins are mixed into; none of them is an optimizer by itself
    from keras.optimizers import Optimizer as _Optimizer

    from sage_keras.foreach import Step
else:
    _Optimizer = object

_WRAPPERS = dict.fromkeys(
    ("LossScaleOptimizer", "MultiOptimizer"), "wraps other optimizers. Pass yours to it instead"
)
_Mixin = TypeVar("_Mixin")


class OptimizerMixin(_Optimizer):
    """Base of all mixins.

    Args:
        *args: Positional arguments of the base optimizer.
        on_nonfinite: `"propagate"` or `"skip"`, what to do with a step of which a gradient is
            infinite or not a number. `"propagate"` computes with it, as Keras does; `"skip"` leaves
            weights, slots and `iterations` as they were and counts the step in `skipped_steps`,
            for which a compiled step keeps a copy of the weights and the state. Defaults to
            `"propagate"`.
        **kwargs: Keyword arguments of the base optimizer.
    """

    # Where a mixin stands among the others of a class: the lowest rank comes first, and acts first.
    _rank: ClassVar[int] = 100
    # The mixin's own arguments, which are attributes of the same name.
    _settings: ClassVar[tuple[str, ...]] = ("on_nonfinite",)
    # What may follow the mixin, and what may not: the name of a Keras optimizer, and why.
    _supported_bases: ClassVar[str] = "any Keras optimizer that wraps no other"
    _refused_bases: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if issubclass(cls, keras.optimizers.Optimizer):  # else a mixin made of mixins
            _check_bases(cls)

    def __init__(self, *args: Any, on_nonfinite: str = "propagate", **kwargs: Any) -> None:
        if not isinstance(self, keras.optimizers.Optimizer):
            name = type(self).__name__
            raise TypeError(
                f"`{name}` is a mixin and has no update of its own. Put it before a Keras "
                f"optimizer: `class MyOptimizer({name}, keras.optimizers.AdamW)`."
            )
        known = [*_arguments_of(type(self)), "decay"]  # of the last one Keras warns
        arguments.check_names(type(self).__name__, kwargs, known)
        super().__init__(*args, **kwargs)
        self._names = _Names()
        self._strict_patterns = True
        self.on_nonfinite = arguments.choice("on_nonfinite", on_nonfinite, ("propagate", "skip"))

    # Building.

    def build(self, variables: Sequence[Variable]) -> None:
        """Creates the optimizer's variables."""
        if self.built:
            return
        outside_of_traces(self._build, list(variables))

    def _build(self, variables: list[Variable]) -> None:
        frozen = self._frozen(variables)
        trained = [variable for variable, no in zip(variables, frozen) if not no]
        self._prepare(trained)
        self._names.note(variables, frozen, [self._var_key(variable) for variable in variables])
        trained = self._stand_ins(trained)
        super().build(trained)
        self._skipped: Variable = None
        if self.on_nonfinite == "skip":
            self._skipped = self.add_variable(
                shape=(), dtype="int", aggregation="only_first_replica", name="skipped_steps"
            )
        self._add_slots(trained)
        # Tracked by tf.train.Checkpoint, which compares it at once if it waited for this.
        self._description = saved_state.checkpoint_state(self)

    def add_variable_from_reference(
        self, reference_variable: Variable, name: str | None = None, initializer: Any = "zeros"
    ) -> Variable:
        """Creates a slot of a variable, and notes whose it is."""
        slot = super().add_variable_from_reference(reference_variable, name, initializer)
        self._note_slot(reference_variable, name or "var")
        return slot

    def _add_slot(
        self,
        variable: Variable,
        name: str,
        dtype: str,
        shape: tuple[int, ...] | None = None,
        initializer: Any = "zeros",
        aggregation: str = "none",
    ) -> Variable:
        """Creates a slot of a variable with a dtype, and perhaps a shape, of its own."""
        # add_variable_from_reference would take the variable's dtype, and not let us choose.
        shape = tuple(variable.shape) if shape is None else shape
        with on_device_of(self, variable):
            slot = self.add_variable(
                shape=shape,
                initializer=initializer,
                dtype=dtype,
                aggregation=aggregation,
                layout=slot_layout(variable, shape),
                name=f"{re.sub('[/:]', '_', variable_path(variable))}_{name}",
            )
        self._note_slot(variable, name)
        return slot

    def _note_slot(self, variable: Variable, name: str) -> None:
        index = self._names.indices[self._var_key(variable)]
        self._names.slots[len(self._variables) - 1] = (index, name)

    def _frozen(self, variables: list[Variable]) -> list[bool]:
        """Hook: which variables shall not exist for the rest of the optimizer."""
        return [False] * len(variables)

    def _prepare(self, variables: list[Variable]) -> None:
        """Hook: checks and chooses among the variables, before anything is made."""

    def _stand_ins(self, variables: list[Variable]) -> list[Variable]:
        """Hook: the variables that the rest of the optimizer has in the place of the model's."""
        return variables

    def _add_slots(self, variables: list[Variable]) -> None:
        """Hook: creates the mixin's own slots, after those of `super()`."""

    # A step.

    def apply(
        self, grads: Sequence[Tensor], trainable_variables: Sequence[Variable] | None = None
    ) -> None:
        """Updates the variables, or leaves all as it was where a gradient is not finite."""
        if len(grads) == 0:
            return
        self._build_at_first_step(trainable_variables)
        grads, trainable_variables = self._without_frozen(grads, trainable_variables)
        gradients = [gradient for gradient in grads if gradient is not None]
        if self.on_nonfinite == "propagate" or not gradients:
            return self._step(grads, trainable_variables)
        finite = all_finite(gradients)
        if is_concrete(finite):  # a step that is not made cannot be interrupted half-way
            if finite:
                return self._step(grads, trainable_variables)
            self._skipped.assign_add(1)
            return None
        self._step_if(finite, lambda: self._step(grads, trainable_variables))
        self._skipped.assign_add(ops.cast(ops.logical_not(finite), self._skipped.dtype))

    def _build_at_first_step(self, variables: Sequence[Variable] | None) -> None:
        check_strategy(self)
        if not self.built and variables is not None:
            with keras.name_scope(self.name):
                self.build(list(variables))

    def _step_if(self, condition: Tensor, step: Callable[[], None]) -> None:
        """Makes a step, and takes it back unless a condition holds that is not known yet."""
        variables = [*self._trainable_variables, *self.variables]
        before = [ops.copy(ops.convert_to_tensor(variable)) for variable in variables]
        step()
        take_back(variables, before, condition)

    def _step(self, grads: Sequence[Tensor], variables: Sequence[Variable] | None) -> None:
        before = ops.copy(self.iterations)  # torch counts in place
        self._begin_step()
        super().apply(grads, variables)
        # Micro-steps of gradient accumulation change no weight.
        self._end_step(ops.not_equal(self.iterations, before))

    def _without_frozen(
        self, grads: Sequence[Tensor], variables: Sequence[Variable] | None
    ) -> tuple[Sequence[Tensor], Sequence[Variable] | None]:
        """Hook: the gradients, and variables if any were passed, of those that are trained."""
        return grads, variables

    def _begin_step(self) -> None:
        """Hook: what comes before Keras's `apply`."""

    def _end_step(self, updated: Tensor) -> None:
        """Hook: what comes after it. `updated`, a boolean tensor, tells whether weights were."""

    def _filter_empty_gradients(
        self, grads: Sequence[Tensor], vars: Sequence[Variable]
    ) -> tuple[list[Tensor], list[Variable]]:
        # Before Keras scales and clips: the norm of a sparse gradient counts duplicate rows apart.
        grads, variables = super()._filter_empty_gradients(grads, vars)
        return self._before_clipping(list(grads), list(variables)), variables

    def _before_clipping(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        """Hook: changes the gradients before they are scaled and clipped."""
        return grads

    def update_step(self, gradient: Tensor, variable: Variable, learning_rate: Tensor) -> None:
        """Updates one variable by the base's rule, with what the mixins make of its arguments."""
        gradient, learning_rate = self._adjust(gradient, variable, learning_rate)
        super().update_step(gradient, variable, learning_rate)

    def _adjust(
        self, gradient: Tensor, variable: Variable, learning_rate: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Hook: the gradient and the learning rate that the base's rule gets for a variable."""
        return gradient, learning_rate

    def _backend_update_step(
        self, grads: list[Tensor], trainable_variables: list[Variable], learning_rate: Tensor
    ) -> None:
        """Updates all variables: on torch at once where it can be done, else one by one."""
        if keras.backend.backend() == "torch":
            from sage_keras import foreach

            if foreach.update(self, grads, trainable_variables, learning_rate):
                return
        super()._backend_update_step(grads, trainable_variables, learning_rate)

    def _takes_all(self) -> bool:
        """Hook: whether `_adjust_all` does what `_adjust` would, with the optimizer's settings."""
        return True

    def _adjust_all(self, step: "Step") -> None:
        """Hook: `_adjust` for all variables of a step at once. A class that has one needs both."""

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped since their gradients were not finite, as an integer."""
        if self.on_nonfinite == "propagate" or not self.built:
            return 0
        return int(ops.convert_to_numpy(self._skipped))

    # Saving.

    def save_own_variables(self, store: Any) -> None:
        """Puts the state into `store`, with a description of it."""
        arrays: dict[str, Any] = {}
        super().save_own_variables(arrays)
        for key, array in arrays.items():
            store[key] = array
        saved_state.write(store, saved_state.describe(self), arrays)

    def load_own_variables(self, store: Any) -> None:
        """Loads the state from `store`, whole or not at all."""
        saved_state.load(store, self, super().load_own_variables)

    def get_config(self) -> dict[str, Any]:
        """Returns the configuration of the base and of the mixins."""
        return super().get_config() | self._own_settings()

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        """Makes the optimizer from its configuration."""
        optimizer = super().from_config(config, custom_objects)
        # What was saved may train less by now: a pattern for the rest is no mistake.
        optimizer._strict_patterns = False
        return optimizer

    def _own_settings(self) -> dict[str, Any]:
        """The arguments of all mixins of the class, as JSON can hold them."""
        names = dict.fromkeys(
            name for one in type(self).__mro__ for name in vars(one).get("_settings", ())
        )
        values = {name: getattr(self, name) for name in names}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    # Printing.

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Prints the optimizer, and a table of its variables: what it does to each of them.

        Args:
            print_fn: Function that is called with each line. Defaults to `print`.
        """
        print_fn(repr(self))
        if self.built:
            for line in printing.as_table(self._names.shapes, self._summary_columns()):
                print_fn(line)

    def __repr__(self) -> str:
        """Shows the learning rate, what is not the default, and what the mixins act on."""
        return printing.as_line(self)

    def _phrases(self) -> list[str]:
        """Hook: what `repr` says of the optimizer once it is built, such as "guides 2 of 4"."""
        return []

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        """Hook: columns of `summary`, by title, each a dict of unique path to text."""
        return {}


class _Names:
    """The variables by name. Not dicts of the optimizer: TensorFlow would track and save those."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}  # of all variables, by unique path
        self.trained: list[str] = []  # the paths of those that are not frozen
        self.indices: dict[Any, int] = {}  # of all variables, by what Keras calls their key
        self.slots: dict[int, tuple[int, str]] = {}  # position in `variables` to index and name

    def note(self, variables: list[Variable], frozen: list[bool], keys: list[Any]) -> None:
        """Takes down the variables that an optimizer is built with."""
        paths = unique_paths(variables)
        self.shapes = dict(zip(paths, (tuple(variable.shape) for variable in variables)))
        self.trained = [path for path, no in zip(paths, frozen) if not no]
        self.indices = {key: index for index, key in enumerate(keys)}


class VariableChoice(OptimizerMixin):
    """Base of the mixins that act on chosen variables only. All mixins of a class share the choice.

    Args:
        *args: Positional arguments of the base optimizer.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer, and `on_nonfinite`.
    """

    _settings: ClassVar[tuple[str, ...]] = ("include", "exclude")

    def __init__(
        self, *args: Any, include: Patterns = None, exclude: Patterns = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.include = arguments.patterns("include", include)
        self.exclude = arguments.patterns("exclude", exclude)

    def _prepare(self, variables: list[Variable]) -> None:
        self._chosen = self._choose(variables)
        super()._prepare(variables)

    def _choose(self, variables: list[Variable]) -> list[bool]:
        """Which of the variables the mixins act on.

        Never on empty ones, of which TensorFlow takes some for biases.
        """
        paths = [variable_path(variable) for variable in variables]
        strict = self._strict_patterns
        included = arguments.matches("include", self.include, paths, default=True, strict=strict)
        excluded = arguments.matches("exclude", self.exclude, paths, default=False, strict=strict)
        return [
            yes
            and not no
            and 0 not in tuple(variable.shape)
            and not self._overwrite_variable_with_gradient(variable)
            for yes, no, variable in zip(included, excluded, variables)
        ]

    def _is_chosen(self, variable: Variable) -> bool:
        return self._chosen[self._get_variable_index(variable)]

    def _index_of_chosen(self, variable: Variable | str, instead: str) -> int:
        """The index of a variable, or of the path of one, that a user passed.

        Args:
            variable: What was passed.
            instead: String, which to pass.
        """
        advice = ""
        if self.built:
            if isinstance(variable, str):
                index, advice = self._index_of_path(variable)
            else:
                index = self._trainable_variables_indices.get(self._var_key(variable))
            if index is not None and self._chosen[index]:
                return index
        received = repr(variable) if isinstance(variable, str) else variable_path(variable)
        raise ValueError(
            f"Argument `variable` must be one that this optimizer {instead}. "
            f"Received: variable={received}{advice}"
        )

    def _index_of_path(self, path: str) -> tuple[int | None, str]:
        """The index of the one variable of a path, or None and what may have been meant."""
        names = self._names.trained
        if f"{path}#1" in names:
            same = [name for name in names if name.partition("#")[0] == path]
            return None, f". It is the path of {len(same)} variables: pass the one you mean itself"
        if path in names:
            return names.index(path), ""
        chosen = [name for name, yes in zip(names, self._chosen) if yes]
        near = [name for name in chosen if name.endswith(f"/{path}")]
        near += difflib.get_close_matches(path, chosen, n=3)
        near = list(dict.fromkeys(near))
        return None, f". Did you mean one of these?{arguments.listed(near)}" if near else ""

    def _slots(self, variables: list[Variable], name: str, dtype: str) -> list[Variable | None]:
        """A new slot for each chosen variable, and None for the others."""
        return [
            self._add_slot(variable, name, dtype) if chosen else None
            for variable, chosen in zip(variables, self._chosen)
        ]

    def _chosen_variables(self) -> list[Variable]:
        if not self.built:
            return []
        return [one for one, chosen in zip(self._trainable_variables, self._chosen) if chosen]

    def _chosen_marks(self) -> dict[str, str]:
        """A column of `summary`: which variables are chosen."""
        return {
            path: "yes" if chosen else "no"
            for path, chosen in zip(self._names.trained, self._chosen)
        }

    def _dense(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        """The gradients, of which those of chosen variables are dense."""
        return [
            to_dense(gradient) if self._is_chosen(variable) else gradient
            for gradient, variable in zip(grads, variables)
        ]


def find_optimizers(optimizer: keras.optimizers.Optimizer, mixin: type[_Mixin]) -> list[_Mixin]:
    """The optimizers with a mixin in an optimizer, wrapped ones included.

    Args:
        optimizer: A Keras optimizer, such as a `LossScaleOptimizer` or `MultiOptimizer`.
        mixin: The mixin.

    Returns:
        List of optimizers, empty if there is none.
    """
    if isinstance(optimizer, mixin):
        return [optimizer]
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    return [found for one in inner if one is not None for found in find_optimizers(one, mixin)]


def _check_bases(cls: type[OptimizerMixin]) -> None:
    """Refuses, where an optimizer class is made, bases that do not fit or are out of order."""
    order = cls.__mro__
    mixins = [one for one in order if issubclass(one, OptimizerMixin) and "_rank" in vars(one)]
    mixins = [one for one in mixins if one is not OptimizerMixin]
    for mixin in mixins:
        for base in order[: order.index(mixin)]:
            if issubclass(base, keras.optimizers.Optimizer) and not issubclass(base, mixin):
                raise TypeError(
                    f"`{mixin.__name__}` must come before `{base.__name__}` in the bases of "
                    f"`{cls.__name__}`, or its update would never be called. Write "
                    f"`class {cls.__name__}({mixin.__name__}, keras.optimizers.AdamW)`."
                )
        for name, reason in (_WRAPPERS | mixin._refused_bases).items():
            if issubclass(cls, getattr(keras.optimizers, name, ())):
                raise TypeError(
                    f"`{cls.__name__}` cannot be built on `{name}`, which {reason}. "
                    f"`{mixin.__name__}` takes {mixin._supported_bases} as the base."
                )
    wanted = sorted(mixins, key=lambda mixin: mixin._rank)
    for first, second in zip(wanted, mixins):
        if first is not second:
            names = ", ".join(mixin.__name__ for mixin in wanted)
            raise TypeError(
                f"`{first.__name__}` must come before `{second.__name__}` in the bases of "
                f"`{cls.__name__}`: the first base acts first. Write "
                f"`class {cls.__name__}({names}, keras.optimizers.AdamW)`."
            )


def _arguments_of(cls: type) -> list[str]:
    """The names of the arguments that the constructors of a class take, its own and its bases'."""
    functions = [vars(one)["__init__"] for one in cls.__mro__ if "__init__" in vars(one)]
    names = [name for function in functions for name in inspect.signature(function).parameters]
    return [name for name in dict.fromkeys(names) if name not in ("self", "args", "kwargs")]
