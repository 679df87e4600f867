"""Neurons and blocks of keras-hub's transformers, cut."""

import json
import subprocess
import sys

import hub_models
import keras
import numpy as np
import pytest
from hub_models import WIDTH, models, outputs
from modes import BACKEND, to_numpy

from sage_keras import compression

LARGE = (hub_models.gpt2, hub_models.roberta, hub_models.distil_bert, hub_models.llama)


@pytest.mark.parametrize(
    ("make", "key", "gates"),
    [
        (hub_models.bert, "intermediate_dim", 1),
        (hub_models.gemma, "intermediate_dim", 2),  # its width counts both gates
        (hub_models.vit, "mlp_dim", 1),
        *(pytest.param(one, "intermediate_dim", 1, marks=pytest.mark.extended) for one in LARGE),
    ],
)
def test_compact_model_equals_the_zeroed_one_and_loads_again(make, key, gates, tmp_path):
    model, inputs = make()
    zeroed = compression.prune_neurons(model, fraction=0.75)
    assert [len(positions) for positions in zeroed.values()] == [9, 9]
    before = [to_numpy(weight) for weight in model.weights]

    small = compression.compact(model)
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)  # left as it was
    assert type(small) is type(model)
    assert small.name == model.name
    backbone = getattr(small, "backbone", small)
    assert backbone.get_config()[key] == gates * 3
    assert not any(WIDTH in weight.shape for weight in small.weights)
    np.testing.assert_allclose(outputs(small, inputs), outputs(model, inputs), atol=1e-5)

    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras", compile=False)
    assert type(loaded) is type(model)
    for one, other in zip(loaded.weights, small.weights, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_the_neurons_of_least_score_are_zeroed_in_each_block():
    """The sum over the column of the first kernel, the bias, and the row of the second."""
    model, _ = hub_models.bert()
    generator = np.random.default_rng(1)
    scores = {
        one.path: generator.uniform(size=tuple(one.shape)).astype("float32")
        for one in model.trainable_variables
    }
    before = {one.path: to_numpy(one) for one in model.weights}
    zeroed = compression.prune_neurons(model, count=4, scores=scores)
    after = {one.path: to_numpy(one) for one in model.weights}
    assert list(zeroed) == ["transformer_layer_0", "transformer_layer_1"]
    for block, positions in zeroed.items():
        first, bias, second = (
            f"{block}/feedforward_{part}"
            for part in (
                "intermediate_dense/kernel",
                "intermediate_dense/bias",
                "output_dense/kernel",
            )
        )
        sums = scores[first].sum(axis=0) + scores[bias] + scores[second].sum(axis=1)
        assert sorted(positions) == sorted(np.argsort(sums)[:4])
        before[first][:, positions] = 0
        before[bias][positions] = 0
        before[second][positions] = 0
    for path, values in before.items():
        np.testing.assert_array_equal(after[path], values, err_msg=path)


def test_both_gates_count():
    model, _ = hub_models.gemma()
    scores = {one.path: np.ones(tuple(one.shape)) for one in model.trainable_variables}
    scores["decoder_block_1/ffw_gating/kernel"][:, 7] = 0
    scores["decoder_block_1/ffw_gating_2/kernel"][:, 5] = 0
    scores["decoder_block_1/ffw_linear/kernel"][[5, 7]] = 0.5
    zeroed = compression.prune_neurons(model, count=2, scores=scores)
    assert {block: found.tolist() for block, found in zeroed.items()} == {
        "decoder_block_0": [WIDTH - 2, WIDTH - 1],  # of equal ones the first are kept
        "decoder_block_1": [5, 7],
    }


def test_zeroed_neurons_come_first_and_count():
    model, _ = hub_models.bert()
    compression.prune_neurons(model, count=3)
    scores = {
        one.path: -np.arange(np.prod(one.shape), dtype="float32").reshape(one.shape)
        for one in model.trainable_variables
    }
    first = compression.prune_neurons(model, count=3, scores=scores)
    again = compression.prune_neurons(model, fraction=0.25)
    for block, positions in first.items():
        np.testing.assert_array_equal(again[block], positions)


def test_blocks_with_unlike_numbers_of_zeroed_neurons_lose_the_smallest():
    model, _ = hub_models.bert()
    compression.prune_neurons(model, count=3)
    kernel = model.backbone.get_layer("transformer_layer_1")._feedforward_output_dense.kernel
    value = to_numpy(kernel)
    value[np.flatnonzero(value.any(axis=1))[:5]] = 0  # the outgoing weights alone
    kernel.assign(value)
    with pytest.warns(UserWarning, match="from 3 to 8.* 3 of each are cut"):
        small = compression.compact(model)
    assert small.backbone.intermediate_dim == WIDTH - 3
    block = small.backbone.get_layer("transformer_layer_1")
    rows = to_numpy(block._feedforward_output_dense.kernel)
    assert (~rows.any(axis=1)).sum() == 5
    np.testing.assert_array_equal(rows[rows.any(axis=1)], value[value.any(axis=1)])


def test_one_neuron_of_a_block_is_left():
    model, _ = hub_models.bert()
    for layer in model.backbone.layers:
        if layer.name.startswith("transformer_layer"):
            kernel = layer._feedforward_output_dense.kernel
            kernel.assign(np.zeros(kernel.shape))
    with pytest.warns(UserWarning, match="11 of each"):
        small = compression.compact(model)
    assert small.backbone.intermediate_dim == 1


def test_a_dropped_block_that_did_nothing_changes_nothing():
    model, inputs = hub_models.gpt2(num_layers=3)
    compression.prune_neurons(model, fraction=0.5)
    block = model.backbone.get_layer("transformer_layer_1")
    for layer in (block._self_attention_layer._output_dense, block._feedforward_output_dense):
        for weight in layer.weights:
            weight.assign(np.zeros(weight.shape))
    expected = outputs(model, inputs)
    scores = {one.path: np.abs(to_numpy(one)) for one in model.trainable_variables}
    small = compression.compact(model, drop_layers=1, scores=scores)
    assert small.backbone.num_layers == 2
    assert small.backbone.intermediate_dim == WIDTH // 2
    np.testing.assert_allclose(outputs(small, inputs), expected, atol=1e-5)


def test_the_least_sensitive_blocks_are_dropped_whole():
    model, _ = hub_models.bert(num_layers=4)
    scores = {
        one.path: np.full(
            one.shape,
            {"transformer_layer_0": 1, "transformer_layer_2": 2}.get(one.path.split("/")[0], 3),
        )
        for one in model.trainable_variables
    }
    small = compression.compact(model, drop_layers=2, scores=scores)
    kept = [
        one for one in model.weights if "layer_0/" not in one.path and "layer_2/" not in one.path
    ]
    assert len(kept) == len(small.weights)
    for one, other in zip(kept, small.weights):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))
    assert [layer.name for layer in small.backbone.layers if "transformer" in layer.name] == [
        "transformer_layer_0",
        "transformer_layer_1",
    ]


