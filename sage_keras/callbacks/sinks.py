"""Where the reports of a callback go: JSON lines and TensorBoard's event files.

A report is a dict of plain values:

    step     the optimizer's step
    model    a dict of `figures`, name to number, and perhaps a `histogram`, of `counts` and `zeros`
    groups   group name to a dict like that of the model
    edges    the edges of the bins of all histograms, where there are any

and whatever else there is to say; only the JSON lines have that.
"""

import importlib.util
import itertools
import json
import math
import os
import pathlib
import socket
import time

import numpy as np

_files = itertools.count()  # two callbacks of one process may begin in the same second


def open_sinks(log_dir, name):
    """The sinks of a folder: `name.jsonl` and, where `tensorboard` is installed, an event file.

    Args:
        log_dir: The folder, or `None` for no sinks.
        name: String, what is reported.

    Returns:
        List of sinks.
    """
    if log_dir is None:
        return []
    sinks = [JsonLinesSink(pathlib.Path(log_dir) / f"{name}.jsonl")]
    if importlib.util.find_spec("tensorboard") is not None:
        sinks.append(TensorBoardSink(log_dir, name))
    return sinks


class JsonLinesSink:
    """Appends each report to a file, as one line of strict JSON.

    A line is written in one piece and counts once its line end is there: what a killed run left
    behind of its last line is removed when the file is opened again. Numbers that JSON does not
    know, not-a-number and infinity, become `null`.

    Args:
        path: The file. It and its folder are created where they are missing.
    """

    def __init__(self, path):
        self._path = pathlib.Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path, "ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def write(self, report):
        line = json.dumps(_strict(report), allow_nan=False).encode() + b"\n"
        with open(self._path, "ab", buffering=0) as file:
            file.write(line)


class TensorBoardSink:
    """Writes the figures of each report as TensorBoard scalars and histograms.

    The figures of the model are called `prefix/figure`, those of groups `prefix_figure/group`, so
    that TensorBoard shows the groups of one figure side by side. Histograms are of the decimal
    logarithm, since TensorBoard's axis is linear; zeros are not in them.

    `tensorboard` must be installed; TensorFlow need not be, and is not imported.

    Args:
        log_dir: The folder of the event file.
        prefix: String that the names begin with.
    """

    def __init__(self, log_dir, prefix):
        name = f"{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_files)}"
        self._path = pathlib.Path(log_dir) / f"events.out.tfevents.{name}"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._prefix = prefix
        self._append(file_version="brain.Event:2")

    def write(self, report):
        from tensorboard.compat.proto.summary_pb2 import Summary

        edges = report.get("edges")
        values = list(_values(report["model"], edges, f"{self._prefix}/"))
        for group, entry in report["groups"].items():
            values += _values(entry, edges, f"{self._prefix}_", f"/{group}")
        self._append(step=report["step"], summary=Summary(value=values))

    def _append(self, **fields):
        # Not tensorboard's EventFileWriter: it imports TensorFlow wherever that is installed.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        event = Event(wall_time=time.time(), **fields)
        with open(self._path, "ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def _values(entry, edges, head, tail=""):
    from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

    for name, value in entry["figures"].items():
        yield Summary.Value(tag=f"{head}{name}{tail}", simple_value=value)
    if "histogram" in entry:
        counts = np.array(entry["histogram"]["counts"])
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


def _strict(value):
    """`value` with None in place of every number that JSON does not know."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
