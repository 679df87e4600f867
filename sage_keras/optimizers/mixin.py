"""What the mixins for Keras optimizers share."""

import re
from typing import Any

import keras

from sage_keras import arguments
from sage_keras.optimizers.distribution import on_device_of, slot_layout
from sage_keras.optimizers.whole_state import WholeState
from sage_keras.paths import unique_paths, variable_path
from sage_keras.types import Patterns


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
