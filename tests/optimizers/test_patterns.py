"""TRANSFORMER_BLOCKS and TRANSFORMER_MATRICES on keras-hub's models, at toy size."""

import inspect
import math

import keras
import numpy as np
import pytest
from modes import to_numpy

from sage_keras import TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES, DPSDense, Sage, arguments


def models():
    return pytest.importorskip("keras_hub").models


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
    "BERT": (lambda: models().BertBackbone(**HEADS, **SHORT), "transformer_layer_{}", BERT, True),
    "RoBERTa": (
        lambda: models().RobertaBackbone(**HEADS, **SHORT),
        "transformer_layer_{}",
        BERT,
        True,
    ),
    "DeBERTa": (
        lambda: models().DebertaV3Backbone(**HEADS, **SHORT, bucket_size=4),
        "disentangled_attention_encoder_layer_{}",
        BERT,
        True,
    ),
    "DistilBERT": (
        lambda: models().DistilBertBackbone(**HEADS, **SHORT),
        "transformer_layer_{}",
        BERT,
        True,
    ),
    "GPT-2": (lambda: models().GPT2Backbone(**HEADS, **SHORT), "transformer_layer_{}", GPT, True),
    "Llama": (lambda: models().LlamaBackbone(**GROUPED), "transformer_layer_{}", LLAMA, False),
    "Gemma": (
        lambda: models().GemmaBackbone(**GROUPED, head_dim=4),
        "decoder_block_{}",
        sublayers("attention", QUERY_KEY_VALUE, ["ffw_gating", "ffw_gating_2", "ffw_linear"]),
        False,
    ),
    "ViT": (
        lambda: models().ViTBackbone(
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
    backbone = models().T5Backbone(**HEADS)
    optimizer = Sage(include=TRANSFORMER_BLOCKS)
    optimizer.build(backbone.trainable_variables)
    # Per encoder block 4 + 3 kernels, per decoder block 4 + 4 + 3, two blocks each.
    assert len(optimizer.sensitivities) == 2 * 7 + 2 * 11
    assert all(path.endswith("/kernel") for path in optimizer.sensitivities)


def test_leaves_out_what_is_numbered_and_no_block():
    backbone = models().WhisperBackbone(
        **HEADS, num_mels=8, max_encoder_sequence_length=12, max_decoder_sequence_length=12
    )
    optimizer = Sage(include=TRANSFORMER_BLOCKS)
    optimizer.build(backbone.trainable_variables)
    assert not [path for path in optimizer.sensitivities if "conv" in path or "norm" in path]
    assert [path for path in optimizer.sensitivities if "cross_attention/query" in path]


def test_selects_keras_hub_layers_in_a_model_of_ones_own():
    model = keras.Sequential(
        [keras.Input((5, 8))]
        + [pytest.importorskip("keras_hub").layers.TransformerEncoder(16, 2) for _ in range(2)]
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
    return {line.split()[1] for line in lines[2:] if line.split()[0] == "yes"}


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
        (lambda backbone: models().BertTextClassifier(backbone, 2), {"logits"}),
        (lambda backbone: models().RobertaTextClassifier(backbone, 2), {"pooled_dense", "logits"}),
    ],
    ids=["BERT", "RoBERTa"],
)
def test_matrices_of_a_classifier_have_its_head(make, head, request):
    backbone = BACKBONES[request.node.callspec.id][0]()
    classifier = make(backbone)
    found = matrices(classifier) - matrices(backbone)
    assert {path.split("/")[-2] for path in found} == head
    assert all(path.endswith("/kernel") for path in found)


# A value for each argument that the backbones below ask for.
NUMBERS = {
    0: """
        pad_token_id
    """,
    1: """
        decoder_num_key_value_heads encoder_num_key_value_heads num_key_value_heads
    """,
    2: """
        altup_num_inputs decoder_num_attention_heads decoder_num_heads decoder_num_layers
        encoder_num_attention_heads encoder_num_heads encoder_num_layers laurel_rank
        num_attention_heads num_auxiliary_layers num_frames num_heads num_hidden_layers
        num_layers num_layers_dec num_layers_enc num_query_heads num_spatial_layers
        num_temporal_layers top_k vit_num_heads vit_num_layers window_size
    """,
    3: """
        num_experts
    """,
    4: """
        decoder_head_dim encoder_head_dim head_dim head_size hidden_size_per_layer_input
        patch_size vit_patch_size
    """,
    8: """
        decoder_hidden_dim embed_dim embedding_dim encoder_hidden_dim filter_dim hidden_dim
        hidden_size moe_intermediate_dim num_output_channels shared_expert_intermediate_dim
        shared_expert_intermediate_size text_hidden_size vit_hidden_dim
    """,
    16: """
        decoder_intermediate_dim encoder_intermediate_dim image_size intermediate_dim
        max_position_embeddings mlp_dim sliding_window
    """,
    30: """
        text_vocab_size vocab_size vocab_size_per_layer_input vocabulary_size
    """,
}
SIZES = {name: number for number, names in NUMBERS.items() for name in names.split()} | {
    "encoder_layer_types": ["full_attention", "full_attention"],
    "decoder_layer_types": ["full_attention", "full_attention"],
    "depths": [1, 1],
    "image_shape": (16, 16, 3),
    "global_attention_layer_indices": [1],
    "intermediate_size": [16, 16],
    "hidden_activation": "relu",
    "layer_types": ["full_attention", "full_attention"],
    "rope_layer_enabled_list": [1, 1],
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "layer_norm_epsilon": 1e-05,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
}
IMAGES = {"image_shape": (16, 16, 3)}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 4,
}
# The arguments that would be too large if they were left out, and a mixture of experts.
MORE = {
    "DebertaV3": {"bucket_size": 4},
    "DINOV2": IMAGES,
    "DINOV3": IMAGES,
    "Gemma4": {
        "enable_moe_block": True,
        "num_experts": 3,
        "expert_intermediate_dim": 8,
        "num_experts_per_token": 2,
    },
    "MiT": {
        "image_shape": (32, 32, 3),
        "hidden_dims": [8, 16],
        "layerwise_depths": [1, 1],
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [8, 4],
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "max_drop_path_rate": 0.1,
    },
    "PaliGemma": {"vit_intermediate_dim": 16},
    "Qwen3Moe": {"head_dim": 4},
    "GptOss": {"head_dim": 4},
    "Qwen3_5": LINEAR,
    "Qwen3_5Moe": LINEAR,
    "RWKV7": {"gate_lora": 4, "mv_lora": 4, "aaa_lora": 4, "decay_lora": 4},
    "SwinTransformer": {"num_heads": [1, 2]},
    "ViTDet": {**IMAGES, "patch_size": 4, "window_size": 2, "num_output_channels": 8},
    "VideoPrism": {**IMAGES, "vocabulary_size": 0},
    "Whisper": {
        "num_mels": 4,
        "max_encoder_sequence_length": 12,
        "max_decoder_sequence_length": 12,
    },
}
# How many weights TRANSFORMER_BLOCKS and TRANSFORMER_MATRICES choose, of how many.
CHOSEN = {
    "Albert": (568, 576, 1112),
    "Bart": (2848, 2560, 3472),
    "Bert": (1136, 1088, 1640),
    "Bloom": (1136, 1024, 1472),
    "DINOV2": (1136, 1024, 1792),
    "DINOV3": (1136, 1024, 1688),
    "DebertaV3": (1136, 1024, 1536),
    "DeiT": (1136, 1024, 1768),
    "DistilBert": (1136, 1024, 1552),
    "ESM2": (1136, 1024, 1456),
    "ESM": (1136, 1024, 1456),
    "EdRec": (3072, 3072, 3392),
    "Electra": (1136, 1088, 1640),
    "FNet": (560, 576, 1152),
    "Falcon": (1136, 1024, 1456),
    "GPT2": (1136, 1024, 1552),
    "GPTNeoX": (1136, 1024, 1456),
    "Gemma3": (1152, 1152, 1448),
    "Gemma3n": (1368, 1368, 2228),
    "Gemma4": (2304, 2304, 2750),
    "Gemma": (768, 768, 1048),
    "GptOss": (2976, 2688, 3554),
    "Llama3": (1152, 1152, 1672),
    "Llama": (1152, 1152, 1672),
    "MiT": (13232, 12896, 15824),
    "Mistral": (1152, 1152, 1672),
    "Mixtral": (2688, 2688, 3256),
    "Moonshine": (4320, 4096, 6992),
    "OPT": (1136, 1024, 1552),
    "PaliGemma": (1904, 1792, 2856),
    "Phi3": (1152, 1152, 1672),
    "Qwen2": (1184, 1152, 1464),
    "Qwen3": (1152, 1152, 1448),
    "Qwen3Moe": (1536, 1536, 2120),
    "Qwen3_5": (1376, 1376, 2008),
    "Qwen3_5Moe": (2144, 2144, 2840),
    "Qwen": (1184, 1152, 1464),
    "QwenMoe": (1952, 1920, 2536),
    "RWKV7": (1024, 1264, 2280),
    "Roberta": (1136, 1024, 1552),
    "RoformerV2": (1024, 1024, 1320),
    "SmolLM3": (1152, 1152, 1432),
    "SmolLM": (1152, 1152, 1432),
    "SwinTransformer": (4056, 3840, 5195),
    "T5": (3072, 3072, 3536),
    "T5Gemma2": (2304, 2304, 2960),
    "T5Gemma": (2688, 2688, 3344),
    "ViT": (1136, 1024, 1752),
    "ViTDet": (1136, 1024, 2472),
    "VideoPrism": (2272, 2048, 2968),
    "Whisper": (2800, 2560, 3632),
    "XLMRoberta": (1136, 1024, 1552),
    "XLNet": (1200, 1152, 1592),
}
EXPERTS = ["Gemma4", "GptOss", "Mixtral", "Qwen3Moe", "Qwen3_5Moe", "QwenMoe"]


