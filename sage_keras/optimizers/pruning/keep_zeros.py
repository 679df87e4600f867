"""The mixin that keeps zeros where a model has them: fine-tuning of what was pruned."""

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

from keras import ops

from sage_keras.annotations import Tensor, Variable
from sage_keras.optimizers.base import VariableChoice
from sage_keras.optimizers.patterns import is_weight_matrix


class KeepZeros(VariableChoice):
    """Mixin that makes a Keras optimizer keep the zeros of a model.

    Put it before a Keras optimizer in the list of bases, and what is exactly zero before a step is
    zero after it, whatever the optimizer, its decay, its EMA or a constraint make of it. So a
    pruned model can be fine-tuned, by another optimizer and without its masks: it keeps no state.

    It looks at the variables of two axes or more but embeddings and biases, or at those that
    `include` names. Leave out by `exclude` what begins at zero and shall train, such as the second
    kernel of LoRA. A weight that an update makes exactly zero stays so, which hardly happens.

    For optimizers that are not of this package there is `sage_keras.callbacks.KeepZeros`.

    Args:
        *args: Positional arguments of the base optimizer.
        include: `None`, or a list of regular expressions that are searched in `variable.path`. The
            zeros of variables that match one are kept, whatever their shape. Defaults to `None`.
        exclude: `None`, or a list of regular expressions. Variables that match one train as they
            would. Defaults to `None`.
        **kwargs: Keyword arguments of the base optimizer, and `on_nonfinite`.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> @keras.saving.register_keras_serializable(package="my_package")
    ... class ZeroKeepingAdamW(sage_keras.KeepZeros, keras.optimizers.AdamW):
    ...     pass
    >>> kernel = keras.Variable([[0.0, 1.0], [2.0, 0.0]])
    >>> optimizer = ZeroKeepingAdamW(learning_rate=0.5, weight_decay=0.0)
    >>> optimizer.apply([keras.ops.ones((2, 2))], [kernel])
    >>> keras.ops.convert_to_numpy(kernel).round(4).tolist()
    [[0.0, 0.5], [1.5, 0.0]]

    Reference:
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878)
    """

    _rank: ClassVar[int] = 60

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._local = threading.local()

    def _prepare(self, variables: list[Variable]) -> None:
        super()._prepare(variables)
        self._keeps_zeros = [
            chosen and (self.include is not None or is_weight_matrix(variable))
            for variable, chosen in zip(variables, self._chosen)
        ]

    def _begin_step(self) -> None:
        """Looks where the zeros are."""
        super()._begin_step()
        # Replicas of TensorFlow take a step at the same time, each in a thread of its own.
        self._local.zeros = [
            ops.equal(ops.convert_to_tensor(variable), 0) for variable in self._with_zeros()
        ]

    def _end_step(self, updated: Tensor) -> None:
        """Puts them back."""
        super()._end_step(updated)
        self._put_back()

    def _step(self, grads: Sequence[Tensor], variables: Sequence[Variable] | None) -> None:
        try:
            super()._step(grads, variables)
        except BaseException:  # Ctrl-C in mid-step, after which the zeros would not be known
            self._put_back()
            raise

    def _put_back(self) -> None:
        zeros = getattr(self._local, "zeros", [])
        self._local.zeros = []  # tensors of a trace do not outlive it
        kept = list(zip(self._with_zeros(), zeros))
        if self.use_ema:
            pairs = zip(self._model_variables_moving_average, self._keeps_zeros)
            kept += zip([average for average, keeps in pairs if keeps], zeros)
        for variable, zero in kept:
            self.assign(variable, ops.where(zero, 0.0, ops.convert_to_tensor(variable)))

    def _with_zeros(self) -> list[Variable]:
        if not self.built:
            return []
        return [one for one, yes in zip(self._trainable_variables, self._keeps_zeros) if yes]

    def _phrases(self) -> list[str]:
        counts = f"{sum(self._keeps_zeros)} of {len(self._keeps_zeros)}"
        return [f"keeps the zeros of {counts} variables", *super()._phrases()]

    def _summary_columns(self) -> dict[str, dict[str, str]]:
        marks = {
            path: "yes" if keeps else "no"
            for path, keeps in zip(self._names.trained, self._keeps_zeros)
        }
        return {"keeps zeros": marks, **super()._summary_columns()}
