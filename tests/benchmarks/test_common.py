"""Ratios, records and shapes of the benchmarks."""

import json

import pytest

from benchmarks import common

pytestmark = pytest.mark.backend_agnostic


def test_encoders_have_the_sizes_of_their_names():
    sizes = {name: common.parameter_count(common.encoder_shapes(name)) for name in common.ENCODERS}
    # The published sizes of all-MiniLM-L6-v2 and of the two BERTs, pooler included.
    assert sizes["minilm"] == 22_713_216
    assert sizes["bert_base"] == 109_482_240
    assert sizes["bert_large"] == 335_141_888


def test_measurements_take_turns():
    asked = []

    def measure(name):
        asked.append(name)
        return float(len(asked))

    values = common.interleave(measure, ["a", "b"], repeats=3)
    assert asked == ["a", "b", "b", "a", "a", "b"]
    assert values == {"a": [1.0, 4.0, 5.0], "b": [2.0, 3.0, 6.0]}


def test_ratio_is_taken_pair_by_pair():
    # The machine was three times slower during the second round, for both.
    assert common.ratio([2.0, 6.0, 2.2], [1.0, 3.0, 1.0]) == 2.0


def test_record_appends_lines_with_their_surroundings(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path / "benchmarks" / "results")
    (tmp_path / "benchmarks").mkdir()
    for value in (1, 2):
        common.record("step", [{"value": value}])
    lines = [json.loads(line) for line in (common.RESULTS / "step.jsonl").open()]
    assert [line["value"] for line in lines] == [1, 2]
    assert {"date", "commit", "machine", "versions"} <= set(lines[0])
    assert "keras" in lines[0]["versions"]


def test_table_is_markdown(capsys):
    common.print_table([["", "ms"], ["Sage", "12.0"]])
    assert capsys.readouterr().out.splitlines()[:3] == [
        "|      |   ms |",
        "| ---- | ---- |",
        "| Sage | 12.0 |",
    ]


@pytest.mark.parametrize("name", ["machine", "versions"])
def test_surroundings_are_known(name):
    assert getattr(common, name)()
