"""Groups of a model's variables: by layer, by pattern, or by a function of one's own."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeAlias

import keras

from sage_keras import arguments
from sage_keras.annotations import Groups, Variable

_Grouped: TypeAlias = dict[str, list[Variable]]
_WANTED = (
    'a dict of group name to regular expression, such as {"attention": "attention"}, or a function '
    "of a variable that returns the name of its group, a string, or None for no group"
)


def group_variables(model: keras.Model, groups: Groups = None) -> dict[str, list[Variable]]:
    """Groups the trainable variables of a model.

    Args:
        model: A built `keras.Model`.
        groups: `None` for one group a layer, as `model.summary(expand_nested=True)` lists them:
            nested models are opened, and their layers are called `"model/layer"`. Or a dict of
            group name to a regular expression that is searched in `variable.path`; a variable
            joins every group that matches. Or a function of a variable that returns the name of
            its group, or `None` for none. Defaults to `None`.

    Returns:
        Dict of group name to a non-empty list of variables. By layer, each variable is in one
        group: a shared variable in the first layer that has it, and one that is not in any layer
        under the model's own name.

    Raises:
        TypeError: If `groups` is none of these, or a name or pattern is not a string.
        ValueError: If a pattern is malformed or matches no variable, if no variable is in a group,
            or if the name of a group or layer cannot be written as UTF-8.

    Example:

    >>> import keras
    >>> dense = keras.layers.Dense(4, name="dense")
    >>> model = keras.Sequential([keras.Input((2,)), dense, keras.layers.Dense(1, name="head")])
    >>> {name: len(variables) for name, variables in group_variables(model).items()}
    {'dense': 2, 'head': 2}
    >>> list(group_variables(model, {"kernels": "kernel$"}))
    ['kernels']
    """
    variables = model.trainable_variables
    if groups is None:
        grouped = _by_layer(model, variables)
    elif isinstance(groups, dict):
        grouped = _by_pattern(groups, variables)
    elif callable(groups):
        grouped = _by_name([groups(variable) for variable in variables], variables)
    else:
        raise TypeError(f"Argument `groups` must be None, {_WANTED}. Received: groups={groups!r}")
    if variables and not grouped:
        raise ValueError(
            "Argument `groups` puts no variable into a group. To have one group a layer, write "
            f"groups=None. Received: groups={groups!r}"
        )
    for name in grouped:
        _check_name(name, "layer" if groups is None else "group")
    return grouped


def group_positions(
    model: keras.Model, groups: Groups, variables: Sequence[Variable]
) -> dict[str | None, list[int]]:
    """Where the variables of each group stand in a list, which need not hold all of them.

    Args:
        model: A built `keras.Model`.
        groups: As `group_variables` takes them.
        variables: List of some of the model's trainable variables.

    Returns:
        Dict of group name to a non-empty list of positions. The first group is that of all
        variables, and its name is `None`.

    Raises:
        ValueError: If none of these variables is in a group.
    """
    positions = {id(variable): position for position, variable in enumerate(variables)}
    members: dict[str | None, list[int]] = {None: list(positions.values())}
    for name, group in group_variables(model, groups).items():
        found = [positions[id(variable)] for variable in group if id(variable) in positions]
        if found:
            members[name] = found
    if len(members) == 1:
        paths = arguments.listed([variable.path for variable in variables])
        raise ValueError(
            "Argument `groups` leaves out all variables that the optimizer acts on. Name a group "
            f"for some of them, or pass None for one group a layer. They are:{paths}"
        )
    return members


def _by_layer(model: keras.Model, variables: list[Variable]) -> _Grouped:
    owners: dict[int, str] = {}
    for name, layer in layers_of(model):
        for variable in layer.trainable_variables:
            owners.setdefault(id(variable), name)
    return _by_name([owners.get(id(variable), model.name) for variable in variables], variables)


def layers_of(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each layer with its name, nested ones as `model/layer` before the model that has them."""
    for layer in model.layers:
        name = prefix + layer.name
        if getattr(layer, "layers", None):
            yield from layers_of(layer, f"{name}/")
        yield name, layer


def _by_pattern(groups: dict[str, str], variables: list[Variable]) -> _Grouped:
    grouped: _Grouped = {}
    for name, pattern in groups.items():
        if not isinstance(pattern, str):
            raise TypeError(
                f"Argument `groups` must be {_WANTED}. Received: groups={{{name!r}: {pattern!r}}}"
            )
        try:
            search = re.compile(pattern).search
        except re.error as error:
            raise ValueError(
                f"Argument `groups` holds a malformed regular expression ({error}). Escape special "
                f"characters with a backslash. Received: groups={{{name!r}: {pattern!r}}}"
            ) from error
        grouped[name] = [variable for variable in variables if search(variable.path)]
        if not grouped[name]:
            paths = arguments.listed([variable.path for variable in variables])
            raise ValueError(
                "Argument `groups` has a pattern that matches no trainable variable. Leave the "
                "group out, or pass a regular expression that is found in the path of one. "
                f"Received: groups={{{name!r}: {pattern!r}}}. The variables are:{paths}"
            )
    return grouped


def _by_name(names: list[str | None], variables: list[Variable]) -> _Grouped:
    grouped: _Grouped = {}
    for name, variable in zip(names, variables):
        if name is None:
            continue
        if not isinstance(name, str):  # before it becomes a key: a NaN is never equal to itself
            _refuse_name(name)
        grouped.setdefault(name, []).append(variable)
    return grouped


def _check_name(name: Any, kind: str) -> None:
    if not isinstance(name, str):
        _refuse_name(name)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"Argument `groups`: the {kind} {name!r} has a name that cannot be written as UTF-8. "
            "Pass `groups` with names of plain text."
        ) from error


def _refuse_name(name: Any) -> NoReturn:
    raise TypeError(
        f"Argument `groups` must be {_WANTED}. Received the name {name!r} (of type "
        f"{type(name).__name__})"
    )
