"""What the mixins for Keras optimizers share."""

import contextlib
import re

import keras

from sage_keras import arguments
from sage_keras.paths import unique_paths, variable_path


class OptimizerMixin:
    """Base of the mixins: which variables they act on, slots beside those, and state that loads.

    Mixins of one class share it, and with it `include` and `exclude`.

    Args:
        *args: Positional arguments of the base optimizer.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.
    """

    def __init__(self, *args, include=None, exclude=None, **kwargs):
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

    def apply(self, grads, trainable_variables=None):
        """Makes the step of the base.

        Args:
            grads: List of gradients.
            trainable_variables: List of the variables to update. Defaults to those that the
                optimizer was built with.

        Raises:
            ValueError: Under TensorFlow's `MirroredStrategy`, if an argument is set that Keras
                does not support there.
        """
        _check_strategy(self)
        super().apply(grads, trainable_variables)

    def load_own_variables(self, store):
        """Loads the state from `store`, whole or not at all.

        Keras saves slots by position, and which slots there are depends on `include`, `exclude`
        and the class.

        Args:
            store: Dict of position to array.

        Raises:
            ValueError: If the saved state is of another optimizer or another choice of variables.
        """
        saved_before_build = len(store.keys()) <= 2  # iterations and the learning rate
        if self.built and not saved_before_build:
            self._check_state(store)
        super().load_own_variables(store)

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
                layout=_layout(variable, variable.shape if shape is None else shape),
                name=f"{re.sub('[/:]', '_', variable_path(variable))}_{name}",
            )

    def _check_state(self, store):
        advice = (
            f"Create {type(self).__name__} with the `include`, `exclude` and base that it had "
            "when its state was saved, or load into an optimizer that is not built yet to load "
            "the model's weights alone."
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


def _check_strategy(optimizer):
    """Says in words what TensorFlow's strategies cannot do, of which Keras blames `merge_call`."""
    if keras.backend.backend() != "tensorflow":
        return
    import tensorflow as tf

    # As Keras itself finds out; True without a strategy.
    if tf.__internal__.distribute.strategy_supports_no_merge_call():
        return
    advice = {
        "gradient_accumulation_steps": "Use a batch size as many times as large, or accumulate in "
        "a training loop of your own",
        "ema_overwrite_frequency": "Leave it out, and use `keras.callbacks.SwapEMAWeights` to "
        "evaluate and save the averages",
    }
    for argument, instead in advice.items():
        value = getattr(optimizer, argument)
        if value:
            raise ValueError(
                f"Argument `{argument}` does not work in any Keras optimizer under "
                f"{type(tf.distribute.get_strategy()).__name__}, which cannot synchronize its "
                f"replicas inside a condition. {instead}. Received: {argument}={value}"
            )


def replicated(tensor, variable):
    """A tensor of which every device has a copy, where Keras lays `variable` out over devices.

    Left to itself XLA may spread a small tensor, and then move whole variables to where that is.
    """
    layout = getattr(variable, "_layout", None)
    if not isinstance(layout, keras.distribution.TensorLayout):
        return tensor
    whole = keras.distribution.TensorLayout([None] * len(tensor.shape), layout.device_mesh)
    return keras.distribution.distribute_tensor(tensor, whole)


def _layout(variable, shape):
    """How to lay out, over devices, a slot that broadcasts to a variable: as the variable is."""
    layout = getattr(variable, "_layout", None)
    if tuple(shape) == tuple(variable.shape):
        return layout
    if not isinstance(layout, keras.distribution.TensorLayout):
        return None
    sizes = zip(layout.axes, shape, variable.shape)
    axes = [axis if size == whole else None for axis, size, whole in sizes]
    return keras.distribution.TensorLayout(axes, layout.device_mesh)


def _on_device_of(optimizer, variable):
    """A scope that places a new slot with its variable, which only TensorFlow has to be told."""
    strategy = getattr(optimizer, "_distribution_strategy", None)
    if strategy is None:
        return contextlib.nullcontext()
    if isinstance(variable, keras.Variable):
        variable = variable.value
    return strategy.extended.colocate_vars_with(variable)
