"""How many weights of a model are zero, by layer."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from sage_keras import arguments, text_tables
from sage_keras.annotations import Patterns, Variable
from sage_keras.groups import layers_of
from sage_keras.paths import variable_path
from sage_keras.scores import to_numpy

_COLUMNS: text_tables.Columns = {
    "Layer": "left",
    "Weights": "right",
    "Zeros": "right",
    "Sparsity": "right",
}


@dataclasses.dataclass(frozen=True)
class LayerSparsity:
    """How many weights of a layer are zero.

    Args:
        name: String, the layer's name, nested ones as `model/layer`.
        weights: Int, how many weights it has.
        zeros: Int, how many of them are zero.
    """

    name: str
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        return self.zeros / self.weights if self.weights else 0.0


@dataclasses.dataclass(frozen=True)
class Sparsity:
    """How many weights of a model are zero, by layer. `print` shows it as a table.

    Args:
        model_name: String.
        layers: Tuple with an entry for each layer that has weights, each with `name`, `weights`,
            `zeros` and `sparsity`.
    """

    model_name: str
    layers: tuple[LayerSparsity, ...]

    @property
    def weights(self) -> int:
        """How many weights there are."""
        return sum(layer.weights for layer in self.layers)

    @property
    def zeros(self) -> int:
        """How many of them are zero."""
        return sum(layer.zeros for layer in self.layers)

    @property
    def total(self) -> float:
        """The share of zeros over all layers."""
        return self.zeros / self.weights if self.weights else 0.0

    def summary(self, print_fn: Callable[[str], object] | None = None) -> None:
        """Prints the table.

        Args:
            print_fn: Function that is called with the whole text, or `None` to print it. Defaults
                to `None`.
        """
        text_tables.show(print_fn, *self._table())

    def __str__(self) -> str:
        return text_tables.text(*self._table())

    def _table(self) -> Any:
        rows = [
            [one.name, f"{one.weights:,}", f"{one.zeros:,}", f"{one.sparsity:.1%}"]
            for one in self.layers
        ]
        totals = {
            "Weights": f"{self.weights:,}",
            "Zeros": f"{self.zeros:,}",
            "Sparsity": f"{self.total:.1%}",
        }
        return self.model_name, _COLUMNS, rows, totals


def sparsity(model: keras.Model, include: Patterns = None, exclude: Patterns = None) -> Sparsity:
    """Counts the weights of a model that are zero, by layer.

    Args:
        model: A built `keras.Model`.
        include: `None`, or a list of regular expressions that are searched in the paths of the
            weights, to count those alone. Defaults to `None`, every weight, frozen ones included.
        exclude: `None`, or a list of regular expressions, not to count those. Defaults to `None`.

    Returns:
        A `Sparsity`, with the share of zeros as `total`, and one entry a layer in `layers`.

    Raises:
        TypeError: If `model` is not a Keras model, or patterns are no list of strings.
        ValueError: If the model is not built, or a pattern matches no weight.

    Example:

    >>> import keras
    >>> head = keras.layers.Dense(2, kernel_initializer="ones", name="head")
    >>> model = keras.Sequential([keras.Input((3,)), head], name="tiny")
    >>> found = sparsity(model)
    >>> found.total
    0.25
    >>> print(found)
    Model: "tiny"
    ┏━━━━━━━┳━━━━━━━━━┳━━━━━━━┳━━━━━━━━━━┓
    ┃ Layer ┃ Weights ┃ Zeros ┃ Sparsity ┃
    ┡━━━━━━━╇━━━━━━━━━╇━━━━━━━╇━━━━━━━━━━┩
    │ head  │       8 │     2 │    25.0% │
    └───────┴─────────┴───────┴──────────┘
     Weights: 8
     Zeros: 2
     Sparsity: 25.0%
    """
    arguments.built_model("model", model)
    weights = model.weights
    chosen = arguments.chosen(include, exclude, [variable_path(weight) for weight in weights])
    return count_zeros(model, [weight for weight, yes in zip(weights, chosen) if yes])


def count_zeros(model: keras.Model, weights: Sequence[Variable]) -> Sparsity:
    """The `Sparsity` of some weights of a model."""
    owners: dict[int, str] = {}
    for name, layer in layers_of(model):
        for weight in layer.weights:
            owners.setdefault(id(weight), name)
    counts: dict[str, tuple[int, int]] = {}
    for weight in weights:
        name = owners.get(id(weight), model.name)
        size, zeros = counts.get(name, (0, 0))
        size += math.prod(weight.shape)
        zeros += int(np.count_nonzero(to_numpy(weight) == 0))
        counts[name] = size, zeros
    return Sparsity(model.name, tuple(LayerSparsity(name, *one) for name, one in counts.items()))
