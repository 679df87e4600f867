"""A callback that reports how sparse a model is while it is pruned."""

import math
import os
from typing import Any

import numpy as np

from sage_keras import arguments
from sage_keras.annotations import Groups
from sage_keras.callbacks.state_logger import StateLogger
from sage_keras.groups import group_positions
from sage_keras.log import format as log_format
from sage_keras.log.format import SPARSITY
from sage_keras.optimizers.pruning.gradual import GradualPruning


class SparsityLogger(StateLogger):
    """Reports how sparse `Platon` and the like have made the model, and each of its layers.

    The share of zeros in all pruned variables goes into Keras's `logs` as `sparsity`, at the end
    of each epoch and after each batch that was reported. Callbacks listed before this one do not
    see it: put it first. With `log_dir`, each report is also one line of `sparsity.jsonl`, with
    the share of each group; `sage_keras.analysis.read_sparsity_log` reads it,
    `plot_heat_map(log, "sparsity")` draws it, and, where `tensorboard` is installed, it has
    scalars for TensorBoard.

    What it costs: a report reads the masks, for which the host waits for the device.

    Args:
        log_dir: Path of the folder for `sparsity.jsonl` and TensorBoard's event file, or `None` to
            write no files. An existing log is continued. Defaults to `None`.
        update_freq: `"epoch"`, `"batch"` or a number of batches: how often to report. Each epoch
            ends with a report anyway. Defaults to `"epoch"`.
        groups: How the variables are grouped. `None` for one group a layer; a dict of group name
            to a regular expression that is searched in `variable.path`; or a function of a
            variable that returns the name of its group, or `None`. Groups without a pruned
            variable are left out. Defaults to `None`.
        optimizer: String, the name of the model's attribute that holds the optimizer to watch,
            such as `"d_optimizer"`, or `None` for the one that the model was compiled with.
            Defaults to `None`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or, when training begins, if the optimizer
            prunes nothing.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from sage_keras import PrunedAdamW
    >>> from sage_keras.callbacks import SparsityLogger
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> optimizer = PrunedAdamW(final_sparsity=0.5, begin_step=0, end_step=4, update_freq=2)
    >>> model.compile(optimizer=optimizer, loss="mse")
    >>> x, y = np.ones((8, 4)), np.ones((8, 2))
    >>> history = model.fit(x, y, 4, epochs=3, callbacks=[SparsityLogger()], verbose=0).history
    >>> history["sparsity"]
    [0.5, 0.5, 0.5]

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2206.12562)
    """

    _kind = SPARSITY
    _mixin = GradualPruning

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        update_freq: str | int = "epoch",
        groups: Groups = None,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(log_dir, groups, optimizer)
        self.update_freq = arguments.frequency("update_freq", update_freq)
        self._update_freq = self.update_freq
        self._every = arguments.batches(self.update_freq)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes note of where training begins."""
        super().on_train_begin(logs)
        self._batches = 0
        self._reported = False

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes note of the epoch."""
        super().on_epoch_begin(epoch, logs)
        self._reported = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports, if it is time."""
        super().on_train_batch_end(batch, logs)
        before, self._batches = self._batches, self._batches + self._executed(batch)
        self._reported = self._batches // self._every > before // self._every
        if self._reported:
            self._report(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports, unless the last batch has done so, and adds the sparsity to the logs."""
        if not self._prepared:  # no batch, so far
            return
        if not self._reported:
            self._report(logs)
        elif logs is not None:
            logs["sparsity"] = self._last

    def _optimizers(self) -> list[Any]:
        # Which variables one prunes is known once it is built.
        return [one for one in super()._optimizers() if one.pruned_variables or not one.built]

    def _refuse(self) -> None:
        raise ValueError(
            "The model's optimizer prunes nothing. Use `sage_keras.Platon` or "
            "`sage_keras.PrunedAdamW`, or put `sage_keras.GradualPruning` before another Keras "
            f"optimizer in a class of your own. Received: optimizer={self._watched()!r}"
        )

    def _prepare(self) -> None:
        variables = [one for pruning in self._optimizers() for one in pruning.pruned_variables]
        if not variables:
            self._refuse()
        self._members = group_positions(self.model, self.groups, variables)
        self._sizes = np.array([math.prod(variable.shape) for variable in variables])

    def _report(self, logs: dict[str, Any] | None) -> None:
        optimizers = self._optimizers()
        kept = np.concatenate([one.kept_counts() for one in optimizers])
        entries: dict[str | None, dict[str, Any]] = {}
        for name, group in self._members.items():
            size = int(self._sizes[group].sum())
            values = {"sparsity": 1.0 - float(kept[group].sum()) / size}
            entries[name] = {log_format.PARAMETERS: size, log_format.VALUES: values}
        whole = entries.pop(None)
        self._last = whole[log_format.VALUES]["sparsity"]
        if logs is not None:
            logs["sparsity"] = self._last
        self._log.write(
            {
                log_format.STEP: max(self._iterations()),
                log_format.EPOCH: self._epoch,
                log_format.OPTIMIZERS: [_settings(one) for one in optimizers],
                log_format.MODEL: whole,
                log_format.GROUPS: entries,
            }
        )


def _settings(optimizer: GradualPruning) -> dict[str, Any]:
    return {
        "class": type(optimizer).__name__,
        "score": optimizer.score,
        "final_sparsity": optimizer.final_sparsity,
        "end_step": optimizer.end_step,
    }
