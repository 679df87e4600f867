"""A callback that reports how sensitivity is spread over the model while it trains."""

import os
from collections.abc import Sequence

from sage_keras import arguments
from sage_keras.annotations import Groups
from sage_keras.callbacks.figures import UNKNOWN, SlotFigures, refuse
from sage_keras.callbacks.state_logger import StateLogger
from sage_keras.optimizers.sage.guided import SensitivityGuided


class SensitivityLogger(StateLogger):
    """Reports the sensitivity and the learning-rate scale of groups of variables.

    For the whole model and for each group it reports, over the guided parameters:

    - `mean`, `q0.05` ... `q0.95`: mean and quantiles of the bias-corrected moving average of the
      sensitivity, as `optimizer.sensitivity(variable)` gives it;
    - `redundant_share`: the share of parameters under 1 % of the mean of the whole model;
    - `gini`: how concentrated the sensitivity is, from 0, all alike, to 1, all in one parameter;
    - `scale_mean`, `scale_max`, `scale_q0.05` ...: the learning-rate scale `s` of the last step.
      With `guide=False` it is what the scale would have been, with `calibrate=True` what it is
      before it is divided by its mean.

    The figures of the whole model go into Keras's `logs` as `sensitivity/mean` and so on, where
    `History`, `CSVLogger`, the progress bar and other callbacks see them. Callbacks listed before
    this one do not: put it first. With `log_dir`, each report is also one line of
    `sensitivity.jsonl`, which `sage_keras.analysis.read_log` reads, and, where `tensorboard` is
    installed, scalars and histograms for TensorBoard.

    When a report is made:

    - at the end of each epoch in which there was no other report;
    - after every `update_freq` batches, in steps of the optimizer that are counted on when
      training is resumed. A batch that makes no step, since gradients are accumulated or have
      overflowed, is not reported; the next one that does is.

    How exact it is: quantiles lie within 1.6 % of the exact ones, `s` within rounding. A model of
    more than 4 million guided parameters is sampled at regular distances, at least 65,536
    parameters of each variable. All figures but `mean` are then those of the sample: its
    quantiles differ by less than one percent more as a rule, and `scale_max` is the largest seen.

    What it costs: before a step that is reported, the sampled part of the slots is copied, and
    afterwards some ten kilobytes of figures go to the host. Other steps are left alone, unless
    Keras does not know how many steps an epoch has (a generator): then the last one is not known
    beforehand, and each is copied before, as long as the epoch has no report.

    `s` cannot be had with `steps_per_execution` above 1 or with slots in bfloat16: its figures are
    left out, with a warning. Where just one report has to do without (training was stopped in the
    middle of an epoch), they are not-a-number there.

    Args:
        log_dir: Path of the folder for `sensitivity.jsonl` and TensorBoard's event file, or
            `None` to write no files. An existing log is continued. Defaults to `None`.
        update_freq: `"epoch"`, `"batch"` or a number of batches: how often to report. Defaults
            to `"epoch"`.
        groups: How the variables are grouped. `None` for one group a layer; a dict of group name
            to a regular expression that is searched in `variable.path`; or a function of a
            variable that returns the name of its group, or `None`. Groups without a guided
            variable are left out. Defaults to `None`.
        quantiles: Floats in [0, 1], which quantiles to report. Defaults to
            `(0.05, 0.25, 0.5, 0.75, 0.95)`.
        histograms: Boolean, whether to write histograms of the sensitivity into `log_dir`.
            Defaults to `True`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or, when training begins, if the optimizer
            does not measure sensitivity.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import sage_keras
    >>> from sage_keras.callbacks import SensitivityLogger
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=sage_keras.Sage(learning_rate=1e-3), loss="mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(x, y, callbacks=[SensitivityLogger()], verbose=0)
    >>> sorted(history.history)[:3]
    ['loss', 'sensitivity/gini', 'sensitivity/mean']

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    _name = "sensitivity"
    _mixin = SensitivityGuided

    def __init__(
        self,
        log_dir: str | os.PathLike | None = None,
        update_freq: str | int = "epoch",
        groups: Groups = None,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        histograms: bool = True,
    ) -> None:
        super().__init__(log_dir, groups)
        self.update_freq = arguments.frequency("update_freq", update_freq)
        self.quantiles = arguments.probabilities("quantiles", quantiles)
        self.histograms = arguments.boolean("histograms", histograms)
        self._every = arguments.batches(self.update_freq)

    def on_train_begin(self, logs=None):
        self._slots = None
        super().on_train_begin(logs)
        self._steps_per_execution = self.model.steps_per_execution
        self._accumulation = max(
            (one.gradient_accumulation_steps or 1 for one in self._optimizers()), default=1
        )
        self._now = self._iterations()
        self._batches = max(self._now, default=0) * self._accumulation
        self._due = False
        self._copies = {}

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch
        self._reported = False

    def on_train_batch_begin(self, batch, logs=None):
        super().on_train_batch_begin(batch, logs)
        self._due = self._due or self._passes(self._steps_per_execution)
        if self._due or (not self._reported and self._may_end_epoch(batch)):
            self._remember()

    def on_train_batch_end(self, batch, logs=None):
        super().on_train_batch_end(batch, logs)
        self._batches += batch + 1 - self._begun
        if not self._copies:
            return
        # Not at the end of the epoch: on TensorFlow a generator that ends counts as a step.
        self._now = self._iterations()
        if self._due and self._now not in self._copies:
            self._report()
            logs.update(self._figures)

    def on_epoch_end(self, epoch, logs=None):
        if not self._reported:
            if not self._copies:  # the end came early
                self._now = self._iterations()
            self._report()
        logs.update(self._figures)

    def on_train_end(self, logs=None):
        self._copies = {}

    def _refuse(self):
        refuse(self.model.optimizer)

    def _prepare(self):
        self._slots = SlotFigures(self.model, self.groups, self.quantiles, self.histograms)

    def _passes(self, batches):
        """Whether a multiple of `update_freq` lies within the next batches."""
        return (self._batches + batches) // self._every > self._batches // self._every

    def _may_end_epoch(self, batch):
        """Whether the last step of the epoch may come in this execution."""
        steps = self.params["steps"]
        return steps is None or batch + self._steps_per_execution + self._accumulation > steps

    def _remember(self):
        """Copies the slots, unless no step was made since the last copy."""
        now = self._iterations()
        if now not in self._copies:
            before = _previous(now)  # is of use until the next step
            self._copies = {step: one for step, one in self._copies.items() if step == before}
            self._copies[now] = self._slots and self._slots.copy(self.model)

    def _report(self):
        copy = self._copies.get(_previous(self._now), UNKNOWN)
        report = {"step": max(self._now), "epoch": self._epoch}
        report |= self._slots.report(self.model, self._now, copy)
        self._write(report)
        figures = report["model"]["figures"]
        self._figures = {f"sensitivity/{name}": value for name, value in figures.items()}
        self._reported = True
        self._due = False
        self._copies = {}


def _previous(iterations):
    return tuple(one - 1 for one in iterations)
