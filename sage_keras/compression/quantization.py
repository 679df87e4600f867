"""What each layer loses when its weights are rounded, and which layers not to quantize."""

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from sage_keras import arguments, text_tables
from sage_keras import sensitivity as measure
from sage_keras.analysis.measure import mean_scores
from sage_keras.annotations import Variable

if TYPE_CHECKING:  # an extra, imported on use
    from matplotlib.axes import Axes

_MODES = ("int8", "int4")
_BLOCK_SIZE = 128  # of int4, as Keras has it by default
_COLUMNS: text_tables.Columns = {
    "Layer": "left",
    "Weights": "right",
    "Estimated\nloss": "right",
    "Share": "right",
}


@dataclasses.dataclass(frozen=True)
class LayerLoss:
    """What a layer loses when its weights are rounded.

    Args:
        path: String, the path of the layer.
        weights: Int, how many weights are rounded.
        loss: Float, the sum of `|gradient * (theta - Q(theta))|` over them.
        layer: The layer.
    """

    path: str
    weights: int
    loss: float
    layer: Any = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class QuantizationSensitivity:
    """What each layer loses when its weights are rounded. `print` shows it as a table.

    Args:
        model_name: String.
        mode: `"int8"` or `"int4"`.
        layers: Tuple of the layers that Keras quantizes, in the order of the model, each with
            `path`, `weights` and `loss`.
    """

    model_name: str
    mode: str
    layers: tuple[LayerLoss, ...]

    @property
    def total(self) -> float:
        """The sum of the losses."""
        return sum(one.loss for one in self.layers)

    def kept(self, keep: float) -> list[str]:
        """The layers not to quantize: those of the highest loss per weight.

        Args:
            keep: Float in [0, 1], the share of these weights that they have together at most.

        Returns:
            List of paths.
        """
        keep = arguments.share("keep", keep, example=0.1)
        room = keep * sum(one.weights for one in self.layers)
        kept = []
        for one in sorted(self.layers, key=lambda one: -one.loss / one.weights):
            if one.weights <= room:
                kept.append(one.path)
                room -= one.weights
        return kept

    def filters(self, keep: float = 0.1) -> Callable[[Any], bool]:
        """What `model.quantize(mode, filters=...)` takes to leave the most sensitive layers alone.

        Args:
            keep: Float in [0, 1], the share of the weights to leave alone at most. The layers of
                the highest loss per weight are. Defaults to `0.1`.

        Returns:
            Function of a layer, whether to quantize it.
        """
        kept = set(self.kept(keep))
        left_alone = {id(one.layer) for one in self.layers if one.path in kept}
        return lambda layer: id(layer) not in left_alone

    def summary(self, print_fn: Callable[[str], object] | None = None) -> None:
        """Prints the table.

        Args:
            print_fn: Function that is called with the whole text, or `None` to print it. Defaults
                to `None`.
        """
        text_tables.show(print_fn, *self._table())

    def plot(self, axes: "Axes | None" = None) -> "Axes":
        """Draws the loss of each layer.

        Args:
            axes: Matplotlib axes to draw on, or `None` for a new figure. Defaults to `None`.

        Returns:
            The axes.
        """
        from sage_keras.analysis.plots import plot_bars

        values = {one.path: one.loss for one in self.layers}
        return plot_bars(values, "estimated loss", f"Rounding to {self.mode}", axes)

    def __str__(self) -> str:
        return text_tables.text(*self._table())

    def _table(self) -> Any:
        total = self.total
        rows = [
            [
                one.path,
                f"{one.weights:,}",
                f"{one.loss:.2e}",
                f"{one.loss / total:.1%}" if total else "-",
            ]
            for one in self.layers
        ]
        return self.model_name, _COLUMNS, rows, {"Mode": self.mode, "Sum": f"{total:.2e}"}