def test_frozen_layers_and_dtype_policy_are_kept():
    model, _ = hub_models.bert(dtype="mixed_bfloat16")
    model.backbone.token_embedding.trainable = False
    model.backbone.get_layer("transformer_layer_0").trainable = False
    compression.prune_neurons(model, fraction=0.5)
    small = compression.compact(model)
    assert [one.path for one in small.trainable_variables] == [
        one.path for one in model.trainable_variables
    ]
    assert len(small.trainable_variables) < len(small.weights)
    assert small.backbone.dtype_policy.name == "mixed_bfloat16"
    block = small.backbone.get_layer("transformer_layer_1")
    assert block._feedforward_output_dense.compute_dtype == "bfloat16"
    assert not small.backbone.get_layer("transformer_layer_0").trainable


def test_a_task_keeps_its_preprocessor():
    model, _ = hub_models.bert()
    tokenizer = models().BertTokenizer(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "film"])
    model.preprocessor = models().BertTextClassifierPreprocessor(tokenizer, sequence_length=5)
    compression.prune_neurons(model, fraction=0.5)
    small = compression.compact(model)
    assert small.preprocessor is model.preprocessor
    assert small.num_classes == 2


def test_lora_and_quantized_layers_are_refused_by_name():
    model, _ = hub_models.bert()
    model.backbone.enable_lora(2)
    for call in (compression.compact, lambda one: compression.prune_neurons(one, 0.5)):
        with pytest.raises(
            ValueError, match=r"layer '.*/(query|value)' has LoRA enabled. Cut the model f"
        ):
            call(model)
    model = hub_models.gpt2()[0].backbone
    model.get_layer("transformer_layer_1")._feedforward_output_dense.quantize("int8")
    with pytest.raises(ValueError, match=r"is quantized \(int8\). Cut the model before"):
        compression.compact(model)


