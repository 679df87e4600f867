"""README's first command, quick: fine-tuning of a real encoder on real text."""

import pytest
from example_runs import (
    parse_table,
    positive_probability,
    reloaded_accuracy,
    run_example,
    whole_job,
)
from matplotlib.image import imread

pytestmark = whole_job("tensorflow")


@pytest.mark.extended
def test_quick_run_on_real_text(tmp_path):
    typed = ("A moving, funny and gorgeous film.", "A bad, boring, tedious and stupid movie.")
    texts = [argument for text in typed for argument in ("--text", text)]
    output = run_example("finetune_text.py", tmp_path, "--quick", *texts)

    table = parse_table(output)
    assert list(table) == ["AdamW", "Sage"]
    assert all(0.65 < float(row["final"]) < 0.95 for row in table.values())
    assert all(row["final"] == row["epoch 1"] for row in table.values())
    assert all(float(row["s/epoch"]) > 0 for row in table.values())
    assert table["AdamW"]["mean scale"] == "-"
    assert 0.35 < float(table["Sage"]["mean scale"]) < 0.75
    better = max(float(row["final"]) for row in table.values())
    assert reloaded_accuracy(output) == pytest.approx(better, abs=1e-4)
    assert imread(tmp_path / "finetune_text.png").shape == (450, 1200, 4)
    assert positive_probability(output, typed[0]) > 0.5
    assert positive_probability(output, typed[1]) < 0.5
