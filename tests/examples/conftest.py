import os
import pathlib
import sys

import keras
import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as it is for a script that is run from there

# An example about JAX sets this where nothing does; processes that tests start would be on JAX.
os.environ["KERAS_BACKEND"] = keras.backend.backend()


@pytest.fixture
def examples():
    """The folder of the example scripts."""
    return EXAMPLES


@pytest.fixture(scope="session")
def tiny_preset(tmp_path_factory):
    """The folder of a BERT of one layer, to be read as any other preset."""
    import keras_hub

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


@pytest.fixture
def tiny_text(tiny_preset, monkeypatch):
    """Puts the tiny preset and sentences of its words where an example has MiniLM and films."""
    from example_runs import tiny_sentences

    def use_in(example):
        monkeypatch.setattr(example, "minilm_folder", lambda: tiny_preset)
        monkeypatch.setattr(example, "movie_snippets", tiny_sentences)
        return example

    return use_in
