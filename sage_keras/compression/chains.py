"""Chains of Dense and Conv2D layers, in Sequential and functional models."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NoReturn

import keras

from sage_keras.annotations import Variable
from sage_keras.compression.activations import is_elementwise, keeps_zero
from sage_keras.compression.neurons import Neurons

_CUTTABLE = (keras.layers.Dense, keras.layers.Conv2D)
_RECTIFIERS = (keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU)
# What else takes each channel by itself, has no weights, and leaves zero as zero.
_WITHOUT_WEIGHTS = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout2D,
    keras.layers.AlphaDropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.UpSampling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Cropping2D,
    keras.layers.Identity,
    keras.layers.Flatten,
)
_OUTPUT = "the model's output"
IS_OUTPUT = "what it returns is the model's output"


class _UncutError(Exception):
    """Why the neurons of a layer cannot be cut."""


@dataclasses.dataclass
class _Graph:
    """The layers of a model by name, and which layers read what each of them returns."""

    layers: dict[str, Any]
    readers: dict[str, list[str]]
    calls: dict[str, int]


def check_kind(model: keras.Model) -> None:
    """Refuses models that are neither Sequential nor functional."""
    plain = type(model).__module__.split(".")[0] == "keras"
    if not plain or not (isinstance(model, keras.Sequential) or _is_functional(model)):
        raise ValueError(
            f"The model {model.name!r} cannot be cut: it is a subclassed model "
            f"({type(model).__name__}), and its layers' order is not known. Build it as a "
            "Sequential or functional model, or with a backbone of keras-hub."
        )


def find_neurons(model: keras.Model) -> tuple[list[Neurons], dict[str, str]]:
    """The neurons of a model's hidden Dense and Conv2D layers.

    Args:
        model: A Sequential or functional model.

    Returns:
        The neurons that can be cut, in the order of the layers. And, by the name of the layer, why
        others cannot.
    """
    graph = _read(model)
    found, refused = [], {}
    for name, layer in graph.layers.items():
        if isinstance(layer, _CUTTABLE):
            try:
                found.append(_of_layer(graph, name))
            except _UncutError as reason:
                refused[name] = str(reason)
    return found, refused


def rebuild(model: keras.Model, widths: dict[str, int]) -> keras.Model:
    """A new model with other numbers of neurons.

    Args:
        model: A Sequential or functional model.
        widths: Dict of layer name to the number of its neurons.

    Returns:
        A model with weights that are yet to be set. It is not compiled.
    """

    def copy(layer: Any) -> Any:
        config = layer.get_config()
        if layer.name in widths:
            key = "units" if isinstance(layer, keras.layers.Dense) else "filters"
            config[key] = widths[layer.name]
        return type(layer).from_config(config)

    if isinstance(model, keras.Sequential):
        [seen] = model.inputs
        first = keras.Input(batch_shape=seen.shape, dtype=seen.dtype, name=seen.name)
        return keras.Sequential([first, *map(copy, model.layers)], name=model.name)
    # Around the same layers, but not compiled: `clone_model` would compile the new one as well.
    shell = keras.Model(model.input, model.output, name=model.name)
    return keras.models.clone_model(shell, clone_function=copy)


def _is_functional(model: keras.Model) -> bool:
    return "input_layers" in model.get_config()


def _read(model: keras.Model) -> _Graph:
    layers = {layer.name: layer for layer in model.layers}
    if isinstance(model, keras.Sequential):
        names = list(layers)
        readers = {name: [reader] for name, reader in zip(names, [*names[1:], _OUTPUT])}
        return _Graph(layers, readers, dict.fromkeys(names, 1))
    config = model.get_config()  # the form of a saved file, in which the nodes are public
    calls = {one["name"]: len(one["inbound_nodes"]) for one in config["layers"]}
    readers = {name: [] for name in calls}
    for one in config["layers"]:
        for read in _tensors(one["inbound_nodes"]):
            readers[read].append(one["name"])
    for read in _layers_of(config["output_layers"]):
        readers[read].append(_OUTPUT)
    return _Graph(layers, readers, calls)


def _tensors(value: Any) -> Iterator[str]:
    """The names of the layers whose outputs stand in the arguments of a saved node."""
    if isinstance(value, dict) and value.get("class_name") == "__keras_tensor__":
        yield value["config"]["keras_history"][0]
    elif isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _layers_of(outputs: Any) -> Iterator[str]:
    """The names of the layers in a saved structure of [name, node, tensor]."""
    if isinstance(outputs, dict):
        outputs = list(outputs.values())
    if outputs and isinstance(outputs[0], str):
        yield outputs[0]
        return
    for one in outputs:
        yield from _layers_of(one)


def _of_layer(graph: _Graph, name: str) -> Neurons:
    """The neurons of a layer, followed to the kernel that reads them."""
    layer = graph.layers[name]
    _check_cuttable(graph, layer)
    zero_stays = _check_activation(layer)
    vectors: list[Variable] = [] if layer.bias is None else [layer.bias]
    statistics: list[Variable] = []
    count = layer.kernel.shape[-1]
    after = _only_reader(graph, name)
    while not isinstance(after, _CUTTABLE):
        if type(after) is keras.layers.BatchNormalization:
            _check_axis(after)
            vectors += [one for one in (after.gamma, after.beta) if one is not None]
            statistics += [after.moving_mean, after.moving_variance]
        elif type(after) is keras.layers.Activation:
            zero_stays &= _check_activation(after)
        elif type(after) in _RECTIFIERS:
            zero_stays &= keeps_zero(after)
        elif type(after) not in _WITHOUT_WEIGHTS or _is_channels_first(after):
            raise _UncutError(f"what it returns goes into {after.name!r} ({type(after).__name__})")
        after = _only_reader(graph, after.name)
    _check_cuttable(graph, after)
    return Neurons(
        name=name,
        count=count,
        incoming=(layer.kernel,),
        vectors=tuple(vectors),
        outgoing=after.kernel,
        statistics=tuple(statistics),
        keeps_zero=zero_stays,
    )


def _check_cuttable(graph: _Graph, layer: Any) -> None:
    if graph.calls[layer.name] > 1:
        raise _UncutError(f"{layer.name!r} is shared: the model calls it more than once")
    if type(layer) not in _CUTTABLE:
        raise _UncutError(f"{layer.name!r} is of a class of its own ({type(layer).__name__})")
    if getattr(layer, "groups", 1) > 1:
        raise _UncutError(f"{layer.name!r} has groups={layer.groups}")
    if _is_channels_first(layer):
        raise _UncutError(f'{layer.name!r} has data_format="channels_first"')


def _check_activation(layer: Any) -> bool:
    """Whether a layer's activation keeps zero, if it takes each number by itself."""
    if not is_elementwise(layer.activation):
        raise _UncutError(f"the activation of {layer.name!r} may not act on each number alone")
    return keeps_zero(layer.activation)


def _check_axis(layer: Any) -> None:
    if layer.axis not in (-1, layer.input_spec.ndim - 1):
        raise _UncutError(f"{layer.name!r} normalizes the axis {layer.axis}, and not the last one")


def _is_channels_first(layer: Any) -> bool:
    return getattr(layer, "data_format", None) == "channels_first"


def _only_reader(graph: _Graph, name: str) -> Any:
    """The layer that reads what another returns, if there is one only."""
    readers = graph.readers[name]
    if readers == [_OUTPUT]:
        raise _UncutError(IS_OUTPUT)
    if len(readers) != 1:
        raise _UncutError(f"what it returns is read in {len(readers)} places: {', '.join(readers)}")
    [reader] = readers
    if reader not in graph.layers:
        _refuse_operation(reader)
    if graph.calls[reader] > 1:
        raise _UncutError(f"what it returns goes into {reader!r}, which is shared")
    return graph.layers[reader]


def _refuse_operation(name: str) -> NoReturn:
    raise _UncutError(f"what it returns goes into the operation {name!r}")
