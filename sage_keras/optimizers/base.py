"""What the mixins for Keras optimizers share."""

import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Patterns
from sage_keras.backend import (
    all_finite,
    check_strategy,
    on_device_of,
    slot_layout,
    take_back,
)
from sage_keras.optimizers import saved_state
from sage_keras.paths import unique_paths, variable_path

if TYPE_CHECKING:  # what the mixins are mixed into; none of them is an optimizer by itself
    from keras.optimizers import Optimizer as _Optimizer
else:
    _Optimizer = object


class WholeState(_Optimizer):
    """Base of all mixins: bad gradients, state that is loaded, and what is printed.

    Args:
        *args: Positional arguments of the base optimizer.
        on_nonfinite: `"propagate"` or `"skip"`, what to do with a step of which a gradient is
            infinite or not a number. `"propagate"` computes with it, as Keras does; `"skip"` leaves
            weights, slots and `iterations` as they were and counts the step in `skipped_steps`,
            for which it keeps a copy of the weights and the state during the step. Defaults to
            `"propagate"`.
        **kwargs: Keyword arguments of the base optimizer.
    """

    def __init__(self, *args: Any, on_nonfinite: str = "propagate", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_nonfinite = arguments.choice("on_nonfinite", on_nonfinite, ("propagate", "skip"))

    def build(self, variables):
        """Creates the base's slots, and a count of skipped steps where they are skipped.

        Args:
            variables: List of the variables to train.
        """
        if self.built:
            return
        super().build(variables)
        self._skipped = None
        if self.on_nonfinite == "skip":
            self._skipped = self.add_variable(
                shape=(), dtype="int", aggregation="only_first_replica", name="skipped_steps"
            )
        self._description = saved_state.checkpoint_state(self)  # tracked by tf.train.Checkpoint

    def apply(self, grads, trainable_variables=None):
        """Updates the variables, or leaves all as it was where a gradient is not finite.

        Args:
            grads: List of gradients.
            trainable_variables: List of the variables to update. Defaults to those that the
                optimizer was built with.

        Raises:
            ValueError: Under TensorFlow's `MirroredStrategy`, if an argument is set that Keras
                does not support there.
        """
        check_strategy(self)
        gradients = [gradient for gradient in grads if gradient is not None]
        if self.on_nonfinite == "propagate" or not gradients:
            return super().apply(grads, trainable_variables)
        if not self.built and trainable_variables is not None:
            self.build(list(trainable_variables))
        finite = all_finite(gradients)
        variables = [*self._trainable_variables, *self.variables]
        before = [ops.copy(ops.convert_to_tensor(variable)) for variable in variables]
        super().apply(grads, trainable_variables)
        take_back(variables, before, finite)
        self._skipped.assign_add(ops.cast(ops.logical_not(finite), self._skipped.dtype))

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped since their gradients were not finite, as an integer."""
        if self.on_nonfinite == "propagate" or not self.built:
            return 0
        return int(ops.convert_to_numpy(self._skipped))

    def save_own_variables(self, store):
        """Puts the state into `store`, with a description of it.

        Args:
            store: Dict of position to array.
        """
        super().save_own_variables(store)
        saved_state.write(store, saved_state.describe(self))

    def load_own_variables(self, store):
        """Loads the state from `store`, whole or not at all.

        The state of an optimizer that is not of this package is left out, with a warning, and so
        is any state while this optimizer is not built.

        Args:
            store: Dict of position to array.

        Raises:
            ValueError: If the saved state is of another choice of variables or dtype, or of a newer
                version of this package.
        """
        description = saved_state.read(store)
        keys = set(store.keys()) - {saved_state.KEY}
        arrays = {key: store[key] for key in keys}
        if len(arrays) <= 2:  # iterations and the learning rate: saved before it was built
            return super().load_own_variables(arrays)
        if description is None:
            return _warn_of_state(
                self, "it is that of an optimizer that is not of sage_keras, and begins anew here"
            )
        if not self.built:
            found = saved_state.differences(description, saved_state.describe(self))
            return _warn_of_state(
                self,
                "the optimizer is not built. To load it too, call "
                "`model.optimizer.build(model.trainable_variables)` first. " + " ".join(found),
            )
        saved_state.check(description, self)
        super().load_own_variables(arrays)

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Prints the optimizer.

        Args:
            print_fn: Function that is called with each line. Defaults to `print`.
        """
        print_fn(repr(self))

    def get_config(self):
        """Returns the base's configuration, and what is done with bad gradients."""
        return super().get_config() | {"on_nonfinite": self.on_nonfinite}

    def __repr__(self):
        return f"<{type(self).__name__}>"


def _warn_of_state(optimizer, reason):
    warnings.warn(
        f"The weights of the model are loaded, but not the state of {type(optimizer).__name__}: "
        f"{reason}",
        stacklevel=3,
    )


class OptimizerMixin(WholeState):
    """Base of the mixins that choose variables: which they act on, and slots beside those.

    Mixins of one class share it, and with it `include` and `exclude`.

    Args:
        *args: Positional arguments of the base optimizer.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer, and `on_nonfinite`.
    """

    def __init__(
        self, *args: Any, include: Patterns = None, exclude: Patterns = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.include = arguments.patterns("include", include)
        self.exclude = arguments.patterns("exclude", exclude)

    def get_config(self):
        """Returns the base's configuration and the choice of variables."""
        config = super().get_config()
        config.update(
            {
                "include": None if self.include is None else list(self.include),
                "exclude": None if self.exclude is None else list(self.exclude),
            }
        )
        return config

    def _select(self, variables):
        """Which of the variables the mixin acts on, as a list of booleans.

        Never on empty ones, of which TensorFlow takes some for biases.
        """
        paths = [variable_path(variable) for variable in variables]
        included = arguments.matches("include", self.include, paths, default=True)
        excluded = arguments.matches("exclude", self.exclude, paths, default=False)
        return [
            yes
            and not no
            and 0 not in tuple(variable.shape)
            and not self._overwrite_variable_with_gradient(variable)
            for yes, no, variable in zip(included, excluded, variables)
        ]

    def _add_slot(self, variable, name, dtype, shape=None, initializer="zeros"):
        # add_variable_from_reference would take the variable's dtype, and not let us choose.
        with on_device_of(self, variable):
            return self.add_variable(
                shape=variable.shape if shape is None else shape,
                initializer=initializer,
                dtype=dtype,
                layout=slot_layout(variable, variable.shape if shape is None else shape),
                name=f"{re.sub('[/:]', '_', variable_path(variable))}_{name}",
            )


def check_order(cls, mixin, bases):
    """Refuses a class of which the mixin is no base, or comes after the Keras optimizer.

    Args:
        cls: The class that is being made.
        mixin: The mixin.
        bases: String, what the mixin may stand before.

    Raises:
        TypeError: If there is no Keras optimizer, or it comes first.
    """
    order = f"`class {cls.__name__}({mixin.__name__}, keras.optimizers.AdamW)`"
    if not issubclass(cls, keras.optimizers.Optimizer):
        raise TypeError(
            f"`{cls.__name__}` has no Keras optimizer among its bases. Write {order}, with "
            f"{bases} as the base."
        )
    for base in cls.__mro__[: cls.__mro__.index(mixin)]:
        if issubclass(base, keras.optimizers.Optimizer) and not issubclass(base, mixin):
            raise TypeError(
                f"`{mixin.__name__}` must come before `{base.__name__}` in the bases of "
                f"`{cls.__name__}`, or its update would never be called. Write {order}."
            )


def find_optimizers(optimizer, mixin):
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


def print_summary(optimizer, chosen, marks, print_fn):
    """Prints an optimizer, and a line for each variable.

    Args:
        optimizer: The optimizer.
        chosen: Booleans, the variables that the mixin acts on. Empty before it is built.
        marks: Two strings, what to call those variables, and the others.
        print_fn: Function that is called with each line.
    """
    print_fn(repr(optimizer))
    if not chosen:
        return
    names = unique_paths(optimizer._trainable_variables)
    widths = max(map(len, marks)), max(map(len, names))
    for name, variable, yes in zip(names, optimizer._trainable_variables, chosen):
        mark = marks[0] if yes else marks[1]
        shape = tuple(variable.shape)
        print_fn(f"  {mark:<{widths[0]}}  {name:<{widths[1]}}  {shape}")
