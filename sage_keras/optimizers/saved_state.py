"""A description that travels with an optimizer's saved state, and is compared when it is loaded.

Keras saves the variables of an optimizer by position, without names. The description names them:

    format      2
    optimizer   the class
    settings    what was passed to the mixins, and to Keras where it decides which slots there are
    model       path and shape of each variable that the optimizer was built with, in order
    variables   [index into `model` or null, name, shape, dtype] of each variable of the optimizer
    checksum    of all this and the values

A state fits where the class and the slots of each variable are the same. It is loaded by name where
other variables are trained by now (layers frozen, LoRA enabled), with a warning of what is left
out. Dtypes follow from backend and floatx, and are converted.
"""

import json
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from sage_keras.paths import unique_names

FORMAT = 2
KEY = "format"  # beside "0", "1", ..., the variables

# Keras's own arguments that decide which slots there are; those of the mixins come from them.
_KERAS_SETTINGS = ("amsgrad", "centered", "momentum", "use_ema", "gradient_accumulation_steps")
# A change of these is a change of what is stored, if not of what it is called: weights that are
# chosen stay so, whatever they would be chosen by now.
_SAME_SETTINGS = ("sensitivity_dtype", "scores", "score", "scope", "pattern", "fraction")
# Not a matter of the weights: they may come and go.
_MAY_BE_MISSING = ("learning_rate", "skipped_steps")
_KINDS = {"format": int, "optimizer": str, "settings": dict, "variables": list}


def describe(optimizer: Any) -> dict[str, Any]:
    """The description of a built optimizer's state, as a dict that JSON can hold.

    It reads no tensor, since TensorFlow asks for it inside of graphs too.
    """
    settings = {
        name: getattr(optimizer, name) for name in _KERAS_SETTINGS if hasattr(optimizer, name)
    }
    names = optimizer._names
    # Keras counts the names that it makes up, over all optimizers of a process.
    own = unique_names(re.sub(r"_\d+$", "", one.name) for one in optimizer.variables)
    variables = [
        [*names.slots.get(position, (None, own[position])), list(one.shape), one.dtype]
        for position, one in enumerate(optimizer.variables)
    ]
    return {
        "format": FORMAT,
        "optimizer": type(optimizer).__name__,
        "settings": settings | optimizer._own_settings(),
        "model": [[path, list(shape)] for path, shape in names.shapes.items()],
        "variables": variables,
    }


def write(store: Any, description: dict[str, Any], arrays: Mapping[str, Any]) -> None:
    """Puts a description into the store of a saved state, whose values are `arrays`."""
    description = description | {"checksum": _checksum(description, arrays)}
    store[KEY] = np.frombuffer(json.dumps(description).encode(), dtype="uint8")


def load(store: Any, optimizer: Any, load_by_position: Callable[[Any], None]) -> None:
    """Loads a state into an optimizer: all that belongs to it, or nothing.

    Args:
        store: Mapping of position to array, and perhaps of `KEY` to a description.
        optimizer: The optimizer.
        load_by_position: Keras's own `load_own_variables`.

    Raises:
        ValueError: If the state is damaged, of a newer format, or of another optimizer.
    """
    description, arrays = _read(store)
    name = type(optimizer).__name__
    if len(arrays) <= 2:  # iterations and the learning rate: saved before it was built
        return load_by_position(arrays)
    if description is None:
        return _warn(
            f"The weights of the model are loaded, but not the state of {name}: it is that of an "
            "optimizer that is not of sage_keras, and begins from zero here"
        )
    if not optimizer.built:
        found = differences(description, describe(optimizer))
        return _warn(
            f"The weights of the model are loaded, but not the state of {name}: the optimizer is "
            "not built. To load it too, call `model.optimizer.build(model.trainable_variables)` "
            "first. " + " ".join(found)
        )
    positions = match(description, optimizer)
    for position, variable in enumerate(optimizer.variables):
        if position in positions:
            array = arrays[str(positions[position])]
            same = keras.backend.standardize_dtype(array.dtype) == variable.dtype
            variable.assign(array if same else keras.ops.cast(array, variable.dtype))


def parse(text: str | bytes) -> dict[str, Any]:
    """A description out of JSON.

    Raises:
        ValueError: If it is damaged, or of a newer format.
    """
    try:
        description = json.loads(text)
        newer = description["format"] > FORMAT
        if not newer:
            _check_kinds(description)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{_DAMAGED}: its description cannot be read ({error!r}).") from error
    if newer:
        raise ValueError(
            f"The optimizer's state was saved in format {description['format']}, by a newer "
            f"version of sage_keras: this one reads formats up to {FORMAT}. Install that "
            "version. To load the model's weights alone, load them before `model.compile`, or the "
            "model with `compile=False`."
        )
    return description


