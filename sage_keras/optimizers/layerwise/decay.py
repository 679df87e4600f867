"""The learning rates of fine-tuning, which fall with the distance from the head."""

import re
from collections.abc import Iterator
from typing import Any

import keras

from sage_keras import arguments

# Blocks have sublayers. What is merely numbered, such as `conv_layer_1/kernel`, has none.
_BLOCK = r"(?:^|/)([^/]*(?:layer|block)_\d+|transformer_(?:en|de)coder(?:_\d+)?)/[^/]+/"


def layerwise_decay(model: keras.Model, decay: float = 0.9) -> dict[str, float]:
    """The factors of a learning rate that falls with the distance from the head.

    The head of a transformer keeps the whole rate, each block has `decay` times the rate of what
    follows it, and the embeddings have the lowest: `decay ** (blocks + 1)`.

    Blocks are recognized by their names, `transformer_layer_3`, `decoder_block_3` and the like in
    keras-hub's backbones, or `transformer_encoder_3` where its layers are used alone, and take the
    order of `model.weights`. Weights before the first block count as embeddings, those after the
    last one as head, and those in between go with the block before them. The decoder follows the
    encoder.

    Args:
        model: A built `keras.Model`: a backbone, or a model that contains one. Weights that are
            not trainable count for the depth of the others, and get no factor.
        decay: Float in (0, 1), the ratio of the rates of neighbouring blocks. Defaults to `0.9`;
            0.65 to 0.95 is usual, the closer to 1 the deeper the model.

    Returns:
        Dict of regular expression to factor, the argument `learning_rate_multipliers` of
        `LayerwiseAdamW`. It is the same for a backbone and for a classifier that is made of it.

    Raises:
        TypeError: If `decay` is no number.
        ValueError: If `decay` is out of range, if the model has no blocks with such names, if two
            of its parts share theirs, or if a layer has a name that Keras numbered and that is not
            part of the model's configuration: it will be another one's in another process.

    Example:

    >>> import keras
    >>> from sage_keras import layerwise_decay
    >>> def block(name):
    ...     return keras.Sequential([keras.layers.Dense(4, name="dense")], name=name)
    >>> blocks = [block("block_0"), block("block_1")]
    >>> model = keras.Sequential([keras.Input((4,)), *blocks, keras.layers.Dense(1)])
    >>> layerwise_decay(model, decay=0.5)
    {'(?:^|/)block_0/': 0.25, '(?:^|/)block_1/': 0.5}

    Reference:
        - [Clark et al., 2020](https://arxiv.org/abs/2003.10555)
    """
    decay = arguments.number("decay", decay, 0.0, 1.0, "0.9")
    depths, blocks = _depths(model)
    factors = {path: decay ** (blocks + 1 - depth) for path, depth in depths.items()}

    paths = [variable.path for variable in model.trainable_variables]
    in_blocks: dict[str, float] = {}
    outside: dict[str, float] = {}
    layers: set[str] = set()
    for path in paths:
        block = re.search(_BLOCK, path)
        if block:
            in_blocks[rf"(?:^|/){re.escape(block[1])}/"] = factors[path]
        elif factors[path] != 1.0:
            name = path.removeprefix(f"{model.name}/")  # which Keras drops when it loads a model
            outside[rf"(?:^|/){re.escape(name)}$"] = factors[path]
        else:
            continue
        layers.update((block[1] if block else path).split("/"))
    _check_names(model, layers)
    multipliers = in_blocks | outside  # the first match counts

    found = arguments.first_match("decay", multipliers, paths, default=1.0)
    for path, factor in zip(paths, found):
        if factor != factors[path]:
            raise ValueError(
                "Argument `model` has several parts whose layers have the same names, so that no "
                f"pattern tells {path} apart. Pass one with a single stack of blocks, or write "
                f"`learning_rate_multipliers` by hand. Received: model={model.name}"
            )
    return multipliers


def _depths(model: keras.Model) -> tuple[dict[str, int], int]:
    """The depth of each weight by path, from 0 for embeddings, and the number of blocks."""
    blocks: dict[str, int] = {}
    inside: dict[str, int] = {}
    outside: dict[str, int] = {}
    for variable in model.weights:
        path = variable.path
        block = re.search(_BLOCK, path)
        if block:
            inside[path] = blocks.setdefault(path[: block.end(1)], len(blocks) + 1)
        else:
            outside.setdefault(path, len(blocks))  # paths may occur again, as in T5
    count = len(blocks)
    if not count:
        raise ValueError(
            "Argument `model` must be a built model with transformer blocks, in layers of such "
            "names as `transformer_layer_0` or `block_0`. For another one write "
            f"`learning_rate_multipliers` by hand. Received: model={model.name}. Its weights "
            f"are:{arguments.listed([*outside])}"
        )
    outside = {path: depth if depth < count else count + 1 for path, depth in outside.items()}
    return inside | outside, count


def _check_names(model: keras.Model, names: set[str]) -> None:
    """Refuses names that are no identity: Keras counted them, and nothing keeps them.

    A name without a number needs no check. It is that of the first layer of its class; in another
    process the pattern finds the same layer, or none, which is refused.
    """
    layers = model._flatten_layers(include_self=False)
    try:
        kept = set(_names(model.get_config()))
    except NotImplementedError:  # a subclassed model with arguments of its own
        kept = set()
    every = {layer.name for layer in layers}
    for layer in layers:
        stem = re.sub(r"_\d+$", "", layer.name)
        counted = stem != layer.name and stem.replace("_", "") == type(layer).__name__.lower()
        by_hand = f"{stem}_0" in every  # Keras begins without a number, and goes on with 1
        if counted and not by_hand and layer.name in names and layer.name not in kept:
            raise ValueError(
                f"Argument `model` has a layer of the name {layer.name!r}, which Keras makes up by "
                "counting. In another process it may be that of another layer, which would then "
                "get its learning rate. Give the layer a name of its own, such as "
                f'{type(layer).__name__}(..., name="my_{stem}"), or names that count from 0. '
                f"Received: model={model.name}"
            )


def _names(config: Any) -> Iterator[str]:
    """The names of all layers in a configuration."""
    if isinstance(config, dict):
        if isinstance(config.get("name"), str):
            yield config["name"]
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        for part in config:
            yield from _names(part)
