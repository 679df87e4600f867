"""keras-hub's transformers: the neurons of their blocks, and the same class with fewer of them.

keras-hub itself is not imported: a model of it comes with it.
"""

import re
import sys
from typing import Any

import keras

from sage_keras.annotations import Variable
from sage_keras.compression.activations import is_linear, keeps_zero
from sage_keras.compression.neurons import Neurons

# By their names in keras-hub: the layers that make the neurons, and the one that reads them. In a
# block with two of the former, the neurons of the two are multiplied.
_FORMS = (
    (("feedforward_intermediate_dense", "feedforward_gate_dense"), "feedforward_output_dense"),
    (("feedforward_intermediate_dense",), "feedforward_output_dense"),
    (("ffw_gating", "ffw_gating_2"), "ffw_linear"),
    (("dense_1",), "dense_2"),
)
_WIDTHS = ("intermediate_dim", "mlp_dim")
_BLOCK = r"(?:layer|block)s?_(\d+)$"


def backbone_of(model: keras.Model) -> Any:
    """The backbone of a keras-hub model, or `None` for other models."""
    hub = sys.modules.get("keras_hub")
    if hub is None:
        return None
    if isinstance(model, hub.models.Task):
        return model.backbone
    return model if isinstance(model, hub.models.Backbone) else None


def find_neurons(model: keras.Model) -> list[Neurons]:
    """The feed-forward neurons of a keras-hub model, block by block.

    Raises:
        ValueError: If they cannot be cut, and why.
    """
    backbone = backbone_of(model)
    found = [
        neurons
        for layer in backbone._flatten_layers(include_self=False)
        if (neurons := _of_block(layer)) is not None
    ]
    found.sort(key=lambda one: [int(digits) for digits in re.findall(r"\d+", one.name)])
    kind = type(backbone).__name__
    if not found:
        raise ValueError(
            f"The model {model.name!r} cannot be cut: its {kind} has no feed-forward layers of "
            "the kind that is known here."
        )
    widths = {one.count for one in found}
    key = _width_key(backbone)
    if key is None or len(widths) > 1:
        raise ValueError(
            f"The model {model.name!r} cannot be cut: its {kind} has no one width of all blocks "
            f"({' or '.join(_WIDTHS)}) in its configuration."
        )
    return found


def rebuild(model: keras.Model, width: int, blocks: int | None) -> keras.Model:
    """A new model of the same class with another number of neurons, and of blocks.

    Args:
        model: A keras-hub model.
        width: Integer, the neurons of a block.
        blocks: Integer, how many blocks, or `None` for as many as there are.

    Returns:
        A model with weights that are yet to be set.
    """
    backbone = backbone_of(model)
    key = _width_key(backbone)
    config = backbone.get_config()
    config[key] = config[key] // find_neurons(model)[0].count * width  # Gemma counts both gates
    if blocks is not None:
        config["num_layers"] = blocks
    small = type(backbone).from_config(config)
    if model is backbone:
        return small
    # Not a copy of the preprocessor: a tokenizer's configuration is without its vocabulary.
    config = {**model.get_config(), "backbone": small, "preprocessor": model.preprocessor}
    return type(model).from_config(config)


def find_blocks(model: keras.Model) -> list[Any]:
    """The blocks of a keras-hub model in their order, if some can be dropped.

    Raises:
        ValueError: If none can, and why.
    """
    backbone = backbone_of(model)
    blocks: dict[int, list[Any]] = {}
    for layer in backbone._flatten_layers(include_self=False):
        if match := re.search(_BLOCK, layer.name):
            blocks.setdefault(int(match[1]), []).append(layer)
    layers = [layer for number in sorted(blocks) for layer in blocks[number]]
    kind = type(backbone).__name__
    if len(layers) != len(blocks) or backbone.get_config().get("num_layers") != len(layers):
        raise ValueError(
            f"Argument `drop_layers`: blocks of the model {model.name!r} cannot be dropped, since "
            f"its {kind} does not have one row of them, as many as its `num_layers`."
        )
    if any(_kind_of_block(layer) != _kind_of_block(layers[0]) for layer in layers):
        raise ValueError(
            f"Argument `drop_layers`: blocks of the model {model.name!r} cannot be dropped, since "
            f"those of its {kind} differ by their place."
        )
    return layers


def _kind_of_block(layer: Any) -> Any:
    config = {key: value for key, value in layer.get_config().items() if key != "name"}
    weights = [(one.path.rpartition("/")[2], tuple(one.shape)) for one in layer.weights]
    return repr(config), weights


def _of_block(layer: Any) -> Neurons | None:
    """The neurons that a layer's own sublayers make and read."""
    inside = {one.name: one for one in layer._flatten_layers(include_self=False, recursive=False)}
    for makers, reader in _FORMS:
        if reader in inside and all(name in inside for name in makers):
            break
    else:
        return None
    first = [inside[name] for name in makers]
    if any(one.kernel.shape[-1] != inside[reader].kernel.shape[-2] for one in first):
        return None
    kernels: list[Variable] = [one.kernel for one in first]
    biases: list[Variable] = [one.bias for one in first if one.bias is not None]
    # An activation outside of the layer is not known; where two are multiplied, it does not matter.
    known = len(first) > 1 or not is_linear(first[0].activation)
    return Neurons(
        name=kernels[0].path.rsplit("/", 2)[0],
        count=kernels[0].shape[-1],
        incoming=tuple(kernels),
        vectors=tuple(biases),
        outgoing=inside[reader].kernel,
        keeps_zero=known and keeps_zero(first[0].activation),
    )


def _width_key(backbone: Any) -> str | None:
    config = backbone.get_config()
    return next((key for key in _WIDTHS if isinstance(config.get(key), int)), None)
