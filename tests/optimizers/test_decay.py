"""Learning rates that fall with the distance from the head."""

import re

import keras
import pytest

from sage_keras import LayerwiseAdamW, layerwise_decay


def models():
    return pytest.importorskip("keras_hub").models


TEXT = {"vocabulary_size": 30, "num_layers": 2, "hidden_dim": 4, "intermediate_dim": 8}
HEADS = {**TEXT, "num_heads": 2}


def transformer_encoder(*arguments, **keywords):
    return pytest.importorskip("keras_hub").layers.TransformerEncoder(*arguments, **keywords)


def two_layers():
    names = ("first", "second")
    return keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(3, name=n) for n in names)])


def bert():
    return models().BertBackbone(**HEADS, max_sequence_length=6)


def gpt2():
    return models().GPT2Backbone(**HEADS, max_sequence_length=6)


def vit():
    image = {"image_shape": (8, 8, 3), "patch_size": 4}
    return models().ViTBackbone(**image, num_layers=2, num_heads=2, hidden_dim=4, mlp_dim=8)


def t5():
    return models().T5Backbone(**HEADS)


def own():
    keras.utils.clear_session()
    encoders = [transformer_encoder(8, 2) for _ in range(2)]
    layers = [keras.layers.Dense(4, name="project"), *encoders, keras.layers.Dense(2, name="top")]
    return keras.Sequential([keras.Input((5, 4)), *layers])


@pytest.mark.parametrize(
    ("make_model", "block", "depths", "blocks"),
    [
        (bert, "transformer_layer_", {"embedding": 0, "pooled_dense": 3}, 2),
        (gpt2, "transformer_layer_", {"embedding": 0, "^layer_norm/": 3}, 2),
        (vit, "transformer_block_", {"patching_and_embedding": 0, "vit_encoder/ln/": 3}, 2),
        (t5, "coder_layer_", {"embedding": 0, "encoder_output": 2, "decoder_output": 5}, 4),
        (own, "transformer_encoder", {"project": 0, "top": 3}, 2),
    ],
)
def test_decay_by_depth(make_model, block, depths, blocks):
    model = make_model()
    optimizer = LayerwiseAdamW(learning_rate_multipliers=layerwise_decay(model, decay=0.5))
    optimizer.build(model.trainable_variables)

    expected, seen = {}, []
    for path in optimizer.multipliers:
        inside = [part for part in path.split("/")[:-2] if block in part]
        if inside:
            if inside[0] not in seen:
                seen.append(inside[0])
            depth = seen.index(inside[0]) + 1
        else:
            (depth,) = [depth for part, depth in depths.items() if re.search(part, path)]
        expected[path] = 0.5 ** (blocks + 1 - depth)
    assert len(seen) == blocks
    assert optimizer.multipliers == expected


def test_decay_of_a_backbone_is_that_of_the_classifier_and_of_the_loaded_model(tmp_path):
    backbone = bert()
    multipliers = layerwise_decay(backbone)
    classifier = models().BertTextClassifier(backbone, 2)
    assert layerwise_decay(classifier) == multipliers
    model = own()
    multipliers = layerwise_decay(model)
    model.save(tmp_path / "model.keras")
    assert layerwise_decay(keras.models.load_model(tmp_path / "model.keras")) == multipliers
    assert min(multipliers.values()) == pytest.approx(0.9**3, rel=1e-12)


def test_decay_counts_what_is_not_trainable():
    model = own()
    model.layers[0].trainable = model.layers[1].trainable = False
    assert layerwise_decay(model, 0.5) == {
        "(?:^|/)transformer_encoder_1/": 0.5,
    }


def test_decay_refuses_what_it_does_not_understand():
    with pytest.raises(ValueError, match=r"`transformer_layer_0`[\s\S]*weights are:\n  .*first"):
        layerwise_decay(two_layers())
    with pytest.raises(ValueError, match="Argument `decay` must be above 0 and below 1"):
        layerwise_decay(two_layers(), decay=1.0)
    inputs = keras.Input((5, 4))

    def tower(name):
        layers = [transformer_encoder(8, 2, name=f"layer_{i}") for i in range(2)]
        return keras.Sequential([keras.Input((5, 4)), *layers], name=name)

    towers = keras.layers.Add()([tower("left")(inputs), tower("right")(inputs)])
    with pytest.raises(ValueError, match="several parts whose layers have the same names"):
        layerwise_decay(keras.Model(inputs, towers))


@keras.saving.register_keras_serializable(package="sage_keras_tests")
class Block(keras.layers.Layer):
    def build(self, input_shape):
        self.inner = keras.layers.Dense(4, name="inner")
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)


class Subclassed(keras.Model):
    """Embedding, two blocks and a head. What has no name here gets one from Keras."""

    def __init__(self, names=(None, "block_0", "block_1", None)):
        super().__init__()
        first, *blocks, last = names
        self.embedding = keras.layers.Dense(4, name=first)
        self.blocks = [Block(name=name) for name in blocks]
        self.head = keras.layers.Dense(1, name=last)

    def call(self, inputs):
        hidden = self.embedding(inputs)
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


def subclassed(*names):
    keras.utils.clear_session()
    keras.layers.Dense(1)  # one more than in another process
    model = Subclassed(*names)
    model(keras.ops.ones((1, 4)))
    return model


def test_decay_refuses_names_that_are_counted():
    with pytest.raises(ValueError, match=r"'dense_1'.*Keras makes up.*Dense\(\.\.\., name="):
        layerwise_decay(subclassed())
    with pytest.raises(ValueError, match=r"'block_1'.*Keras makes up"):
        layerwise_decay(subclassed(("embedding", None, None, None)))
    # The head has the whole rate, and needs no pattern.
    assert layerwise_decay(subclassed(("embedding", "block_0", "block_1", None)), 0.5) == {
        "(?:^|/)block_0/": 0.25,
        "(?:^|/)block_1/": 0.5,
        "(?:^|/)embedding/kernel$": 0.125,
        "(?:^|/)embedding/bias$": 0.125,
    }


def test_counted_names_in_the_configuration_are_kept(tmp_path):
    """Those of a Sequential or functional model come back with it, whatever was made before."""
    keras.utils.clear_session()
    keras.layers.Dense(1)
    blocks = [Block(name="block_0"), Block(name="block_1")]
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(4), *blocks, keras.layers.Dense(1)]
    )
    multipliers = layerwise_decay(model, 0.5)
    assert multipliers["(?:^|/)dense_1/kernel$"] == 0.125
    model.compile(LayerwiseAdamW(learning_rate_multipliers=multipliers), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert (
        list(again.optimizer.multipliers.values())
        == list(model.optimizer.multipliers.values())
        == [0.125, 0.125, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0]
    )
