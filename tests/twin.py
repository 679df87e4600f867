"""SAGE and the optimizers it is built on, in NumPy and float64, written from the formulas.

As plain as can be, one array at a time, and without a line of the library: what the tests hold
the library against.
"""

import numpy as np


def clip_by_norm(gradients, limit):
    """Each gradient on its own."""
    return [g * limit / max(np.linalg.norm(g), limit) for g in gradients]


def clip_by_global_norm(gradients, limit):
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
    return [g * limit / max(norm, limit) for g in gradients]


class Twin:
    """One weight array under a guided optimizer: `weight`, `state` and `step`."""

    slots = ()  # the names of the base's slots, as Keras names them

    def __init__(
        self,
        weight,
        learning_rate,
        beta_3=0.75,
        bias_correction=True,
        sensitivity_epsilon=1e-12,
        weight_decay=0.0,
        guide=True,
        calibrate=False,
    ):
        self.weight = np.array(weight, dtype="float64")
        self.state = {name: np.zeros_like(self.weight) for name in (*self.slots, "sensitivity")}
        if calibrate:
            self.state["mean_scale"] = np.float64(1.0)
        self.iterations = 0
        self.learning_rate = learning_rate
        self.beta_3 = beta_3
        self.bias_correction = bias_correction
        self.sensitivity_epsilon = sensitivity_epsilon
        self.weight_decay = weight_decay
        self.guide = guide
        self.scale = None

    def step(self, gradient):
        g = np.asarray(gradient, dtype="float64")
        t = self.iterations + 1
        lr = self.rate()

        self.weight = self.weight - lr * self.weight_decay * self.weight

        sensitivity = np.abs(self.weight * g)
        average = self.beta_3 * self.state["sensitivity"] + (1 - self.beta_3) * sensitivity
        smoothed = average / (1 - self.beta_3**t) if self.bias_correction else average
        variation = np.abs(sensitivity - smoothed)
        self.scale = (variation + self.sensitivity_epsilon) / (smoothed + self.sensitivity_epsilon)
        self.state["sensitivity"] = average
        if "mean_scale" in self.state:
            mean, now = self.state["mean_scale"], np.mean(self.scale)
            self.scale = self.scale / max(mean, 0.1)
            if t > 1:  # the mean of steps 2 to t
                self.state["mean_scale"] = ((t - 2) * mean + now) / (t - 1)

        rate = lr * self.scale if self.guide else lr
        self.weight = self.weight - rate * self.direction(g, t)
        self.iterations = t

    def rate(self):
        """The learning rate of the next step."""
        return (
            self.learning_rate(self.iterations)
            if callable(self.learning_rate)
            else self.learning_rate
        )

    def direction(self, g, t):
        raise NotImplementedError


class SGD(Twin):
    def direction(self, g, t):
        return g


class Adam(Twin):
    slots = ("momentum", "velocity")

    def direction(self, g, t, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        m = self.state["momentum"] = beta_1 * self.state["momentum"] + (1 - beta_1) * g
        v = self.state["velocity"] = beta_2 * self.state["velocity"] + (1 - beta_2) * g**2
        # Keras adds epsilon before v is corrected ("epsilon hat" in Adam's paper).
        return m / (1 - beta_1**t) * np.sqrt(1 - beta_2**t) / (np.sqrt(v) + epsilon)


class Adamax(Twin):
    slots = ("momentum", "norm")

    def direction(self, g, t, beta_1=0.9, beta_2=0.999, epsilon=1e-7):
        m = self.state["momentum"] = beta_1 * self.state["momentum"] + (1 - beta_1) * g
        u = self.state["norm"] = np.maximum(beta_2 * self.state["norm"], np.abs(g))
        return m / (1 - beta_1**t) / (u + epsilon)


TWINS = {"Sage": Adam, "SageAdam": Adam, "SageAdamax": Adamax, "SageSGD": SGD}
