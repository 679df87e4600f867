"""The paths of variables, by which the dicts of this package go."""

from collections.abc import Iterable

from sage_keras.annotations import Variable


def variable_path(variable: Variable) -> str:
    """The path of a Keras variable. A raw `tf.Variable` has none and goes by its name."""
    return getattr(variable, "path", None) or variable.name


def unique_paths(variables: Iterable[Variable]) -> list[str]:
    """The paths as a list, in which one that occurs again becomes `path#1`, `path#2`, ..."""
    return unique_names(map(variable_path, variables))


def unique_names(names: Iterable[str]) -> list[str]:
    """The names as a list, in which one that occurs again becomes `name#1`, `name#2`, ..."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, -1) + 1
        unique.append(f"{name}#{seen[name]}" if seen[name] else name)
    return unique
