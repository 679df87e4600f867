"""Groups of a model's variables: by layer, by pattern, or by a function of one's own."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from sage_keras import arguments
from sage_keras.annotations import Groups, Variable


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
        TypeError: If `groups` is none of these, or gives a name that is not a string.
        ValueError: If a pattern is malformed, or matches no variable, if a name cannot be written
            to a file, or if no variable is in a group.

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
        return _by_layer(model, variables)
    if isinstance(groups, dict):
        return _by_pattern(groups, variables)
    if callable(groups):
        grouped = _by_name([groups(variable) for variable in variables], variables)
        if variables and not grouped:
            raise ValueError(
                "Argument `groups` must give a name to one variable at least, and gave None to all."
            )
        return grouped
    raise TypeError(
        "Argument `groups` must be None, a dict of group name to regular expression, such as "
        '{"attention": "attention"}, or a function of a variable that returns a name. '
        f"Received: groups={groups!r}"
    )


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


def _by_layer(model: keras.Model, variables: Sequence[Variable]) -> dict[str, list[Variable]]:
    owners: dict[int, str] = {}
    for name, layer in _layers(model):
        for variable in layer.trainable_variables:
            owners.setdefault(id(variable), name)
    return _by_name([owners.get(id(variable), model.name) for variable in variables], variables)


def _layers(model: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for layer in model.layers:
        name = prefix + layer.name
        if getattr(layer, "layers", None):
            yield from _layers(layer, f"{name}/")
        yield name, layer


def _by_pattern(groups: dict[str, str], variables: Sequence[Variable]) -> dict[str, list[Variable]]:
    paths = [variable.path for variable in variables]
    grouped = {}
    for name, pattern in groups.items():
        _check_name(name)
        if not isinstance(pattern, str):
            raise TypeError(
                "Argument `groups` must give each group a regular expression, such as "
                f'{{"attention": "attention"}}. Received: groups={{{name!r}: {pattern!r}}}'
            )
        patterns = arguments.patterns("groups", [pattern])
        matched = arguments.matches("groups", patterns, paths, default=False)
        grouped[name] = [variable for variable, yes in zip(variables, matched) if yes]
    return grouped


def _by_name(
    names: Sequence[str | None], variables: Sequence[Variable]
) -> dict[str, list[Variable]]:
    grouped: dict[str, list[Variable]] = {}
    for name, variable in zip(names, variables):
        if name is not None:
            _check_name(name)
            grouped.setdefault(name, []).append(variable)
    return grouped


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(
            'Argument `groups` must give names that are strings, such as "attention". '
            f"Received the name: {name!r} (of type {type(name).__name__})"
        )
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "Argument `groups` must give names that can be written to a file, without half a "
            "character (a lone surrogate). With groups=None they are those of the layers: rename "
            f"the layer, or name the groups yourself. Received the name: {name!r}"
        ) from error
