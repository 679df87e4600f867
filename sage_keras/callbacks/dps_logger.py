"""A callback that reports the subnetworks that DPS selects while it trains."""

import math

import numpy as np
from keras import ops

from sage_keras.backend import compiled
from sage_keras.callbacks.state_logger import StateLogger
from sage_keras.groups import group_positions
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

    The figures of the last subnetwork go into Keras's `logs` as `dps/share`, `dps/overlap` and
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

    _name = "dps"
    _mixin = SubnetworkSelection

    def __init__(self, log_dir=None, groups=None):
        super().__init__(log_dir, groups)

    def on_train_begin(self, logs=None):
        """Takes note of the subnetworks that training goes on with.

        Args:
            logs: Not used.
        """
        super().on_train_begin(logs)
        self._wait = 0  # the batches until a selection can be due
        if self._prepared:
            self._look()

    def on_epoch_begin(self, epoch, logs=None):
        """Takes note of the epoch.

        Args:
            epoch: Integer, the epoch.
            logs: Not used.
        """
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Reports, if subnetworks were selected.

        Args:
            batch: Integer, the last batch of the execution.
            logs: Dict that the figures are added to.
        """
        super().on_train_batch_end(batch, logs)
        self._wait -= batch + 1 - self._begun
        if self._wait <= 0 and self._look():
            self._report()
            logs.update(self._figures())

    def on_epoch_end(self, epoch, logs=None):
        """Adds the figures of the last subnetworks.

        Args:
            epoch: Integer, the epoch.
            logs: Dict that the figures are added to.
        """
        logs.update(self._figures())

    def on_train_end(self, logs=None):
        """Lets go of the subnetworks.

        Args:
            logs: Not used.
        """
        self._subnetworks = []

    def _optimizers(self):
        # Which variables one selects in, if any, is known once it is built.
        return [one for one in super()._optimizers() if one.partial_variables or not one.built]

    def _refuse(self):
        raise ValueError(
            "The model's optimizer selects no subnetworks. Use `sage_keras.DPSDense` or "
            "`sage_keras.DPSMix`, or put `sage_keras.SubnetworkSelection` before another Keras "
            "optimizer in a class of your own. "
            f"Received: optimizer={self.model.optimizer!r}"
        )

    def _prepare(self):
        optimizers = self._optimizers()
        variables = [variable for one in optimizers for variable in one.partial_variables]
        if not variables:
            self._refuse()
        members = group_positions(self.model, self.groups, variables)
        sizes = np.array([math.prod(variable.shape) for variable in variables])
        self._members = {name: (group, int(sizes[group].sum())) for name, group in members.items()}
        self._subnetworks = [_Subnetwork(one) for one in optimizers]
        self._count = compiled(_counts)

    def _look(self):
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

    def _report(self):
        settings = [_settings(one) for one in self._optimizers()]
        entries = self._entries()
        model = entries.pop(None)
        report = {"step": self._step, "epoch": self._epoch, "optimizers": settings}
        self._write({**report, "model": model, "groups": entries})

    def _entries(self):
        """The entry of each group in a report; that of the whole model goes by None."""
        counts = np.concatenate([one.counts for one in self._subnetworks])
        entries = {}
        for name, (group, size) in self._members.items():
            selected, shared, united = (float(total) for total in counts[group].sum(axis=0))
            figures = {"share": selected / size, "overlap": shared / united}
            entries[name] = {"parameters": size, "figures": figures}
        entries[None]["figures"]["cycle"] = max(one.cycle for one in self._subnetworks)
        return entries

    def _figures(self):
        """What goes into Keras's logs."""
        figures = self._entries()[None]["figures"]
        figures["stage"] = max(one.stage for one in self._optimizers())
        return {f"dps/{name}": value for name, value in figures.items()}


class _Subnetwork:
    """The subnetwork that one optimizer selected last.

    Attributes:
        cycle: Integer, the cycle in which it was selected; 0 before the first selection.
        counts: Float array of shape `(variables, 3)`: the weights that are in it, that are in both
            it and the one of the cycle before, and that are in either. Not-a-number where it, or
            the one before, was never looked at.
    """

    def __init__(self, optimizer):
        self.cycle = 0
        self.counts = np.full((len(optimizer.partial_variables), 3), np.nan)
        self._masks = None

    def look(self, optimizer, step, count):
        """Looks at the subnetwork, if it is a new one, and tells whether it is.

        Args:
            optimizer: The optimizer.
            step: Integer, the steps that it has made.
            count: `_counts`, compiled.
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

    def wait(self, optimizer, step):
        """The batches until the next selection, if all of them count.

        Args:
            optimizer: The optimizer.
            step: Integer, the steps that it has made.
        """
        next_selection = (2 * _selections(optimizer, step) + 1) * optimizer.stage_steps
        return (next_selection - step - 1) * (optimizer.gradient_accumulation_steps or 1) + 1


def _selections(optimizer, step):
    """How often an optimizer has selected: stage II begins half-way through each cycle."""
    return (step + optimizer.stage_steps) // (2 * optimizer.stage_steps)


def _counts(masks, previous):
    """For each mask: the weights that are in it, in both it and the previous one, and in either."""

    def count(mask):
        return ops.sum(ops.cast(mask, "int32"))

    return ops.stack(
        [
            ops.stack([count(one), count(one & other), count(one | other)])
            for one, other in zip(masks, previous)
        ]
    )


def _settings(optimizer):
    return {
        "class": type(optimizer).__name__,
        "stage_steps": optimizer.stage_steps,
        "drop_rate": optimizer.drop_rate,
    }
