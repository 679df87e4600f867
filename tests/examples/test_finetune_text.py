"""The example as a whole job on small sets made here and on real text, and its parts."""

import re

import finetune_text
import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
from common.datasets import movie_snippets, tfds_text
from common.downloads import UnavailableError
from common.encoders import load_preprocessor
from example_runs import (
    parse_table,
    reloaded_accuracy,
    run_here,
    stopped,
    tiny_sentences,
    whole_job,
)
from matplotlib.image import imread

pytestmark = whole_job("torch")
ADJECTIVES = {"negative": ["dull", "bad"], "positive": ["fine", "good"]}


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    """Single sentences with the columns of glue/sst2."""

    VERSION = tfds.core.Version("1.0.0")
    columns = ("sentence",)
    splits = ("train", "validation")

    def _info(self):
        features = {column: tfds.features.Text() for column in self.columns}
        features["label"] = tfds.features.ClassLabel(names=list(ADJECTIVES))
        features["idx"] = np.int32
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples() for split in self.splits}

    def _generate_examples(self):
        for index in range(256):
            label = list(ADJECTIVES)[index % 2]
            adjective = ADJECTIVES[label][index // 2 % 2]
            *others, last = self.columns  # only the last one tells
            texts = {last: f"a {adjective} {last}", **{column: f"a {column}" for column in others}}
            yield index, {**texts, "label": label, "idx": index}


class TinyPairs(TinyReviews):
    """Sentence pairs with the columns of glue/qnli, and no validation split."""

    VERSION = tfds.core.Version("1.0.0")
    columns = ("question", "sentence")
    splits = ("train",)


class TinyTriples(TinyReviews):
    VERSION = tfds.core.Version("1.0.0")
    columns = ("first", "second", "third")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which the small sets are prepared."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    for builder in (TinyReviews, TinyPairs, TinyTriples):
        builder(data_dir=folder).download_and_prepare()
    return folder


def test_own_preset_and_sentence_pairs_of_tfds(tmp_path, tiny_preset, data_dir, capsys):
    arguments = ["--preset", tiny_preset, "--dataset", "tiny_pairs", "--data-dir", data_dir]
    arguments += ["--sequence-length", "12", "--train-size", "192", "--validation-size", "64"]
    arguments += ["--learning-rate", "0.005", "--sage-learning-rate", "0.01", "--epochs", "4"]
    arguments += ["--batch-size", "8", "--text", "a question", "a good sentence"]
    output = run_here(finetune_text, capsys, tmp_path, *arguments)

    table = parse_table(output)
    assert {row["final"] for row in table.values()} == {"1.0000"}
    assert list(table["Sage"])[:6] == ["optimizer", *(f"epoch {n}" for n in range(1, 5)), "final"]
    assert reloaded_accuracy(output) == 1.0
    assert table["AdamW"]["mean scale"] == "-"
    assert 0.35 < float(table["Sage"]["mean scale"]) < 0.9
    assert imread(tmp_path / "finetune_text.png").shape == (450, 1200, 4)
    assert re.search(r"^positive \(\S+\): a question \| a good sentence$", output, re.M)

    model = keras.saving.load_model(tmp_path / "finetune_text.keras", compile=False)
    logits = model.predict((["a question"], ["a bad sentence"]), verbose=0)
    assert logits.argmax() == 0


def test_movie_snippets_are_the_clearly_rated_ones():
    data = movie_snippets(train_size=9000, validation_size=173, seed=0)
    assert (len(data.train.texts), len(data.validation.texts)) == (9000, 173)
    assert data.train.labels.sum() + data.validation.labels.sum() == 4598
    assert not set(data.train.texts) & set(data.validation.texts)
    by_text = dict(zip(data.train.texts, data.train.labels))
    assert by_text["Offers that rare combination of entertainment and education."] == 1
    with pytest.raises(ValueError, match=r"than the 9173 there are.*train_size=9000"):
        movie_snippets(train_size=9000, validation_size=174, seed=0)


def test_single_sentences_of_tfds(data_dir):
    data = tfds_text("tiny_reviews", data_dir, train_size=60, validation_size=20)
    assert data.class_names == ["negative", "positive"]
    assert (len(data.train.texts), len(data.validation.texts)) == (60, 20)
    for examples in (data.train, data.validation):
        for text, label in zip(examples.texts, examples.labels):
            adjective = text.removeprefix("a ").removesuffix(" sentence")
            assert adjective in ADJECTIVES[data.class_names[label]]


def test_sentence_pairs_of_tfds_come_in_the_order_of_the_columns(data_dir):
    data = tfds_text("tiny_pairs", data_dir, train_size=48, validation_size=16)
    questions, sentences = data.train.texts
    assert len(questions) == len(sentences) == len(data.train.labels) == 48
    assert all(text.endswith(" question") for text in questions)
    assert all(text.endswith(" sentence") for text in sentences)
    assert len(data.validation.labels) == 16


def test_tfds_refuses_what_it_cannot_use(data_dir, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="text columns \\['first', 'second', 'third'\\]"):
        tfds_text("tiny_triples", data_dir, train_size=1, validation_size=1)
    with pytest.raises(ValueError, match="dataset='no_such_set'"):
        tfds_text("no_such_set", data_dir, train_size=1, validation_size=1)
    with pytest.raises(ValueError, match="than the 256 there are"):
        tfds_text("tiny_pairs", data_dir, train_size=250, validation_size=7)

    def no_network(url, timeout):
        assert timeout <= 5
        raise OSError("no route")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    with pytest.raises(UnavailableError, match=r"tiny_reviews is not prepared.*--data-dir"):
        tfds_text("tiny_reviews", str(tmp_path), train_size=1, validation_size=1)


def test_runs_of_one_seed_begin_alike_and_see_the_same_batches(tiny_preset):
    data = tiny_sentences(16, 8)
    arguments = ["--epochs", "1", "--train-size", "16", "--batch-size", "8"]
    options = finetune_text.parse_arguments(arguments)
    preprocessor = load_preprocessor(tiny_preset, 6)
    first, second = (
        finetune_text.train(
            finetune_text.make_optimizers(options)[0], tiny_preset, preprocessor, data, options
        )
        for _ in range(2)
    )
    for one, other in zip(first.model.get_weights(), second.model.get_weights()):
        np.testing.assert_array_equal(one, other)


def test_schedule_warms_up_over_a_tenth_and_ends_at_zero():
    options = finetune_text.parse_arguments([])
    for optimizer, peak in zip(finetune_text.make_optimizers(options), (1e-4, 3e-4)):
        schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
        rates = [float(schedule(step)) for step in (0, 5, 10, 55, 100)]
        assert rates == pytest.approx([0.0, peak / 2, peak, peak / 2, 0.0], abs=1e-9)


def test_refuses_bad_arguments(capsys):
    with pytest.raises(SystemExit):
        finetune_text.parse_arguments(["--epochs", "0"])
    assert "must be a whole number above 0. Received: 0" in capsys.readouterr().err
    line = stopped(finetune_text, capsys, "--text", "one", "two")
    assert "Argument --text must be followed by 1 quoted sentence(s)" in line
    assert line.endswith("Received: ['one', 'two']")
    with pytest.raises(ValueError, match=r"--text must be followed by 2 .*Received: \['one'\]"):
        finetune_text.check_texts([["one"]], (["a"], ["b"]))
