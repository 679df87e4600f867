"""The paths of variables, by which the dicts of this package go."""


def variable_path(variable):
    """The path of a Keras variable. A raw `tf.Variable` has none and goes by its name."""
    return getattr(variable, "path", None) or variable.name


def unique_paths(variables):
    """The paths as a list, in which one that occurs again becomes `path#1`, `path#2`, ..."""
    seen = {}
    unique = []
    for path in map(variable_path, variables):
        seen[path] = seen.get(path, -1) + 1
        unique.append(f"{path}#{seen[path]}" if seen[path] else path)
    return unique