def test_backbones_without_known_feed_forward_layers_are_refused():
    backbone = models().ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    with pytest.raises(ValueError, match="its ResNetBackbone has no feed-forward layers"):
        compression.compact(backbone)


def test_blocks_that_cannot_be_dropped_are_refused():
    model, _ = hub_models.bert()
    with pytest.raises(ValueError, match="`drop_layers` needs `scores`"):
        compression.compact(model, drop_layers=1)
    scores = {one.path: np.ones(one.shape) for one in model.trainable_variables}
    with pytest.raises(ValueError, match="`drop_layers` must be at most 1"):
        compression.compact(model, drop_layers=2, scores=scores)
    some = {path: array for path, array in scores.items() if "layer_0" in path}
    with pytest.raises(ValueError, match="must have the same weights of all blocks"):
        compression.compact(model, drop_layers=1, scores=some)
    bart = models().BartBackbone(**hub_models.TEXT)
    scores = {one.path: np.ones(one.shape) for one in bart.trainable_variables}
    with pytest.raises(ValueError, match="its BartBackbone does not have one row of them"):
        compression.compact(bart, drop_layers=1, scores=scores)
    sizes = {**hub_models.GATED, "head_dim": 4, "intermediate_dim": WIDTH}
    gemma = models().GemmaBackbone(**sizes, use_sliding_window_attention=True)
    scores = {one.path: np.ones(one.shape) for one in gemma.trainable_variables}
    with pytest.raises(ValueError, match="those of its GemmaBackbone differ by their place"):
        compression.compact(gemma, drop_layers=1, scores=scores)


WITHOUT_THE_PACKAGE = """
import sys
sys.modules["sage_keras"] = None  # an import of it fails
import json, keras, keras_hub, numpy as np
try:
    import sage_keras
except ImportError:
    folder = sys.argv[1]
    arrays = dict(np.load(folder + "/inputs.npz"))
    model = keras.saving.load_model(folder + "/small.keras", compile=False)
    config = keras_hub.models.BertBackbone.from_config(model.backbone.get_config()).get_config()
    difference = abs(keras.ops.convert_to_numpy(model(arrays)) - np.load(folder + "/outputs.npy"))
    print(json.dumps([config["intermediate_dim"], float(difference.max())]))
"""


@pytest.mark.extended
@pytest.mark.skipif(BACKEND != "torch", reason="what a file holds is the same on all backends")
def test_compact_model_loads_where_the_package_cannot_be_imported(tmp_path):
    model, inputs = hub_models.bert()
    compression.prune_neurons(model, fraction=0.5)
    small = compression.compact(model)
    small.save(tmp_path / "small.keras")
    np.savez(tmp_path / "inputs.npz", **inputs)
    np.save(tmp_path / "outputs.npy", to_numpy(small(inputs, training=False)))
    command = [sys.executable, "-c", WITHOUT_THE_PACKAGE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    width, difference = json.loads(run.stdout.splitlines()[-1])
    assert width == WIDTH // 2
    assert difference < 1e-6


@pytest.mark.extended
@pytest.mark.skipif(BACKEND != "tensorflow", reason="the others export by way of TensorFlow")
def test_compact_model_can_be_exported(tmp_path):
    import tensorflow as tf

    model, inputs = hub_models.bert()
    compression.prune_neurons(model, fraction=0.5)
    small = compression.compact(model)
    small.export(tmp_path / "exported", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "exported"))  # holds the variables
    served = exported.serve(inputs)
    np.testing.assert_allclose(to_numpy(served).ravel(), outputs(model, inputs), atol=1e-5)
