"""The optimizer's step on torch, an operation for all variables instead of one for each.

Outside of `torch.compile` torch runs every operation by itself, and a step of many small ones waits
for Python. `torch._foreach_*` take lists. Keras has such steps for its own classes and not for
subclasses, and at one learning rate for all. These take a rate for each variable or weight; where
none is asked for, they do what Keras's do, to the bit.

Only `OptimizerMixin` imports this module, on torch. What it cannot do at once it leaves to
`update_step`, an update a variable, which all other backends have.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import torch
from keras import ops

from sage_keras import sensitivity as measure
from sage_keras.annotations import Variable

if TYPE_CHECKING:
    from sage_keras.optimizers.base import OptimizerMixin

Tensors = list[torch.Tensor] | tuple[torch.Tensor, ...]


@torch.no_grad()
def update(
    optimizer: "OptimizerMixin",
    gradients: Sequence[torch.Tensor],
    variables: Sequence[Variable],
    learning_rate: Any,
) -> bool:
    """Updates all variables at once, if that can be done.

    Args:
        optimizer: The optimizer, whose `_adjust_all` changes gradients and rates.
        gradients: List of gradients, clipped and without gaps.
        variables: List of their variables.
        learning_rate: The learning rate of all.

    Returns:
        Whether the step was made. If not, nothing was changed.
    """
    rule = _rule(optimizer)
    if rule is None or not _are_alike(gradients, variables):
        return False
    step = Step(optimizer, gradients, variables, learning_rate)
    optimizer._adjust_all(step)
    rule(optimizer, step)
    return True


class Step:
    """A step of all variables at once, as the mixins change it before the base's rule is applied.

    Attributes:
        gradients: List of gradients, not to be changed in place.
        weights: List of the values of the variables.
        indices: List of integers, which variables of the optimizer they are.
        count: Scalar float32 tensor, the number of the step, from 1 on.
        factors: List of floats, by which the learning rate of each variable is multiplied.
        scales: Dict of position to a tensor of the variable's shape, by which the learning rate of
            each weight is multiplied. The rule may overwrite the tensors.
    """

    def __init__(
        self,
        optimizer: "OptimizerMixin",
        gradients: Sequence[torch.Tensor],
        variables: Sequence[Variable],
        learning_rate: Any,
    ) -> None:
        self.gradients = list(gradients)
        self.weights: Tensors = [variable.value for variable in variables]
        self.indices = [optimizer._get_variable_index(variable) for variable in variables]
        self.factors = [1.0] * len(self.indices)
        self.scales: dict[int, torch.Tensor] = {}
        self.count = ops.cast(optimizer.iterations + 1, "float32")
        self._rate = ops.cast(learning_rate, "float32")

    def positions(self, slots: Sequence[Variable | None]) -> list[int]:
        """The positions of the variables that have a slot."""
        return [at for at, index in enumerate(self.indices) if slots[index] is not None]

    def slots(self, slots: Sequence[Variable], positions: Sequence[int] | None = None) -> Tensors:
        """The values of the slots, of all variables or of those in some positions."""
        chosen = range(len(self.indices)) if positions is None else positions
        return [slots[self.indices[at]].value for at in chosen]

    @property
    def rate(self) -> torch.Tensor:
        """The learning rate: a scalar, or a vector of one for each variable if they differ."""
        if all(factor == 1.0 for factor in self.factors):
            return self._rate
        return self._rate * torch.tensor(self.factors, device=self._rate.device)

    def guide(
        self,
        averages: Sequence[Variable | None],
        beta_3: float,
        epsilon: float,
        bias_correction: bool,
        scale: bool,
    ) -> None:
        """Moves the averages of the sensitivity on, and scales the rates by it.

        Args:
            averages: List of the slots by variable, `None` for those that have none.
            beta_3: Float, the decay of the averages.
            epsilon: Float, as `measure.learning_rate_scale` takes it.
            bias_correction: Boolean, whether they are corrected for having begun at zero.
            scale: Boolean, whether the rates are scaled.
        """
        positions = self.positions(averages)
        if not positions:
            return
        gradients = [self.gradients[at] for at in positions]
        slots = self.slots(averages, positions)
        values = torch._foreach_mul([self.weights[at] for at in positions], gradients)
        torch._foreach_abs_(values)
        torch._foreach_clamp_max_(values, measure.LARGEST)
        torch._foreach_lerp_(slots, values, 1.0 - beta_3)
        if not scale:
            return
        # From here on `values` become the scales.
        if bias_correction:
            smoothed = torch._foreach_div(slots, measure.share_so_far(beta_3, self.count))
        else:
            smoothed = torch._foreach_mul(slots, 1.0)
        torch._foreach_sub_(values, smoothed)
        torch._foreach_add_(smoothed, epsilon)
        torch._foreach_abs_(values)
        torch._foreach_add_(values, epsilon)
        torch._foreach_div_(values, smoothed)
        self.scales |= dict(zip(positions, values))

    def select(
        self,
        scores: Sequence[Variable | None],
        place: int,
        stage_steps: int,
        thresholds: Variable,
    ) -> None:
        """Adds to the scores of DPS in stage I, and masks the gradients in stage II.

        Args:
            scores: List of the slots by variable, `None` for those that have none.
            place: Integer, the place of the step in its cycle.
            stage_steps: Integer, the number of steps of a stage.
            thresholds: Variable, the bits of a float32 for each variable.
        """
        positions = self.positions(scores)
        if not positions:
            return
        gradients = [self.gradients[at] for at in positions]
        slots = self.slots(scores, positions)
        if place < stage_steps:
            if place == 0:
                torch._foreach_zero_(slots)
            torch._foreach_addcmul_(slots, gradients, gradients)
            return
        # There are no comparisons of lists. The bits of a gradient times 1 or 0 are the gradient or
        # zero, of what is infinite or not a number too.
        bits = thresholds.value.tolist()
        least = [bits[self.indices[at]] - 1 for at in positions]
        masks = torch._foreach_sub([slot.view(torch.int32) for slot in slots], least)
        torch._foreach_clamp_min_(masks, 0)
        torch._foreach_clamp_max_(masks, 1)
        torch._foreach_mul_(masks, [one.view(torch.int32) for one in gradients])
        for at, mask in zip(positions, masks):
            self.gradients[at] = mask.view(torch.float32)

    def scaled(self, tensors: Tensors) -> Tensors:
        """The tensors times the scales: new ones where there is a scale, themselves elsewhere."""
        if self.scales:
            scales = list(self.scales.values())
            torch._foreach_mul_(scales, [tensors[at] for at in self.scales])
        return [self.scales.get(at, tensor) for at, tensor in enumerate(tensors)]

    def products(self, tensors: Tensors, rate: torch.Tensor) -> Tensors:
        """New tensors: the tensors times the scales and a rate of all, or one for each."""
        factor: Any = rate.tolist() if rate.ndim else rate
        scaled = self.scaled(tensors)
        if len(self.scales) < len(tensors):
            return torch._foreach_mul(scaled, factor)
        torch._foreach_mul_(scaled, factor)
        return scaled

    def add_products(self, targets: Tensors, tensors: Tensors, sign: int) -> None:
        """Adds tensors times the learning rate, or subtracts them if `sign` is -1."""
        rate = self.rate
        if rate.ndim == 0:
            torch._foreach_add_(targets, tensors, alpha=sign * float(rate))
            return
        positions: dict[float, list[int]] = {}
        for at, one in enumerate(rate.tolist()):
            positions.setdefault(one, []).append(at)
        for one, some in positions.items():
            chosen = [tensors[at] for at in some]
            torch._foreach_add_([targets[at] for at in some], chosen, alpha=sign * one)


# The rules of Keras's optimizers, in the order of its own operations on lists, and in place where
# it makes new tensors. Each takes the optimizer and the step.


def _adadelta(optimizer: Any, step: Step) -> None:
    gradients = step.gradients
    squares = step.slots(optimizer._accumulated_grads)
    deltas = step.slots(optimizer._accumulated_delta_vars)
    _decay_and_add_squares(squares, gradients, optimizer.rho)
    change = torch._foreach_add(deltas, optimizer.epsilon)
    torch._foreach_sqrt_(change)
    torch._foreach_mul_(change, gradients)
    below = torch._foreach_add(squares, optimizer.epsilon)
    torch._foreach_sqrt_(below)
    torch._foreach_div_(change, below)
    torch._foreach_neg_(change)
    _decay_and_add_squares(deltas, change, optimizer.rho)
    step.add_products(step.weights, step.scaled(change), 1)


def _adagrad(optimizer: Any, step: Step) -> None:
    accumulators = step.slots(optimizer._accumulators)
    torch._foreach_add_(accumulators, torch._foreach_mul(step.gradients, step.gradients))
    below = torch._foreach_add(accumulators, optimizer.epsilon)
    torch._foreach_sqrt_(below)
    _subtract_quotients(step, step.products(step.gradients, step.rate), below)


def _adam(optimizer: Any, step: Step) -> None:
    beta_1_power, beta_2_power = optimizer.beta_1**step.count, optimizer.beta_2**step.count
    rate = step.rate * torch.sqrt(1 - beta_2_power) / (1 - beta_1_power)
    momentums, velocities = _moments(optimizer, step)
    if optimizer.amsgrad:
        largest = step.slots(optimizer._velocity_hats)
        torch._foreach_maximum_(largest, velocities)
        velocities = largest
    below = torch._foreach_sqrt(velocities)
    torch._foreach_add_(below, optimizer.epsilon)
    _subtract_quotients(step, step.products(momentums, rate), below)


def _adamax(optimizer: Any, step: Step) -> None:
    momentums, norms = step.slots(optimizer._m), step.slots(optimizer._u)
    _decay_and_add(momentums, step.gradients, optimizer.beta_1)
    torch._foreach_mul_(norms, optimizer.beta_2)
    torch._foreach_maximum_(norms, torch._foreach_abs(step.gradients))
    below = torch._foreach_add(norms, optimizer.epsilon)
    torch._foreach_mul_(below, 1 - optimizer.beta_1**step.count)
    _subtract_quotients(step, step.products(momentums, step.rate), below)


def _lion(optimizer: Any, step: Step) -> None:
    momentums = step.slots(optimizer._momentums)
    signs = torch._foreach_mul(momentums, optimizer.beta_1)
    torch._foreach_add_(signs, step.gradients, alpha=1 - optimizer.beta_1)
    torch._foreach_sign_(signs)
    torch._foreach_sub_(step.weights, step.products(signs, step.rate))
    _decay_and_add(momentums, step.gradients, optimizer.beta_2)


def _nadam(optimizer: Any, step: Step) -> None:
    schedule, next_schedule = (
        optimizer.beta_1 * (1.0 - 0.5 * 0.96**one) for one in (step.count, step.count + 1)
    )
    product = optimizer._u_product.value * schedule
    optimizer._u_product.assign(product)
    momentums, velocities = _moments(optimizer, step)
    above = torch._foreach_mul(momentums, next_schedule)
    torch._foreach_div_(above, 1 - product * next_schedule)
    of_gradients = torch._foreach_mul(step.gradients, 1 - schedule)
    torch._foreach_div_(of_gradients, 1 - product)
    torch._foreach_add_(above, of_gradients)
    below = torch._foreach_div(velocities, 1 - optimizer.beta_2**step.count)
    torch._foreach_sqrt_(below)
    torch._foreach_add_(below, optimizer.epsilon)
    _subtract_quotients(step, step.products(above, step.rate), below)


def _rmsprop(optimizer: Any, step: Step) -> None:
    velocities = step.slots(optimizer._velocities)
    _decay_and_add_squares(velocities, step.gradients, optimizer.rho)
    below = torch._foreach_add(velocities, optimizer.epsilon)
    if optimizer.centered:
        averages = step.slots(optimizer._average_gradients)
        _decay_and_add(averages, step.gradients, optimizer.rho)
        torch._foreach_sub_(below, torch._foreach_mul(averages, averages))
    torch._foreach_sqrt_(below)
    increments = step.products(step.gradients, step.rate)
    if optimizer.momentum > 0:
        torch._foreach_div_(increments, below)
        momentums = step.slots(optimizer._momentums)
        torch._foreach_mul_(momentums, optimizer.momentum)
        torch._foreach_add_(momentums, increments)
        torch._foreach_sub_(step.weights, momentums)
    else:
        _subtract_quotients(step, increments, below)


def _sgd(optimizer: Any, step: Step) -> None:
    gradients = step.scaled(step.gradients)
    if optimizer.momentum == 0:
        step.add_products(step.weights, gradients, -1)
        return
    momentums = step.slots(optimizer.momentums)
    torch._foreach_mul_(momentums, optimizer.momentum)
    step.add_products(momentums, gradients, -1)
    if optimizer.nesterov:
        step.add_products(step.weights, gradients, -1)
        torch._foreach_add_(step.weights, momentums, alpha=optimizer.momentum)
    else:
        torch._foreach_add_(step.weights, momentums)


_RULES: dict[type, Callable[[Any, Step], None]] = {
    keras.optimizers.Adadelta: _adadelta,
    keras.optimizers.Adagrad: _adagrad,
    keras.optimizers.Adam: _adam,  # and AdamW, which has no rule of its own
    keras.optimizers.Adamax: _adamax,
    keras.optimizers.Lion: _lion,
    keras.optimizers.Nadam: _nadam,
    keras.optimizers.RMSprop: _rmsprop,
    keras.optimizers.SGD: _sgd,
}


def _decay_and_add(averages: Tensors, values: Tensors, decay: float) -> None:
    torch._foreach_mul_(averages, decay)
    torch._foreach_add_(averages, values, alpha=1 - decay)


def _decay_and_add_squares(averages: Tensors, values: Tensors, decay: float) -> None:
    torch._foreach_mul_(averages, decay)
    torch._foreach_add_(averages, torch._foreach_mul(values, values), alpha=1 - decay)


def _moments(optimizer: Any, step: Step) -> tuple[Tensors, Tensors]:
    """The moments of Adam and Nadam, with this step's gradients."""
    momentums, velocities = step.slots(optimizer._momentums), step.slots(optimizer._velocities)
    _decay_and_add(momentums, step.gradients, optimizer.beta_1)
    _decay_and_add_squares(velocities, step.gradients, optimizer.beta_2)
    return momentums, velocities


