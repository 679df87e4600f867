"""From the slots of a model's guided optimizers to the figures of a report."""

import math
import warnings

import keras
import numpy as np
from keras import ops

from sage_keras import histograms
from sage_keras import sensitivity as measure
from sage_keras.backend import compiled
from sage_keras.groups import group_positions
from sage_keras.optimizers.sage.guided import guided_optimizers

_REDUNDANT = 0.01  # of the mean of the whole model
UNKNOWN = object()  # for slots that nobody copied before the last step


class SlotFigures:
    """The figures of groups of guided variables, reduced on the device by one compiled function.

    It keeps nothing of the state, which on JAX moves on with every step: the model is passed in.

    Args:
        model: A built `keras.Model` whose optimizer is built.
        groups: As `group_variables` takes them.
        probabilities: Floats, which quantiles to compute.
        with_histograms: Boolean, whether to hand out histograms.

    Raises:
        ValueError: If the optimizer guides no variable of the model.
    """

    def __init__(self, model, groups, probabilities, with_histograms):
        optimizers = guided_optimizers(model.optimizer)
        variables = [variable for one in optimizers for variable in one.guided_variables]
        if not variables:
            refuse(model.optimizer)
        members = group_positions(model, groups, variables)
        self._names, self._members = list(members), list(members.values())
        self._owners = [i for i, one in enumerate(optimizers) for _ in one.guided_variables]
        self._settings = [_settings(one) for one in optimizers]
        self._probabilities = probabilities
        self._histograms = with_histograms
        self._has_scales = _has_scales(model, optimizers)

        sizes = [math.prod(variable.shape) for variable in variables]
        self._parameters = [sum(sizes[i] for i in group) for group in self._members]
        self._strides = [histograms.stride(one.shape, sum(sizes)) for one in variables]
        seen = [-(-size // stride) for size, stride in zip(sizes, self._strides)]
        self._weights = [size / count for size, count in zip(sizes, seen)]
        self._compiled_samples = compiled(self._samples)
        self._compiled_table = compiled(self._table)

    def copy(self, model):
        """What the scale of the next step will be computed from, or `None` if it cannot be."""
        return self._compiled_samples(_slots(model)) if self._has_scales else None

    def report(self, model, iterations, previous):
        """The entries of a report that follow from the state of the model.

        Args:
            model: The model.
            iterations: The steps that each guided optimizer has made.
            previous: What `copy` returned before the last step, `None` if there were no slots
                yet, or `UNKNOWN`.
        """
        slots = _slots(model)
        steps = ops.convert_to_tensor(np.maximum(iterations, 1).astype("float32"))
        known = previous is not UNKNOWN
        if not self._has_scales:
            previous = None
        elif previous is None or not known:
            previous = [ops.zeros_like(one) for one in self._compiled_samples(slots)]
        table = self._compiled_table(slots, steps, previous)
        return self._entries(np.array(ops.convert_to_numpy(table)), known)

    def _samples(self, slots):
        return [
            histograms.sample(ops.cast(slot, "float32"), stride)
            for slot, stride in zip(slots, self._strides)
        ]

    def _table(self, slots, steps, previous):
        settings = [(self._settings[owner], steps[owner]) for owner in self._owners]
        # The correction for having begun at zero is one factor for the whole variable.
        factors = [measure.bias_corrected(1.0, one["beta_3"], step) for one, step in settings]
        samples = self._samples(slots)
        smoothed = [one * factor for one, factor in zip(samples, factors)]
        totals = [
            histograms.total(ops.cast(slot, "float32")) * factor
            for slot, factor in zip(slots, factors)
        ]
        means = self._means(totals)
        redundant = [one < _REDUNDANT * means[0] for one in smoothed]
        counts = self._counts(smoothed)
        columns = [
            means,
            self._means(self._estimates(redundant)),
            histograms.gini(counts),
            histograms.quantiles(counts, self._probabilities),
        ]
        if self._has_scales:
            scales = [_scale(*arguments) for arguments in zip(samples, previous, settings)]
            columns += [
                self._means(self._estimates(scales)),
                histograms.group_maxima(scales, self._members),
                histograms.quantiles(self._counts(scales), self._probabilities),
            ]
        columns.append(histograms.coarse(counts))
        columns = [one if len(one.shape) > 1 else ops.expand_dims(one, -1) for one in columns]
        return ops.concatenate(columns, axis=-1)

    def _means(self, totals):
        return histograms.group_means(totals, self._parameters, self._members)

    def _counts(self, samples):
        return histograms.group_histograms(samples, self._weights, self._members)

    def _estimates(self, samples):
        """The sum of all parameters of each variable, estimated from its sample."""
        return [ops.sum(ops.cast(one, "float32")) * w for one, w in zip(samples, self._weights)]

    def _entries(self, table, known):
        quantiles = [f"q{probability:g}" for probability in self._probabilities]
        names = ["mean", "redundant_share", "gini", *quantiles]
        if self._has_scales:
            names += ["scale_mean", "scale_max", *(f"scale_{name}" for name in quantiles)]
        figures, zeros, counts = np.split(table, [len(names), len(names) + 1], axis=1)
        if not known:
            figures[:, 3 + len(quantiles) :] = np.nan
        entries = [
            # The shortest digits that mean the same float32.
            {"parameters": n, "figures": {name: float(str(x)) for name, x in zip(names, row)}}
            for n, row in zip(self._parameters, figures)
        ]
        report = {"optimizers": self._settings}
        if self._histograms:
            first, last = _not_empty(counts)
            report["edges"] = histograms.COARSE_EDGES[first : last + 1].tolist()
            for entry, none, row in zip(entries, zeros, counts[:, first:last]):
                entry["histogram"] = {"zeros": round(float(none[0])), "counts": _whole(row)}
        named = dict(zip(self._names, entries))
        return {**report, "model": named.pop(None), "groups": named}


def refuse(optimizer):
    """Says that an optimizer measures nothing, and what to use instead."""
    raise ValueError(
        "The model's optimizer measures no sensitivity. Use `sage_keras.Sage`, or guide another "
        "Keras optimizer by a class of your own with `sage_keras.SensitivityGuided`; its argument "
        "`guide=False` watches that optimizer without changing what it does. "
        f"Received: optimizer={optimizer!r}"
    )


def _settings(optimizer):
    return {
        "class": type(optimizer).__name__,
        "beta_3": optimizer.beta_3,
        "bias_correction": optimizer.bias_correction,
        "sensitivity_epsilon": optimizer.sensitivity_epsilon,
        "guide": optimizer.guide,
    }


def _has_scales(model, optimizers):
    """Whether the last sensitivity follows from the slots before and after a step."""
    reason = None
    if model.steps_per_execution > 1:
        reason = f"`steps_per_execution` is {model.steps_per_execution}, which hides single steps"
    elif any(one.sensitivity_dtype == "bfloat16" for one in optimizers):
        reason = '`sensitivity_dtype` is "bfloat16", which is too coarse to tell a step'
    if reason:
        warnings.warn(
            f"SensitivityLogger leaves the figures of the learning-rate scale out: {reason}.",
            stacklevel=4,
        )
    return reason is None


def _slots(model):
    slots = [
        slot.value
        for one in guided_optimizers(model.optimizer)
        for slot in one.sensitivities.values()
    ]
    if keras.backend.backend() == "tensorflow":
        # Variables, since reading one copies it; of a mirrored one that of the first replica.
        return [getattr(slot, "values", [slot])[0] for slot in slots]
    return slots


def _scale(average, previous, setting):
    """The learning-rate scale of the step that took one average to the other."""
    settings, step = setting
    value = measure.last_value(average, previous, settings["beta_3"])
    if settings["bias_correction"]:
        average = measure.bias_corrected(average, settings["beta_3"], step)
    return measure.learning_rate_scale(value, average, settings["sensitivity_epsilon"])


def _not_empty(counts):
    """The range of the bins that some row has counts in."""
    filled = np.flatnonzero(counts.any(axis=0))
    return (filled[0], filled[-1] + 1) if len(filled) else (0, 0)


def _whole(counts):
    return np.rint(counts).astype("int64").tolist()
