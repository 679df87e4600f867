"""The example as a whole job on a tiny encoder, and its counts on the real one."""

import finetune_lora
import keras
import pytest
from common.encoders import minilm_folder, text_classifier
from example_runs import (
    parse_table,
    positive_probability,
    reloaded_accuracy,
    run_here,
    whole_job,
)
from matplotlib.image import imread

from sage_keras import TRANSFORMER_BLOCKS, Sage

pytestmark = whole_job("torch")


def test_adapters_learn_are_merged_and_saved(tmp_path, tiny_text, capsys):
    arguments = ["--train-size", "64", "--validation-size", "16", "--epochs", "8"]
    arguments += ["--batch-size", "8", "--sequence-length", "8", "--learning-rate", "5e-3"]
    arguments += ["--lora-learning-rate", "5e-2", "--text", "a good sentence"]
    output = run_here(tiny_text(finetune_lora), capsys, tmp_path, *arguments)
    table = parse_table(output)
    assert list(table) == ["full fine-tuning", "LoRA"]
    # A block: four squares of 32, and 32 x 64 and back, with biases. Adapters of rank 8 on two of
    # the squares, by head; besides them their biases are trained, and the head of 32 x 2 + 2.
    block = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32)
    embeddings, norms, pooled, head = 32 * (12 + 16 + 2), 3 * 64, 32 * 32 + 32, 66
    whole, adapters = block + embeddings + norms + pooled + head, 2 * (32 * 2 * 8 + 8 * 16)
    counts = {name: (row["trained"], row["guided"]) for name, row in table.items()}
    assert counts == {
        "full fine-tuning": (f"{whole:,}", f"{block:,}"),
        "LoRA": (f"{adapters + 2 * 32 + head:,}", f"{adapters:,}"),
    }
    assert {row["final"] for row in table.values()} == {"1.0000"}
    assert all(0.3 < float(row["mean scale"]) < 0.95 for row in table.values())

    assert f"Merged {whole + adapters:,} parameters into {whole:,}" in output
    assert reloaded_accuracy(output) == 1.0
    assert positive_probability(output, "a good sentence") > 0.5
    model = keras.saving.load_model(tmp_path / "finetune_lora.keras", compile=False)
    assert not any("lora" in variable.path for variable in model.variables)
    assert imread(tmp_path / "finetune_lora.png").shape == (450, 1200, 4)


@pytest.mark.extended
def test_counts_of_the_real_encoder():
    classifier = text_classifier(minilm_folder(), 2, seed=0)

    def count(include):
        optimizer = Sage(include=include)
        optimizer.build(classifier.trainable_variables)
        return tuple(
            sum(keras.ops.size(variable) for variable in variables)
            for variables in (classifier.trainable_variables, optimizer.guided_variables)
        )

    assert count(TRANSFORMER_BLOCKS) == (22_713_986, 10_637_568)
    classifier.backbone.enable_lora(8)
    # Query and value of six layers: 384 x 12 x 8 and 8 x 32 each. Besides them their 12 biases of
    # 384, and the head of 384 x 2 + 2.
    assert count(finetune_lora.ADAPTERS) == (450_818, 445_440)
    assert classifier.count_params() == 23_159_426