def differences(saved: dict[str, Any], present: dict[str, Any]) -> list[str]:
    """What distinguishes two descriptions, as a list of sentences."""
    found = []
    if saved["optimizer"] != present["optimizer"]:
        found.append(f"It was saved by {saved['optimizer']}, this is {present['optimizer']}.")
    for name in dict.fromkeys([*saved["settings"], *present["settings"]]):
        one, other = (entry["settings"].get(name) for entry in (saved, present))
        if (one or None) != (other or None):  # an older state may lack what is off
            found.append(f"It was saved with {name}={one!r}, here {name}={other!r}.")
    return found


def match(saved: dict[str, Any], optimizer: Any, by_position: bool = False) -> dict[int, int]:
    """Which variable of a saved state belongs to which of an optimizer.

    Args:
        saved: A description.
        optimizer: The optimizer, built.
        by_position: Boolean, whether whoever loads it goes by position and takes all or nothing.
            Defaults to `False`.

    Returns:
        Dict of position among `optimizer.variables` to position in the saved state.

    Raises:
        ValueError: If the state is of another optimizer.
    """
    present = describe(optimizer)
    fault = _unlike(saved, present)
    if fault is None:
        if saved["format"] == 1:
            return {position: position for position in range(len(present["variables"]))}
        same = match_variables(saved["model"], present["model"])
        positions, missing, left_out, fault = _match_slots(saved, present, same)
        if present["model"] and not same:
            fault = f"is of {saved['model'][0][0]} and so on, none of which is trained here"
        if by_position and fault is None and (missing or left_out):
            fault = f"has other variables than this optimizer: {', '.join(missing + left_out)}"
    if fault is not None:
        raise ValueError(
            " ".join(
                [
                    f"The saved state {fault}.",
                    *differences(saved, present),
                    f"Create {type(optimizer).__name__} as it was when its state was saved, with "
                    "the same variables to train. To load the model's weights alone, load them "
                    "before the optimizer is built, or the model with `compile=False`.",
                ]
            )
        )
    if missing or left_out:
        parts = [("stay as they are", missing), ("are left out of the file", left_out)]
        _warn(
            f"The saved state of {present['optimizer']} is of other variables than are trained "
            "here. The others are loaded; "
            + ", and ".join(f"these {what}: {', '.join(which)}" for what, which in parts if which)
        )
    return positions


def checkpoint_state(optimizer: Any) -> Any:
    """An object that makes `tf.train.Checkpoint` compare descriptions too, or None elsewhere.

    It matches variables by position like Keras, but leaves what does not fit as it is, in silence.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    class Description(tf.train.experimental.PythonState):
        def serialize(self) -> str:
            return json.dumps(describe(optimizer))

        def deserialize(self, text: str) -> None:
            match(parse(text), optimizer, by_position=True)

    return Description()


def check_state_tree(model: keras.Model, state_tree: Mapping[str, Any]) -> None:
    """Refuses a state tree that is not of a model's optimizer, before it is set.

    `model.set_state_tree`, and with it `keras.callbacks.OrbaxCheckpoint`, assigns what has the same
    path and shape and leaves out the rest without a word. Call this before it. Give the optimizer a
    `name` that is the same in each run: Keras numbers the names that it makes up.

    Args:
        model: A compiled `keras.Model` whose optimizer is built.
        state_tree: Dict as `model.get_state_tree` returns it.

    Raises:
        ValueError: If the tree lacks a variable of the optimizer, holds another, or one of another
            shape.

    Example:

    >>> import keras
    >>> import sage_keras
    >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=sage_keras.Sage(name="sage"), loss="mse")
    >>> model.optimizer.build(model.trainable_variables)
    >>> state_tree = model.get_state_tree(value_format="numpy_array")
    >>> sage_keras.check_state_tree(model, state_tree)
    >>> model.set_state_tree(state_tree)
    """
    saved = {path: np.shape(value) for path, value in _leaves(state_tree["optimizer_variables"])}
    present = {one.path: tuple(one.shape) for one in model.optimizer.variables}
    if saved != present:
        unlike = sorted(dict(saved.items() ^ present.items()))
        raise ValueError(
            f"Argument `state_tree` is not of this optimizer ({model.optimizer!r}): these variables"
            f" are in one of both only, or of other shapes there: {', '.join(unlike[:8])}"
            f"{' and others' if len(unlike) > 8 else ''}. Create the optimizer as it was when the "
            "state was saved, with the same `name`, and build it."
        )


def _leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


_DAMAGED = "The optimizer's saved state is damaged, and nothing of it was loaded"


def _read(store: Any) -> tuple[dict[str, Any] | None, dict[str, np.ndarray]]:
    """The description, if there is one, and all values, before anything is changed."""
    keys = list(store.keys())
    description = None
    if KEY in keys:
        description = parse(np.array(store[KEY], dtype="uint8").tobytes())
    try:
        arrays = {key: np.asarray(store[key]) for key in keys if key != KEY}
    except (OSError, RuntimeError, TypeError, ValueError, KeyError) as error:
        raise ValueError(f"{_DAMAGED}: {error}") from error
    if description is not None:
        _check_arrays(description, arrays)
    return description, arrays


def _check_arrays(description: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    shapes = [variable[-2] for variable in description["variables"]]
    expected = {str(position): tuple(shape) for position, shape in enumerate(shapes)}
    if {key: array.shape for key, array in arrays.items()} != expected:
        raise ValueError(f"{_DAMAGED}: its values are not those that its description names.")
    checksum = description.pop("checksum", None)
    if description["format"] > 1 and checksum != _checksum(description, arrays):
        raise ValueError(f"{_DAMAGED}: a value is not as it was saved.")


def _checksum(description: dict[str, Any], arrays: Mapping[str, Any]) -> int:
    checksum = zlib.crc32(json.dumps(description, sort_keys=True).encode())
    for key in sorted(arrays, key=int):
        array = np.ascontiguousarray(keras.ops.convert_to_numpy(arrays[key]))
        checksum = zlib.crc32(array.reshape(-1).view("uint8").data, checksum)
    return checksum


def _check_kinds(description: dict[str, Any]) -> None:
    for name, kind in _KINDS.items():
        if type(description[name]) is not kind:
            raise TypeError(f"{name} is no {kind.__name__}")
    if description["format"] < 1 or not description["variables"]:
        raise ValueError("it has no format or no variables")
    for *slot, shape, dtype in description["variables"]:
        keras.backend.standardize_dtype(dtype)
        if not all(isinstance(size, int) and size >= 0 for size in shape):
            raise TypeError("a shape is no list of sizes")
        if description["format"] > 1:
            index, name = slot
            if index is not None:
                description["model"][index]
            if not isinstance(name, str):
                raise TypeError("a name is no string")
    for path, shape in description.get("model", []):
        if not isinstance(path, str) or not isinstance(shape, list):
            raise TypeError("a path is no string")


def _unlike(saved: dict[str, Any], present: dict[str, Any]) -> str | None:
    """What makes it another optimizer's state, whatever the variables; None if nothing does."""
    if saved["optimizer"] != present["optimizer"]:
        return "is another optimizer's"
    unlike = _SAME_SETTINGS
    if saved["format"] == 1:  # which names no variables, but lists what decides about them
        unlike = tuple(saved["settings"])
        if len(saved["variables"]) != len(present["variables"]):
            return (
                f"has {len(saved['variables'])} variables, this optimizer has "
                f"{len(present['variables'])}"
            )
        for (shape, _), (_, name, other, _) in zip(saved["variables"], present["variables"]):
            if shape != other:
                return f"has the shape {tuple(shape)} where {name} has {tuple(other)}"
    for name in unlike:
        one, other = (entry["settings"].get(name) for entry in (saved, present))
        if (one or None) != (other or None):
            return f"is of {name}={one!r}, this optimizer has {name}={other!r}"
    return None


