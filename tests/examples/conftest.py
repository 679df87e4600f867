import os
import pathlib
import sys

import keras
import keras_hub
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as it is for a script that is run from there

# An example about JAX sets this where nothing does; processes that tests start would be on JAX.
os.environ["KERAS_BACKEND"] = keras.backend.backend()


# Whole jobs that take half a minute or more each. They run on TensorFlow, which most users have;
# that the same code trains on JAX and torch is what the other tests show, and these examples' own.
WHOLE_JOBS = {
    "test_finetune_dps.py",
    "test_finetune_glue.py",
    "test_finetune_lora.py",
    "test_train_translation.py",
    "test_train_vit.py",
    "test_tune_with_keras_tuner.py",
    "test_watch_training.py",
}


def pytest_collection_modifyitems(items):
    if keras.backend.backend() == "tensorflow":
        return
    reason = "a whole job of half a minute, run on TensorFlow; finetune_text.py runs everywhere"
    for item in items:
        if item.path.name in WHOLE_JOBS:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def examples():
    """The folder of the example scripts."""
    return EXAMPLES


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory):
    """The folder of a BERT of one layer, to be read as any other preset."""
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] a dull bad fine good question sentence"
    tokenizer = keras_hub.models.BertTokenizer(vocabulary=words.split())
    keras.utils.set_random_seed(0)
    classifier = keras_hub.models.BertTextClassifier(
        backbone=keras_hub.models.BertBackbone(
            vocabulary_size=len(words.split()),
            num_layers=1,
            num_heads=2,
            hidden_dim=32,
            intermediate_dim=64,
            max_sequence_length=16,
        ),
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(tokenizer),
    )
    folder = str(tmp_path_factory.mktemp("preset") / "tiny")
    classifier.save_to_preset(folder)
    return folder