def _subtract_quotients(step: Step, above: Tensors, below: Tensors) -> None:
    torch._foreach_div_(above, below)
    torch._foreach_sub_(step.weights, above)


def _rule(optimizer: "OptimizerMixin") -> Callable[[Any, Step], None] | None:
    """The rule of the base, unless something between it and the mixins wants single variables."""
    from sage_keras.optimizers.base import OptimizerMixin

    if torch.compiler.is_compiling() or not optimizer._takes_all():
        return None
    order = type(optimizer).__mro__
    first, base = [one for one in order if "update_step" in vars(one)][:2]
    updates = [one for one in order if "_backend_update_step" in vars(one)]
    singly = [one for one in order if vars(one).keys() & {"_adjust", "_use_sensitivity"}]
    if (
        first is not OptimizerMixin
        or not set(updates) <= {OptimizerMixin, *base.__mro__}
        or any("_adjust_all" not in vars(one) for one in singly)
    ):
        return None
    return _RULES.get(base)


def _are_alike(gradients: Sequence[torch.Tensor], variables: Sequence[Variable]) -> bool:
    """Whether lists of them can go into one operation: dense, float32, on one device."""
    # A stateless scope has values of its own, which are not to be changed in place.
    if any(variable.value is not variable._value for variable in variables):
        return False
    tensors = [*gradients, *(variable.value for variable in variables)]
    return all(
        isinstance(one, torch.Tensor)
        and one.layout is torch.strided
        and one.dtype is torch.float32
        and one.device == tensors[0].device
        for one in tensors
    )
