"""What the mixins for Keras optimizers share."""

import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from sage_keras import arguments
from sage_keras.paths import unique_paths, variable_path
from sage_keras.types import Patterns

if TYPE_CHECKING:  # what the mixins are mixed into; none of them is an optimizer by itself
    from keras.optimizers import Optimizer as _Optimizer
else:
    _Optimizer = object


class WholeState(_Optimizer):
    """Base of all mixins: what they print, and state that loads whole or not at all."""

    def summary(self, print_fn: Callable[[str], object] = print) -> None:
        """Prints the optimizer.

        Args:
            print_fn: Function that is called with each line. Defaults to `print`.
        """
        print_fn(repr(self))

    def load_own_variables(self, store):
        """Loads the state from `store`, whole or not at all.

        Keras saves slots by position, and which slots there are depends on the class and on which
        variables it acts on.

        Args:
            store: Dict of position to array.

        Raises:
            ValueError: If the saved state is of another optimizer or another choice of variables.
        """
        saved_before_build = len(store.keys()) <= 2  # iterations and the learning rate
        if self.built and not saved_before_build:
            self._check_state(store)
        super().load_own_variables(store)

    def __repr__(self):
        return f"<{type(self).__name__}>"

    def _check_state(self, store):
        advice = (
            f"Create {type(self).__name__} with the base and the arguments that it had when its "
            "state was saved, such as `include`, `exclude` and `learning_rate_multipliers`, or "
            "load into an optimizer that is not built yet to load the model's weights alone."
        )
        if len(store.keys()) != len(self.variables):
            raise ValueError(
                f"The saved state has {len(store.keys())} variables, this optimizer "
                f"({self!r}) has {len(self.variables)}. {advice}"
            )
        for i, variable in enumerate(self.variables):
            if tuple(store[str(i)].shape) != tuple(variable.shape):
                raise ValueError(
                    f"The saved state has the shape {tuple(store[str(i)].shape)} where this "
                    f"optimizer ({self!r}) has {variable.path} of shape {tuple(variable.shape)}. "
                    f"{advice}"
                )


class OptimizerMixin(WholeState):
    """Base of the mixins that choose variables: which they act on, and slots beside those.

    Mixins of one class share it, and with it `include` and `exclude`.

    Args:
        *args: Positional arguments of the base optimizer.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.
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
        """Which of the variables the mixin acts on, as a list of booleans."""
        paths = [variable_path(variable) for variable in variables]
        included = arguments.matches("include", self.include, paths, default=True)
        excluded = arguments.matches("exclude", self.exclude, paths, default=False)
        return [
            yes and not no and not self._overwrite_variable_with_gradient(variable)
            for yes, no, variable in zip(included, excluded, variables)
        ]

    def _add_slot(self, variable, name, dtype, shape=None):
        # add_variable_from_reference would take the variable's dtype, and not let us choose.
        with _on_device_of(self, variable):
            return self.add_variable(
                shape=variable.shape if shape is None else shape,
                dtype=dtype,
                layout=getattr(variable, "_layout", None) if shape is None else None,
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


def to_dense(gradient):
    """A gradient as one dense tensor.

    TensorFlow gives embeddings `tf.IndexedSlices`, in which a row that was looked up twice stands
    twice; a product with the gradient, or its square, needs their sum. `keras.ops` leaves the
    duplicates apart.
    """
    if keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)


def _on_device_of(optimizer, variable):
    """A scope that places a new slot with its variable, which only TensorFlow has to be told."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    if strategy is None:
        return contextlib.nullcontext()
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return strategy.extended.colocate_vars_with(variable)
