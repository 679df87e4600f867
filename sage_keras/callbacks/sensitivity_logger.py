"""A callback that reports how sensitivity is spread over the model while it trains."""

import os
from collections.abc import Sequence
from typing import Any

from sage_keras import arguments
from sage_keras.annotations import Groups
from sage_keras.callbacks.sensitivity_values import UNKNOWN, SensitivityValues, value_names
from sage_keras.callbacks.state_logger import StateLogger
from sage_keras.log import format as log_format
from sage_keras.log.format import SENSITIVITY
from sage_keras.optimizers.sage.guided import SensitivityGuided


class SensitivityLogger(StateLogger):
    """Reports the sensitivity and the learning-rate scale of groups of variables.

    For the whole model and for each group it reports, over the guided parameters:

    - `mean`, `q0.05` ... `q0.95`: mean and quantiles of the bias-corrected moving average of the
      sensitivity, as `optimizer.sensitivity(variable)` gives it;
    - `redundant_share`: the share of parameters under 1 % of the mean of the whole model;
    - `gini`: how concentrated the sensitivity is, from 0, all alike, to 1, all in one parameter;
    - `scale_mean`, `scale_max`, `scale_q0.05` ...: the learning-rate scale `s` of the last step, as
      the optimizer computes it. With `guide=False` it is what the scale would have been, with
      `calibrate=True` what it is before it is divided by its mean.

    At the end of each epoch two of the last values of the whole model, or those that `logs` names,
    go into Keras's `logs` as `sensitivity/scale_mean` and so on, where `History`, `CSVLogger`, the
    progress bar and other callbacks see them. Callbacks listed before this one do not: put it
    first. With `log_dir`, each report is also one line of `sensitivity.jsonl`, which
    `sage_keras.analysis.read_log` reads, and, where `tensorboard` is installed, scalars and
    histograms for TensorBoard. These have all values, and the file has the loss and the metrics
    of the run too.

    When a report is made:

    - at the end of each epoch in which there was no other report;
    - after every `update_freq` batches, in steps of the optimizer that are counted on when
      training is resumed. A batch that makes no step, since gradients are accumulated or have
      overflowed, is not reported; the next one that does is.

    How exact it is: quantiles lie within 1.6 % of the exact ones, `s` within rounding. A model of
    more than 4 million guided parameters is sampled at regular distances, at least 65,536
    parameters of each variable. All values but `mean` are then those of the sample: its
    quantiles differ by less than one percent more as a rule, and `scale_max` is the largest seen.

    What it costs: before a step that is reported, the sampled sensitivities are copied, and
    afterwards some ten kilobytes of values go to the host. Other steps are left alone, unless
    Keras does not know how many steps an epoch has (a generator): then the last one is not known
    beforehand, and each is copied before, as long as the epoch has no report. What computes the
    values is compiled once for a model, by XLA if the model itself is.

    `s` is not reported with `steps_per_execution` above 1, with sensitivities in bfloat16, or for
    an optimizer that overrides `_scale` and not `_scale_of`: its values are left out, with a
    warning. Where just one report has to do without (training was stopped in the middle of an
    epoch), they are not-a-number there.

    Args:
        log_dir: Path of the folder for `sensitivity.jsonl` and TensorBoard's event file, or
            `None` to write no files. An existing log of the same `update_freq` is continued.
            Defaults to `None`.
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
        optimizer: String, the name of the model's attribute that holds the optimizer to watch,
            such as `"d_optimizer"`, or `None` for the one that the model was compiled with.
            Defaults to `None`.
        logs: List of the names of the values to put into Keras's `logs`, such as
            `["mean", "q0.5"]`, `"all"` for all of them, or `[]` for none. Each is one more entry
            of the progress bar, which a terminal has little room for. Defaults to
            `("scale_mean", "redundant_share")`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or, when training begins, if the optimizer
            does not measure sensitivity, if no group holds a guided variable, or if the log in
            `log_dir` is of another `update_freq`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import sage_keras
    >>> from sage_keras.callbacks import SensitivityLogger
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=sage_keras.Sage(learning_rate=1e-3), loss="mse")
    >>> x, y = np.ones((8, 2)), np.ones((8, 1))
    >>> history = model.fit(x, y, callbacks=[SensitivityLogger()], verbose=0)
    >>> sorted(history.history)
    ['loss', 'sensitivity/redundant_share', 'sensitivity/scale_mean']

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """

    _kind = SENSITIVITY
    _mixin = SensitivityGuided

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        update_freq: str | int = "epoch",
        groups: Groups = None,
        quantiles: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95),
        histograms: bool = True,
        optimizer: str | None = None,
        logs: Sequence[str] = ("scale_mean", "redundant_share"),
    ) -> None:
        super().__init__(log_dir, groups, optimizer)
        self.update_freq = arguments.frequency("update_freq", update_freq)
        self.quantiles = arguments.probabilities("quantiles", quantiles)
        self.histograms = arguments.boolean("histograms", histograms)
        known = [name for names in value_names(self.quantiles) for name in names]
        self.logs = arguments.names("logs", logs, known)
        self._update_freq = self.update_freq
        self._every = arguments.batches(self.update_freq)

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Takes note of where training goes on."""
        self._values: SensitivityValues | None = None
        self._accumulation = 1
        super().on_train_begin(logs)
        self._steps_per_execution = self.model.steps_per_execution
        self._now = self._iterations()
        self._batches = max(self._now, default=0) * self._accumulation
        self._due = False
        self._reported = False
        self._copies: dict[tuple[int, ...], Any] = {}

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Takes note of the epoch, which has no report yet."""
        super().on_epoch_begin(epoch, logs)
        self._reported = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Copies the slots, if the step may be reported."""
        super().on_train_batch_begin(batch, logs)
        self._due = self._due or self._passes(self._steps_per_execution)
        if self._due or (not self._reported and self._may_end_epoch(batch)):
            self._remember()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports, if it is time and the batch made a step."""
        super().on_train_batch_end(batch, logs)
        self._batches += self._executed(batch)
        if not self._copies or self._values is None:
            return
        # Not at the end of the epoch: on TensorFlow a generator that ends counts as a step.
        self._now = self._iterations()
        if self._due and self._now not in self._copies:
            self._report(self._values, logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports, if the epoch has no report yet, and adds the last values to the logs."""
        if self._values is None:  # no batch, so far
            return
        if self._reported:
            if logs:
                self._log.write(self._line(max(self._iterations()), logs))
        else:
            if not self._copies:  # the end came early
                self._now = self._iterations()
            self._report(self._values, logs)
        self._add(logs, {name: self._last[name] for name in self.logs if name in self._last})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Lets go of the copies."""
        self._copies = {}

    def _refuse(self) -> None:
        raise ValueError(
            "The model's optimizer measures no sensitivity. Use `sage_keras.Sage`, or guide "
            "another Keras optimizer by a class of your own with `sage_keras.SensitivityGuided`; "
            "its argument `guide=False` watches that optimizer without changing what it does. "
            f"Received: optimizer={self._watched()!r}"
        )

    def _prepare(self) -> None:
        optimizers = self._optimizers()
        if not any(one.guided_variables for one in optimizers):
            self._refuse()
        self._accumulation = max(one.gradient_accumulation_steps or 1 for one in optimizers)
        self._values = SensitivityValues(
            self.model, optimizers, self.groups, self.quantiles, self.histograms
        )

    def _passes(self, batches: int) -> bool:
        """Whether a multiple of `update_freq` lies within the next batches."""
        return bool((self._batches + batches) // self._every > self._batches // self._every)

    def _may_end_epoch(self, batch: int) -> bool:
        """Whether the last step of the epoch may come in this execution."""
        steps: int | None = (self.params or {}).get("steps")
        next_batch: int = batch + self._steps_per_execution + self._accumulation
        return steps is None or next_batch > steps

    def _remember(self) -> None:
        """Copies the slots, unless no step was made since the last copy."""
        now = self._iterations()
        if now not in self._copies:
            before = _previous(now)  # is of use until the next step
            self._copies = {step: one for step, one in self._copies.items() if step == before}
            self._copies[now] = self._values and self._values.copy(self._optimizers())

    def _report(self, values: SensitivityValues, logs: dict[str, Any] | None) -> None:
        """Makes a report, and keeps its values of the whole model."""
        copy = self._copies.get(_previous(self._now), UNKNOWN)
        report = values.report(self._optimizers(), self._now, copy)
        self._log.write(self._line(max(self._now), logs) | report)
        self._last: dict[str, float] = report[log_format.MODEL][log_format.VALUES]
        self._reported = True
        self._due = False
        self._copies = {}

    def _line(self, step: int, logs: dict[str, Any] | None) -> dict[str, Any]:
        """What a line of the log begins with: where training is, and the metrics so far."""
        own = f"{self._kind.name}/"  # of another logger, for another optimizer
        metrics = {
            name: log_format.to_number(value)
            for name, value in (logs or {}).items()
            if not name.startswith(own)
        }
        return {
            log_format.STEP: step,
            log_format.EPOCH: self._epoch,
            log_format.METRICS: {
                name: value for name, value in metrics.items() if value is not None
            },
        }


def _previous(iterations: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(one - 1 for one in iterations)
