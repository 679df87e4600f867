"""A callback that reports the subnetworks that DPS selects while it trains."""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from sage_keras.annotations import Groups, Tensor
from sage_keras.backend import compiled
from sage_keras.callbacks.kept import kept
from sage_keras.callbacks.state_logger import StateLogger
from sage_keras.groups import group_positions
from sage_keras.log import format as log_format
from sage_keras.log.format import DPS
from sage_keras.optimizers.dps.subnetwork import SubnetworkSelection


class DPSLogger(StateLogger):
    """Reports the subnetworks that `DPSDense` and `DPSMix` select.

    Each time that stage II begins it reports, for the whole model and for each group, over the
    variables that are trained in part:

    - `share`: the share of the weights that was selected, `1 - drop_rate` and what ties add;
    - `overlap`: how alike it is to the subnetwork of the cycle before, as the Jaccard index, from
      0, no weight in common, to 1, the same ones. Subnetworks drawn at random, of 70 % each,
      have 0.54. Not-a-number in the first cycle.

    Both are counts on the device and therefore exact. For the whole model it reports the number of
    the `cycle` too, from 1 on.

    The values of the last subnetwork go into Keras's `logs` as `dps/share`, `dps/overlap` and
    `dps/cycle`, and `dps/stage` is the stage of the coming step, 1 or 2. They are there at the end
    of each epoch, with a cycle of 0 and not-a-number before the first selection, and after a batch
    that ended with a selection. Callbacks listed before this one do not see them: put it first.
    With `log_dir`, each report is also one line of `dps.jsonl`, which
    `sage_keras.analysis.read_dps_log` reads, and, where `tensorboard` is installed, scalars for
    TensorBoard.

    Training that is resumed in stage II compares the next subnetwork to the one it goes on with;
    resumed in stage I it knows no subnetwork to compare with, and nor does a `fit` that follows
    another. Where `steps_per_execution` jumps over a whole stage II, that cycle is not reported.
    Optimizers of a `MultiOptimizer` may select at different steps: a report has what all of them
    selected last, and of stages and cycles the largest.

    What it costs: a byte of the device's memory for each weight that is trained in part. Steps on
    which no selection can be due are left alone.

    Args:
        log_dir: Path of the folder for `dps.jsonl` and TensorBoard's event file, or `None` to
            write no files. An existing log is continued. Defaults to `None`.
        groups: How the variables are grouped. `None` for one group a layer; a dict of group name
            to a regular expression that is searched in `variable.path`; or a function of a
            variable that returns the name of its group, or `None`. Groups without a variable that
            is trained in part are left out. Defaults to `None`.
        optimizer: String, the name of the model's attribute that holds the optimizer to watch,
            such as `"d_optimizer"`, or `None` for the one that the model was compiled with.
            Defaults to `None`.

    Raises:
        ValueError: When training begins, if the optimizer selects no subnetworks.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from sage_keras import DPSDense
    >>> from sage_keras.callbacks import DPSLogger
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, use_bias=False)])
    >>> model.compile(optimizer=DPSDense(stage_steps=1, drop_rate=0.5), loss="mse")
    >>> x, y = np.diag([1.0, 2.0, 3.0, 4.0]), np.ones((4, 1))
    >>> history = model.fit(x, y, epochs=3, callbacks=[DPSLogger()], verbose=0).history
    >>> history["dps/stage"], history["dps/cycle"], history["dps/share"]
    ([2, 1, 2], [1, 1, 2], [0.5, 0.5, 0.5])

    Reference:
        - [Zhang et al., 2022](https://arxiv.org/abs/2211.01642)
    """

    _kind = DPS
    _mixin = SubnetworkSelection

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        groups: Groups = None,
        optimizer: str | None = None,
    ) -> None:
        super().__init__(log_dir, groups, optimizer)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes note of the subnetworks that training goes on with."""
        super().on_train_begin(logs)
        self._wait = 0  # the batches until a selection can be due
        if self._prepared:
            self._look()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports, if subnetworks were selected."""
        super().on_train_batch_end(batch, logs)
        self._wait -= self._executed(batch)
        if self._prepared and self._wait <= 0 and self._look():
            self._report()
            self._add(logs, self._last())

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the values of the last subnetworks to the logs."""
        if self._prepared:  # else there was no batch, so far
            self._add(logs, self._last())

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Lets go of the subnetworks."""
        self._subnetworks: list[_Subnetwork] = []

    def _optimizers(self) -> list[Any]:
        # Which variables one selects in, if any, is known once it is built.
        return [one for one in super()._optimizers() if one.partial_variables or not one.built]

    def _refuse(self) -> None:
        raise ValueError(
            "The model's optimizer selects no subnetworks. Use `sage_keras.DPSDense` or "
            "`sage_keras.DPSMix`, or put `sage_keras.SubnetworkSelection` before another Keras "
            "optimizer in a class of your own. "
            f"Received: optimizer={self._watched()!r}"
        )

    def _prepare(self) -> None:
        optimizers = self._optimizers()
        variables = [variable for one in optimizers for variable in one.partial_variables]
        if not variables:
            self._refuse()
        members = group_positions(self.model, self.groups, variables)
        sizes = np.array([math.prod(variable.shape) for variable in variables])
        self._members = {name: (group, int(sizes[group].sum())) for name, group in members.items()}
        self._subnetworks = [_Subnetwork(one) for one in optimizers]
        self._count = kept(self.model, optimizers, _compiled_counts, bool(self.model.jit_compile))

    def _look(self) -> bool:
        """Looks for new subnetworks, and tells whether there are any."""
        optimizers, iterations = self._optimizers(), self._iterations()
        found = [
            one.look(optimizer, step, self._count)
            for one, optimizer, step in zip(self._subnetworks, optimizers, iterations)
        ]
        self._step = max(iterations)
        self._wait = min(
            one.wait(optimizer, step)
            for one, optimizer, step in zip(self._subnetworks, optimizers, iterations)
        )
        return any(found)

    def _report(self) -> None:
        entries = self._entries()
        self._log.write(
            {
                log_format.STEP: self._step,
                log_format.EPOCH: self._epoch,
                log_format.OPTIMIZERS: [_settings(one) for one in self._optimizers()],
                log_format.MODEL: entries.pop(None),
                log_format.GROUPS: entries,
            }
        )

    def _entries(self) -> dict[str | None, dict[str, Any]]:
        """The entry of each group in a report; that of the whole model goes by None."""
        counts = np.concatenate([one.counts for one in self._subnetworks])
        entries: dict[str | None, dict[str, Any]] = {}
        for name, (group, size) in self._members.items():
            selected, shared, united = (float(total) for total in counts[group].sum(axis=0))
            # Scores that are not numbers select nothing, and nothing is like nothing.
            overlap = shared / united if united else math.nan
            values = {"share": selected / size, "overlap": overlap}
            entries[name] = {log_format.PARAMETERS: size, log_format.VALUES: values}
        cycle = max(one.cycle for one in self._subnetworks)
        entries[None][log_format.VALUES]["cycle"] = cycle
        return entries

    def _last(self) -> dict[str, Any]:
        """What goes into Keras's logs."""
        values = self._entries()[None][log_format.VALUES]
        return {**values, "stage": max(one.stage for one in self._optimizers())}


