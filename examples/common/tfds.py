"""Sets of TensorFlow Datasets: found, prepared, and cut into training and validation examples."""

import urllib.error
import urllib.request

from common.downloads import UnavailableError

_NETWORK_PROBE = "https://storage.googleapis.com"  # where TFDS keeps its own files


def find_builder(name, data_dir):
    """The builder of a set, which need not be prepared yet.

    Args:
        name: String, such as `"glue/sst2"`.
        data_dir: String, the folder of prepared sets.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        ValueError: If there is no such set.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise ValueError(
            "Argument `dataset` must name a set of TensorFlow Datasets, or one prepared in "
            f"`data_dir`. Received: dataset={name!r}, data_dir={data_dir!r}"
        ) from error


def prepare(name, builder):
    """Downloads and prepares a set that is not prepared yet.

    Args:
        name: String, what the set was asked for by.
        builder: What `find_builder` found.

    Raises:
        UnavailableError: If there is no network.
    """
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


def split_names(builder, train_size, validation_size):
    """The first examples to train on, and others to judge by.

    A set without a validation split lends the end of its train split.

    Args:
        builder: A prepared builder.
        train_size: Integer, or `None` for all there are.
        validation_size: Integer.

    Returns:
        Two strings that TFDS reads as splits.

    Raises:
        ValueError: If the set is too small.
    """
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
