"""The rank of each layer's LoRA adapters, out of one budget and by sensitivity."""

import dataclasses
import fractions
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from sage_keras import arguments, text_tables
from sage_keras.annotations import Patterns, Scores
from sage_keras.paths import variable_path
from sage_keras.scores import by_path, read_sortable, to_numpy

if TYPE_CHECKING:  # an extra, imported on use
    from matplotlib.axes import Axes

_COLUMNS: text_tables.Columns = {
    "Layer": "left",
    "Sensitivity": "right",
    "Rank": "right",
    "Trained": "right",
}
_INITIALIZER = "he_uniform"  # of the first matrix, as Keras has it


@dataclasses.dataclass(frozen=True)
class LoraRanks(Mapping[str, int]):
    """The rank of each layer, by the path of the layer. `print` shows it as a table.

    Args:
        model_name: String.
        ranks: Dict of the path of a layer to its rank.
        shares: Dict of the path of a layer to its share of the sensitivity of all these layers.
        costs: Dict of the path of a layer to how many weights one rank adds to it.
    """

    model_name: str
    ranks: dict[str, int]
    shares: dict[str, float]
    costs: dict[str, int]

    def __getitem__(self, path: str) -> int:
        return self.ranks[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranks)

    def __len__(self) -> int:
        return len(self.ranks)

    @property
    def total(self) -> int:
        """The sum of the ranks."""
        return sum(self.ranks.values())

    @property
    def weights(self) -> int:
        """How many weights the adapters have."""
        return sum(self.costs[path] * rank for path, rank in self.ranks.items())

    def summary(self, print_fn: Callable[[str], object] | None = None) -> None:
        """Prints the table.

        Args:
            print_fn: Function that is called with the whole text, or `None` to print it. Defaults
                to `None`.
        """
        text_tables.show(print_fn, *self._table())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws the rank of each layer.

        Args:
            axes: Matplotlib axes to draw on, or `None` for a new figure. Defaults to `None`.

        Returns:
            The axes.
        """
        from sage_keras.analysis.plots import plot_bars

        return plot_bars(self.ranks, xlabel="rank", title="LoRA ranks", axes=axes)

    def __str__(self) -> str:
        return text_tables.text(*self._table())

    def _table(self) -> Any:
        rows = [
            [path, f"{self.shares[path]:.1%}", str(rank), f"{rank * self.costs[path]:,}"]
            for path, rank in self.ranks.items()
        ]
        totals = {"Sum of the ranks": f"{self.total:,}", "Trained weights": f"{self.weights:,}"}
        return self.model_name, _COLUMNS, rows, totals


def lora_ranks(
    model: keras.Model,
    sensitivities: Scores | str,
    budget: int,
    minimum: int = 0,
    include: Patterns = None,
    exclude: Patterns = None,
) -> LoraRanks:
    """Shares a budget of rank out to the layers of a model, in proportion to their sensitivity.

    A layer's sensitivity is the sum over its kernel's weights. Each layer gets `minimum`, and of
    what is left its share, rounded down; the rest goes to the largest remainders. No layer gets
    more than the smaller side of its kernel: what is over goes to the others.

    Args:
        model: A built `keras.Model`. It is not changed.
        sensitivities: Dict of variable path to an array of the variable's shape, as
            `measure_sensitivity` returns it, with the kernels of at least one layer that has
            `enable_lora`: `Dense`, `EinsumDense`, `Embedding` and convolutions. For what the
            choice has to beat pass `"magnitude"` or `"random"`.
        budget: Int, the sum of all ranks: a mean rank times the number of layers.
        minimum: Int, the rank that each layer gets at least. Defaults to `0`: such a layer gets no
            adapter.
        include: `None`, or a list of regular expressions that are searched in the paths of the
            kernels. Defaults to `None`, every layer that can have an adapter.
        exclude: `None`, or a list of regular expressions. Defaults to `None`.

    Returns:
        A `LoraRanks`, a mapping of layer to rank that `enable_lora` takes.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If the model is not built, if the scores do not fit it, are not numbers or
            below zero in sum, if no layer is left, or if `budget` is too small for `minimum` or
            more than the layers can take.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> layers = [keras.layers.Dense(8, name="first"), keras.layers.Dense(8, name="second")]
    >>> model = keras.Sequential([keras.Input((8,)), *layers], name="tiny")
    >>> sensitivities = {
    ...     "tiny/first/kernel": np.full((8, 8), 3.0),
    ...     "tiny/second/kernel": np.full((8, 8), 1.0),
    ... }
    >>> print(lora_ranks(model, sensitivities, budget=6))
    Model: "tiny"
    ┏━━━━━━━━━━━━━┳━━━━━━━━━━━━━┳━━━━━━┳━━━━━━━━━┓
    ┃ Layer       ┃ Sensitivity ┃ Rank ┃ Trained ┃
    ┡━━━━━━━━━━━━━╇━━━━━━━━━━━━━╇━━━━━━╇━━━━━━━━━┩
    │ tiny/first  │       75.0% │    5 │      80 │
    │ tiny/second │       25.0% │    1 │      16 │
    └─────────────┴─────────────┴──────┴─────────┘
     Sum of the ranks: 6
     Trained weights: 96
    """
    arguments.built_model("model", model)
    budget = arguments.integer("budget", budget, low=1, example=96)
    minimum = arguments.integer("minimum", minimum, low=0, example=1)
    scores = read_sortable(model, sensitivities)
    layers = {id(layer_kernel(layer)): layer for layer in _adaptable(model)}
    kernels = {
        path: kernel
        for path, kernel in by_path(model).items()
        if path in scores and id(kernel) in layers
    }
    if not kernels:
        raise ValueError(
            "Argument `sensitivities` names no kernel of a layer that can have an adapter. Measure "
            f"the model before the first one is made. It names:{arguments.listed(list(scores))}"
        )
    chosen = arguments.chosen(include, exclude, list(kernels))
    kernels = {path: kernel for (path, kernel), yes in zip(kernels.items(), chosen) if yes}
    sums = [float(np.sum(scores[path], dtype="float64")) for path in kernels]
    if not all(0 <= one < math.inf for one in sums):
        raise ValueError(
            "Argument `sensitivities` must have finite sums of at least 0 over each kernel. "
            f"Received: {dict(zip(kernels, sums))}"
        )
    names = [layers[id(kernel)].path for kernel in kernels.values()]
    sides = [(math.prod(one.shape[:-1]), one.shape[-1]) for one in kernels.values()]
    most = [min(side) for side in sides]
    if not (minimum * len(names) <= budget <= sum(most) and minimum <= min(most)):
        raise ValueError(
            f"Argument `budget` must be at least {minimum * len(names)}, `minimum` for each of "
            f"the {len(names)} layers, and at most {sum(most)}, the smaller sides of their "
            f"kernels, of which the least is {min(most)}. "
            f"Received: budget={budget}, minimum={minimum}"
        )
    total = sum(sums)
    return LoraRanks(
        model.name,
        dict(zip(names, _shared_out(budget, minimum, sums, most))),
        {name: one / total if total else 1 / len(sums) for name, one in zip(names, sums)},
        {name: sum(side) for name, side in zip(names, sides)},
    )


def enable_lora(model: keras.Model, ranks: Mapping[str, int], train: Patterns = None) -> None:
    """Gives each layer LoRA adapters of its own rank, and freezes what else there is.

    It calls Keras's own `layer.enable_lora(rank)`. Where the rank is 0 the layer gets none. All
    weights but the adapters are frozen, biases too, and those that `train` matches are not. Call it
    before `model.compile`.

    Keras merges adapters into the kernels when it saves, and loads a layer that has adapters with
    zeros in both of their matrices, which no training moves. So call this on a loaded model too: it
    makes the adapters that are missing, as in keras-hub's models, whose files do not have the
    ranks, and draws the first matrix of those that are all zero again. The outputs stay as they
    are.

    The adapters are added as they are, without the factor `lora_alpha / rank`: `Dense` and
    `Embedding` lose a `lora_alpha` when they are loaded.

    Args:
        model: A built `keras.Model`. It is changed in place.
        ranks: Mapping of the path of a layer (`layer.path`) to its rank, as `lora_ranks` returns
            it. The model's own name may be missing in the paths.
        train: `None`, or a list of regular expressions that are searched in `variable.path`: what
            is trained beside the adapters, such as `["logits"]`, a new head. Defaults to `None`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: Before anything is changed, if the model is not built, if it does not have a
            layer or more than one, if a layer cannot have an adapter, or has one of another rank.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(8, name="dense")
    >>> model = keras.Sequential([keras.Input((8,)), dense, keras.layers.Dense(2, name="head")])
    >>> enable_lora(model, {"dense": 4}, train=["head"])
    >>> [variable.path.split("/", 1)[1] for variable in model.trainable_variables]
    ['dense/lora_kernel_a', 'dense/lora_kernel_b', 'head/kernel', 'head/bias']

    Reference:
        - [Hu et al., 2021](https://arxiv.org/abs/2106.09685)
    """
    arguments.built_model("model", model)
    train = arguments.patterns("train", train)
    if not isinstance(ranks, Mapping) or not ranks:
        raise TypeError(
            "Argument `ranks` must be a dict of the path of a layer to its rank, as `lora_ranks` "
            f"returns it. Received: ranks={ranks!r}"
        )
    layers = [(_find(model, name), _check_rank(name, rank)) for name, rank in ranks.items()]
    for layer, rank in layers:
        _check_layer(layer, rank)
    paths = [variable_path(variable) for variable in model.trainable_variables]
    kept = arguments.matches("train", train, paths, default=False)
    for variable, yes in zip(list(model.trainable_variables), kept):
        variable.trainable = yes
    for layer, rank in layers:
        if not rank:
            continue
        if not layer.lora_enabled:
            layer.enable_lora(rank)
        first, second = _adapters(layer)
        if not np.any(to_numpy(first)):
            first.assign(keras.initializers.get(_INITIALIZER)(first.shape, dtype=first.dtype))
        first.trainable = second.trainable = True


def layer_kernel(layer: Any) -> Any:
    """The matrix of a layer: its kernel or embeddings, or None."""
    return getattr(layer, "kernel", getattr(layer, "embeddings", None))


def _adaptable(model: keras.Model) -> list[Any]:
    """The layers that can have adapters."""
    return [
        layer
        for layer in model._flatten_layers(include_self=False)
        if hasattr(layer, "enable_lora") and layer_kernel(layer) is not None
    ]


def _find(model: keras.Model, path: Any) -> Any:
    """The layer of a path, in which the names of models may be missing, as once it is loaded."""
    layers = {layer.path: layer for layer in _adaptable(model)}
    found = [
        name
        for name in layers
        if name == path or name.endswith(f"/{path}") or str(path).endswith(f"/{name}")
    ]
    if path in layers:
        found = [path]
    if len(found) != 1:
        raise ValueError(
            f"Argument `ranks` names {path!r}, which is the path of {len(found)} layers that can "
            f"have adapters. They are:{arguments.listed(found or list(layers))}"
        )
    return layers[found[0]]


def _check_rank(name: str, rank: Any) -> int:
    return arguments.integer(f"ranks[{name!r}]", rank, low=0, example=8)


def _check_layer(layer: Any, rank: int) -> None:
    """Refuses what Keras would refuse halfway."""
    fault = None
    if layer.lora_enabled and layer.lora_rank != rank:
        fault = f"has adapters of the rank {layer.lora_rank} already"
    constraint = getattr(layer, "kernel_constraint", getattr(layer, "embeddings_constraint", None))
    if rank and constraint is not None:
        fault = "has a constraint, with which LoRA cannot be"
    if rank and layer.quantization_mode == "gptq":
        fault = "is quantized by GPTQ"
    if fault:
        raise ValueError(f"The layer {layer.path!r} {fault}. Received: rank={rank}")


def _adapters(layer: Any) -> tuple[Any, Any]:
    """The two matrices of a layer's adapter."""
    kind = "kernel" if hasattr(layer, "lora_kernel_a") else "embeddings"
    return getattr(layer, f"lora_{kind}_a"), getattr(layer, f"lora_{kind}_b")


def _shared_out(budget: int, minimum: int, sums: list[float], most: list[int]) -> list[int]:
    """The ranks in proportion to the sums, by the largest remainders, none above `most`."""
    ranks = [minimum] * len(sums)
    left, still = budget - sum(ranks), list(range(len(sums)))
    while left:
        shares = [fractions.Fraction(sums[index]) for index in still]
        if not any(shares):
            shares = [fractions.Fraction(1)] * len(still)
        parts = {index: left * one / sum(shares) for index, one in zip(still, shares)}
        full = [index for index in still if ranks[index] + parts[index] > most[index]]
        if not full:
            for index in still:
                ranks[index] += math.floor(parts[index])
            left = budget - sum(ranks)
            by_remainder = sorted(still, key=lambda index: math.floor(parts[index]) - parts[index])
            for index in by_remainder[:left]:
                ranks[index] += 1
            break
        for index in full:
            ranks[index] = most[index]
        left = budget - sum(ranks)
        still = [index for index in still if index not in full]
    return ranks
