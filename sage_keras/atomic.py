"""Files that are there as a whole or not at all."""

import os
import pathlib
import uuid


def target_file(argument: str, path: str | os.PathLike[str], example: str) -> pathlib.Path:
    """The file that a path stands for, a symbolic link followed, if it can be written."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(
            f"Argument `{argument}` must be the path of a file, such as {example!r}. "
            f"Received: {argument}={path!r}"
        )
    target = pathlib.Path(os.path.realpath(path))
    if os.path.lexists(target) and not target.is_file():
        kind = "a folder" if target.is_dir() else "a device, a pipe or the like"
        raise ValueError(
            f"Argument `{argument}` must be the path of a file, such as {example!r}. "
            f"Received: {argument}={os.fspath(path)!r}, which is {kind}"
        )
    return target


def write(target: pathlib.Path, content: bytes) -> None:
    """Puts a file in its place in one piece. What was there stays until then."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside it, so that it can take its place; its name may be as long as may be.
    partial = target.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            partial.chmod(target.stat().st_mode & 0o7777)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
