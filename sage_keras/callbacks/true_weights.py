"""The callback that shows the true weights of an optimizer that trains on mixed ones."""

import threading
from typing import Any

import keras

from sage_keras.callbacks.watched import not_known_yet
from sage_keras.optimizers.base import find_optimizers
from sage_keras.optimizers.dps.mixing import WeightMixing


class SwapTrueWeights(keras.callbacks.Callback):
    """Puts the true weights of `DPSMix` or `Mixout` into the model whenever others look at it.

    These optimizers leave mixed weights in the model, for the next training step. This callback
    exchanges them for the true ones after the last batch of each epoch, until the first batch of
    the next: for validation, and for callbacks that save the model or remember its weights. Passed
    to `evaluate` or `predict` it does so for their time. List it first, and that is all. In
    another place it does the same, but for one case: an epoch without validation that ends before
    Keras knows, since the number of its batches is unknown or a callback stops training. The
    callbacks before this one then see the mixed weights at the end of that epoch.

    It does not reach:

    - A `ModelCheckpoint` that saves in mid-epoch (`save_freq` is a number). Such a file holds the
      mixed weights, of which the optimizer warns, and in the optimizer's state the true ones: load
      both and call `model.optimizer.unmix()`. With `save_weights_only=True` Keras saves that state
      too.
    - What follows an exception or Ctrl-C in `fit`. Put `fit` into
      `with optimizer.true_weights():`, or call `optimizer.unmix()` after it. The next `fit`,
      `evaluate` or `predict` with this callback begins with the true weights anyway.

    Example:

    >>> import keras
    >>> from sage_keras import DPSMix
    >>> from sage_keras.callbacks import SwapTrueWeights
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=DPSMix(total_steps=100, seed=0), loss="mse")
    >>> x, y = keras.ops.ones((8, 2)), keras.ops.ones((8, 1))
    >>> history = model.fit(
    ...     x, y, validation_data=(x, y), callbacks=[SwapTrueWeights()], verbose=0
    ... )
    """

    def __init__(self) -> None:
        super().__init__()
        self._in_fit = False
        self._unmixed: list[WeightMixing] = []  # to be mixed again

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Tells the optimizers that their weights will be exchanged."""
        if not not_known_yet(self.model.optimizer):
            self._require()
        self._in_fit = True
        # Validation and prediction pass other parameters.
        self._batches = (self.params or {}).get("steps")
        for optimizer in self._optimizers():
            optimizer.swapped_by_callback = True
        self._unmix(self._optimizers())  # a `fit` before may have been interrupted

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the mixed weights into the model, if the true ones are there."""
        self._thread = threading.get_ident()
        self._mix()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the true weights into the model after the last batch of an epoch."""
        last = self._batches is not None and batch + 1 >= self._batches
        # On JAX Keras calls a callback that is the only one in a thread: it need not be early.
        if last and self._thread == threading.get_ident():
            self._unmix(self._optimizers())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Puts the true weights into the model, if the epoch ended sooner than expected."""
        self._require()
        self._unmix(self._optimizers())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Notes that evaluation stands alone from here on."""
        self._in_fit = False

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the true weights into the model."""
        optimizers = self._optimizers()
        if not self._in_fit:
            optimizers = [one for one in optimizers if one.is_mixed]
        self._unmix(optimizers)

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Puts the mixed weights back, if they were there. In `fit` the next batch does."""
        if not self._in_fit:
            self._mix()

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def _unmix(self, optimizers: list[WeightMixing]) -> None:
        for optimizer in optimizers:
            optimizer.unmix()
        self._unmixed = optimizers

    def _mix(self) -> None:
        for optimizer in self._unmixed:
            optimizer.mix()
        self._unmixed = []

    def _require(self) -> None:
        if not self._optimizers():
            raise ValueError(
                "`SwapTrueWeights` needs an optimizer that mixes weights, such as "
                "`sage_keras.DPSMix` or `sage_keras.Mixout`. Compile the model with one, or take "
                f"the callback out. Received: optimizer={self.model.optimizer!r}"
            )

    def _optimizers(self) -> list[WeightMixing]:
        return find_optimizers(self.model.optimizer, WeightMixing)
