"""Models without the neurons and blocks that were pruned."""

import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

import keras
import numpy as np

from sage_keras import arguments
from sage_keras.annotations import Scores
from sage_keras.compression import backbones, chains
from sage_keras.compression.neurons import Cuts, Neurons, cut, cut_shape, to_array
from sage_keras.compression.structured import find_neurons, read_score_arrays


def compact(model: keras.Model, drop_layers: int = 0, scores: Scores | None = None) -> keras.Model:
    """A new, smaller model without the zeroed neurons: an ordinary Keras model.

    It gives the same outputs as `model` to within rounding, and is faster everywhere, since its
    matrices are smaller. `model` is left as it is.

    - Of a backbone or task of keras-hub comes one of the same class with a smaller
      `intermediate_dim` (`mlp_dim` in vision), which loads without this package. A task keeps its
      head and preprocessor. All blocks have one width: where unlike numbers of neurons are zeroed,
      the smallest number is cut, with a warning, and the other neurons stay as zeros.
    - Of a Sequential or functional model comes one with fewer `units` and `filters`. What follows
      a layer is cut with it: normalization and the kernel of the next one. The output layer is
      never cut. Layers that cannot be cut keep their zeros, with a warning that names them.

    A neuron is zeroed if its outgoing weights are all zero; or if its incoming weights and bias are
    all zero and the activation of zero is zero, as with relu, gelu and silu but not sigmoid, with
    no batch normalization in between. `prune_neurons` zeroes both. At least one neuron is left.

    The dtype policies and what is frozen stay. The state of training does not: compile the new
    model, and its optimizer begins from zero. A task is compiled as its class does it by
    default.

    Args:
        model: A built `keras.Model`: Sequential, functional, or a backbone or task of keras-hub.
        drop_layers: Int, how many blocks of a keras-hub transformer to leave out, those of the
            least scores. This changes the outputs. Defaults to `0`.
        scores: With `drop_layers`, a dict of variable path to an array of the variable's shape,
            such as `sage_keras.analysis.measure_sensitivity` returns; the score of a block is the
            sum over its weights. Defaults to `None`.

    Returns:
        A `keras.Model`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If there is nothing to cut, or it cannot be cut: because it is a subclassed
            model, not built, quantized or has LoRA layers, or because of how its layers are
            connected. The error names what.

    Example:

    >>> import keras
    >>> from sage_keras import compression
    >>> layers = [keras.layers.Dense(4, activation="relu", name="hidden"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> zeroed = compression.prune_neurons(model, count=3)
    >>> [tuple(weight.shape) for weight in compression.compact(model).weights]
    [(2, 1), (1,), (1, 1), (1,)]
    """
    arguments.integer("drop_layers", drop_layers, low=0, example=2)
    neurons, refused = find_neurons(model)
    if backbones.backbone_of(model) is not None:
        return _compact_hub(model, neurons, drop_layers, scores)
    if drop_layers:
        raise ValueError(
            "Argument `drop_layers` is for the blocks of a backbone or task of keras-hub, and the "
            f"model {model.name!r} is none. Received: drop_layers={drop_layers}"
        )
    return _compact_chain(model, neurons, refused)


def _compact_hub(
    model: keras.Model, neurons: list[Neurons], drop_layers: int, scores: Any
) -> keras.Model:
    dropped = _blocks_to_drop(model, drop_layers, scores) if drop_layers else []
    gone = {id(weight) for block in dropped for weight in block.weights}
    neurons = [one for one in neurons if id(one.outgoing) not in gone]
    zeroed = [one.zeroed() for one in neurons]
    numbers = [int(mask.sum()) for mask in zeroed]
    number = min(min(numbers), neurons[0].count - 1)
    if not number and not dropped:
        _refuse_nothing_zeroed(model)
    if max(numbers) > number:
        warnings.warn(
            f"compact: the blocks of {model.name!r} have one width, and unlike numbers of zeroed "
            f"neurons, from {min(numbers)} to {max(numbers)}. {number} of each are cut, and the "
            "others stay as zeros.",
            stacklevel=3,
        )
    cuts: Cuts = {}
    for one, mask in zip(neurons, zeroed):
        one.add_cuts(cuts, mask & (np.cumsum(mask) <= number))
    blocks = len(backbones.find_blocks(model)) - drop_layers if drop_layers else None
    small = backbones.rebuild(model, neurons[0].count - number, blocks)
    return _with_weights(model, small, cuts, dropped)


