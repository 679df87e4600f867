"""Logs that lose no line, whatever happens, and that TensorBoard itself reads back."""

import contextlib
import errno
import json
import os
import pathlib
import resource
import sys
import threading

import numpy as np
import pytest
from logs import report as whole_report
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from sage_keras.log.format import SENSITIVITY
from sage_keras.log.reading import read_log
from sage_keras.log.writing import JsonLines, LogWriter, TensorBoardEvents, local_folder

pytestmark = pytest.mark.backend_agnostic

fcntl = pytest.importorskip("fcntl", reason="a file is locked where there is fcntl")


def entry(mean, counts):
    return {
        "values": {"mean": mean, "q0.5": 0.25},
        "histogram": {"counts": counts, "zeros": 3},
    }


def report(step):
    return {
        "step": step,
        "edges": [0.01, 0.1, 1.0, 10.0],
        "model": entry(1.0 / step, [1, 2, 5]),
        "groups": {"block/{a}": entry(2.0, [0, 2, 0]), "b": entry(3.0, [0, 0, 0])},
    }


def read(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    accumulator.Reload()
    return accumulator


def test_scalars_and_histograms(tmp_path):
    events = TensorBoardEvents(tmp_path, "sensitivity")
    for step in (4, 8):
        events.write(report(step))
    events = read(tmp_path)
    assert [(one.step, one.value) for one in events.Scalars("sensitivity/mean")] == [
        (4, 0.25),
        (8, 0.125),
    ]
    assert events.Scalars("sensitivity_mean/block/{a}")[0].value == 2.0
    assert events.Scalars("sensitivity_q0.5/b")[1].value == 0.25

    whole = events.Histograms("sensitivity/log10")[1].histogram_value
    np.testing.assert_allclose(whole.bucket_limit, [-1, 0, 1])
    np.testing.assert_allclose(whole.bucket, [1, 2, 5])
    assert (whole.min, whole.max, whole.num) == pytest.approx((-2, 1, 8))
    group = events.Histograms("sensitivity_log10/block/{a}")[0].histogram_value
    assert (group.min, list(group.bucket_limit), list(group.bucket)) == (-1, [0], [2])
    assert "sensitivity_log10/b" not in events.Tags()["histograms"]


def test_tensorboard_shows_them_with_its_plugins(tmp_path):
    """Its server converts what it reads, and then looks for tensors of the plugins."""
    from tensorboard import data_compat
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    TensorBoardEvents(tmp_path, "sensitivity").write(report(4))
    (path,) = tmp_path.iterdir()
    _version, raw = (Event.FromString(one) for one in RawEventFileLoader(str(path)).Load())
    values = {one.tag: one for one in data_compat.migrate_event(raw).summary.value}
    assert values["sensitivity/mean"].metadata.plugin_data.plugin_name == "scalars"
    assert values["sensitivity/log10"].metadata.plugin_data.plugin_name == "histograms"
    buckets = make_ndarray(values["sensitivity/log10"].tensor)
    np.testing.assert_allclose(buckets, [[-2, -1, 1], [-1, 0, 2], [0, 1, 5]], atol=1e-6)


def test_two_files_of_one_folder_do_not_meet(tmp_path):
    for step in (1, 2):
        TensorBoardEvents(tmp_path, "sensitivity").write(report(step))
    assert len(list(tmp_path.iterdir())) == 2


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_that_another_process_is_writing_is_waited_for(tmp_path):
    path = tmp_path / "log.jsonl"
    JsonLines(path).append({"step": 1})
    with open(path, "ab", buffering=0) as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write(b'{"step"')
        opening = threading.Thread(target=lambda: JsonLines(path).append({"step": 3}))
        opening.start()
        opening.join(timeout=0.2)
        other.write(b": 2}\n")
    opening.join()
    assert lines_of(path) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_what_a_killed_writer_left_goes_with_the_next_line(tmp_path):
    """Not only with the next file that is opened: the other run may be the one that is killed."""
    path = tmp_path / "log.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    with open(path, "ab") as other:
        other.write(b'{"a_long_name": "' + b"x" * 200_000)
    lines.append({"step": 2})
    assert lines.last() == {"step": 2}
    assert lines_of(path) == [{"step": 1}, {"step": 2}]


@contextlib.contextmanager
def files_of_at_most(size):
    """As on a full disk, a write stops in the middle; the next one raises."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = JsonLines(path)
    lines.append({"step": 1})
    before = path.read_bytes()
    with files_of_at_most(len(before) + 5), pytest.raises(OSError) as full:
        lines.append({"step": 2})
    assert full.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    lines.append({"step": 3})
    assert lines_of(path) == [{"step": 1}, {"step": 3}]


def test_the_last_line_is_that_of_json(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = JsonLines(path)
    assert lines.last() is None
    path.write_bytes(b"{\n")
    assert lines.last() is None
    lines.append([1])
    assert lines.last() == [1]


def test_a_log_of_another_frequency_is_refused_before_it_is_added_to(tmp_path):
    writer = LogWriter(tmp_path, SENSITIVITY, update_freq=5)
    writer.write(whole_report(5))
    before = (tmp_path / SENSITIVITY.file).read_bytes()
    with pytest.raises(
        ValueError, match=r"update_freq=5, or take .* Received: update_freq='epoch'"
    ):
        LogWriter(tmp_path, SENSITIVITY, update_freq="epoch")
    assert (tmp_path / SENSITIVITY.file).read_bytes() == before
    LogWriter(tmp_path, SENSITIVITY, update_freq=5).write(whole_report(10))
    assert read_log(tmp_path).steps.tolist() == [5, 10]


def test_an_older_log_without_a_frequency_is_continued(tmp_path):
    LogWriter(tmp_path, SENSITIVITY).write(whole_report(5))
    LogWriter(tmp_path, SENSITIVITY, update_freq=5).write(whole_report(10))
    assert read_log(tmp_path).steps.tolist() == [5, 10]


def test_what_could_not_be_read_is_not_written(tmp_path):
    writer = LogWriter(tmp_path, SENSITIVITY)
    with pytest.raises(ValueError, match=r"its optimizers\[0\] has no 'beta_3'"):
        writer.write({**whole_report(1), "optimizers": [{"class": "Sage"}]})
    assert (tmp_path / SENSITIVITY.file).read_bytes() == b""


def test_a_folder_called_tensorboard_is_no_tensorboard(tmp_path, monkeypatch):
    for name in [one for one in sys.modules if one.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    (tmp_path / "tensorboard").mkdir()
    installed = [one for one in sys.path if not os.path.isdir(os.path.join(one, "tensorboard"))]
    monkeypatch.setattr(sys, "path", [str(tmp_path), *installed])
    LogWriter(tmp_path / "log", SENSITIVITY).write(whole_report(1))
    assert [one.name for one in (tmp_path / "log").iterdir()] == [SENSITIVITY.file]


@pytest.mark.parametrize("address", ["gs://bucket/run", pathlib.Path("gs://bucket"), "hdfs://a"])
def test_an_address_is_no_folder(address):
    with pytest.raises(ValueError, match=r"Argument `log_dir` .* Received: log_dir='(gs|hdfs):/"):
        local_folder("log_dir", address)


@pytest.mark.parametrize("folder", ["run", "/tmp/a:/b", "a:b", "C:/run"])
def test_a_folder_is_a_folder(folder):
    assert local_folder("log_dir", folder) == pathlib.Path(folder)
