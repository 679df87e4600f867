"""What the callbacks that report the state of a model's optimizers share."""

import operator
import os
from typing import Any

import keras
from keras import ops

from sage_keras import arguments
from sage_keras.annotations import Groups
from sage_keras.callbacks.watched import not_known_yet
from sage_keras.groups import group_variables
from sage_keras.log.format import Kind
from sage_keras.log.writing import LogWriter, local_folder
from sage_keras.optimizers.base import find_optimizers


class StateLogger(keras.callbacks.Callback):
    """Base of the callbacks that report the state of a model's optimizers, wrapped ones included.

    A subclass says in `_kind` which logs it writes, and in `_mixin` the class of the optimizers.

    Args:
        log_dir: Path of the folder for the log and TensorBoard's event file, or `None`.
        groups: As `group_variables` takes them.
        optimizer: String, the attribute of the model that holds the optimizer, or `None`.
    """

    _kind: Kind
    _mixin: type
    _update_freq: str | int | None = None

    def __init__(
        self, log_dir: str | os.PathLike[str] | None, groups: Groups, optimizer: str | None
    ) -> None:
        super().__init__()
        self.log_dir = None if log_dir is None else local_folder("log_dir", log_dir)
        self.groups = groups
        self.optimizer = arguments.optional_string("optimizer", optimizer, '"d_optimizer"')

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Looks at the model, if it is built, and opens the files."""
        optimizer = self._watched()
        self._begun: int | None = None
        self._epoch = 0
        if not self._optimizers() and not not_known_yet(optimizer):
            self._refuse()
        self._prepared = bool(optimizer.built)
        if self._prepared or self.model.built:
            group_variables(self.model, self.groups)  # refuses what is wrong with them
        if self._prepared:
            self._prepare()
        self._log = LogWriter(self.log_dir, self._kind, self._update_freq)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers the first batch of an execution."""
        self._begun = batch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at a model that was not built before, which on TensorFlow its first batch does."""
        if not self._prepared and self._watched().built:
            self._prepare()
            self._prepared = True

    def _executed(self, batch: int) -> int:
        """How many batches ended with this one."""
        # A loop of one's own may not say where a batch begins.
        return 1 if self._begun is None else batch + 1 - self._begun

    def _watched(self) -> Any:
        """The optimizer. It is looked up each time: on JAX that brings its state up to date."""
        try:
            return operator.attrgetter(self.optimizer or "optimizer")(self.model)
        except AttributeError as error:
            raise ValueError(
                "Argument `optimizer` must be the name of an attribute of the model that holds "
                f'an optimizer, such as "d_optimizer". Received: optimizer={self.optimizer!r}'
            ) from error

    def _optimizers(self) -> list[Any]:
        return find_optimizers(self._watched(), self._mixin)

    def _iterations(self) -> tuple[int, ...]:
        """The steps of each optimizer. Reading them makes the host wait for the device."""
        return tuple(int(ops.convert_to_numpy(one.iterations)) for one in self._optimizers())

    def _add(self, logs: dict[str, Any] | None, values: dict[str, Any]) -> None:
        """Adds values to Keras's logs, if there are any."""
        if logs is not None:
            logs.update({f"{self._kind.name}/{name}": value for name, value in values.items()})

    def _refuse(self) -> None:
        """Says that the model's optimizer has nothing to report."""
        raise NotImplementedError

    def _prepare(self) -> None:
        """Looks at the model, whose optimizer is built."""
        raise NotImplementedError
