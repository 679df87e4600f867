"""keras-hub's models train with Sage as they are: toy sizes, twenty steps, no warnings."""

import warnings

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy

from sage_keras import Sage

STEPS, BATCH, LENGTH, WORDS = 20, 2, 6, 16
ROWS = STEPS * BATCH
TEXT = {
    "vocabulary_size": WORDS,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "intermediate_dim": 8,
    "max_sequence_length": LENGTH,
}
GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.integers(1, WORDS, (ROWS, LENGTH), "int32")
CLASSES = (TOKENS[:, 0] % 2).astype("int32")
IMAGES = GENERATOR.uniform(size=(ROWS, 16, 16, 3)).astype("float32")


def models():
    return pytest.importorskip("keras_hub").models


def text_inputs(*prefixes, segments=False):
    """Token ids and masks under names such as `encoder_token_ids`."""
    inputs = {}
    for prefix in prefixes or ("",):
        inputs |= {f"{prefix}token_ids": TOKENS, f"{prefix}padding_mask": np.ones_like(TOKENS)}
    return inputs | ({"segment_ids": np.zeros_like(TOKENS)} if segments else {})


def classifier(task, backbone, inputs):
    model = task(backbone=backbone, num_classes=2, preprocessor=None)
    return model, inputs, CLASSES


def bert():
    backbone = models().BertBackbone(**TEXT)
    return classifier(models().BertTextClassifier, backbone, text_inputs(segments=True))


def roberta():
    backbone = models().RobertaBackbone(**TEXT)
    return classifier(models().RobertaTextClassifier, backbone, text_inputs())


def distil_bert():
    backbone = models().DistilBertBackbone(**TEXT)
    return classifier(models().DistilBertTextClassifier, backbone, text_inputs())


def deberta_v3():
    backbone = models().DebertaV3Backbone(**TEXT, bucket_size=4)
    return classifier(models().DebertaV3TextClassifier, backbone, text_inputs())


def gpt2():
    backbone = models().GPT2Backbone(**TEXT)
    model = models().GPT2CausalLM(backbone=backbone, preprocessor=None)
    return model, text_inputs(), np.roll(TOKENS, -1, axis=1)


def gemma():
    backbone = models().GemmaBackbone(
        vocabulary_size=WORDS,
        num_layers=1,
        num_query_heads=2,
        num_key_value_heads=1,
        hidden_dim=8,
        intermediate_dim=16,
        head_dim=4,
    )
    model = models().GemmaCausalLM(backbone=backbone, preprocessor=None)
    return model, text_inputs(), np.roll(TOKENS, -1, axis=1)


def bart():
    backbone = models().BartBackbone(**TEXT)
    model = models().BartSeq2SeqLM(backbone=backbone, preprocessor=None)
    return model, text_inputs("encoder_", "decoder_"), np.roll(TOKENS, -1, axis=1)


def vit():
    backbone = models().ViTBackbone(
        image_shape=(16, 16, 3),
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=8,
    )
    return classifier(models().ViTImageClassifier, backbone, IMAGES)


def resnet():
    backbone = models().ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64],
        stackwise_num_blocks=[1],
        stackwise_num_strides=[1],
        block_type="basic_block",
        image_shape=(16, 16, 3),
    )
    return classifier(models().ResNetImageClassifier, backbone, IMAGES)


def clip():
    vision = models().CLIPVisionEncoder(
        patch_size=8,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        intermediate_dim=8,
        image_shape=(16, 16, 3),
    )
    text = models().CLIPTextEncoder(
        vocabulary_size=WORDS,
        embedding_dim=8,
        hidden_dim=8,
        num_layers=1,
        num_heads=2,
        intermediate_dim=8,
        max_sequence_length=LENGTH,
    )
    backbone = models().CLIPBackbone(vision, text, projection_dim=8)
    # Each image is compared with the texts of its batch.
    model = keras.Model(backbone.input, backbone.output["vision_logits"])
    labels = np.tile(np.arange(BATCH, dtype="int32"), STEPS)
    return model, {"images": IMAGES, "token_ids": TOKENS}, labels


