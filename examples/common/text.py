"""Labelled text: rated movie-review snippets, and any TFDS set of sentences or sentence pairs."""

import io
import tarfile
import typing

import numpy as np

from common.downloads import Package, fetch
from common.tfds import check_sizes, find_builder, prepare, split_names

_SNIPPETS_FILE = "movieReviewSnippets_GroundTruth.txt"


def _read_snippets(archive, name):
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as outer:
        resources = io.BytesIO(outer.extractfile(inner).read())
    with tarfile.open(fileobj=resources) as resources:
        return resources.extractfile(f"hutto_ICWSM_2014/{name}").read()


# Hutto and Gilbert, "VADER", ICWSM 2014: each snippet with the mean of 20 people's ratings.
_SNIPPETS = Package(
    requirement="vaderSentiment==3.3.2",
    checksums={_SNIPPETS_FILE: "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350"},
    read_file=_read_snippets,
    pip_options=("--no-binary", "vaderSentiment"),  # the wheel leaves the snippets out
)


class Examples(typing.NamedTuple):
    """Sentences and their classes.

    Args:
        texts: List of strings; for sentence pairs a tuple of two such lists.
        labels: Integer array, the class of each.
    """

    texts: list | tuple
    labels: np.ndarray


class TextData(typing.NamedTuple):
    """A text classification task.

    Args:
        train: `Examples` to train on.
        validation: `Examples` to judge by.
        class_names: List of strings.
    """

    train: Examples
    validation: Examples
    class_names: list


def movie_snippets(train_size, validation_size, seed):
    """Snippets of movie reviews that people found clearly negative or clearly positive.

    Of 10,605 snippets rated from -4 to 4, the 9,173 rated -1 or less, or 1 or more.

    Args:
        train_size: Integer, how many to train on.
        validation_size: Integer, how many others to judge by.
        seed: Integer, which ones.

    Returns:
        A `TextData` of two classes.
    """
    lines = (fetch(_SNIPPETS) / _SNIPPETS_FILE).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines]
    rated = [(text, float(rating)) for _, rating, text in rows if abs(float(rating)) >= 1]
    check_sizes(train_size, validation_size, len(rated))
    order = np.random.default_rng(seed).permutation(len(rated))

    def examples(indices):
        texts = [rated[i][0] for i in indices]
        return Examples(texts, np.array([int(rated[i][1] > 0) for i in indices], dtype="int32"))

    return TextData(
        train=examples(order[:train_size]),
        validation=examples(order[train_size : train_size + validation_size]),
        class_names=["negative", "positive"],
    )


def tfds_text(name, data_dir, train_size, validation_size):
    """The first examples of a TFDS set with one or two text columns and one class label.

    TFDS shuffles a set when it prepares it. A set without a validation split lends the end of its
    train split. Text columns come in the order of the set's definition; of a set that is known by
    its prepared files alone, by name.

    Args:
        name: String, such as `"glue/sst2"`.
        data_dir: String, the folder of prepared sets.
        train_size: Integer, how many to train on.
        validation_size: Integer, how many others to judge by.

    Returns:
        A `TextData`.

    Raises:
        ValueError: If there is no such set, or it is of another kind or too small.
        UnavailableError: If the set is not prepared and there is no network.
    """
    builder = find_builder(name, data_dir)
    columns, label = _columns(name, builder)
    prepare(name, builder)
    train, validation = split_names(builder, train_size, validation_size)
    return TextData(
        train=_read_split(builder, train, columns, label),
        validation=_read_split(builder, validation, columns, label),
        class_names=builder.info.features[label].names,
    )


def _columns(name, builder):
    import tensorflow_datasets as tfds

    features = builder.info.features
    if isinstance(builder, tfds.core.read_only_builder.ReadOnlyBuilder):
        features = dict(sorted(features.items()))  # the files alone keep no order
    columns = [key for key, value in features.items() if isinstance(value, tfds.features.Text)]
    labels = [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)]
    if len(columns) not in (1, 2) or len(labels) != 1:
        raise ValueError(
            "Argument `dataset` must name a set with one or two text columns and one class label, "
            f"such as glue/sst2 or glue/mrpc. Received: dataset={name!r} with the text columns "
            f"{columns} and the class labels {labels}"
        )
    return columns, labels[0]


def _read_split(builder, split, columns, label):
    import tensorflow_datasets as tfds

    rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
    texts = tuple([row[column].decode("utf-8") for row in rows] for column in columns)
    labels = np.array([row[label] for row in rows], dtype="int32")
    return Examples(texts if len(columns) == 2 else texts[0], labels)
