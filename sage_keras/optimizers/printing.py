"""What `repr` and `summary` of an optimizer print."""

import inspect
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from sage_keras.backend import is_concrete


def as_line(optimizer: Any) -> str:
    """Class, base and learning rate, what is not the default, and what the mixins act on."""
    settings = ", ".join(
        f"{name}={textwrap.shorten(value, 100, placeholder='...')}"
        for name, value in _settings(optimizer).items()
    )
    base = next(
        one.__name__
        for one in type(optimizer).__mro__
        if issubclass(one, keras.optimizers.Optimizer) and not hasattr(one, "_phrases")
    )
    phrases = optimizer._phrases() if optimizer.built else ["not built"]
    return f"<{', '.join([f'{type(optimizer).__name__}({settings}) on {base}', *phrases])}>"


def as_table(
    shapes: Mapping[str, tuple[int, ...]], columns: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """A line of titles and one for each variable.

    Args:
        shapes: Dict of unique path to shape.
        columns: Dict of title to a dict of unique path to text.
    """
    cells = [
        *([title, *(one.get(path, "-") for path in shapes)] for title, one in columns.items()),
        ["path", *shapes],
        ["shape", *map(str, shapes.values())],
    ]
    widths = [max(map(len, column)) for column in cells]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in zip(*cells)]


def _settings(optimizer: Any) -> dict[str, str]:
    """The learning rate, and the other arguments that are not the default, as text."""
    if is_concrete(ops.add(optimizer.iterations, 0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of functions, which are not to be saved here
            config = optimizer.get_config()
    else:  # the learning rate has no value in a trace
        config = optimizer._own_settings()
    shown = {}
    for name, value in config.items():
        if name == "learning_rate":
            schedule = isinstance(value, dict)
            shown[name] = value["class_name"] if schedule else f"{value:.6g}"
        elif name != "name" and value != _default(type(optimizer), name):
            shown[name] = repr(value)
    return shown


def _default(cls: type, name: str) -> Any:
    """The default of an argument of a class, as the first `__init__` that names it has it."""
    for one in cls.__mro__:
        parameters = (
            inspect.signature(vars(one)["__init__"]).parameters if "__init__" in vars(one) else {}
        )
        if name in parameters:
            return parameters[name].default
    return inspect.Parameter.empty
