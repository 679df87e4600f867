"""What the loggers wrote is read back, whatever became of the run."""

import json

import numpy as np
import pytest

from sage_keras.analysis import read_dps_log, read_log
from sage_keras.log.writing import JsonLines

NAN = float("nan")


def report(step, epoch=0, mean=1.0, groups=("a",), **more):
    entry = {"parameters": 4, "values": {"mean": mean, "gini": 0.25}}
    return {
        "step": step,
        "epoch": epoch,
        "optimizers": [{"class": "Sage", "beta_3": 0.75, "bias_correction": True, "guide": True}],
        "model": entry,
        "groups": dict.fromkeys(groups, entry),
        **more,
    }


def write(folder, *reports, name="sensitivity.jsonl"):
    lines = JsonLines(folder / name)
    for one in reports:
        lines.append(one)
    return folder / name


both_logs = pytest.mark.parametrize(
    ("read", "name"), [(read_log, "sensitivity.jsonl"), (read_dps_log, "dps.jsonl")]
)


def test_series_of_the_model_and_its_groups(tmp_path):
    write(tmp_path, report(5, mean=0.5), report(10, epoch=1, mean=1.5, groups=("a", "b")))
    log = read_log(str(tmp_path))
    assert log.steps.tolist() == [5, 10]
    assert log.epochs.tolist() == [0, 1]
    assert log.optimizers == report(0)["optimizers"]
    assert log.model.parameters == 4
    assert log.model.histogram is None
    assert log.model.values["mean"].tolist() == [0.5, 1.5]
    assert list(log.groups) == ["a", "b"]
    np.testing.assert_array_equal(log.groups["b"].values["mean"], [np.nan, 1.5])


def test_not_a_number_is_written_as_strict_json(tmp_path):
    path = write(tmp_path, report(1, mean=NAN), report(2, mean=float("inf")), report(3, mean=2.0))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    np.testing.assert_array_equal(read_log(tmp_path).model.values["mean"], [np.nan, np.nan, 2.0])


def test_histograms_of_different_bins_come_on_common_edges(tmp_path):
    def with_bins(step, edges, counts, zeros):
        one = report(step, edges=edges)
        histogram = {"counts": counts, "zeros": zeros}
        one["model"] = {**one["model"], "histogram": histogram}
        return one

    write(
        tmp_path,
        with_bins(1, [1.0, 1.5, 2.0], [3, 4], 0),
        with_bins(2, [2.0, 3.0], [5], 2),
        with_bins(3, [], [], 7),
        report(4),
    )
    histogram = read_log(tmp_path).model.histogram
    assert histogram.edges.tolist() == [1.0, 1.5, 2.0, 3.0]
    expected = [[3, 4, 0], [0, 0, 5], [0, 0, 0], [NAN] * 3]
    np.testing.assert_array_equal(histogram.counts, expected)
    np.testing.assert_array_equal(histogram.zeros, [0, 2, 7, NAN])


@both_logs
@pytest.mark.parametrize("cut", [1, 40, -2, -1])
def test_an_unfinished_last_line_is_skipped_and_then_overwritten(tmp_path, cut, read, name):
    path = write(tmp_path, report(1), report(2), name=name)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[:cut])
    assert read(tmp_path).steps.tolist() == [1]
    write(tmp_path, report(3), name=name)
    assert read(tmp_path).steps.tolist() == [1, 3]


def test_a_line_replaces_earlier_ones_of_its_step_and_above(tmp_path):
    write(tmp_path, report(1), report(2, mean=0.1), report(3), report(2, mean=0.2), report(4))
    log = read_log(tmp_path)
    assert log.steps.tolist() == [1, 2, 4]
    assert log.model.values["mean"].tolist() == [1.0, 0.2, 1.0]


@pytest.mark.parametrize(
    "line", ["{", '{"step": NaN}', "[1]", '{"step": 1, "epoch": 0}', "", "\x00\x00"]
)
def test_a_malformed_line_is_named(tmp_path, line):
    path = write(tmp_path, report(1))
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"Line 2 of .*sensitivity\.jsonl is not a report"):
        read_log(tmp_path)


@both_logs
def test_a_folder_without_a_log(tmp_path, read, name):
    with pytest.raises(FileNotFoundError, match=rf"`log_dir` must be .* no {name} .*nowhere"):
        read(tmp_path / "nowhere")
    write(tmp_path, name=name)
    with pytest.raises(ValueError, match=rf"{name} holds no report yet"):
        read(tmp_path)