def whisper():
    sizes = {**TEXT, "max_decoder_sequence_length": LENGTH, "max_encoder_sequence_length": 8}
    del sizes["max_sequence_length"]
    backbone = models().WhisperBackbone(**sizes, num_mels=4)
    inputs = text_inputs("decoder_")
    inputs["encoder_features"] = GENERATOR.normal(size=(ROWS, 8, 4)).astype("float32")
    outputs = backbone.output["decoder_sequence_output"]  # there is no task to be had
    outputs = keras.layers.Dense(WORDS, name="head")(outputs)
    return keras.Model(backbone.input, outputs), inputs, np.roll(TOKENS, -1, axis=1)


SLOW = (deberta_v3, gpt2, gemma, roberta, distil_bert, bart, vit, clip, whisper)


@pytest.mark.parametrize(
    "make",
    [bert, resnet, *(pytest.param(one, marks=pytest.mark.extended) for one in SLOW)],
)
def test_model_trains_for_twenty_steps(make):
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Keras's variables and NumPy 2 disagree on a keyword, at every conversion.
        warnings.filterwarnings("ignore", "__array__ implementation")
        model, x, y = make()
        optimizer = Sage(1e-3, global_clipnorm=1.0)
        model.compile(
            optimizer=optimizer,
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=BACKEND == "tensorflow",  # tracing takes longer than twenty steps
        )
        before = [to_numpy(variable) for variable in model.trainable_variables]
        losses = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0).history["loss"]
    assert np.isfinite(losses).all()
    assert int(optimizer.iterations) == STEPS
    assert len(optimizer.guided_variables) == len(model.trainable_variables)
    unmoved = {
        variable.path
        for variable, old in zip(model.trainable_variables, before)
        if np.array_equal(to_numpy(variable), old)
    }
    assert unmoved == set()
    for variable in optimizer.guided_variables:
        assert np.isfinite(to_numpy(optimizer.sensitivity(variable))).all()


def test_saved_classifier_resumes_bit_equal(tmp_path):
    """Keras-hub's tasks compile themselves when they are loaded, and forget the optimizer."""

    def compiled(model):
        model.compile(
            optimizer=Sage(1e-2),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=BACKEND == "tensorflow",
        )
        return model

    def fit(model):
        x = {name: array[:BATCH] for name, array in inputs.items()}
        model.train_on_batch(x, CLASSES[:BATCH])

    keras.utils.set_random_seed(0)
    backbone = models().BertBackbone(**TEXT, dropout=0.0)
    inputs = text_inputs(segments=True)
    classifier = models().BertTextClassifier(backbone, 2, preprocessor=None, dropout=0.0)
    expected = compiled(classifier)
    fit(expected)
    expected.save(tmp_path / "classifier.keras")
    fit(expected)

    loaded = compiled(keras.models.load_model(tmp_path / "classifier.keras", compile=False))
    loaded.optimizer.build(loaded.trainable_variables)
    loaded.load_weights(tmp_path / "classifier.keras")
    assert int(loaded.optimizer.iterations) == 1
    fit(loaded)
    variables = zip(loaded.variables, expected.variables)
    slots = zip(loaded.optimizer.variables, expected.optimizer.variables)
    for one, other in [*variables, *slots]:
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


def test_loaded_classifier_alone_begins_with_adam(tmp_path):
    """Why the recipe above is needed. When Keras-hub keeps the optimizer, it can be left out."""
    backbone = models().BertBackbone(**TEXT)
    classifier = models().BertTextClassifier(backbone, 2, preprocessor=None)
    classifier.compile(optimizer=Sage(1e-2), loss="mse")
    classifier.save(tmp_path / "classifier.keras")
    with pytest.warns(UserWarning, match="compile"):
        loaded = keras.models.load_model(tmp_path / "classifier.keras")
    assert isinstance(loaded.optimizer, keras.optimizers.Adam)
    assert not isinstance(loaded.optimizer, Sage)  # which is one too


@pytest.mark.backend_agnostic
def test_keras_nlp_hands_out_the_classes_of_keras_hub():
    """So that what is known here of keras-hub's models holds by the old name too."""
    old = pytest.importorskip("keras_nlp").models
    for name in ("Backbone", "Task", "BertBackbone", "BertTextClassifier", "GemmaCausalLM"):
        assert getattr(old, name) is getattr(models(), name)