def small(name):
    make = getattr(models(), f"{name}Backbone")
    takes = inspect.signature(make.__init__).parameters
    needed = [one for one, takes in takes.items() if takes.default is inspect.Parameter.empty]
    sizes = {one: SIZES[one] for one in needed if one in SIZES}
    sizes |= SHORT if "max_sequence_length" in takes else {}
    return make(**sizes | MORE.get(name, {}))


def choose(patterns, model):
    paths = [variable.path for variable in model.trainable_variables]
    chosen = arguments.matches("include", patterns, paths, default=True)
    return [one for one, yes in zip(model.trainable_variables, chosen) if yes]


def count(variables):
    return sum(math.prod(variable.shape) for variable in variables)


def assert_chosen(name):
    model = small(name)
    by_blocks, by_matrices = (
        choose(patterns, model) for patterns in (TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES)
    )
    found = count(by_blocks), count(by_matrices), count(model.trainable_variables)
    assert found == CHOSEN[name]
    return by_blocks, by_matrices, model


@pytest.mark.backend_agnostic
@pytest.mark.extended
@pytest.mark.parametrize("name", [name for name in CHOSEN if name not in EXPERTS])
def test_share_that_is_chosen(name):
    assert_chosen(name)


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_chosen_and_what_chooses_them_is_not(name):
    by_blocks, by_matrices, model = assert_chosen(name)
    blocks, matrices = ({id(v) for v in chosen} for chosen in (by_blocks, by_matrices))
    seen = 0
    for variable in model.trainable_variables:
        path = variable.path
        if "router" in path or "sparse_feedforward_gate" in path or "shared_expert_gate" in path:
            assert id(variable) not in blocks | matrices
        elif "expert" in path and "scale" not in path:
            seen += 1
            assert id(variable) in blocks
            assert (id(variable) in matrices) == (not path.endswith("bias"))
    assert seen >= 4  # two or more kinds in each of two blocks
