"""The example as a whole job on real text and a tiny encoder."""

import json

import finetune_sparse
import pytest
from common.encoders import text_classifier
from example_runs import parse_table, whole_job
from matplotlib.image import imread

pytestmark = whole_job("torch")


def test_every_arm_trains_what_it_says_and_finished_runs_are_kept(tmp_path, tiny_preset, capsys):
    arguments = ["--quick", "--preset", tiny_preset, "--output", str(tmp_path), "--size", "60"]
    arguments += ["--fractions", "0.05", "--seeds", "2"]
    finetune_sparse.main(arguments)
    output = capsys.readouterr().out
    table = parse_table(output, column="state MB", rows=6)
    arms = ["LoRA 5.00%", "sensitivity 5.00%", "gradient 5.00%", "random 5.00%"]
    assert list(table) == ["AdamW", "BitFit", *arms]
    trained = {arm: int(row["trained"].replace(",", "")) for arm, row in table.items()}
    # As test_finetune_lora.py counts them. BitFit: the biases and those of three normalisations,
    # the pooler and the head. LoRA of rank 1 on two kernels, their biases and the head.
    assert trained["AdamW"] == 10_690
    assert trained["BitFit"] == (4 * 32 + 64 + 32) + 3 * 32 + (32 * 32 + 32) + 66
    rank = round(0.05 * 10_690 / (2 * (32 * 2 + 16)))
    assert trained["LoRA 5.00%"] == 2 * (32 * 2 + 16) * rank + 2 * 32 + 66
    classifier = text_classifier(tiny_preset, 2, seed=0)
    sizes = [v.value.numel() for v in classifier.trainable_variables if "logits" not in v.path]
    assert {trained[arm] for arm in arms[1:]} == {sum(-(-size // 20) for size in sizes) + 66}

    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [line["run"]["seed"] for line in lines] == [0, 1] * 6
    for line in lines:
        arm, result = line["run"]["arm"], line["result"]
        if arm in finetune_sparse.SPARSE:  # two moments, and positions and values of the chosen
            expected = 16 * (result["trained"] - 66) + 8 * 66
            assert result["state"] == pytest.approx(expected, abs=16)  # scalars
            assert result["file"] < lines[0]["result"]["file"] / 4
        assert 0 <= result["accuracy"] <= 1
    assert imread(tmp_path / "finetune_sparse.png").shape == (420, 720, 4)

    finetune_sparse.main(arguments)
    assert ", seed" not in capsys.readouterr().out
