"""Pruning while training in NumPy and float64, written from the formulas, around any `twin`."""

import fractions

import numpy as np


def pruned_count(size, final_sparsity, step, begin, end):
    left = fractions.Fraction(end - step, end - begin)
    return round(size * fractions.Fraction(str(final_sparsity)) * (1 - left**3))


class Pruned:
    """Weight arrays that are pruned together. `bases` are their twins under the base optimizer.

    `model` is what the model holds between steps: what the mask leaves out is zero. `gap` is the
    smallest distance, as a share, between the last score that was kept and the next: float32 must
    be able to see it.
    """

    def __init__(
        self, bases, score, final_sparsity, begin, end, update_freq, beta_3=0.85, beta_4=0.95
    ):
        self.bases = bases
        self.score = score
        self.final_sparsity = final_sparsity
        self.begin, self.end, self.update_freq = begin, end, update_freq
        self.beta_3, self.beta_4 = beta_3, beta_4
        self.masks = [np.ones(one.weight.shape, dtype=bool) for one in bases]
        self.sums = [np.zeros(one.weight.shape) for one in bases]
        self.averages = [np.zeros(one.weight.shape) for one in bases]
        self.uncertainties = [np.zeros(one.weight.shape) for one in bases]
        self.hidden = [one.weight.copy() for one in bases]
        self.pruned = 0
        self.steps = 0
        self.gap = np.inf

    @property
    def model(self):
        return [one.weight * mask for one, mask in zip(self.bases, self.masks)]

    def step(self, gradients):
        self.steps += 1
        for index, (one, gradient) in enumerate(zip(self.bases, gradients)):
            g = np.asarray(gradient, dtype="float64")
            if self.score == "movement":
                one.weight = np.where(self.masks[index], one.weight, self.hidden[index])
            self.measure(index, one.weight * (1 - one.rate() * one.weight_decay), g)
            one.step(g)
            self.hidden[index] = one.weight.copy()
        past = self.steps - self.begin
        if self.steps == self.end or (
            self.begin < self.steps < self.end and past % self.update_freq == 0
        ):
            self.choose()
        for one, mask in zip(self.bases, self.masks):
            one.weight = one.weight * mask

    def measure(self, index, weight, g):
        value = np.abs(weight * g)
        average = self.beta_3 * self.averages[index] + (1 - self.beta_3) * value
        variation = np.abs(value - average / (1 - self.beta_3**self.steps))
        self.averages[index] = average
        self.uncertainties[index] = (
            self.beta_4 * self.uncertainties[index] + (1 - self.beta_4) * variation
        )
        if self.score == "movement":
            self.sums[index] += -self.bases[index].rate() * weight * g
        else:
            self.sums[index] += g**2

    def scores(self):
        if self.score == "magnitude":
            return [np.abs(one.weight) for one in self.bases]
        if self.score == "sensitivity":
            return self.averages
        if self.score == "confidence":
            return [average * u for average, u in zip(self.averages, self.uncertainties)]
        return self.sums

    def choose(self):
        scores = np.concatenate([one.ravel() for one in self.scores()])
        self.pruned = pruned_count(
            scores.size, self.final_sparsity, self.steps, self.begin, self.end
        )
        ascending = np.argsort(scores, kind="stable")
        last, first = scores[ascending[self.pruned - 1]], scores[ascending[self.pruned]]
        self.gap = min(self.gap, (first - last) / max(abs(first), abs(last)))
        kept = np.ones(scores.size, dtype=bool)
        kept[ascending[: self.pruned]] = False
        ends = np.cumsum([one.weight.size for one in self.bases])[:-1]
        parts = np.split(kept, ends)
        self.masks = [part.reshape(one.weight.shape) for part, one in zip(parts, self.bases)]
