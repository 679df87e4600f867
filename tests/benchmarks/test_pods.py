"""What benchmarks.pods counts, and what it computes beside what the compiler said."""

import pytest

from benchmarks import common, pods

pytestmark = pytest.mark.backend_agnostic
STEPS = [one for one in common.recorded("pods") if one["kind"] == "step"]


@pytest.mark.parametrize("line", STEPS, ids=lambda one: f"{one['target']} {one['optimizer']}")
def test_bytes_of_all_layers_are_computed_as_the_compiler_has_those_of_one(line, monkeypatch):
    arguments = (pods.PODS[line["target"]], line["optimizer"], line["layout"])
    assert pods.state_bytes(*arguments) == line["state_of_all_layers"]
    monkeypatch.setattr(pods, "LAYERS", 1)
    computed = pods.state_bytes(*arguments)
    # The learning rate and the like; and 43 columns a chip, which a TPU stores as 128.
    padded = (line["target"], line["layout"]) == ("v5e:16x16", pods.ALL)
    assert 0 <= line["state_and_weights"] - computed <= (0.05 * computed if padded else 4096)


def test_the_decoder_has_seven_billion_parameters():
    assert common.parameter_count(pods.decoder(pods.LAYERS).values()) == 6_738_415_616


def test_collectives_are_counted_by_kind_with_their_bytes():
    program = """
  %a = f32[8,4]{1,0:T(8,128)} all-gather(%x), dimensions={0}
  %b = (f32[2]{0}, bf16[4]{0}) all-reduce(%y, %z), to_apply=%sum
  %c = (f32[2]{0}, f32[2]{0}, u32[]) collective-permute-start(%y)
  %d = f32[2]{0} collective-permute-done(%c)
  %e = f32[] all-reduce(%s), to_apply=%sum
"""
    assert pods.collectives(program) == {
        "all-gather": [1, 128],
        "all-reduce": [2, 8 + 8 + 4],
        "collective-permute": [1, 8],
    }


@pytest.mark.parametrize(
    ("shape", "layout", "axes"),
    [
        ((4096, 32, 128), pods.ALL, [("batch", "model"), None, None]),
        ((4096, 11008), pods.MODEL, [None, "model"]),
        ((4096,), pods.MODEL, [None]),
        ((4096,), pods.ALL, [("batch", "model")]),
        ((7, 3), pods.ALL, [None, None]),
    ],
)
def test_the_longest_axis_that_the_chips_divide_is_cut(shape, layout, axes):
    assert pods.axes_of(shape, (4, 4), layout) == axes
