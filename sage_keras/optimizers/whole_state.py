"""What all mixins share: steps and states that count as a whole or not at all."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from keras import ops

from sage_keras import arguments
from sage_keras.optimizers import nonfinite, saved_state
from sage_keras.optimizers.distribution import check_strategy

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
        finite = nonfinite.all_finite(gradients)
        variables = [*self._trainable_variables, *self.variables]
        before = [ops.copy(ops.convert_to_tensor(variable)) for variable in variables]
        super().apply(grads, trainable_variables)
        nonfinite.take_back(variables, before, finite)
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
