"""The example as a whole job on real text."""

import re

import keras
import pytest
from example_runs import parse_table, run_example
from matplotlib.image import imread


def test_quick_run_on_real_text(tmp_path):
    text = "A moving, funny and gorgeous film."
    output = run_example("finetune_lora.py", tmp_path, "--quick", "--text", text)
    table = parse_table(output)
    assert list(table) == ["full fine-tuning", "LoRA"]
    counts = {name: (row["trained"], row["guided"]) for name, row in table.items()}
    # Query and value of six layers: 384 x 12 x 8 and 8 x 32 each. Besides them their 12 biases of
    # 384, and the head of 384 x 2 + 2.
    assert counts == {
        "full fine-tuning": ("22,713,986", "10,637,568"),
        "LoRA": ("450,818", "445,440"),
    }
    assert all(0.6 < float(row["final"]) < 0.95 for row in table.values())
    assert all(0.3 < float(row["mean scale"]) < 0.9 for row in table.values())

    assert "Merged 23,159,426 parameters into 22,713,986" in output
    reloaded = float(re.search(r"Loaded again, validation accuracy (\S+)", output)[1])
    assert reloaded == pytest.approx(float(table["LoRA"]["final"]), abs=0.01)
    assert re.search(rf"^positive \(0\.\d+\): {re.escape(text)}$", output, re.M)
    model = keras.saving.load_model(tmp_path / "finetune_lora.keras", compile=False)
    assert not any("lora" in variable.path for variable in model.variables)
    assert imread(tmp_path / "finetune_lora.png").shape == (450, 1200, 4)
