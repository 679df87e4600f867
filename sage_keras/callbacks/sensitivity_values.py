"""From the slots of guided optimizers to the values of a report."""

import math
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from sage_keras import histograms
from sage_keras import sensitivity as measure
from sage_keras.annotations import Groups, Tensor
from sage_keras.backend import compiled
from sage_keras.callbacks.kept import kept
from sage_keras.groups import group_positions
from sage_keras.log import format as log_format
from sage_keras.optimizers.sage.guided import SensitivityGuided

_REDUNDANT = 0.01  # of the mean of the whole model
UNKNOWN = object()  # for slots that nobody copied before the last step


def value_names(probabilities: Sequence[float]) -> tuple[list[str], list[str]]:
    """The names of the values of the sensitivity, and of those of the scale, in their order."""
    quantiles = [f"q{probability:g}" for probability in probabilities]
    return (
        ["mean", "redundant_share", "gini", *quantiles],
        ["scale_mean", "scale_max", *(f"scale_{name}" for name in quantiles)],
    )


class SensitivityValues:
    """The values of groups of guided variables, reduced on the device by one compiled function.

    It keeps nothing of the state, which on JAX moves on with every step: the optimizers are passed
    in.

    Args:
        model: A `keras.Model`.
        optimizers: List of built `SensitivityGuided` optimizers, that guide a variable at least.
        groups: As `group_variables` takes them.
        probabilities: Floats, which quantiles to compute.
        with_histograms: Boolean, whether to hand out histograms.

    Raises:
        ValueError: If no group holds a guided variable.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizers: Sequence[SensitivityGuided],
        groups: Groups,
        probabilities: Sequence[float],
        with_histograms: bool,
    ) -> None:
        variables = [variable for one in optimizers for variable in one.guided_variables]
        members = group_positions(model, groups, variables)
        self._names = list(members)
        self._settings = [_settings(one) for one in optimizers]
        self._histograms = with_histograms
        self._has_scales = _has_scales(model, optimizers)
        self._probabilities = probabilities
        shapes = tuple(tuple(variable.shape) for variable in variables)
        sizes = [math.prod(shape) for shape in shapes]
        positions = tuple(map(tuple, members.values()))
        self._parameters = [sum(sizes[i] for i in group) for group in positions]

        self._table: _Table = kept(
            model,
            optimizers,
            _Table,
            shapes,
            tuple(i for i, one in enumerate(optimizers) for _ in one.guided_variables),
            positions,
            tuple(probabilities),
            self._has_scales,
            bool(model.jit_compile),
            # Numbers of the optimizers are compiled in.
            tuple(tuple(one.items()) for one in self._settings),
        )

    def copy(self, optimizers: Sequence[SensitivityGuided]) -> list[Tensor] | None:
        """What the scale of the next step will be computed from, or `None` if it cannot be."""
        return self._table.samples(_slots(optimizers)) if self._has_scales else None

    def report(
        self,
        optimizers: Sequence[SensitivityGuided],
        iterations: Sequence[int],
        previous: Any,
    ) -> dict[str, Any]:
        """The entries of a report that follow from the state of the optimizers.

        Args:
            optimizers: List of the optimizers.
            iterations: The steps that each of them has made.
            previous: What `copy` returned before the last step, `None` if there were no slots
                yet, or `UNKNOWN`.
        """
        slots = _slots(optimizers)
        steps = ops.convert_to_tensor(np.maximum(iterations, 1).astype("float32"))
        known = previous is not UNKNOWN
        if not self._has_scales:
            previous = None
        elif previous is None or not known:
            previous = [ops.zeros_like(one) for one in self._table.samples(slots)]
        table = self._table.values(slots, steps, previous)
        return self._entries(np.array(ops.convert_to_numpy(table)), known)

    def _entries(self, table: np.ndarray, known: bool) -> dict[str, Any]:
        names, scales = value_names(self._probabilities)
        first_scale = len(names)
        if self._has_scales:
            names = [*names, *scales]
        values, zeros, counts = np.split(table, [len(names), len(names) + 1], axis=1)
        if not known:
            values[:, first_scale:] = np.nan
        entries: list[dict[str, Any]] = [
            {
                log_format.PARAMETERS: parameters,
                # The shortest digits that mean the same float32.
                log_format.VALUES: {name: float(str(x)) for name, x in zip(names, row)},
            }
            for parameters, row in zip(self._parameters, values)
        ]
        report: dict[str, Any] = {log_format.OPTIMIZERS: self._settings}
        if self._histograms:
            first, last = _not_empty(counts)
            report[log_format.EDGES] = histograms.COARSE_EDGES[first : last + 1].tolist()
            for entry, none, row in zip(entries, zeros, counts[:, first:last]):
                entry[log_format.HISTOGRAM] = {
                    log_format.ZEROS: round(float(none[0])),
                    log_format.COUNTS: np.rint(row).astype("int64").tolist(),
                }
        named = dict(zip(self._names, entries))
        return {**report, log_format.MODEL: named.pop(None), log_format.GROUPS: named}


class _Table:
    """The compiled functions, which outlive a `fit`, and so know the optimizers only weakly."""

    def __init__(
        self,
        optimizers: Sequence[SensitivityGuided],
        shapes: Sequence[tuple[int, ...]],
        owners: Sequence[int],
        groups: Sequence[Sequence[int]],
        probabilities: Sequence[float],
        has_scales: bool,
        xla: bool,
        _settings: Any,
    ) -> None:
        self._optimizers = [weakref.ref(one) for one in optimizers]
        self._owners = owners
        self._groups = [list(group) for group in groups]
        self._probabilities = probabilities
        self._has_scales = has_scales
        sizes = [math.prod(shape) for shape in shapes]
        self._parameters = [sum(sizes[i] for i in group) for group in groups]
        self._strides = [histograms.stride(shape, sum(sizes)) for shape in shapes]
        seen = [-(-size // stride) for size, stride in zip(sizes, self._strides)]
        # How many parameters an element of each sample stands for.
        self._weights = np.array([size / count for size, count in zip(sizes, seen)], "float32")
        self.samples = compiled(self._samples, xla)
        self.values = compiled(self._values, xla)

    def _samples(self, slots: list[Any]) -> list[Tensor]:
        return [
            histograms.sample(ops.cast(slot, "float32"), stride)
            for slot, stride in zip(slots, self._strides)
        ]

    def _values(self, slots: list[Any], steps: Tensor, previous: list[Tensor] | None) -> Tensor:
        """A row for each group, whose columns are what `SensitivityValues._entries` makes of it."""
        optimizers: list[Any] = [self._optimizers[owner]() for owner in self._owners]
        own_steps = [steps[owner] for owner in self._owners]
        # The correction for having begun at zero is one factor for the whole variable.
        factors = [
            measure.bias_corrected(1.0, optimizer.beta_3, step)
            for optimizer, step in zip(optimizers, own_steps)
        ]
        samples = self._samples(slots)
        smoothed = [one * factor for one, factor in zip(samples, factors)]
        totals = [histograms.total(ops.cast(slot, "float32")) for slot in slots]
        means = self._means(ops.stack(totals) * ops.stack(factors))
        redundant = [ops.cast(one < _REDUNDANT * means[0], "float32") for one in smoothed]
        counts = self._counts(smoothed)
        columns = [
            means,
            self._estimated_means(redundant),
            histograms.gini(counts),
            histograms.quantiles(counts, self._probabilities),
        ]
        if previous is not None:
            scales = [
                # The sensitivity of the last step follows from the averages before and after it.
                optimizer._scale_of(
                    measure.last_value(average, before, optimizer.beta_3), average, step
                )
                for optimizer, average, before, step in zip(
                    optimizers, samples, previous, own_steps
                )
            ]
            largest = ops.stack([ops.max(one) for one in scales])
            columns += [
                self._estimated_means(scales),
                histograms.group_maxima(largest, self._groups),
                histograms.quantiles(self._counts(scales), self._probabilities),
            ]
        columns.append(histograms.coarse(counts))
        columns = [one if len(one.shape) > 1 else ops.expand_dims(one, -1) for one in columns]
        return ops.concatenate(columns, axis=-1)

    def _means(self, totals: Tensor) -> Tensor:
        sizes = ops.convert_to_tensor(self._parameters, "float32")
        return ops.divide(histograms.group_sums(totals, self._groups), sizes)

    def _estimated_means(self, samples: list[Tensor]) -> Tensor:
        totals = ops.stack([histograms.total(one) for one in samples])
        return self._means(totals * ops.convert_to_tensor(self._weights))

    def _counts(self, samples: list[Tensor]) -> Tensor:
        weights = ops.convert_to_tensor(self._weights[:, None])
        return histograms.group_histograms(histograms.counts(samples) * weights, self._groups)


def _settings(optimizer: SensitivityGuided) -> dict[str, Any]:
    return {
        "class": type(optimizer).__name__,
        "beta_3": optimizer.beta_3,
        "bias_correction": optimizer.bias_correction,
        "sensitivity_epsilon": optimizer.sensitivity_epsilon,
        "guide": optimizer.guide,
    }


def _has_scales(model: keras.Model, optimizers: Sequence[SensitivityGuided]) -> bool:
    """Whether the last sensitivity follows from the slots before and after a step."""
    reason = None
    own = [type(one) for one in optimizers if type(one)._scale is not SensitivityGuided._scale]
    if model.steps_per_execution > 1:
        reason = f"`steps_per_execution` is {model.steps_per_execution}, which hides single steps"
    elif any(one.sensitivity_dtype == "bfloat16" for one in optimizers):
        reason = '`sensitivity_dtype` is "bfloat16", which is too coarse to tell a step'
    elif own:
        reason = (
            f"`{own[0].__name__}` overrides `_scale`. A scale that follows from the sensitivity "
            "and its average alone can be logged: override `_scale_of` for that"
        )
    if reason:
        warnings.warn(
            f"SensitivityLogger leaves the values of the learning-rate scale out: {reason}.",
            stacklevel=4,
        )
    return reason is None


def _slots(optimizers: Sequence[SensitivityGuided]) -> list[Any]:
    slots = [slot.value for one in optimizers for slot in one.sensitivities.values()]
    if keras.backend.backend() == "tensorflow":
        # Variables, since reading one copies it; of a mirrored one that of the first replica.
        return [getattr(slot, "values", [slot])[0] for slot in slots]
    return slots


def _not_empty(counts: np.ndarray) -> tuple[int, int]:
    """The range of the bins that some row has counts in."""
    filled = np.flatnonzero(counts.any(axis=0))
    return (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
