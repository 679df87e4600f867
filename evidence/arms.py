"""The arms of the evidence: each a way to train, with its name and what makes its optimizer."""

import dataclasses
import math
import typing

import keras
from keras import ops

from evidence import controls
from evidence import lines as results
from sage_keras import (
    TRANSFORMER_BLOCKS,
    TRANSFORMER_MATRICES,
    DPSDense,
    LayerwiseAdamW,
    Sage,
    SageAdamax,
)

BETA_3 = 0.75  # of the controls, and of what is not tried with others

# What the page asks about. In the lines an arm is its name and its beta_3.
BASE = results.BASE
SAGE = ("Sage", BETA_3)
BLOCKS = ("SageBlocks", BETA_3)
CALIBRATED = ("Calibrated", BETA_3)
MEAN_SCALE = ("MeanScale", BETA_3)
MEAN_SCALE_BLOCKS = ("MeanScaleBlocks", BETA_3)
LAYERWISE = ("LayerwiseAdamW", None)
CONTROLS = {
    MEAN_SCALE: "one mean scale for the whole model",
    ("TensorMean", BETA_3): "one mean scale for each tensor",
    ("RandomScale", BETA_3): "scales dealt out at random",
    ("FrozenScale", BETA_3): "scales frozen after warm-up",
}


def label(arm):
    """An arm of the lines as it is written: its name, and its beta_3 where it has one."""
    return arm[0] if arm[1] is None else f"{arm[0]} {arm[1]:g}"


class WarmupAndDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises in a straight line over a tenth of the steps, and falls to 0.

    `peak` is a variable of the optimizer that `own_peak` gave it to: another rate needs no new
    compilation.

    Args:
        total_steps: Integer, the steps of the whole training.
    """

    def __init__(self, total_steps):
        super().__init__()
        self.total_steps = total_steps
        self.warmup_steps = math.ceil(0.1 * total_steps)
        self.peak = 1.0

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rise = (step + 1) / self.warmup_steps
        fall = (self.total_steps - step) / (self.total_steps - self.warmup_steps)
        return self.peak * ops.minimum(rise, fall)

    def own_peak(self, optimizer):
        """Makes `peak` a variable of this optimizer."""
        self.peak = optimizer.add_variable((), dtype="float32", name="peak")


@dataclasses.dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        name: String.
        optimizer_class: A Keras optimizer class.
        beta_3: Float, the decay of the sensitivity's moving average, or `None` where there is
            none.
        arguments: Function of the number of steps and of the warm-up's that returns a dict of
            further arguments of the optimizer.
    """

    name: str
    optimizer_class: type
    beta_3: float | None = None
    arguments: typing.Callable = lambda total_steps, warmup_steps: {}

    def __str__(self):
        return label((self.name, self.beta_3))

    def make_optimizer(self, total_steps):
        """The optimizer under the common recipe, at a learning rate that is yet to be set.

        Args:
            total_steps: Integer, the steps of the whole training.

        Returns:
            The optimizer. Its `schedule.peak` is the learning rate to set.
        """
        schedule = WarmupAndDecay(total_steps)
        arguments = self.arguments(total_steps, schedule.warmup_steps)
        if self.beta_3 is not None:
            arguments["beta_3"] = self.beta_3
        optimizer = self.optimizer_class(
            learning_rate=schedule, weight_decay=0.01, global_clipnorm=1.0, **arguments
        )
        optimizer.schedule = schedule
        schedule.own_peak(optimizer)
        return optimizer


def _blocks(total_steps, warmup_steps):
    return {"include": TRANSFORMER_BLOCKS}


def _blocks_at_half(total_steps, warmup_steps):
    # About the mean of Sage's scale. One pattern: each by itself has to match a variable.
    return {"learning_rate_multipliers": {"|".join(TRANSFORMER_BLOCKS): 0.5}}


def _dps(total_steps, warmup_steps):
    # Ten cycles. What is left over of the steps stays in stage I of an eleventh.
    return {"stage_steps": max(1, total_steps // 20), "include": TRANSFORMER_MATRICES}


def _calibrated(total_steps, warmup_steps):
    return {"calibrate": True}


def _frozen(total_steps, warmup_steps):
    return {"warmup_steps": warmup_steps}


ARMS = [
    Arm("AdamW", keras.optimizers.AdamW),
    Arm("Sage", Sage, 0.75),
    Arm("MeanScale", controls.MeanScale, BETA_3),
    Arm("RandomScale", controls.RandomScale, BETA_3),
    Arm("TensorMean", controls.TensorMean, BETA_3),
    Arm("FrozenScale", controls.FrozenScale, BETA_3, _frozen),
    Arm("Calibrated", Sage, BETA_3, _calibrated),
    Arm("SageBlocks", Sage, 0.75, _blocks),
    Arm("MeanScaleBlocks", controls.MeanScale, BETA_3, _blocks),
    Arm("Adamax", keras.optimizers.Adamax),
    Arm("SageAdamax", SageAdamax, BETA_3),
    Arm("Sage", Sage, 0.6),
    Arm("Sage", Sage, 0.9),
    Arm("SageBlocks", Sage, 0.6, _blocks),
    Arm("SageBlocks", Sage, 0.9, _blocks),
    Arm("DPSDense", DPSDense, None, _dps),
    Arm("DPSMix", controls.SeededDPSMix, None, _dps),
    # For GLUE: the authors' scope, with both values of beta_3 that they name.
    Arm("SageBlocks", Sage, 0.85, _blocks),
    Arm("SageAdamaxBlocks", SageAdamax, 0.75, _blocks),
    Arm("SageAdamaxBlocks", SageAdamax, 0.85, _blocks),
    Arm("LayerwiseAdamW", LayerwiseAdamW, None, _blocks_at_half),
]
