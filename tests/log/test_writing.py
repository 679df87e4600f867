"""TensorBoard itself reads back what is written for it."""

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from sage_keras.log.writing import TensorBoardEvents


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
    sink = TensorBoardEvents(tmp_path, "sensitivity")
    for step in (4, 8):
        sink.write(report(step))
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


def test_two_sinks_of_one_folder_do_not_meet(tmp_path):
    for step in (1, 2):
        TensorBoardEvents(tmp_path, "sensitivity").write(report(step))
    assert len(list(tmp_path.iterdir())) == 2
