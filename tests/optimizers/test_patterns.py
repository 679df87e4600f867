"""TRANSFORMER_BLOCKS and TRANSFORMER_MATRICES on keras-hub's models, at toy size."""

import keras
import keras_hub
import numpy as np
import pytest
from modes import to_numpy

from sage_keras import TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES, DPSDense, Sage

models = keras_hub.models
TEXT = {"vocabulary_size": 30, "num_layers": 2, "hidden_dim": 8, "intermediate_dim": 16}
HEADS = {**TEXT, "num_heads": 2}
GROUPED = {**TEXT, "num_query_heads": 2, "num_key_value_heads": 1}
SHORT = {"max_sequence_length": 12}

QUERY_KEY_VALUE = ["query", "key", "value"]
DENSE = ["feedforward_intermediate_dense", "feedforward_output_dense"]
GATED = ["feedforward_intermediate_dense", "feedforward_gate_dense", "feedforward_output_dense"]


def sublayers(attention, names, feedforward):
    return [f"{attention}/{name}" for name in (*names, "attention_output")] + feedforward


BERT = sublayers("self_attention_layer", QUERY_KEY_VALUE, DENSE)
GPT = sublayers("self_attention", QUERY_KEY_VALUE, DENSE)
LLAMA = sublayers("self_attention", QUERY_KEY_VALUE, GATED)
# backbone, the name of its blocks, the guided sublayers of each, and whether those have biases
BACKBONES = {
    "BERT": (lambda: models.BertBackbone(**HEADS, **SHORT), "transformer_layer_{}", BERT, True),
    "RoBERTa": (
        lambda: models.RobertaBackbone(**HEADS, **SHORT),
        "transformer_layer_{}",
        BERT,
        True,
    ),
    "DeBERTa": (
        lambda: models.DebertaV3Backbone(**HEADS, **SHORT, bucket_size=4),
        "disentangled_attention_encoder_layer_{}",
        BERT,
        True,
    ),
    "DistilBERT": (
        lambda: models.DistilBertBackbone(**HEADS, **SHORT),
        "transformer_layer_{}",
        BERT,
        True,
    ),
    "GPT-2": (lambda: models.GPT2Backbone(**HEADS, **SHORT), "transformer_layer_{}", GPT, True),
    "Llama": (lambda: models.LlamaBackbone(**GROUPED), "transformer_layer_{}", LLAMA, False),
    "Gemma": (
        lambda: models.GemmaBackbone(**GROUPED, head_dim=4),
        "decoder_block_{}",
        sublayers("attention", QUERY_KEY_VALUE, ["ffw_gating", "ffw_gating_2", "ffw_linear"]),
        False,
    ),
    "ViT": (
        lambda: models.ViTBackbone(
            image_shape=(16, 16, 3),
            patch_size=4,
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            mlp_dim=16,
        ),
        "transformer_block_{}",
        sublayers("mha", QUERY_KEY_VALUE, ["mlp/dense_1", "mlp/dense_2"]),
        True,
    ),
}


def expected_paths(block, sublayers, biases, first):
    ends = ("kernel", "bias") if biases else ("kernel",)
    return {
        f"{block.format(i)}/{sublayer}/{end}"
        for i in (first, first + 1)
        for sublayer in sublayers
        for end in ends
    }


@pytest.mark.parametrize("name", BACKBONES)
def test_selects_attention_and_feed_forward(name):
    make, block, sublayers, biases = BACKBONES[name]
    backbone = make()
    optimizer = Sage(include=TRANSFORMER_BLOCKS)
    optimizer.build(backbone.trainable_variables)
    # From the block on: a ViT's blocks stand in its encoder.
    blocks = block.split("{")[0]
    found = {path[path.index(blocks) :] for path in optimizer.sensitivities}
    assert found == expected_paths(block, sublayers, biases, first=int(name == "ViT"))


def test_selects_both_stacks_of_an_encoder_decoder():
    backbone = models.T5Backbone(**HEADS)
    optimizer = Sage(include=TRANSFORMER_BLOCKS)
    optimizer.build(backbone.trainable_variables)
    # Per encoder block 4 + 3 kernels, per decoder block 4 + 4 + 3, two blocks each.
    assert len(optimizer.sensitivities) == 2 * 7 + 2 * 11
    assert all(path.endswith("/kernel") for path in optimizer.sensitivities)


