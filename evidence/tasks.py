"""The tasks of the evidence: data as arrays, a model, its initial weights by seed, a metric."""

import dataclasses
import functools
import gzip
import hashlib
import os
import pathlib
import sys
import typing

import keras
import numpy as np

# The examples are scripts, with what they share beside them.
sys.path.append(str(pathlib.Path(__file__).parents[1] / "examples"))

POOL = 8000  # of the 9,173 movie snippets; the others judge
PADDING = 0  # among the word pieces of a translation
GLUE_SIZES = {"cola": (8551, 1043), "rte": (2490, 277), "mrpc": (3668, 408)}


class Data(typing.NamedTuple):
    """A task's arrays.

    Args:
        train: Tuple of the inputs, an array or a dict of arrays, and the labels.
        validation: The same.
    """

    train: tuple
    validation: tuple


@dataclasses.dataclass(frozen=True)
class Task:
    """A job of training.

    Args:
        name: String.
        load: Function that returns the `Data`.
        make_model: Function that returns a model of logits, not compiled. What it draws at random
            follows from Keras's seed.
        draw_weights: Function of the model, with the weights that it was made with, and of a seed:
            it draws what is not pre-trained.
        epochs: Integer.
        metric: String, a key of `METRICS`.
        train_size: Integer, how many training examples each seed draws from those there are, or
            `None` for all of them.
        ignored_label: Integer, a label that does not count, or `None`.
        wrong_labels: Float, the share of the training labels that are exchanged for another.
        seconds: Float, about how long a run takes, for the estimate of the time left.
    """

    name: str
    load: typing.Callable
    make_model: typing.Callable
    draw_weights: typing.Callable
    epochs: int
    metric: str = "accuracy"
    train_size: int | None = None
    ignored_label: int | None = None
    wrong_labels: float = 0.0
    seconds: float = 60.0

    def draw_examples(self, data, seed):
        """The training examples of a seed.

        Args:
            data: The `Data`.
            seed: Integer.

        Returns:
            Tuple of inputs and labels.
        """
        random = np.random.default_rng([seed, 1])
        chosen = random.permutation(len(data.train[1]))[: self.train_size]
        inputs, labels = keras.tree.map_structure(lambda array: array[chosen], data.train)
        wrong = random.permutation(len(labels))[: round(self.wrong_labels * len(labels))]
        classes = labels.max() + 1
        labels[wrong] = (labels[wrong] + random.integers(1, classes, labels[wrong].shape)) % classes
        return inputs, labels


# The metrics: functions of labels and logits.


def _predicted(logits):
    return np.nan_to_num(logits).argmax(axis=-1)


def accuracy(labels, logits):
    return {"value": float(np.mean(_predicted(logits) == labels))}


def token_accuracy(labels, logits):
    counted = labels != PADDING
    return {"value": float(np.mean(_predicted(logits)[counted] == labels[counted]))}


def matthews(labels, logits):
    from sklearn.metrics import matthews_corrcoef

    return {"value": float(matthews_corrcoef(labels, _predicted(logits)))}


def accuracy_and_f1(labels, logits):
    from sklearn.metrics import f1_score

    return accuracy(labels, logits) | {"f1": float(f1_score(labels, _predicted(logits)))}


METRICS = {
    "accuracy": accuracy,
    "matthews": matthews,
    "accuracy and F1": accuracy_and_f1,
    "token accuracy": token_accuracy,
}


# Sentences, with the pre-trained encoder.


@functools.cache
def _encoder():
    from common.encoders import minilm_folder

    return minilm_folder()


def make_encoder(class_count=2):
    """MiniLM with a new head, as `keras_hub` makes it."""
    import keras_hub

    classifier = keras_hub.models.TextClassifier.from_preset(
        _encoder(), num_classes=class_count, preprocessor=None
    )
    return keras.Model(classifier.input, classifier.output)


def _draw_head(model, seed):
    head = model.get_layer("logits")
    initializer = head.kernel_initializer
    initializer = type(initializer).from_config(initializer.get_config() | {"seed": seed})
    head.kernel.assign(initializer(head.kernel.shape, head.kernel.dtype))


