"""The mixin that makes a Keras optimizer train on mixed weights (Mixout)."""

import contextlib
import itertools
import math
import random
import sys
import warnings
from collections.abc import Iterator
from typing import Any, ClassVar

from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Tensor, Variable
from sage_keras.backend import computed_once, has_value, replicated
from sage_keras.optimizers.columns import column_shape
from sage_keras.optimizers.dps import selection
from sage_keras.optimizers.dps.partial import PartialTraining
from sage_keras.paths import variable_path
from sage_keras.random_bits import chosen, random_bits
from sage_keras.sensitivity import compute_dtype


class WeightMixing(PartialTraining):
    """Mixin that makes a Keras optimizer train on weights mixed with those it began with (Mixout).

    Put it before a Keras optimizer in the list of bases. For each training step columns of each
    variable are drawn with the probability `drop_rate`. In the forward pass they are replaced by
    their initial weights, and the others are moved away so that the mean stays; in the backward
    pass their gradients are zero. A column is what one input of a layer is multiplied by, and is
    shared by all outputs; `sage_keras.optimizers.columns.column_shape` defines it for every kernel.

    The optimizer itself keeps the true weights. Between two steps the model's variables hold the
    mixed ones, ready for the next forward pass, and so the model needs no change. Decay, clipping,
    EMA and constraints see the true weights and masked gradients. This is what to mind:

    - In `fit`, list `sage_keras.callbacks.SwapTrueWeights()` first. It puts the true weights into
      the model for validation and at the end of every epoch. Without it both see the mixed
      weights, of which the optimizer warns, as it does when its state is saved beside them.
    - In a loop of your own, evaluate, save and set weights inside `with optimizer.true_weights():`.
      Weights that are set outside of it are lost at the next step.
    - When `fit` is over, the true weights are in the model. After an exception in it they are if
      it stood inside `with optimizer.true_weights():`, or after `optimizer.unmix()`. No exception
      loses them: `is_mixed` tells at any moment where they are.
    - The initial weights are those of the first step (`iterations` is 0), so that weights may be
      loaded after the optimizer was built. A saved optimizer brings its own.
    - The first step after the optimizer was built, or after `fit`, sees the true weights in its
      forward pass, and is masked in its backward pass; `SwapTrueWeights` mixes before the first
      step of each epoch. (At the very first step the mixture of the initial weights with
      themselves is what they are.)
    - Masks are a function of `seed` and of `iterations`: a resumed run goes on as one that was
      never stopped, and micro-steps of gradient accumulation share a mask.
    - It takes two more copies of the weights. `keras.callbacks.SwapEMAWeights` cannot be used
      beside it.

    Args:
        *args: Positional arguments of the base optimizer.
        drop_rate: Float in [0, 1), the probability of a column to be replaced. Defaults to `0.3`.
        seed: Integer, at least 0, that the masks follow from. Defaults to `None`, a random one,
            which `keras.utils.set_random_seed` makes reproducible.
        include: `None`, or a list of regular expressions that are searched in `variable.path`.
            Variables that match one are mixed. Defaults to `None`, every variable.
        exclude: `None`, or a list of regular expressions. Variables that match one are not mixed.
            Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer.

    Raises:
        TypeError: Where the class is made, if its bases stand in the wrong order; where an object
            is made, if an argument is of the wrong type.
        ValueError: If an argument is out of range, or if `include` or `exclude` matches no
            variable.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class MixoutSGD(sage_keras.WeightMixing, keras.optimizers.SGD):
    ...     pass
    >>> kernel = keras.Variable([[1.0], [1.0], [1.0]])
    >>> optimizer = MixoutSGD(learning_rate=0.5, drop_rate=0.5, seed=0)
    >>> optimizer.apply([keras.ops.ones((3, 1))], [kernel])
    >>> with optimizer.true_weights():
    ...     weights = keras.ops.convert_to_numpy(kernel).ravel().tolist()
    >>> set(weights) <= {0.5, 1.0}  # the drawn columns have moved
    True

    Reference:
        - [Lee et al., 2020](https://arxiv.org/abs/1909.11299)
    """

    _rank = 20
    _settings: ClassVar[tuple[str, ...]] = ("seed",)

    def __init__(self, *args: Any, seed: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if seed is None:
            seed = random.randrange(2**31)
        self.seed = arguments.integer("seed", seed, low=0, example=0)
        self.swapped_by_callback = False  # SwapTrueWeights says so

    def _add_slots(self, variables: list[Variable]) -> None:
        super()._add_slots(variables)
        self._true_weights, self._initial_weights = (
            [
                self._add_slot(variable, name, variable.dtype) if chosen else None
                for variable, chosen in zip(variables, self._chosen)
            ]
            for name in ("true_weight", "initial_weight")
        )
        self._column_shapes = [
            column_shape(variable_path(variable), variable.shape) if chosen else (0,)
            for variable, chosen in zip(variables, self._chosen)
        ]
        sizes = [math.prod(shape) for shape in self._column_shapes]
        self._column_ends = list(itertools.accumulate(sizes))
        # The columns of all variables, one after the other: 1 for those that are kept.
        self._columns = self.add_variable(
            shape=(sum(sizes),),
            initializer=lambda shape, dtype: self._draw(shape, 0),
            dtype="float32",
            aggregation="only_first_replica",
            name="columns",
        )
        self._mixed = self.add_variable(
            shape=(), dtype="int", aggregation="only_first_replica", name="is_mixed"
        )

    def _begin_step(self) -> None:
        """Puts the true weights into the model's variables, which the step updates."""
        self.unmix()
        self._keep_initial_weights()
        super()._begin_step()  # of which others see the true weights

    def _before_clipping(self, grads: list[Tensor], variables: list[Variable]) -> list[Tensor]:
        # The gradients at the mixed weights are those of the columns kept.
        grads = super()._before_clipping(grads, variables)
        indices = [self._get_variable_index(variable) for variable in variables]
        # By the slots as they are before the step, of which XLA would otherwise keep a copy.
        return [
            ops.where(computed_once(self._mask(index)), gradient, 0.0)
            if self._chosen[index]
            else gradient
            for gradient, index in zip(grads, indices)
        ]

    def _end_step(self, updated: Tensor) -> None:
        """Draws columns, and mixes the weights for the next forward pass."""
        super()._end_step(updated)
        # After a micro-step of gradient accumulation these are the same columns again.
        self._columns.assign(self._draw(self._columns.shape, self.iterations))
        self._mix()

    def mix(self) -> None:
        """Puts the mixed weights of the coming step into the model's variables.

        `apply` does so by itself. To be called before training goes on, after `unmix`.
        """
        if not self.built:
            return
        self._keep_initial_weights()
        self._mix()

    def unmix(self) -> None:
        """Puts the true weights into the model's variables."""
        if not self.built:
            return
        # Interrupted anywhere, it can be repeated.
        mixed = ops.cast(self._mixed, "bool")
        for index, variable in self._chosen_by_index():
            self.assign(variable, _where(mixed, self._true_weights[index], variable))
        self._mixed.assign(0)

    def _mix(self) -> None:
        # At every moment `is_mixed` tells where the true weights are, so that no exception, Ctrl-C
        # included, can lose them: they are all kept before the first variable changes.
        mixed = ops.cast(self._mixed, "bool")
        for index, variable in self._chosen_by_index():
            true = self._true_weights[index]
            self.assign(true, _where(mixed, true, variable))
        self._mixed.assign(1)
        for index, variable in self._chosen_by_index():
            dtype = compute_dtype(variable.dtype)
            mixture = selection.mixed(
                ops.cast(self._true_weights[index], dtype),
                ops.cast(self._target(index), dtype),
                self._mask(index),
                self.drop_rate,
            )
            self.assign(variable, ops.cast(mixture, variable.dtype))

    def _keep_initial_weights(self) -> None:
        """Keeps the weights that training begins with, which the variables hold before it."""
        if not self.built:
            return
        begun = ops.logical_or(ops.greater(self.iterations, 0), ops.cast(self._mixed, "bool"))
        for index, variable in self._chosen_by_index():
            initial = self._initial_weights[index]
            self.assign(initial, _where(begun, initial, variable))

    def _chosen_by_index(self) -> list[tuple[int, Variable]]:
        return [
            (index, variable)
            for index, variable in enumerate(self._trainable_variables)
            if self._chosen[index]
        ]

    @contextlib.contextmanager
    def true_weights(self) -> Iterator[None]:
        """A context in which the model's variables hold the true weights.

        Where the context ends they hold again what they held where it began, which training has to
        go on with. After an exception they hold the true weights. Weights that are set inside it
        are kept.

        Example:

        >>> import keras
        >>> from sage_keras import Mixout
        >>> kernel = keras.Variable([[1.0], [1.0]])
        >>> optimizer = Mixout(learning_rate=0.5, seed=0)
        >>> for step in range(3):
        ...     optimizer.apply([keras.ops.ones((2, 1))], [kernel])
        >>> with optimizer.true_weights():
        ...     print(optimizer.is_mixed)  # evaluate, save or set weights here
        False
        >>> optimizer.is_mixed
        True
        """
        was_mixed = self.is_mixed
        try:
            if was_mixed:
                self.unmix()
            yield
            if was_mixed:
                self.mix()
            elif self.is_mixed:
                self.unmix()
        except BaseException as error:
            try:
                if self.is_mixed:
                    self.unmix()
            except Exception as failure:  # the first one is what has to be seen
                error.add_note(f"The true weights could not be put into the model: {failure!r}")
            raise

    @property
    def is_mixed(self) -> bool:
        """Whether the model's variables hold the mixed weights."""
        return self.built and has_value(self._mixed) and bool(ops.convert_to_numpy(self._mixed))

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Scales the loss as the base does. Keras calls it in `fit`, where the callback belongs."""
        if not self.swapped_by_callback:
            self._warn_of_mixed_weights()
        return super().scale_loss(loss)

    def finalize_variable_values(self, var_list: list[Variable]) -> None:
        """Puts the true weights into the model's variables, then does what the base does."""
        if self.is_mixed:
            # With the callback they are unmixed by now, unless an exception ends `fit`, on JAX.
            if sys.exception() is None:
                self._warn_of_mixed_weights()
            self.unmix()
        self.swapped_by_callback = False
        super().finalize_variable_values(var_list)

    def save_own_variables(self, store: Any) -> None:
        """Puts the state into `store`, and says so where the model beside it is mixed."""
        if self.is_mixed:
            warnings.warn(
                f"The weights that are saved beside the state of {type(self).__name__} are mixed "
                "ones, those of the coming step. Save inside `with optimizer.true_weights():`, or "
                "call `optimizer.unmix()` first. After loading what is saved now, training goes "
                "on as if it had not stopped; for the true weights call `model.optimizer.unmix()`.",
                stacklevel=2,
            )
        super().save_own_variables(store)

    def _draw(self, shape: tuple[int, ...], step: Tensor) -> Tensor:
        bits = random_bits(self.seed, step, shape)
        return ops.cast(chosen(bits, 1.0 - self.drop_rate), "float32")

    def _kept_columns(self, index: int) -> Tensor:
        """The columns of the coming step, as a float tensor that broadcasts to the variable."""
        shape, end = self._column_shapes[index], self._column_ends[index]
        columns = ops.convert_to_tensor(self._columns)[end - math.prod(shape) : end]
        return ops.reshape(replicated(columns, self._columns), shape)

    def _mask(self, index: int) -> Tensor:
        return ops.cast(self._kept_columns(index), "bool")

    def _target(self, index: int) -> Tensor:
        """What the dropped weights of a variable are replaced by."""
        return ops.convert_to_tensor(self._initial_weights[index])

    def _warn_of_mixed_weights(self) -> None:
        warnings.warn(
            f"Between the steps of {type(self).__name__} the model holds mixed weights. "
            "`validation_data`, `ModelCheckpoint` and whatever else looks at the model during "
            "`fit` sees those, and not the true ones. List "
            "`sage_keras.callbacks.SwapTrueWeights()` first among the callbacks; in a loop of your "
            "own, evaluate and save inside `with optimizer.true_weights():`.",
            stacklevel=3,
        )


def _where(condition: Tensor, one: Variable, other: Variable) -> Tensor:
    """A new tensor always: variables must share no buffer on JAX, and torch's change in place."""
    return ops.where(condition, ops.convert_to_tensor(one), ops.convert_to_tensor(other))
