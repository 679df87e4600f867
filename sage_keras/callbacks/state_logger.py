"""What the callbacks that report the state of a model's optimizers share."""

import pathlib

import keras
from keras import ops

from sage_keras.callbacks.sinks import open_sinks
from sage_keras.groups import group_variables
from sage_keras.optimizers.base import find_optimizers


class StateLogger(keras.callbacks.Callback):
    """Base of the callbacks that report the state of a model's optimizers, wrapped ones included.

    A subclass names its reports in `_name`, and in `_mixin` the class of the optimizers.

    Args:
        log_dir: Path of the folder for the log and TensorBoard's event file, or `None`.
        groups: As `group_variables` takes them.
    """

    def __init__(self, log_dir, groups):
        super().__init__()
        self.log_dir = None if log_dir is None else pathlib.Path(log_dir)
        self.groups = groups

    def on_train_begin(self, logs=None):
        """Looks at the model, if it is built, and opens the files.

        Args:
            logs: Not used.
        """
        optimizer = self.model.optimizer
        # A MultiOptimizer may get to know its optimizers only when it is built.
        if not self._optimizers() and getattr(optimizer, "optimizers", None) != []:
            self._refuse()
        if self.model.built:
            group_variables(self.model, self.groups)  # refuses what is wrong with them
        self._prepared = self.model.built and optimizer.built
        if self._prepared:
            self._prepare()
        self._sinks = open_sinks(self.log_dir, self._name)

    def on_train_batch_begin(self, batch, logs=None):
        """Remembers the first batch of an execution.

        Args:
            batch: Integer, the batch.
            logs: Not used.
        """
        self._begun = batch

    def on_train_batch_end(self, batch, logs=None):
        """Looks at a model that was not built before, which on TensorFlow its first batch does.

        Args:
            batch: Integer, the last batch of the execution.
            logs: Not used.
        """
        if not self._prepared:
            self._prepare()
            self._prepared = True

    def _optimizers(self):
        return find_optimizers(self.model.optimizer, self._mixin)

    def _iterations(self):
        """The steps of each optimizer. Reading them makes the host wait for the device."""
        return tuple(int(ops.convert_to_numpy(one.iterations)) for one in self._optimizers())

    def _write(self, report):
        for sink in self._sinks:
            sink.write(report)

    def _refuse(self):
        """Says that the model's optimizer has nothing to report."""
        raise NotImplementedError

    def _prepare(self):
        """Looks at the model, which is built."""
        raise NotImplementedError
