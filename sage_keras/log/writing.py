"""Where the reports of a callback go: JSON lines and TensorBoard's event files."""

import contextlib
import importlib
import itertools
import json
import math
import os
import pathlib
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from sage_keras.log import format as log_format
from sage_keras.log.format import Kind

try:
    import fcntl
except ImportError:  # Windows: there a file is not locked
    fcntl = None  # type: ignore[assignment]

_files = itertools.count()  # two callbacks of one process may begin in the same second
_BLOCK = 2**16  # bytes
# A `pathlib.Path` has one slash left of the two. One letter is a drive of Windows.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_folder(argument: str, value: str | os.PathLike[str]) -> pathlib.Path:
    """`value` as a path, if it is one of this machine's file system.

    Args:
        argument: String, the name of the argument.
        value: What was passed.

    Raises:
        ValueError: If it is an address, such as that of a bucket.
    """
    if _ADDRESS.match(os.fspath(value)):
        raise ValueError(
            f"Argument `{argument}` must be a folder of a file system, since a log is added to "
            "line by line. Write into a local folder and copy it, or mount the storage. "
            f"Received: {argument}={os.fspath(value)!r}"
        )
    return pathlib.Path(value)


class LogWriter:
    """Checks the reports of a callback and writes them into a folder.

    They go to a file of JSON lines and, where `tensorboard` is installed, to an event file.

    Args:
        folder: The folder, or `None` to write nothing. A log that is there is continued.
        kind: The `Kind` of log.
        update_freq: How often the callback reports, or `None` where that is no choice.

    Raises:
        ValueError: If the log that is there is of another `update_freq`.
    """

    def __init__(
        self, folder: pathlib.Path | None, kind: Kind, update_freq: str | int | None = None
    ) -> None:
        self._kind = kind
        self._more = {} if update_freq is None else {log_format.UPDATE_FREQ: update_freq}
        self._lines = None
        self._events = None
        if folder is None:
            return
        self._lines = JsonLines(folder / kind.file)
        self._check_frequency(self._lines.last(), update_freq)
        if _tensorboard_is_installed():
            self._events = TensorBoardEvents(folder, kind.name)

    def write(self, line: dict[str, Any]) -> None:
        """Writes a report, or the end of an epoch.

        Args:
            line: Dict, as the module `format` describes it.
        """
        if self._lines is None:
            return
        line = _strict({**line, **self._more})
        log_format.check_line(line, self._kind)
        self._lines.append(line)
        if self._events is not None and log_format.is_report(line):
            self._events.write(line)

    def _check_frequency(self, last: Any, update_freq: str | int | None) -> None:
        """Refuses a log whose reports are at other distances: one series would be made of both."""
        before = last.get(log_format.UPDATE_FREQ) if isinstance(last, dict) else None
        if before is not None and before != update_freq:
            raise ValueError(
                f"Argument `log_dir` must be a folder without a log of another `update_freq`. "
                f"Go on with update_freq={before!r}, or take another folder. "
                f"Received: update_freq={update_freq!r}"
            )


class JsonLines:
    """A file to which values are added, each as one line of strict JSON.

    A line counts once its line end is there: what a killed run left behind of its last line is
    removed when the next one is written. Several processes may add to one file, since each locks
    it for as long as it takes (not on Windows). A line that cannot be written whole, for want of
    space, is taken back.

    Args:
        path: The file. It and its folder are created where they are missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self._path) as file:
            _drop_unfinished_line(file)

    def append(self, value: Any) -> None:
        """Adds a line.

        Args:
            value: What JSON knows, and numbers that it does not know, not-a-number and infinity,
                which become `null`.
        """
        line = json.dumps(_strict(value), allow_nan=False).encode() + b"\n"
        with _locked(self._path) as file:
            end = _drop_unfinished_line(file)
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
            except BaseException:
                file.truncate(end)
                raise

    def last(self) -> Any:
        """What the last line holds, or `None` if there is none, or it is not JSON."""
        with _locked(self._path) as file:
            end = _drop_unfinished_line(file)
            begin = _line_end(file, end - 1) if end else 0
            file.seek(begin)
            line = file.read(end - begin)
        try:
            return json.loads(line)
        except (RecursionError, ValueError):
            return None


class TensorBoardEvents:
    """An event file of TensorBoard's with the values of each report, and its histograms.

    The values of the model are called `prefix/value`, those of groups `prefix_value/group`, so
    that TensorBoard shows the groups of one value side by side. Histograms are of the decimal
    logarithm, since TensorBoard's axis is linear; zeros are not in them.

    `tensorboard` must be installed; TensorFlow need not be, and is not imported.

    Args:
        folder: The folder of the event file.
        prefix: String that the names begin with.
    """

    def __init__(self, folder: pathlib.Path, prefix: str) -> None:
        name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._path = folder / f"events.out.tfevents.{name}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = prefix
        self._append(file_version="brain.Event:2")

    def write(self, report: dict[str, Any]) -> None:
        """Writes a report.

        Args:
            report: Dict, as the module `format` describes it.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        edges = report.get(log_format.EDGES, [])
        summaries = list(_summaries(report[log_format.MODEL], edges, f"{self._prefix}/"))
        for group, entry in report[log_format.GROUPS].items():
            summaries += _summaries(entry, edges, f"{self._prefix}_", f"/{group}")
        self._append(step=report[log_format.STEP], summary=Summary(value=summaries))

    def _append(self, **fields: Any) -> None:
        # Not tensorboard's EventFileWriter: it imports TensorFlow wherever that is installed.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(wall_time=time.time(), **fields)
        with open(self._path, "ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _tensorboard_is_installed() -> bool:
    try:  # a folder of that name would be found, too
        importlib.import_module("tensorboard.compat.proto.event_pb2")
    except ImportError:
        return False
    return True


def _summaries(
    entry: dict[str, Any], edges: list[float], head: str, tail: str = ""
) -> Iterator[Any]:
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    for name, value in entry[log_format.VALUES].items():
        number = math.nan if value is None else value
        yield Summary.Value(tag=f"{head}{name}{tail}", simple_value=number)
    if log_format.HISTOGRAM in entry:
        counts = np.array(entry[log_format.HISTOGRAM][log_format.COUNTS])
        filled = np.flatnonzero(counts)
        if len(filled):
            limits = np.log10(edges[filled[0] : filled[-1] + 2])
            histogram = HistogramProto(
                min=limits[0],
                max=limits[-1],
                num=counts.sum(),
                bucket_limit=limits[1:],  # a bin's upper edge
                bucket=counts[filled[0] : filled[-1] + 1],
            )
            yield Summary.Value(tag=f"{head}log10{tail}", histo=histogram)


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[BinaryIO]:
    """The file, open to be read and added to, while no other process has it so."""
    with open(path, "ab+", buffering=0) as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # some network file systems have no locks
                fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed, or the process dies
        yield file


def _drop_unfinished_line(file: BinaryIO) -> int:
    """Cuts off what is behind the last line end, and tells where the file ends now."""
    size = file.seek(0, os.SEEK_END)
    end = _line_end(file, size)
    if end < size:
        file.truncate(end)
    return end


def _line_end(file: BinaryIO, before: int) -> int:
    """Where the last line ends of those that end at or before a place; 0 if none does."""
    while before > 0:
        begin = max(0, before - _BLOCK)
        file.seek(begin)
        found = file.read(before - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        before = begin
    return 0


def _strict(value: Any) -> Any:
    """`value` with None in place of every number that JSON does not know."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
