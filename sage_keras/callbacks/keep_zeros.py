"""The callback that keeps the zeros of a model, whatever optimizer trains it."""

from typing import Any

import keras
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Patterns, Tensor, Variable
from sage_keras.optimizers.patterns import is_weight_matrix
from sage_keras.paths import variable_path


class KeepZeros(keras.callbacks.Callback):
    """Keeps the zeros of a model while an optimizer of any kind trains it.

    What is exactly zero when training begins is put back to zero after each batch, and so before
    each validation, and when training ends. List it first. With an optimizer of this package, or a
    class of your own on a Keras one, `sage_keras.KeepZeros` does so inside the step, and costs
    nothing; nor does it let the update begin at weights that have moved, where
    `steps_per_execution` makes several in one batch of `fit`.

    What it costs: a read and a write of the weights after each batch, and a byte for each. On JAX
    Keras also hands its whole state to the callback and takes it back at each batch.

    Args:
        include: `None`, or a list of regular expressions that are searched in `variable.path`. The
            zeros of variables that match one are kept, whatever their shape. Defaults to `None`,
            the variables of two axes or more but embeddings and biases.
        exclude: `None`, or a list of regular expressions. The zeros of variables that match one
            are not kept. Defaults to `None`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: When training begins, if the model is not built, or if `include` or `exclude`
            matches no variable.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from sage_keras.callbacks import KeepZeros
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, use_bias=False)])
    >>> model.set_weights([np.array([[0.0, 1.0], [2.0, 0.0]])])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 2))
    >>> history = model.fit(x, y, epochs=3, callbacks=[KeepZeros()], verbose=0)
    >>> print(np.equal(model.get_weights()[0], 0))
    [[ True False]
     [False  True]]
    """

    def __init__(self, include: Patterns = None, exclude: Patterns = None) -> None:
        super().__init__()
        self.include = arguments.patterns("include", include)
        self.exclude = arguments.patterns("exclude", exclude)
        self._zeros: list[tuple[Variable, Tensor]] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Looks where the zeros are."""
        if not self.model.built:
            raise ValueError(
                "`KeepZeros` keeps the zeros that a model has when training begins, and this one "
                "has no weights yet. Load them, or call `model.build` with the shape of its "
                f"inputs, before `fit`. Received: model={self.model.name}"
            )
        variables = list(self.model.trainable_variables)
        paths = [variable_path(variable) for variable in variables]
        included = arguments.matches("include", self.include, paths, default=True)
        excluded = arguments.matches("exclude", self.exclude, paths, default=False)
        self._zeros = [
            (variable, ops.equal(ops.convert_to_tensor(variable), 0))
            for variable, yes, no in zip(variables, included, excluded)
            if yes and not no and (self.include is not None or is_weight_matrix(variable))
        ]

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts them back."""
        _ = self.model  # on JAX this brings its variables up to date
        for variable, zero in self._zeros:
            variable.assign(ops.where(zero, 0.0, ops.convert_to_tensor(variable)))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts them back for a validation, which may have other weights, such as averages."""
        if self._zeros:
            self.on_train_batch_end(0)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts them back, in the averages too that Keras leaves in the model."""
        self.on_train_batch_end(0)
        self._zeros = []
