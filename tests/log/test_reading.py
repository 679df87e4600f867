"""What the loggers wrote is read back, whatever became of the run."""

import json

import numpy as np
import pytest

from sage_keras.analysis import read_dps_log, read_log
from sage_keras.log.writing import JsonLines

pytestmark = pytest.mark.backend_agnostic

NAN = float("nan")


SAGE = {"class": "Sage", "beta_3": 0.75, "bias_correction": True, "guide": True}
DPS_DENSE = {"class": "DPSDense", "stage_steps": 2, "drop_rate": 0.3}


def report(step, epoch=0, mean=1.0, groups=("a",), optimizer=SAGE, **more):
    entry = {"parameters": 4, "values": {"mean": mean, "gini": 0.25}}
    return {
        "step": step,
        "epoch": epoch,
        "optimizers": [optimizer],
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
    ("read", "name", "optimizer"),
    [(read_log, "sensitivity.jsonl", SAGE), (read_dps_log, "dps.jsonl", DPS_DENSE)],
    ids=["sensitivity", "dps"],
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
def test_an_unfinished_last_line_is_skipped_and_then_overwritten(
    tmp_path, cut, read, name, optimizer
):
    one, two, three = (report(step, optimizer=optimizer) for step in (1, 2, 3))
    path = write(tmp_path, one, two, name=name)
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole[: -len(last)] + last[:cut])
    assert read(tmp_path).steps.tolist() == [1]
    write(tmp_path, three, name=name)
    assert read(tmp_path).steps.tolist() == [1, 3]


def test_a_log_of_an_older_version_is_read_and_continued(tmp_path):
    older = report(1, mean=0.5)
    older["model"] = {"parameters": 4, "figures": older["model"]["values"]}
    older["groups"] = {"figures": older["model"]}
    write(tmp_path, older, report(2, groups=("figures",)))
    log = read_log(tmp_path)
    assert log.model.values["mean"].tolist() == [0.5, 1.0]
    assert log.groups["figures"].values["mean"].tolist() == [0.5, 1.0]


def test_a_line_replaces_earlier_ones_of_its_step_and_above(tmp_path):
    write(tmp_path, report(1), report(2, mean=0.1), report(3), report(2, mean=0.2), report(4))
    log = read_log(tmp_path)
    assert log.steps.tolist() == [1, 2, 4]
    assert log.model.values["mean"].tolist() == [1.0, 0.2, 1.0]


def end_of_epoch(step, **metrics):
    return {"step": step, "epoch": 0, "metrics": metrics}


def test_metrics_at_reports_and_at_ends_of_epochs(tmp_path):
    first = report(4, metrics={"loss": 4.0})
    write(
        tmp_path, first, report(6, metrics={"loss": 3.0}), end_of_epoch(6, loss=3.0, val_loss=2.0)
    )
    write(tmp_path, report(8), end_of_epoch(9, loss=NAN))
    log = read_log(tmp_path)
    assert log.steps.tolist() == [4, 6, 8]
    assert log.metrics.steps.tolist() == [4, 6, 9]
    np.testing.assert_array_equal(log.metrics.values["loss"], [4.0, 3.0, NAN])
    np.testing.assert_array_equal(log.metrics.values["val_loss"], [NAN, 2.0, NAN])
    # A run that was begun again.
    write(tmp_path, report(5, metrics={"loss": 1.0}))
    assert read_log(tmp_path).steps.tolist() == [4, 5]
    assert read_log(tmp_path).metrics.values["loss"].tolist() == [4.0, 1.0]
    write(tmp_path, report(2))
    assert read_log(tmp_path).metrics is None


