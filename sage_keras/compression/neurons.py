"""The neurons of hidden layers: which variables they are made of, their scores, and their cut."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from keras import ops

from sage_keras.annotations import Arrays, Variable

ScoreOf: TypeAlias = Callable[[Variable], np.ndarray | None]
# By id of a variable, along an axis, what is kept. A kernel has neurons on both sides.
Cuts: TypeAlias = dict[int, dict[int, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Neurons:
    """The neurons of one hidden layer, or of the feed-forward part of one block.

    Where a Flatten lies in between, a variable has each neuron at several positions.

    Args:
        name: String, the path of the layer or block.
        count: Integer, how many there are.
        incoming: Kernels of what makes the neurons: the last axis is theirs.
        vectors: Biases, and what normalizes the neurons by weights of each.
        outgoing: Kernel of what reads them: the last axis but one is theirs.
        statistics: What is known of each neuron and is no weight of it.
        keeps_zero: Boolean, whether what lies between the kernels leaves zero as zero. If so, a
            neuron whose weights are all zero has no gradient.
    """

    name: str
    count: int
    incoming: tuple[Variable, ...]
    vectors: tuple[Variable, ...]
    outgoing: Variable
    statistics: tuple[Variable, ...] = ()
    keeps_zero: bool = True

    @property
    def weights(self) -> list[tuple[Variable, int]]:
        """The weights that make up the neurons, each with the axis that is theirs."""
        return [*((one, -1) for one in (*self.incoming, *self.vectors)), (self.outgoing, -2)]

    def scores(self, score_of: ScoreOf) -> np.ndarray:
        """The score of each neuron: the sum of the scores of its weights.

        Args:
            score_of: Function of a variable that returns an array of its shape, or `None` for
                one that does not count.

        Returns:
            A float64 array.
        """
        total = np.zeros(self.count)
        for variable, axis in self.weights:
            array = score_of(variable)
            if array is not None:
                total += self._by_neuron(array, axis).sum(axis=0, dtype="float64")
        return total

    def zeroed(self) -> np.ndarray:
        """Which neurons change nothing: a Boolean array.

        Those whose outgoing weights are all zero. And those whose incoming weights are all zero,
        bias included, where that makes the neuron zero.
        """
        zeroed = self._all_zero([(self.outgoing, -2)])
        if self.keeps_zero and not self.statistics:
            zeroed |= self._all_zero([(one, -1) for one in (*self.incoming, *self.vectors)])
        return zeroed

    def least(self, score_of: ScoreOf, number: int) -> np.ndarray:
        """Which neurons have the least scores: a Boolean array.

        Those that are zeroed already come first, and of equal scores the first are kept.
        """
        order = np.lexsort((-np.arange(self.count), self.scores(score_of), ~self.zeroed()))
        chosen = np.zeros(self.count, bool)
        chosen[order[:number]] = True
        return chosen

    def zero(self, chosen: np.ndarray, beside: Callable[[Variable], Sequence[Variable]]) -> None:
        """Zeroes all weights of the chosen neurons.

        Args:
            chosen: Boolean array.
            beside: Function of a weight that returns other variables of its shape, in which the
                same entries are zeroed.
        """
        for weight, axis in self.weights:
            mask = _spread(chosen, weight, axis).reshape([-1] + [1] * (-1 - axis))
            for variable in (weight, *beside(weight)):
                value = variable.value
                variable.assign(ops.where(mask, ops.zeros_like(value), value))

    def add_cuts(self, cuts: Cuts, chosen: np.ndarray) -> None:
        """Notes in `cuts` what is kept of each variable when the chosen neurons go."""
        for variable, axis in [*self.weights, *((one, -1) for one in self.statistics)]:
            cuts.setdefault(id(variable), {})[axis] = ~_spread(chosen, variable, axis)

    def _all_zero(self, variables: list[tuple[Variable, int]]) -> np.ndarray:
        zero = [(self._by_neuron(to_array(one), axis) == 0).all(axis=0) for one, axis in variables]
        return np.logical_and.reduce(zero)

    def _by_neuron(self, array: np.ndarray, axis: int) -> np.ndarray:
        """An array as a matrix with one column for each neuron."""
        return np.moveaxis(array, axis, -1).reshape(-1, self.count)


def _spread(chosen: np.ndarray, variable: Variable, axis: int) -> np.ndarray:
    """A Boolean array for the whole axis, on which the neurons may stand several times."""
    return np.tile(chosen, variable.shape[axis] // len(chosen))


def cut(variable: Variable, cuts: Cuts) -> np.ndarray:
    """The value of a variable without what `cuts` takes from it."""
    array = to_array(variable)
    for axis, kept in cuts.get(id(variable), {}).items():
        array = np.compress(kept, array, axis=axis)
    return array


def cut_shape(variable: Variable, cuts: Cuts) -> tuple[int, ...]:
    """The shape of what `cut` returns."""
    shape = list(variable.shape)
    for axis, kept in cuts.get(id(variable), {}).items():
        shape[axis] = int(kept.sum())
    return tuple(shape)


def magnitudes(variable: Variable) -> np.ndarray:
    """The magnitudes of the weights in a variable."""
    return np.abs(to_array(variable))


def to_array(value: Any) -> np.ndarray:
    """A variable or tensor as a NumPy array."""
    return np.asarray(ops.convert_to_numpy(value))


def by_name(neurons: Sequence[Neurons], chosen: Sequence[np.ndarray]) -> Arrays:
    """The positions of the chosen neurons, by the name of their layer or block."""
    return {one.name: np.flatnonzero(mask) for one, mask in zip(neurons, chosen)}
