"""The example as a whole job on real strings, and its parts."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow_datasets as tfds
import train_translation
from common.datasets import Translations, interface_strings, tfds_translations
from example_runs import parse_table, run_here, stopped, whole_job
from keras import ops
from matplotlib.image import imread
from train_translation import END, PAD, START, BeamSearch, Tokenizer, Translator

pytestmark = whole_job("torch")


class TinyTranslations(tfds.core.GeneratorBasedBuilder):
    """Numbers in two languages with the features of ted_hrlr_translate."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.Translation(languages=("pt", "en")),
            supervised_keys=("pt", "en"),
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "validation")}

    def _generate_examples(self, split):
        for index in range(20):
            yield index, {"pt": f"{split} número {index}", "en": f"{split} number {index}"}


class TinyTexts(TinyTranslations):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {language: tfds.features.Text() for language in ("pt", "en")}
            )
        )


@pytest.fixture(scope="module")
def translator():
    """A translator whose every weight is large enough to make its choices clear."""
    keras.utils.set_random_seed(0)
    model = Translator(vocabulary_size=7, length=5, width=8, depth=2, heads=2)
    tokens = np.full((1, 5), START)
    model({"source": tokens, "target": tokens})
    generator = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(generator.normal(0.0, 0.7, variable.shape))
    return model


SOURCE = np.array([[START, 5, 6, END, PAD], [START, 4, END, PAD, PAD], [START, 6, 6, 4, END]])


def log_probabilities(translator, source, target):
    logits = translator({"source": source, "target": target}, training=False)
    return ops.convert_to_numpy(ops.log_softmax(logits))


def test_small_translators_learn_interface_strings(tmp_path, capsys):
    arguments = ["--quick", "--train-size", "600", "--validation-size", "30", "--beams", "2"]
    output = run_here(train_translation, capsys, tmp_path, *arguments, "--length", "12")
    table = parse_table(output)
    assert list(table) == ["AdamW", "Sage"]
    for row in table.values():
        assert 2.0 < float(row["val loss"]) < 5.5  # log(600) is 6.4
        assert 0.0 <= float(row["BLEU"]) < 40.0
        assert 5.0 < float(row["chrF"]) < 50.0
    assert table["AdamW"]["mean scale"] == "-"
    assert 0.35 < float(table["Sage"]["mean scale"]) < 0.75
    assert output.count("reference: ") == 5
    assert imread(tmp_path / "train_translation.png").shape == (450, 1200, 4)


def test_interface_strings_are_each_there_once():
    data = interface_strings(train_size=None, validation_size=300, seed=0)
    assert (len(data.train.sources), len(data.validation.sources)) == (2894, 300)
    sources = [*data.train.sources, *data.validation.sources]
    assert len(set(sources)) == 3194
    pairs = dict(zip(sources, [*data.train.targets, *data.validation.targets]))
    assert pairs["Cell Type"] == "Type de cellule"  # it has a context
    assert pairs["%1 cell hidden"] == "%1 cellule masquée"  # it has a plural
    assert not any("\n" in text or "\x04" in text for text in sources)
    fewer = interface_strings(train_size=50, validation_size=10, seed=0)
    assert len(fewer.train.targets) == 50
    with pytest.raises(ValueError, match=r"than the 3194 there are.*train_size=3000"):
        interface_strings(train_size=3000, validation_size=300, seed=0)


def test_translations_of_tfds(tmp_path):
    for builder in (TinyTranslations, TinyTexts):
        builder(data_dir=str(tmp_path)).download_and_prepare()
    data = tfds_translations("tiny_translations", str(tmp_path), train_size=None, validation_size=5)
    assert (len(data.train.sources), len(data.validation.sources)) == (20, 5)
    for split, part in zip(("train", "validation"), data):
        for source, target in zip(*part):
            assert source == target.replace("number", "número")
            assert target.startswith(split)
    with pytest.raises(ValueError, match="must name a set of translations"):
        tfds_translations("tiny_texts", str(tmp_path), train_size=5, validation_size=5)


def test_tokens_are_those_of_the_sentence_and_come_back_as_it():
    sentences = ["Open the file", "Ouvrir le fichier", "Close it", "Où est-ce ?"]
    tokenizer = Tokenizer(sentences, vocabulary_size=60)
    tokens = tokenizer.encode(sentences, 40)
    assert tokens.shape == (4, 40)
    assert (tokens[:, 0] == START).all()
    assert ((tokens == END).sum(axis=1) == 1).all()
    assert (np.diff((tokens == PAD).astype(int), axis=1) >= 0).all()
    assert tokenizer.decode(tokens) == sentences
    lengths = [len(row) for row in tokenizer.tokenize(sentences)]
    pairs = Translations(sentences[:2], sentences[2:])
    longest = max(lengths[0], lengths[2])
    assert (
        "Open the file" in train_translation.short_ones(pairs, tokenizer, longest).sources
    ) and (
        "Open the file" not in train_translation.short_ones(pairs, tokenizer, longest - 1).sources
    )
    inputs, following = train_translation.examples(pairs, tokenizer, 40)
    np.testing.assert_array_equal(following[:, :-1], inputs["target"][:, 1:])
    assert (following[:, -1] == PAD).all()


def test_decoding_token_by_token_gives_the_logits_of_the_whole(translator):
    target = np.array([[START, 4, 5, 6, 4], [START, 6, 6, 5, END], [START, 5, END, PAD, PAD]])
    whole = translator({"source": SOURCE, "target": target}, training=False)
    mask = ops.not_equal(SOURCE, PAD)
    encoded = translator.encode(SOURCE)
    caches = translator.empty_caches(3)
    for index in range(5):
        logits, caches = translator.decode_token(
            target[:, index : index + 1], index, encoded, mask, caches, first=index == 0
        )
        np.testing.assert_allclose(
            ops.convert_to_numpy(logits), ops.convert_to_numpy(whole[:, index]), atol=1e-4
        )


def test_padding_of_the_source_changes_nothing(translator):
    target = np.array([[START, 4, 5, 6, 4]])
    one = log_probabilities(translator, SOURCE[1:2], target)
    shorter = log_probabilities(translator, SOURCE[1:2, :3], target)
    np.testing.assert_allclose(one, shorter, atol=1e-5)


def test_search_with_all_beams_finds_the_most_probable_translation(translator):
    # As many beams as there are beginnings: nothing is ever dropped.
    length = 4
    found = BeamSearch(translator, length, beams=7**2).predict(SOURCE, verbose=0)
    assert found.shape == (3, length)
    for source, tokens in zip(SOURCE, found):
        every = np.array([[START, *rest] for rest in itertools.product(range(7), repeat=3)])
        after_end = np.cumsum(every == END, axis=1) - (every == END) > 0
        every = every[~np.any(after_end & (every != PAD), axis=1)]
        logs = log_probabilities(translator, np.repeat(source[None], len(every), 0), every)
        steps = np.take_along_axis(logs[:, :-1], every[:, 1:, None], axis=2)[..., 0]
        ended = np.cumsum(every == END, axis=1)[:, :-1] > 0
        scores = np.where(ended, 0.0, steps).sum(axis=1)
        np.testing.assert_array_equal(tokens, every[scores.argmax()])


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["--dataset", "no_such_set"], "must name a set of TensorFlow Datasets"),
        (["--quick", "--length", "2"], "Pass a larger --length"),
    ],
)
def test_what_cannot_be_had_ends_it_in_one_line(capsys, arguments, advice):
    assert advice in stopped(train_translation, capsys, *arguments)