def tokenize(texts, length):
    """Token ids, segments and masks, kept in the cache of the examples.

    Args:
        texts: List of strings; for sentence pairs a tuple of two such lists.
        length: Integer, the tokens kept of an example.

    Returns:
        Dict of arrays.
    """
    from common.downloads import cache_folder

    key = hashlib.sha256(repr((_encoder().rsplit("/")[-1], texts, length)).encode()).hexdigest()
    path = cache_folder() / "tokens" / f"{key[:16]}.npz"
    if not path.exists():
        import keras_hub

        preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
            _encoder(), sequence_length=length
        )
        # A lone pair would be taken for sentences and labels.
        tokens, _ = preprocessor(texts, np.zeros(len(texts[0] if _paired(texts) else texts)))
        arrays = {name: keras.ops.convert_to_numpy(one) for name, one in tokens.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.npz")
        np.savez_compressed(part, **{name: one.astype("int32") for name, one in arrays.items()})
        os.replace(part, path)
    with np.load(path) as arrays:
        return dict(arrays)


def _paired(texts):
    return isinstance(texts, tuple)


def load_reviews(length=48):
    """Movie snippets: 8,000 to draw training sentences from, and the other 1,173 to judge by."""
    from common.datasets import movie_snippets

    data = movie_snippets(POOL, 9173 - POOL, seed=0)
    return Data(*(_tokenized(one, length) for one in (data.train, data.validation)))


def load_glue(name, length, folder):
    """A GLUE task, from a folder of `name.split.tsv.gz` or, where that is `None`, from TFDS."""
    from common.datasets import tfds_text

    if folder is None:
        data = tfds_text(f"glue/{name}", None, *GLUE_SIZES[name])
        return Data(*(_tokenized(one, length) for one in (data.train, data.validation)))
    parts = [_read_tsv(folder / f"{name}.{split}.tsv.gz") for split in ("train", "validation")]
    return Data(*(_tokenized(one, length) for one in parts))


def _tokenized(examples, length):
    return tokenize(examples.texts, length), examples.labels


def _read_tsv(path):
    from common.datasets import Examples

    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    first, second, labels = zip(*rows)
    texts = (list(first), list(second)) if any(second) else list(first)
    return Examples(texts, np.array(labels, dtype="int32"))


# From scratch: images, and a translation.


def load_digits():
    """5,000 handwritten digits: 4,000 to draw training examples from, 1,000 to judge by."""
    from common.datasets import mnist_digits

    data = mnist_digits(4000, 1000, seed=0)
    return Data(
        *((one.pixels / np.float32(255), one.labels) for one in (data.train, data.validation))
    )


def make_vit(width=64, blocks=3, heads=4, patch=7):
    """A vision Transformer of 16 patches, by default of 105 thousand parameters."""
    import keras_hub

    layers = keras.layers
    inputs = keras.Input((28, 28, 1))
    x = layers.Conv2D(width, patch, strides=patch, name="patches")(inputs)
    x = layers.Reshape((-1, width))(x)
    x = x + keras_hub.layers.PositionEmbedding(x.shape[1], name="positions")(x)
    for index in range(blocks):
        x = keras_hub.layers.TransformerEncoder(
            2 * width, heads, dropout=0.1, normalize_first=True, name=f"block_{index}"
        )(x)
    x = layers.LayerNormalization(name="norm")(x)
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, layers.Dense(10, name="logits")(x))


def vit_task(name, width=64, **settings):
    """A task of digits, from scratch.

    Args:
        name: String.
        width: Integer, of the vision Transformer.
        **settings: Further arguments of `Task`.
    """
    make_model = functools.partial(make_vit, width)
    settings = {"epochs": 10, "seconds": 30} | settings
    return Task(name, load_digits, make_model, _draw_all(make_model), **settings)


def _draw_all(make_model):
    def draw_weights(model, seed):
        keras.utils.set_random_seed(seed)
        model.set_weights(make_model().get_weights())

    return draw_weights


LENGTH, VOCABULARY = 20, 1000  # of the translation, in word pieces


@functools.cache
def _translations():
    """The strings of an interface in English and French that are short, and their tokenizer."""
    from common.datasets import interface_strings
    from train_translation import Tokenizer

    data = interface_strings(None, 400, seed=0)
    tokenizer = Tokenizer([*data.train.sources, *data.train.targets], VOCABULARY)
    return data, tokenizer


def load_translation():
    """Word pieces of the source and of the target, and the pieces to say next."""
    data, tokenizer = _translations()

    def arrays(translations):
        rows = [tokenizer.tokenize(sentences) for sentences in translations]
        short = [max(map(len, pair)) <= LENGTH for pair in zip(*rows)]
        source, target = (
            tokenizer.encode([text for text, yes in zip(texts, short) if yes], LENGTH)
            for texts in translations
        )
        following = np.pad(target[:, 1:], ((0, 0), (0, 1)))
        return {"source": source, "target": target}, following

    return Data(arrays(data.train), arrays(data.validation))


def make_translator():
    """An encoder-decoder Transformer of two blocks each."""
    from train_translation import Translator

    _, tokenizer = _translations()
    translator = Translator(tokenizer.vocabulary_size, LENGTH, width=64, depth=2, heads=4)
    tokens = np.ones((1, LENGTH), "int32")
    translator({"source": tokens, "target": tokens})  # builds it
    return translator


def make_tasks(glue_folder=None):
    """All tasks by name: the main ones, and those of the search for where guiding pays.

    Args:
        glue_folder: `pathlib.Path` of the GLUE files, or `None` for TFDS.

    Returns:
        Dict of name to `Task`.
    """

    def reviews(name, size, epochs, **settings):
        seconds = 5 + epochs * size / 25
        settings = {"train_size": size, "seconds": seconds, **settings}
        return Task(name, load_reviews, make_encoder, _draw_head, epochs, **settings)

    def glue(name, length, epochs, metric, seconds):
        load = functools.partial(load_glue, name, length, glue_folder)
        return Task(name, load, make_encoder, _draw_head, epochs, metric, seconds=seconds)

    tasks = [
        reviews("reviews320", 320, epochs=5),
        vit_task("vit"),
        vit_task("vit_320", train_size=320, epochs=100),
        reviews("reviews1000", 1000, epochs=3),
        Task(
            "translation",
            load_translation,
            make_translator,
            _draw_all(make_translator),
            epochs=15,
            metric="token accuracy",
            ignored_label=PADDING,
            seconds=60,
        ),
        glue("cola", 32, epochs=3, metric="matthews", seconds=600),
        glue("rte", 128, epochs=5, metric="accuracy", seconds=1200),
        glue("mrpc", 128, epochs=3, metric="accuracy and F1", seconds=1000),
        reviews("reviews8000", 8000, epochs=3),
        # Wrong labels, long training, another width, less data.
        vit_task("vit_wrong", wrong_labels=0.2),
        vit_task("vit_long", epochs=30, seconds=90),
        vit_task("vit_narrow", width=16, seconds=20),
        vit_task("vit_wide", width=192, seconds=120),
        reviews("reviews100", 100, epochs=10),
        reviews("reviews320_long", 320, epochs=10),
        reviews("reviews320_wrong", 320, epochs=5, wrong_labels=0.2),
        reviews("reviews1000_wrong", 1000, epochs=3, wrong_labels=0.2),
    ]
    return {task.name: task for task in tasks}
