"""The callback that shows the true weights of an optimizer that trains on mixed ones."""

import keras

from sage_keras.optimizers.base import find_optimizers
from sage_keras.optimizers.dps.mixing import WeightMixing


class SwapTrueWeights(keras.callbacks.Callback):
    """Puts the true weights of `DPSMix` or `Mixout` into the model whenever others look at it.

    These optimizers leave mixed weights in the model, for the next training step. This callback
    exchanges them for the true ones during validation and prediction, and from the end of each
    epoch to the beginning of the next, where other callbacks save the model or remember its
    weights. List it before those.

    It does not reach a `ModelCheckpoint` that saves in mid-epoch (`save_freq` is a number). Such a
    file holds the mixed weights and, in the optimizer's state, the true ones: load it with the
    optimizer and call `model.optimizer.unmix()`.

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
        self._unmixed: list[WeightMixing] = []

    def on_train_begin(self, logs=None):
        """Tells the optimizer that its weights will be swapped.

        Args:
            logs: Not used.

        Raises:
            ValueError: If the model's optimizer does not mix weights.
        """
        optimizers = self._optimizers()
        if not optimizers:
            raise ValueError(
                "`SwapTrueWeights` needs an optimizer that mixes weights, such as "
                "`sage_keras.DPSMix` or `sage_keras.Mixout`. Compile the model with one, or take "
                f"the callback out. Received: optimizer={self.model.optimizer!r}"
            )
        for optimizer in optimizers:
            optimizer.swapped_by_callback = True

    def on_epoch_begin(self, epoch, logs=None):
        """Puts the mixed weights into the model."""
        for optimizer in self._optimizers():
            optimizer.mix()

    def on_epoch_end(self, epoch, logs=None):
        """Puts the true weights into the model."""
        for optimizer in self._optimizers():
            optimizer.unmix()

    def on_test_begin(self, logs=None):
        """Puts the true weights into the model."""
        self._unmixed = [optimizer for optimizer in self._optimizers() if optimizer.is_mixed]
        for optimizer in self._unmixed:
            optimizer.unmix()

    def on_test_end(self, logs=None):
        """Puts the mixed weights back, if they were there."""
        for optimizer in self._unmixed:
            optimizer.mix()
        self._unmixed = []

    on_predict_begin = on_test_begin
    on_predict_end = on_test_end

    def _optimizers(self):
        return find_optimizers(self.model.optimizer, WeightMixing)