@pytest.mark.parametrize(
    ("metrics", "field"),
    [
        ([], "metrics is of type list, not dict"),
        ({"loss": "low"}, "metric 'loss' is not a number"),
        ({"loss": 1e300}, "metric 'loss' is not a number"),
        ({"\ud800": 1.0}, "name of a metric holds a lone surrogate"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, metrics, field):
    for line in (report(2, metrics=metrics), {**end_of_epoch(2), "metrics": metrics}):
        path = write(tmp_path, report(1))
        path.write_text(json.dumps(report(1)) + "\n" + json.dumps(line) + "\n")
        with pytest.raises(ValueError, match=f"^Line 2 of .*: its {field}"):
            read_log(tmp_path)


@pytest.mark.parametrize(
    "line", ["{", '{"step": NaN}', "[1]", '{"step": 1, "epoch": 0}', "", "\x00\x00"]
)
def test_a_malformed_line_is_named(tmp_path, line):
    path = write(tmp_path, report(1))
    path.write_text(path.read_text() + line + "\n" + path.read_text())
    with pytest.raises(ValueError, match=r"Line 2 of .*sensitivity\.jsonl is not a report"):
        read_log(tmp_path)


def changed(place, value):
    """A report of which an entry, by its path of keys, is another, or is missing."""
    one = json.loads(json.dumps(report(2)))
    *way, last = place
    parent = one
    for key in way:
        parent = parent[key]
    if value is None:
        del parent[last]
    else:
        parent[last] = value
    return one


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        *((("optimizers", 0, name), None, f"optimizers[0] has no '{name}'") for name in SAGE),
        (("optimizers", 0), DPS_DENSE, "optimizers[0] has no 'beta_3'"),
        (("optimizers", 0, "class"), "\ud800", r"optimizers[0]['class'] holds a lone surrogate"),
        (("optimizers", 0, "beta_3"), 1e308, "optimizers[0]['beta_3'] is not a number"),
        (("optimizers", 0, "beta_3"), 1.5, "optimizers[0]['beta_3'] is not between 0 and 1"),
        (("model", "values", "scale_q1e999"), 0.5, "'scale_q1e999' is no name of a value"),
        (("model", "values", "scale_q1_0"), 0.5, "'scale_q1_0' is no name of a value"),
        (("model", "values", "q\uff11"), 0.5, "'q\uff11' is no name of a value"),
        (("model", "values", "q2"), 0.5, "'q2' is no name of a value"),
        (("model", "values", "mean\x1b[2J"), 0.5, r"'mean\x1b[2J' is no name of a value"),
        (("model", "values", "mean"), 1e308, "mean of model is not a number that a logger writes"),
        (("groups", "a", "values", "mean"), -1e308, "mean of group 'a' is not a number"),
        (("groups", "\udfff"), {}, "name of a group holds a lone surrogate"),
        (("groups", "\x1b[2J"), {}, r"parameters of group '\x1b[2J' is not a whole number"),
        (("edges",), [1.0, 1.7], "edges are not those of bins"),
        (("edges",), [1.0, 2.0], "edges are not those of bins"),
        (("edges",), [1.5, 1.0], "edges are not those of bins"),
        (("model", "histogram"), {"counts": [-1], "zeros": 0}, "counts of model is not a number"),
        (("step",), 2**63, "step is not a whole number"),
    ],
)
def test_a_damaged_line_is_named_with_its_field(tmp_path, place, value, field):
    damaged = json.dumps(changed(place, value))
    path = write(tmp_path, report(1))
    path.write_text(path.read_text() + damaged + "\n")
    with pytest.raises(ValueError) as refused:
        read_log(tmp_path)
    assert f"Line 2 of {path} is not a report of a SensitivityLogger: " in str(refused.value)
    assert field in str(refused.value)


@pytest.mark.parametrize("name", ["q0", "q1", "q0.05", "q1e-07", "scale_q0.333333", "scale_max"])
def test_names_that_a_logger_gives_are_read(tmp_path, name):
    write(tmp_path, changed(("model", "values", name), 0.5))
    assert read_log(tmp_path).model.values[name].tolist() == [0.5]


def test_a_small_log_does_not_fill_the_memory(tmp_path):
    """Each report has edges, or a group, of its own: a matrix of all would have 10^8 cells."""
    folder = tmp_path / "edges"
    path = write(folder)
    edges = [report(step, edges=[1.0 + step / 2**20, 2.0]) for step in range(2)]
    path.write_text("".join(json.dumps(one) + "\n" for one in edges))
    with pytest.raises(ValueError, match=r"Line 1 of .*its edges are not"):
        read_log(folder)
    lines = [json.dumps(report(step, groups=[str(step)])) + "\n" for step in range(200)]
    (tmp_path / "sensitivity.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match="too many runs with unlike groups"):
        read_log(tmp_path)
    lines = [json.dumps(report(step, metrics={str(step): 1.0})) + "\n" for step in range(200)]
    (tmp_path / "sensitivity.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match="too many runs with unlike metrics"):
        read_log(tmp_path)


@both_logs
def test_a_folder_without_a_log(tmp_path, read, name, optimizer):
    with pytest.raises(FileNotFoundError, match=rf"`log_dir` must be .* no {name} .*nowhere"):
        read(tmp_path / "nowhere")
    write(tmp_path, name=name)
    with pytest.raises(ValueError, match=rf"{name} holds no report yet"):
        read(tmp_path)


def test_settings_are_those_of_the_last_report(tmp_path):
    write(tmp_path, report(1, optimizer={**SAGE, "class": "Sage"}))
    write(tmp_path, report(2, optimizer={**SAGE, "class": "SageAdam"}))
    assert [one["class"] for one in read_log(tmp_path).optimizers] == ["SageAdam"]