def match_variables(saved: list[Any], present: list[Any]) -> dict[int, int]:
    """Index among the model's variables here to index among those of the saved state."""
    olds, news = _below_model(saved), _below_model(present)
    shapes = [shape for _, shape in saved] == [shape for _, shape in present]
    # Keras counts the names that it makes up, over all models of a process.
    if shapes and [_uncounted(path) for path in olds] == [_uncounted(path) for path in news]:
        return {index: index for index in range(len(news))}
    return {
        index: olds.index(path)
        for index, path in enumerate(news)
        if olds.count(path) == news.count(path) == 1
        and saved[olds.index(path)][1] == present[index][1]
    }


def _below_model(variables: list[Any]) -> list[str]:
    """The paths without the model's name, which Keras leaves out of them when it loads a model."""
    parts = [path.split("/") for path, _ in variables]
    while parts and all(len(one) > 2 and one[0] == parts[0][0] for one in parts):
        parts = [one[1:] for one in parts]
    return ["/".join(one) for one in parts]


def _uncounted(path: str) -> str:
    return re.sub(r"_\d+(?=/)", "", path)


def _match_slots(
    saved: dict[str, Any], present: dict[str, Any], same: dict[int, int]
) -> tuple[dict[int, int], list[str], list[str], str | None]:
    """The positions of slots that belong together, what is missing, left out, and at fault."""
    olds = {(index, name): at for at, (index, name, *_) in enumerate(saved["variables"])}
    of_new = {old: new for new, old in same.items()}
    positions: dict[int, int] = {}
    missing = []
    for at, (index, name, shape, _) in enumerate(present["variables"]):
        known = index is None or index in same
        old = olds.pop((same.get(index), name), None) if known else None
        path = name if index is None else f"{name} of {present['model'][index][0]}"
        if old is None:
            if known and name not in _MAY_BE_MISSING:
                return {}, [], [], f"has no {path}"
            missing.append(path)
        elif saved["variables"][old][2] != shape:
            found = tuple(saved["variables"][old][2])
            return {}, [], [], f"has the shape {found} for {path}, here it is {tuple(shape)}"
        else:
            positions[at] = old
    left_out = []
    for index, name in olds:
        path = name if index is None else f"{name} of {saved['model'][index][0]}"
        if name not in _MAY_BE_MISSING and (index is None or index in of_new):
            return {}, [], [], f"has {path}, which this optimizer has not"
        left_out.append(path)
    return positions, missing, left_out, None


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=6)
