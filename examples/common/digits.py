"""Scikit-learn's handwritten digits, and a small classifier of them."""

import keras

from common.failures import stop


def read_digits():
    """1,797 digits of 8 by 8 pixels, from 0 to 1.

    Returns:
        Pixels, a float32 array of shape `(1797, 64)`, and labels, an int32 array.
    """
    try:
        import sklearn.datasets
    except ImportError:
        stop('scikit-learn is missing, which has the digits: pip install "sage_keras[examples]"')
    digits = sklearn.datasets.load_digits()
    return digits.data.astype("float32") / 16, digits.target.astype("int32")


def load_digits(train_size=1408):
    """The digits, cut into training and validation arrays.

    Args:
        train_size: Integer, how many to train on. Defaults to `1408`, 22 batches of 64.

    Returns:
        Two tuples of pixels and labels: those to train on, and the others, to judge by.
    """
    pixels, labels = read_digits()
    import sklearn.model_selection

    train_pixels, pixels, train_labels, labels = sklearn.model_selection.train_test_split(
        pixels, labels, train_size=train_size, random_state=0
    )
    return (train_pixels, train_labels), (pixels, labels)


def make_classifier():
    """A network of one hidden layer with dropout, the same every time, that gives logits."""
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        ]
    )