def test_leaves_out_what_is_numbered_and_no_block():
    backbone = models.WhisperBackbone(
        **HEADS, num_mels=8, max_encoder_sequence_length=12, max_decoder_sequence_length=12
    )
    optimizer = Sage(include=TRANSFORMER_BLOCKS)
    optimizer.build(backbone.trainable_variables)
    assert not [path for path in optimizer.sensitivities if "conv" in path or "norm" in path]
    assert [path for path in optimizer.sensitivities if "cross_attention/query" in path]


def test_selects_keras_hub_layers_in_a_model_of_ones_own():
    model = keras.Sequential(
        [keras.Input((5, 8))]
        + [keras_hub.layers.TransformerEncoder(16, 2) for _ in range(2)]
        + [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2, name="head")]
    )
    optimizer = Sage(include=TRANSFORMER_BLOCKS)
    optimizer.build(model.trainable_variables)
    assert len(optimizer.sensitivities) == 2 * 6 * 2  # six sublayers with kernel and bias
    assert not [path for path in optimizer.sensitivities if "head" in path]


@pytest.mark.parametrize(
    ("name", "targets"), [("BERT", ["query", "value"]), ("Gemma", ["query", "value"])]
)
def test_lora_kernels_are_guided_and_move_from_zero(name, targets):
    backbone = BACKBONES[name][0]()
    backbone.enable_lora(2)
    lora = [v for v in backbone.trainable_variables if "lora_kernel" in v.path]
    zeros = [v for v in lora if v.path.endswith("lora_kernel_b")]
    assert len(zeros) == 2 * len(targets)
    assert all(np.all(to_numpy(v) == 0) for v in zeros)

    tokens = np.random.default_rng(0).integers(0, 30, (8, 6))
    inputs = {"token_ids": tokens, "padding_mask": np.ones_like(tokens)}
    if name == "BERT":
        inputs["segment_ids"] = np.zeros_like(tokens)
    hidden = backbone.output["sequence_output"] if name == "BERT" else backbone.output
    pooled = keras.layers.GlobalAveragePooling1D()(hidden)
    model = keras.Model(backbone.input, keras.layers.Dense(1)(pooled))
    learning_rate = 1e-2
    optimizer = Sage(learning_rate, weight_decay=0.0, include=TRANSFORMER_BLOCKS)
    model.compile(optimizer=optimizer, loss="mse")
    # Large ones, so that no gradient comes near Adam's epsilon.
    labels = 1e4 * np.random.default_rng(1).normal(size=(8, 1))

    model.train_on_batch(inputs, labels)
    # No sensitivity of its own yet: s is 1, and Adam's first step is one learning rate long.
    for variable in zeros:
        step = np.abs(to_numpy(variable))
        assert np.median(step) == pytest.approx(learning_rate, rel=0.05)
    for _ in range(20):
        model.train_on_batch(inputs, labels)
    for variable in zeros:
        assert np.mean(np.abs(to_numpy(variable)) > learning_rate) > 0.5
    assert {v.path for v in lora} <= set(optimizer.sensitivities)


def matrices(model):
    """The paths of the variables that TRANSFORMER_MATRICES chooses."""
    optimizer = DPSDense(total_steps=100, include=TRANSFORMER_MATRICES)
    optimizer.build(model.trainable_variables)
    lines = []
    optimizer.summary(print_fn=lines.append)
    return {line.split()[1] for line in lines[1:] if line.split()[0] == "partial"}


@pytest.mark.parametrize("name", BACKBONES)
def test_matrices_are_the_kernels_of_the_blocks_and_the_pooler(name):
    make, block, sublayers, _ = BACKBONES[name]
    found = matrices(make())
    blocks = block.split("{")[0]
    in_blocks = {path[path.index(blocks) :] for path in found if blocks in path}
    assert in_blocks == expected_paths(block, sublayers, biases=False, first=int(name == "ViT"))
    rest = {"/".join(path.split("/")[-2:]) for path in found if blocks not in path}
    assert rest == ({"pooled_dense/kernel"} if name == "BERT" else set())


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (lambda backbone: models.BertTextClassifier(backbone, 2), {"logits"}),
        (lambda backbone: models.RobertaTextClassifier(backbone, 2), {"pooled_dense", "logits"}),
    ],
    ids=["BERT", "RoBERTa"],
)
def test_matrices_of_a_classifier_have_its_head(make, head, request):
    backbone = BACKBONES[request.node.callspec.id][0]()
    classifier = make(backbone)
    found = matrices(classifier) - matrices(backbone)
    assert {path.split("/")[-2] for path in found} == head
    assert all(path.endswith("/kernel") for path in found)
