"""The paths of variables, by which the dicts of this package go."""

from collections.abc import Iterable

from sage_keras.annotations import Variable


def variable_path(variable: Variable) -> str:
    """The path of a Keras variable. A raw `tf.Variable` has none and goes by its name."""
    path: str = getattr(variable, "path", None) or variable.name
    return path


def unique_paths(variables: Iterable[Variable]) -> list[str]:
    """The paths as a list, in which one that occurs again becomes `path#1`, `path#2`, ..."""
    seen: dict[str, int] = {}
    unique = []
    for path in map(variable_path, variables):
        seen[path] = seen.get(path, -1) + 1
        unique.append(f"{path}#{seen[path]}" if seen[path] else path)
    return unique
