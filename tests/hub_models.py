"""Toy models of keras-hub with several blocks, and with weights that all count."""

import keras
import numpy as np
import pytest

WORDS, LENGTH, WIDTH = 16, 5, 12
GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.integers(1, WORDS, (3, LENGTH), "int32")
IMAGES = GENERATOR.uniform(size=(3, 16, 16, 3)).astype("float32")
TEXT = {
    "vocabulary_size": WORDS,
    "num_layers": 2,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": WIDTH,
    "max_sequence_length": LENGTH,
}
GATED = {
    "vocabulary_size": WORDS,
    "num_layers": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "hidden_dim": 8,
}


def models():
    return pytest.importorskip("keras_hub").models


def text_inputs(segments=False):
    inputs = {"token_ids": TOKENS, "padding_mask": np.ones_like(TOKENS)}
    return inputs | ({"segment_ids": np.zeros_like(TOKENS)} if segments else {})


def bert(**options):
    backbone = models().BertBackbone(**{**TEXT, **options})
    model = models().BertTextClassifier(backbone, num_classes=2, preprocessor=None)
    return randomized(model), text_inputs(segments=True)


def roberta():
    backbone = models().RobertaBackbone(**TEXT)
    model = models().RobertaTextClassifier(backbone, num_classes=2, preprocessor=None)
    return randomized(model), text_inputs()


def distil_bert():
    return randomized(models().DistilBertBackbone(**TEXT)), text_inputs()


def gpt2(**options):
    backbone = models().GPT2Backbone(**{**TEXT, **options})
    return randomized(models().GPT2CausalLM(backbone=backbone, preprocessor=None)), text_inputs()


def gemma():
    backbone = models().GemmaBackbone(**GATED, head_dim=4, intermediate_dim=2 * WIDTH)
    return randomized(models().GemmaCausalLM(backbone=backbone, preprocessor=None)), text_inputs()


def llama():
    return randomized(models().LlamaBackbone(**GATED, intermediate_dim=WIDTH)), text_inputs()


def vit():
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": WIDTH}
    backbone = models().ViTBackbone(image_shape=(16, 16, 3), patch_size=8, **sizes)
    model = models().ViTImageClassifier(backbone, num_classes=2, preprocessor=None)
    return randomized(model), IMAGES


def randomized(model, seed=0):
    """The model with weights of which no bias is zero."""
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        values = generator.normal(size=tuple(weight.shape), scale=0.5)
        weight.assign(np.abs(values) + 0.1 if "variance" in weight.path else values)
    return model


def outputs(model, inputs):
    """What a model returns, as one flat array."""
    parts = keras.tree.flatten(model(inputs, training=False))
    return np.concatenate([np.ravel(keras.ops.convert_to_numpy(part)) for part in parts])