class _Subnetwork:
    """The subnetwork that one optimizer selected last.

    Attributes:
        cycle: Integer, the cycle in which it was selected; 0 before the first selection.
        counts: Float array of shape `(variables, 3)`: the weights that are in it, that are in both
            it and the one of the cycle before, and that are in either. Not-a-number where it, or
            the one before, was never looked at.
    """

    def __init__(self, optimizer: SubnetworkSelection) -> None:
        self.cycle = 0
        self.counts = np.full((len(optimizer.partial_variables), 3), np.nan)
        self._masks: list[Tensor] | None = None

    def look(self, optimizer: SubnetworkSelection, step: int, count: Callable[..., Tensor]) -> bool:
        """Looks at the subnetwork, if it is a new one, and tells whether it is.

        Args:
            optimizer: The optimizer.
            step: Integer, the steps that it has made.
            count: The function `_counts`, compiled.
        """
        cycle = _selections(optimizer, step)
        if cycle == self.cycle:
            return False
        previous = self._masks if cycle == self.cycle + 1 else None
        self.cycle, self._masks = cycle, None
        self.counts = np.full_like(self.counts, np.nan)
        if optimizer.stage == 1:  # the scores that it follows from are those of the next one
            return False
        self._masks = [optimizer.subnetwork(one) for one in optimizer.partial_variables]
        known = 1 if previous is None else 3
        counts = ops.convert_to_numpy(count(self._masks, previous or self._masks))
        self.counts[:, :known] = counts[:, :known]
        return True

    def wait(self, optimizer: SubnetworkSelection, step: int) -> int:
        """The batches until the next selection, if all of them count.

        Args:
            optimizer: The optimizer.
            step: Integer, the steps that it has made.
        """
        next_selection = (2 * _selections(optimizer, step) + 1) * optimizer.stage_steps
        return (next_selection - step - 1) * (optimizer.gradient_accumulation_steps or 1) + 1


def _selections(optimizer: SubnetworkSelection, step: int) -> int:
    """How often an optimizer has selected: stage II begins half-way through each cycle."""
    return (step + optimizer.stage_steps) // (2 * optimizer.stage_steps)


def _compiled_counts(_optimizers: Any, xla: bool) -> Callable[..., Tensor]:
    def counts(masks: Sequence[Tensor], previous: Sequence[Tensor]) -> Tensor:
        return _counts(masks, previous)

    # A function of its own, since JAX would keep what it compiled of a global one for ever.
    return compiled(counts, xla)


def _counts(masks: Sequence[Tensor], previous: Sequence[Tensor]) -> Tensor:
    """For each mask: the weights that are in it, in both it and the previous one, and in either."""

    def count(mask: Tensor) -> Tensor:
        return ops.sum(ops.cast(mask, "int32"))

    return ops.stack(
        [
            ops.stack([count(one), count(one & other), count(one | other)])
            for one, other in zip(masks, previous)
        ]
    )


def _settings(optimizer: SubnetworkSelection) -> dict[str, Any]:
    return {
        "class": type(optimizer).__name__,
        "stage_steps": optimizer.stage_steps,
        "drop_rate": optimizer.drop_rate,
    }
