"""Sage with the sensitivity taken out, a piece at a time: the controls of the evidence.

Each is Sage but for the scale that multiplies a weight's learning rate, so that what a control
lacks is what it tells apart.
"""

import math

from keras import ops

from sage_keras import DPSMix, Sage
from sage_keras.histograms import total
from sage_keras.random_bits import chosen, random_bits


class MeanScale(Sage):
    """AdamW with its rate times the mean of Sage's scale over all guided weights.

    The mean is that of the step before, so that the update stays one pass. At the first step it is
    0, as Sage's own bias-corrected scale is.
    """

    def _add_slots(self, variables):
        super()._add_slots(variables)
        self._mean = self.add_variable((), dtype="float32", name="mean_scale")
        self._sum = self.add_variable((), dtype="float32", name="sum_of_scales")

    def _end_step(self, updated):
        super()._end_step(updated)
        count = sum(math.prod(slot.shape) for slot in self._sensitivities if slot is not None)
        self._mean.assign(self._sum / count)
        self._sum.assign(0.0)

    def _scale(self, variable, value, average):
        scale = super()._scale(variable, value, average)
        self.assign_add(self._sum, total(scale))
        return ops.convert_to_tensor(self._mean)


class TensorMean(Sage):
    """AdamW with the rate of each variable times the mean of Sage's scale over that variable."""

    def _scale(self, variable, value, average):
        return ops.mean(super()._scale(variable, value, average))


class RandomScale(Sage):
    """AdamW with a scale that has Sage's distribution and nothing to do with the weight it is for.

    At each step the scales of each variable are dealt out again: laid out in one row and turned by
    a random offset, so that every weight gets that of a random other one.
    """

    def _add_slots(self, variables):
        super()._add_slots(variables)
        # A variable of the optimizer: another seed needs no tracing.
        self.seed_state = self.add_variable((), dtype="int32", name="seed")

    def reseed(self, seed):
        """Takes another series of offsets.

        Args:
            seed: Integer.
        """
        self.seed_state.assign(seed)

    def _scale(self, variable, value, average):
        scale = super()._scale(variable, value, average)
        row = ops.reshape(scale, (-1,))
        size = row.shape[0]
        # An offset for each variable and step.
        bits = random_bits(self.seed_state, self.iterations, (len(self._sensitivities),))
        bits = bits[self._get_variable_index(variable)]
        offset = ops.mod(ops.bitwise_and(bits, 2**31 - 1), size)
        twice = ops.concatenate([row, row])
        return ops.reshape(ops.slice(twice, [offset], [size]), scale.shape)


class FrozenScale(Sage):
    """Sage up to the end of the warm-up, whose last scale each weight then keeps.

    Args:
        *args: Positional arguments of `Sage`.
        warmup_steps: Integer, how many steps to guide.
        **kwargs: Keyword arguments of `Sage`.
    """

    def __init__(self, *args, warmup_steps, **kwargs):
        super().__init__(*args, **kwargs)
        self.warmup_steps = warmup_steps

    def _add_slots(self, variables):
        super()._add_slots(variables)
        self._frozen_scales = self._slots(variables, "frozen_scale", "float32")

    def _scale(self, variable, value, average):
        scale = super()._scale(variable, value, average)
        slot = self._frozen_scales[self._get_variable_index(variable)]
        frozen = ops.where(self.iterations < self.warmup_steps, scale, ops.convert_to_tensor(slot))
        self.assign(slot, frozen)
        return frozen


class SeededDPSMix(DPSMix):
    """DPSMix whose seed can be set again, so that several runs share one compiled step."""

    seed_state = None

    def _add_slots(self, variables):
        super()._add_slots(variables)
        # A variable of the optimizer: another seed needs no tracing.
        self.seed_state = self.add_variable((), dtype="int32", name="seed")
        self.reseed(0)

    def reseed(self, seed):
        """Takes another series of masks.

        Args:
            seed: Integer.
        """
        self.seed_state.assign(seed)
        self._columns.assign(self._draw(self._columns.shape, 0))

    def _draw(self, shape, step):
        seed = self.seed if self.seed_state is None else self.seed_state
        bits = random_bits(seed, step, shape)
        return ops.cast(chosen(bits, 1.0 - self.drop_rate), "float32")
