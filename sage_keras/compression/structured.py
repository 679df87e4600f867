"""Pruning of whole neurons."""

import fractions
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from sage_keras import arguments
from sage_keras.annotations import Arrays, Scores, Variable
from sage_keras.compression import backbones, chains
from sage_keras.compression.neurons import Neurons, ScoreOf, by_name, magnitudes
from sage_keras.scores import by_path, read_sortable

_MAGNITUDE = "magnitude"


def prune_neurons(
    model: keras.Model,
    fraction: float | None = None,
    count: int | None = None,
    scores: Scores | str = _MAGNITUDE,
) -> Arrays:
    """Zeroes the neurons of the least score, so that `compact` can take them out.

    Neurons are those of the feed-forward part of each block of a keras-hub transformer, or of each
    hidden Dense layer and the channels of each hidden Conv2D layer of a Sequential or functional
    model. All that belongs to a neuron becomes zero: its column of the kernel before it, its bias
    and normalization, and its row of the kernel after it. The same share is zeroed in each layer
    or block. The output layer and layers that cannot be cut keep all of theirs.

    The score of a neuron is the sum of the scores of its weights. Neurons that are zeroed already
    count, and come first; of equal scores the first neurons are kept.

    The weights stay zero in further training with `sage_keras.callbacks.PruneNeurons`, which also
    prunes step by step.

    Args:
        model: A built `keras.Model`: Sequential, functional, or a backbone or task of keras-hub.
        fraction: Float from 0 to 1, the share of each layer's neurons to zero, rounded to the
            nearest number. At least one neuron is left. Defaults to `None`: pass `count` then.
        count: Int, how many neurons of each layer to zero. Defaults to `None`: pass `fraction`
            then.
        scores: Dict of variable path to an array of the variable's shape, such as
            `sage_keras.analysis.measure_sensitivity` returns, with all kernels of the neurons.
            Or `"magnitude"` for the absolute weights. Defaults to `"magnitude"`.

    Returns:
        Dict of the name of a layer or block to the positions of the zeroed neurons, an array.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: Before anything is changed, if an argument is out of range, or if nothing of
            the model can be cut: because it is a subclassed model, not built, quantized or has
            LoRA layers, or because of how its layers are connected. The error names what.

    Example:

    >>> import keras
    >>> from sage_keras import compression
    >>> layers = [keras.layers.Dense(4, activation="relu", name="hidden"), keras.layers.Dense(1)]
    >>> model = keras.Sequential([keras.Input((2,)), *layers])
    >>> zeroed = compression.prune_neurons(model, fraction=0.5)
    >>> compression.compact(model).get_layer("hidden").units
    2

    Reference:
        - [Liang et al., 2022](https://arxiv.org/abs/2202.02664)
    """
    share = check_amount(fraction, count)
    neurons, _ = find_neurons(model)
    numbers = how_many(neurons, share, count)
    score_of = _read(model, neurons, scores)
    chosen = [one.least(score_of, number) for one, number in zip(neurons, numbers)]
    zero(neurons, chosen)
    return by_name(neurons, chosen)


def zero(
    neurons: Sequence[Neurons],
    chosen: Sequence[np.ndarray],
    beside: Callable[[Variable], Sequence[Variable]] = lambda _: (),
) -> None:
    """Zeroes all weights of the chosen neurons, and the same entries of what is `beside` them."""
    for one, mask in zip(neurons, chosen):
        one.zero(mask, beside)


def find_neurons(model: keras.Model) -> tuple[list[Neurons], dict[str, str]]:
    """The neurons that can be cut, and why those of other layers cannot, by name.

    Raises:
        TypeError: If it is not a Keras model.
        ValueError: If there are none, and why.
    """
    _check_model(model)
    if backbones.backbone_of(model) is not None:
        return backbones.find_neurons(model), {}
    chains.check_kind(model)
    found, refused = chains.find_neurons(model)
    if not found:
        raise ValueError(
            f"The model {model.name!r} has no neurons that can be cut:{_listed(refused)}"
            if refused
            else f"The model {model.name!r} has no Dense or Conv2D layers that can be cut."
        )
    return found, refused


def check_amount(fraction: float | None, count: int | None) -> float | None:
    """`fraction`, if one of the two arguments is given and in its range."""
    if (fraction is None) == (count is None):
        raise ValueError(
            "Pass one of the arguments `fraction` and `count`, such as fraction=0.5. "
            f"Received: fraction={fraction!r}, count={count!r}"
        )
    if count is not None:
        arguments.integer("count", count, low=0, example=8)
        return None
    return arguments.number(
        "fraction", fraction, 0, 1, example="0.5", low_included=True, high_included=False
    )


def how_many(
    neurons: Sequence[Neurons], fraction: float | None, count: int | None = None
) -> list[int]:
    """How many neurons of each layer go."""
    if count is None:
        # str() gives back the decimal that was written.
        exact = fractions.Fraction(str(fraction))
        return [min(round(exact * one.count), one.count - 1) for one in neurons]
    narrowest = min(neurons, key=lambda one: one.count)
    arguments.integer("count", count, low=0, example=8)
    if count >= narrowest.count:
        raise ValueError(
            f"Argument `count` must be below {narrowest.count}, the number of neurons of "
            f"{narrowest.name!r}. Received: count={count!r}"
        )
    return [count] * len(neurons)


def _read(model: keras.Model, neurons: Sequence[Neurons], scores: Any) -> ScoreOf:
    if isinstance(scores, str):
        arguments.choice("scores", scores, (_MAGNITUDE,))
        return magnitudes
    return read_score_arrays(model, scores, [v for one in neurons for v in kernels(one)])


def read_score_arrays(model: keras.Model, scores: Any, needed: Sequence[Variable]) -> ScoreOf:
    """The scores of a dict as a function of a variable, if they cover what is `needed`."""
    arrays = read_sortable(model, scores, "scores")
    by_id = {id(variable): arrays.get(path) for path, variable in by_path(model).items()}
    for variable in needed:
        if by_id.get(id(variable)) is None:
            raise ValueError(
                f"Argument `scores` has no entry for {variable.path!r}, by which neurons are "
                'chosen. Measure with all kernels trainable, or pass scores="magnitude".'
            )
    return lambda variable: by_id.get(id(variable))


def kernels(neurons: Neurons) -> list[Variable]:
    """The kernels on both sides of neurons."""
    return [*neurons.incoming, neurons.outgoing]


def _check_model(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Argument `model` must be a `keras.Model`. Received: {type(model).__name__}"
        )
    if not model.built or not model.weights:
        raise ValueError(
            f"The model {model.name!r} is not built, or has no weights. Call it on a batch of "
            "data, or `model.build` with the shape of its input."
        )
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(
                f"The model {model.name!r} cannot be cut: its layer {layer.path!r} is quantized "
                f"({layer.quantization_mode}). Cut the model before it is quantized."
            )
        if getattr(layer, "lora_enabled", False):
            raise ValueError(
                f"The model {model.name!r} cannot be cut: its layer {layer.path!r} has LoRA "
                "enabled. Cut the model first, then call `enable_lora`."
            )


def _listed(reasons: dict[str, str]) -> str:
    return "".join(f"\n  {name}: {reason}" for name, reason in reasons.items())
