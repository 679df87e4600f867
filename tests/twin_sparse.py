"""Sparse fine-tuning and Child-Tuning in NumPy and float64, written from the formulas.

Around any optimizer of `twin`, which sees a vector of the chosen weights and nothing else.
"""

import numpy as np


def best(scores, count):
    """The positions of the largest scores, ascending; of equal ones the first."""
    order = np.argsort(-np.asarray(scores, "float64").ravel(), kind="stable")
    return np.sort(order[:count])


class Sparse:
    """One weight array of which a share trains.

    Args:
        weight: The array.
        make: Function of a vector of chosen weights that returns their twin.
        positions: Where the chosen weights are, or None if gradients choose.
        count: How many they choose.
        selection_steps: By how many steps.
    """

    def __init__(self, weight, make, positions=None, count=0, selection_steps=0):
        self.weight = np.array(weight, "float64")
        self.make = make
        self.count = count
        self.steps_left = selection_steps if positions is None else 0
        self.seen = []
        self.positions = positions
        self.base = None

    def step(self, gradient):
        """The gradient, or a function of a vector of the chosen gradients that clips them."""
        gradient = np.asarray(gradient, "float64")
        if self.steps_left:
            self.seen.append(np.abs(gradient))
            self.steps_left -= 1
            self.positions = best(np.max(self.seen, axis=0), self.count)
            return
        if self.base is None:
            self.base = self.make(self.weight.reshape(-1)[self.positions])
        self.base.weight = self.weight.reshape(-1)[self.positions]  # whoever has set them
        self.base.step(gradient.reshape(-1)[self.positions])
        self.weight.reshape(-1)[self.positions] = self.base.weight
