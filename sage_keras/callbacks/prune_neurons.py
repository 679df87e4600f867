"""The callback that prunes whole neurons while a model trains."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from sage_keras import arguments
from sage_keras.annotations import Arrays, Variable
from sage_keras.backend import give_back_state
from sage_keras.callbacks.watched import not_known_yet
from sage_keras.compression.neurons import Neurons, ScoreOf, by_name, magnitudes, to_array
from sage_keras.compression.structured import find_neurons, how_many, kernels, zero
from sage_keras.optimizers.base import find_optimizers
from sage_keras.optimizers.dps.mixing import WeightMixing
from sage_keras.optimizers.sage.guided import guided_optimizers


class PruneNeurons(keras.callbacks.Callback):
    """Zeroes part of a model's neurons while it trains, in a few rounds.

    In each round the neurons of the least score go, as `sage_keras.compression.prune_neurons`
    chooses them: the same share in each layer or block. The shares rise as a cubic curve, fast at
    first. A neuron that is gone does not come back: all its weights are zero, so it has no
    gradient, and what the optimizer remembers of it is zeroed as well. After `fit`,
    `sage_keras.compression.compact` returns the smaller model.

    `logs` get `pruned_neurons`, the share of the neurons that are zeroed, at the end of each epoch.

    Args:
        fraction: Float from 0 to 1, the share of each layer's neurons that is zeroed in the end.
        scores: `"sensitivity"` for the optimizer's own averages, or `"magnitude"` for the absolute
            weights. The former needs an optimizer that has them, such as `sage_keras.Sage`, for
            all kernels of the neurons. Defaults to `"sensitivity"`.
        rounds: Int, how many times neurons are zeroed. On JAX each takes the time of a
            synchronization. Defaults to `8`.
        begin: Float from 0 to 1, where the first round is, as a fraction of all steps. Defaults to
            `0.1`.
        end: Float from 0 to 1, where the last round is, as a fraction of all steps. Defaults to
            `0.7`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range. In `fit`, before anything is changed: if the
            model has no neurons that can be cut, if an activation of zero is not zero (as of
            sigmoid), if the optimizer has no sensitivities or mixes weights, or if the number of
            steps is not known.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import sage_keras
    >>> layers = [keras.layers.Dense(8, activation="relu", name="hidden"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> model.compile(optimizer=sage_keras.Sage(1e-3), loss="mse")
    >>> prune = sage_keras.callbacks.PruneNeurons(0.5, rounds=2)
    >>> x, y = np.ones((40, 2)), np.ones((40, 1))
    >>> history = model.fit(x, y, batch_size=4, callbacks=[prune], verbose=0)
    >>> sage_keras.compression.compact(model).get_layer("hidden").units
    4

    Reference:
        - [Zhu and Gupta, 2017](https://arxiv.org/abs/1710.01878), the schedule
    """

    def __init__(
        self,
        fraction: float,
        scores: str = "sensitivity",
        rounds: int = 8,
        begin: float = 0.1,
        end: float = 0.7,
    ) -> None:
        super().__init__()
        self.fraction = arguments.number("fraction", fraction, 0, 1, example="0.5")
        self.scores = arguments.choice("scores", scores, ("sensitivity", "magnitude"))
        self.rounds = arguments.integer("rounds", rounds, low=1, example=8)
        self.begin = arguments.share("begin", begin, example=0.1)
        self.end = arguments.share("end", end, example=0.7)
        if self.begin > self.end:
            raise ValueError(
                "Argument `begin` must be at most `end`, such as begin=0.1, end=0.7. "
                f"Received: begin={begin!r}, end={end!r}"
            )

    @property
    def pruned(self) -> Arrays:
        """The positions of the zeroed neurons, by the name of their layer or block."""
        neurons, _ = find_neurons(self.model)
        return by_name(neurons, [one.zeroed() for one in neurons])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Looks at the model and the optimizer, and lays out the rounds."""
        optimizer = self.model.optimizer
        if self.model.built:
            self._find_neurons()
        if find_optimizers(optimizer, WeightMixing):
            raise ValueError(
                "`PruneNeurons` does not work with an optimizer that mixes weights, which puts "
                f"zeroed ones back. Received: optimizer={optimizer!r}"
            )
        wanted = self.scores == "sensitivity" and not not_known_yet(optimizer)
        if wanted and not guided_optimizers(optimizer):
            raise ValueError(
                "`PruneNeurons` finds no sensitivities in the optimizer. Compile the model with "
                'one that has them, such as `sage_keras.Sage`, or pass scores="magnitude". '
                f"Received: optimizer={optimizer!r}"
            )
        self._steps_of_epoch = self.params.get("steps")
        if not self._steps_of_epoch:
            raise ValueError(
                "`PruneNeurons` needs the number of steps in an epoch, and the data do not tell. "
                "Pass `steps_per_epoch` to `fit`."
            )
        steps = self._steps_of_epoch * self.params["epochs"]
        shares = np.linspace(self.begin, self.end, self.rounds)
        # Not before the first step: there is no sensitivity yet.
        self._due = [max(1, round(share * steps)) for share in shares]
        self._done = 0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the steps."""
        self._before = epoch * self._steps_of_epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Prunes, if a round is due before this step."""
        self._prune_if_due(self._before + batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prunes, if a round is due after the last step, and logs the share."""
        self._prune_if_due(self._before + self._steps_of_epoch)
        if logs is not None:
            masks = [one.zeroed() for one in self._find_neurons()]
            logs["pruned_neurons"] = float(np.mean(np.concatenate(masks)))

    def _prune_if_due(self, step: int) -> None:
        done = sum(due <= step for due in self._due)
        if done == self._done:
            return
        give_back_state(self.model)
        neurons = self._find_neurons()
        share = self.fraction * (1 - (1 - done / self.rounds) ** 3)
        score_of = self._score_of(neurons)
        chosen = [one.least(score_of, n) for one, n in zip(neurons, how_many(neurons, share))]
        zero(neurons, chosen, self._slots)
        self._done = done

    def _find_neurons(self) -> list[Neurons]:
        neurons, _ = find_neurons(self.model)
        coming_back = [one.name for one in neurons if not one.keeps_zero]
        if coming_back:
            raise ValueError(
                "`PruneNeurons` needs activations that are zero at zero, such as relu, gelu or "
                "silu: or zeroed neurons get gradients and come back. That is not so of these "
                f"layers: {coming_back}"
            )
        return neurons

    def _score_of(self, neurons: list[Neurons]) -> ScoreOf:
        if self.scores == "magnitude":
            return magnitudes
        arrays = {
            id(variable): to_array(optimizer.sensitivity(variable))
            for optimizer in guided_optimizers(self.model.optimizer)
            for variable in optimizer.guided_variables
        }
        for variable in (kernel for one in neurons for kernel in kernels(one)):
            if id(variable) not in arrays:
                raise ValueError(
                    f"`PruneNeurons` finds no sensitivities of {variable.path!r} in the "
                    "optimizer. Have it guide the kernels of all neurons, by `include` and "
                    '`exclude`, or pass scores="magnitude".'
                )
        return lambda variable: arrays.get(id(variable))

    def _slots(self, weight: Variable) -> list[Variable]:
        """What the optimizers keep of a weight, in variables of its shape."""
        return [
            slots[index]
            for optimizer in _innermost(self.model.optimizer)
            for index, variable in enumerate(optimizer._trainable_variables)
            if variable is weight
            for slots in _slot_lists(optimizer)
            if getattr(slots[index], "shape", None) == weight.shape
        ]


def _innermost(optimizer: Any) -> Iterator[Any]:
    inner = [getattr(optimizer, "inner_optimizer", None), *getattr(optimizer, "optimizers", [])]
    inner = [one for one in inner if one is not None]
    for one in inner:
        yield from _innermost(one)
    if not inner:
        yield optimizer


def _slot_lists(optimizer: Any) -> list[Any]:
    """An optimizer's lists of variables that go with its trainable variables, one by one."""
    weights = optimizer._trainable_variables
    return [
        one
        for one in vars(optimizer).values()
        if isinstance(one, list) and len(one) == len(weights) and one[0] is not weights[0]
    ]
