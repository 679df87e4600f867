"""The callback that ends a training whose steps are skipped."""

import keras

from sage_keras import arguments
from sage_keras.optimizers.base import OptimizerMixin, find_optimizers


class RaiseOnSkippedSteps(keras.callbacks.Callback):
    """Raises an error when an optimizer has skipped too many steps.

    An optimizer with `on_nonfinite="skip"` leaves out the steps of which a gradient is infinite or
    not a number, and counts them. A few are harmless; a run in which they pile up is lost, and
    this callback says so. A compiled step cannot raise by itself.

    Args:
        limit: Integer, at least 1, how many steps skipped in one call of `fit` are too many.
            Defaults to `10`.
        update_freq: `"epoch"`, `"batch"` or a number of batches: how often to look at the count,
            for which the host waits for the device. Defaults to `100`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or, when training begins, if no optimizer of
            the model skips steps.
        FloatingPointError: In training, when the limit is reached.

    Example:

    >>> import keras
    >>> from sage_keras import Sage
    >>> from sage_keras.callbacks import RaiseOnSkippedSteps
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=Sage(on_nonfinite="skip"), loss="mse")
    >>> x, y = keras.ops.ones((8, 2)), keras.ops.ones((8, 1))
    >>> history = model.fit(x, y, callbacks=[RaiseOnSkippedSteps(limit=3)], verbose=0)
    """

    def __init__(self, limit: int = 10, update_freq: str | int = 100) -> None:
        super().__init__()
        self.limit = arguments.integer("limit", limit, low=1, example=10)
        self.update_freq = arguments.frequency("update_freq", update_freq)
        self._every = arguments.batches(self.update_freq)

    def on_train_begin(self, logs=None):
        """Looks for the optimizers that skip steps.

        Args:
            logs: Not used.

        Raises:
            ValueError: If there is none.
        """
        if not self._optimizers():
            raise ValueError(
                "`RaiseOnSkippedSteps` needs an optimizer of sage_keras that skips steps: compile "
                'the model with one such as `Sage(on_nonfinite="skip")`, or take the callback out. '
                f"Received: optimizer={self.model.optimizer!r}"
            )
        self._before = self._skipped()
        self._looked_at = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Counts batches from the beginning of each epoch."""
        self._looked_at = 0

    def on_train_batch_end(self, batch, logs=None):
        """Looks at the count after every `update_freq` batches."""
        if (batch + 1) // self._every > self._looked_at // self._every:
            self._looked_at = batch + 1
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        """Looks at the count."""
        self._check()

    def _check(self):
        skipped = self._skipped() - self._before
        if skipped >= self.limit:
            raise FloatingPointError(
                f"{skipped} steps were skipped since a gradient was infinite or not a number; "
                f"`RaiseOnSkippedSteps` allows for fewer than limit={self.limit}. Look for bad "
                "inputs or labels, or lower the learning rate."
            )

    def _skipped(self):
        return sum(optimizer.skipped_steps for optimizer in self._optimizers())

    def _optimizers(self):
        found = find_optimizers(self.model.optimizer, OptimizerMixin)
        return [optimizer for optimizer in found if optimizer.on_nonfinite == "skip"]