def quantization_sensitivity(
    model: keras.Model,
    data: Any,
    mode: str = "int8",
    batches: int | None = None,
    batch_size: int | None = None,
    verbose: int = 1,
) -> QuantizationSensitivity:
    """Estimates what each layer loses when `model.quantize` rounds its weights.

    The estimate is the sum of `|gradient * (theta - Q(theta))|` over the layer's weights, the mean
    over batches, with Keras's own quantizers for `Q`. It is of first order, and of the weights
    alone: that int8 rounds activations too is not in it. One pass over the data measures all
    layers. The model is left as it is.

    Args:
        model: A compiled and built `keras.Model`, not quantized, whose layers are not frozen.
        data: As `measure_sensitivity` takes it.
        mode: `"int8"` or `"int4"` (in blocks of 128, as Keras quantizes by default). Defaults to
            `"int8"`.
        batches: Int, how many batches to read, or `None` for all. Defaults to `None`.
        batch_size: Int, the batch size for arrays. Defaults to `None`, which is 32 for arrays.
        verbose: `1` for a progress bar, `0` for silence. Defaults to `1`.

    Returns:
        A `QuantizationSensitivity`, whose `filters(keep=0.1)` is for `model.quantize`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If `mode` is another, if the model has no layer to quantize or a frozen one, or
            as `measure_sensitivity` does.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from sage_keras.compression import quantization_sensitivity
    >>> layers = [keras.layers.Dense(4, name="first"), keras.layers.Dense(1, name="second")]
    >>> model = keras.Sequential([keras.Input((4,)), *layers])
    >>> model.compile(loss="mse")
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> found = quantization_sensitivity(model, (x, y), verbose=0)
    >>> model.quantize("int8", filters=found.filters(keep=0.2))
    >>> [layer.quantization_mode for layer in model.layers]
    ['int8', None]
    """
    arguments.choice("mode", mode, _MODES)
    arguments.built_model("model", model)
    layers = _quantized_layers(model)
    places = {id(variable): at for at, variable in enumerate(model.trainable_variables)}
    directions = [
        np.zeros(variable.shape, measure.compute_dtype(variable.dtype))
        for variable in model.trainable_variables
    ]
    for layer in layers:
        for variable, axes in _matrices(layer):
            if id(variable) not in places:
                raise ValueError(
                    f"The layer {layer.path!r} is frozen, so that it has no gradient to measure. "
                    "Set `layer.trainable = True` while measuring."
                )
            directions[places[id(variable)]] = _rounding(layer, variable, axes, mode)
    # Keras lists nested layers in no order of the model's.
    layers.sort(key=lambda layer: min(places[id(one)] for one, _ in _matrices(layer)))
    means = mean_scores(
        model, data, measure.sensitivity, directions, batches, "batch", batch_size, verbose
    )
    losses = []
    for layer in layers:
        arrays = [means[places[id(variable)]] for variable, _ in _matrices(layer)]
        loss = sum(float(np.sum(array, dtype="float64")) for array in arrays)
        losses.append(LayerLoss(layer.path, sum(one.size for one in arrays), loss, layer))
    return QuantizationSensitivity(model.name, mode, tuple(losses))


def _quantized_layers(model: keras.Model) -> list[Any]:
    """The layers that `model.quantize` quantizes."""
    kinds = (
        keras.layers.Dense,
        keras.layers.EinsumDense,
        keras.layers.Embedding,
        keras.layers.ReversibleEmbedding,
    )
    layers = [one for one in model._flatten_layers(include_self=False) if type(one) in kinds]
    layers = [one for one in layers if one.quantization_mode is None]
    if not layers:
        raise ValueError(
            f"The model {model.name!r} has no layer that can be quantized: `Dense`, `EinsumDense`, "
            "`Embedding` or `ReversibleEmbedding`, without quantization so far."
        )
    with_adapters = [one.path for one in layers if getattr(one, "lora_enabled", False)]
    if with_adapters:
        raise ValueError(
            f"The layer {with_adapters[0]!r} has LoRA adapters, whose kernel is frozen. Save the "
            "model, which merges them, and measure what is loaded without them."
        )
    return layers


def _matrices(layer: Any) -> list[tuple[Variable, tuple[int, ...]]]:
    """What Keras rounds of a layer, each with the axes that share a scale."""
    if isinstance(layer, keras.layers.Embedding):
        matrices: list[tuple[Variable, tuple[int, ...]]] = [(layer.embeddings, (1,))]
        if not getattr(layer, "tie_weights", True):
            matrices.append((layer.reverse_embeddings, (0,)))
        return matrices
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, output = layer.equation.replace(" ", "").split("->")
        labels = inputs.split(",")[1]
        return [
            (layer.kernel, tuple(at for at, one in enumerate(labels) if one not in output)),
        ]
    return [(layer.kernel, (0,))]


def _rounding(layer: Any, variable: Variable, axes: tuple[int, ...], mode: str) -> np.ndarray:
    """The weights less what they are once they are rounded."""
    weights = ops.convert_to_numpy(variable).astype(measure.compute_dtype(variable.dtype))
    if mode == "int8":
        rounded, scale = keras.quantizers.abs_max_quantize(weights, axis=axes, to_numpy=True)
        return _difference(weights, rounded, scale)
    # Keras brings all to the form (inputs, outputs) for blocks of the inputs.
    by_rows = isinstance(layer, keras.layers.Embedding) and axes == (1,)
    matrix = weights.T if by_rows else weights
    if not by_rows:
        matrix = matrix.reshape(math.prod(weights.shape[axis] for axis in axes), -1)
    rounded, scale, zero = (
        ops.convert_to_numpy(one)
        for one in keras.quantizers.abs_max_quantize_grouped_with_zero_point(
            matrix, block_size=_BLOCK_SIZE, to_numpy=True
        )
    )
    block = np.arange(len(matrix)) // _BLOCK_SIZE
    restored = (rounded.astype(matrix.dtype) - zero.astype(matrix.dtype)[block]) * scale[block]
    difference = matrix - restored
    return difference.T if by_rows else difference.reshape(weights.shape)


def _difference(weights: np.ndarray, rounded: Any, scale: Any) -> np.ndarray:
    rounded, scale = ops.convert_to_numpy(rounded), ops.convert_to_numpy(scale)
    return np.asarray(weights - rounded.astype(weights.dtype) / scale)