def _compact_chain(
    model: keras.Model, neurons: list[Neurons], refused: dict[str, str]
) -> keras.Model:
    zeroed = [one.zeroed() for one in neurons]
    for mask in zeroed:
        if mask.all():  # something is to be left of the layer
            mask[-1] = False
    uncut = [f"\n  {name}: {why}" for name, why in refused.items() if _has_zeroed(model, name, why)]
    if not any(mask.any() for mask in zeroed):
        _refuse_nothing_zeroed(model, uncut)
    if uncut:
        warnings.warn(
            f"compact: layers of {model.name!r} that cannot be cut keep their zeroed neurons:"
            + "".join(uncut),
            stacklevel=3,
        )
    cuts: Cuts = {}
    for one, mask in zip(neurons, zeroed):
        one.add_cuts(cuts, mask)
    widths = {one.name: int((~mask).sum()) for one, mask in zip(neurons, zeroed)}
    small = chains.rebuild(model, widths)
    return _with_weights(model, small, cuts)


def _blocks_to_drop(model: keras.Model, number: int, scores: Any) -> list[Any]:
    """The blocks of the least scores."""
    blocks = backbones.find_blocks(model)
    if scores is None:
        raise ValueError(
            "Argument `drop_layers` needs `scores`, by which the blocks are chosen: a dict of "
            "variable path to array, as `sage_keras.analysis.measure_sensitivity` returns it."
        )
    arguments.integer("drop_layers", number, low=0, high=len(blocks) - 1, example=1)
    score_of = read_score_arrays(model, scores, [])
    sums, counts = [], []
    for block in blocks:
        arrays = [array for one in block.weights if (array := score_of(one)) is not None]
        sums.append(sum(float(array.sum(dtype="float64")) for array in arrays))
        counts.append(len(arrays))
    if min(counts) != max(counts) or not counts[0]:
        raise ValueError(
            "Argument `scores` must have the same weights of all blocks. Received scores for "
            f"{counts} weights of the blocks of {model.name!r}."
        )
    return [blocks[index] for index in np.argsort(sums, kind="stable")[:number]]


def _with_weights(
    model: keras.Model, small: keras.Model, cuts: Cuts, dropped: Sequence[Any] = ()
) -> keras.Model:
    """The new model with the weights of the old one, cut, and frozen where that is."""
    gone = {id(one) for block in dropped for one in (*block._flatten_layers(), *block.weights)}
    layers = [layer for layer in _layers(model) if id(layer) not in gone]
    old = [weight for weight in model.weights if id(weight) not in gone]
    new = small.weights
    shapes = [cut_shape(weight, cuts) for weight in old]
    names = [weight.path.rpartition("/")[2] for weight in old]
    if names != [weight.path.rpartition("/")[2] for weight in new] or shapes != [
        tuple(weight.shape) for weight in new
    ]:
        raise ValueError(
            f"The model {model.name!r} ({type(model).__name__}) cannot be cut: a smaller one of "
            "its configuration does not have the weights that are left of it."
        )
    for one, before in zip(_layers(small), layers):
        one.trainable = before.trainable  # a layer before those inside of it
    for weight, before in zip(new, old):
        weight.assign(cut(before, cuts))
        if weight.trainable != before.trainable:
            weight.trainable = before.trainable
    return small


def _layers(model: keras.Model) -> list[Any]:
    return [layer for layer in model._flatten_layers() if layer.weights]


def _has_zeroed(model: keras.Model, name: str, why: str) -> bool:
    """Whether a hidden layer that cannot be cut has neurons whose incoming weights are all zero."""
    layer = model.get_layer(name)
    if why == chains.IS_OUTPUT or not hasattr(layer, "kernel"):
        return False
    weights = [layer.kernel] if layer.bias is None else [layer.kernel, layer.bias]
    columns = [to_array(one).reshape(-1, one.shape[-1]) for one in weights]
    return bool(np.any(np.all(np.concatenate(columns) == 0, axis=0)))


def _refuse_nothing_zeroed(model: keras.Model, uncut: Sequence[str] = ()) -> NoReturn:
    raise ValueError(
        f"The model {model.name!r} has no zeroed neurons to cut. Call "
        "`sage_keras.compression.prune_neurons` first."
        + (f" Those of these layers cannot be cut:{''.join(uncut)}" if uncut else "")
    )
