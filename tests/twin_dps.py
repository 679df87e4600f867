"""DPS in NumPy and float64, written from the formulas, around any optimizer of `twin`."""

import decimal

import numpy as np


def kept_count(size, drop_rate):
    exact = size * (1 - decimal.Decimal(str(drop_rate)))
    return int(exact.to_integral_value(decimal.ROUND_CEILING))


def best(score, drop_rate):
    """The mask of the best scores, ties kept; and how near the next score comes, as a share."""
    descending = np.sort(score, axis=None)[::-1]
    count = kept_count(score.size, drop_rate)
    threshold = descending[count - 1]
    lower = descending[descending < threshold]
    gap = 1.0 if not lower.size else (threshold - lower[0]) / threshold
    return score >= threshold, gap


class Dense:
    """One weight array under DPS Dense. `base` is its twin under the base optimizer."""

    def __init__(self, base, stage_steps, drop_rate):
        self.base = base
        self.stage_steps = stage_steps
        self.drop_rate = drop_rate
        self.mask = np.ones(base.weight.shape, dtype=bool)
        self.gap = 1.0  # the smallest that a selection has had: float32 must be able to see it

    @property
    def weight(self):
        return self.base.weight

    def prepare(self):
        """Sets the mask of the coming step."""
        stage, step = divmod(self.base.iterations, self.stage_steps)
        if stage % 2 == 0:
            self.mask = np.ones(self.weight.shape, dtype=bool)
        elif step == 0:
            self.mask, gap = best(self.score, self.drop_rate)
            self.gap = min(self.gap, gap)

    def step(self, gradient):
        self.prepare()
        g = np.asarray(gradient, dtype="float64")
        stage, step = divmod(self.base.iterations, self.stage_steps)
        if stage % 2 == 0:
            self.score = g**2 if step == 0 else self.score + g**2
        self.base.step(g * self.mask)


class Mix:
    """One weight matrix under DPS Mix, or with `stages=False` under Mixout.

    `prepare` takes the columns that are drawn for the coming step. Then `effective` are the
    weights of its forward pass, at which the gradient for `step` is to be taken.
    """

    def __init__(self, base, stage_steps, drop_rate, stages=True):
        self.base = base
        self.stage_steps = stage_steps
        self.drop_rate = drop_rate
        self.stages = stages
        self.initial = base.weight.copy()
        self.gap = 1.0

    @property
    def weight(self):
        return self.base.weight

    def place(self):
        stage, step = divmod(self.base.iterations, self.stage_steps)
        return 0 if not self.stages else stage % 2, step

    def prepare(self, columns):
        second, step = self.place()
        if not second:
            self.mask = np.broadcast_to(columns, self.weight.shape).astype(bool)
            self.target = self.initial
        elif step == 0:
            self.target = self.weight.copy()
            score = self.squares / np.maximum(self.frequency, 1)
            if self.stage_steps >= 50:
                score = score * np.exp(-self.frequency / self.stage_steps)
            self.mask, gap = best(score, self.drop_rate)
            self.gap = min(self.gap, gap)

    @property
    def effective(self):
        m, w, t, p = self.mask, self.weight, self.target, self.drop_rate
        return (m * w + (1 - m) * t - p * t) / (1 - p)

    def step(self, gradient):
        g = np.asarray(gradient, dtype="float64") * self.mask
        second, step = self.place()
        if not second:
            if step == 0:
                self.squares = np.zeros_like(self.weight)
                self.frequency = np.zeros_like(self.weight)
            self.squares = self.squares + g**2
            self.frequency = self.frequency + self.mask
        self.base.step(g)
