"""Scikit-learn's handwritten digits, cut into training and validation arrays."""

import sklearn.datasets
import sklearn.model_selection


def load_digits():
    """1,797 digits of 8 by 8 pixels, from 0 to 1.

    Returns:
        Two tuples of pixels, float32 of shape `(count, 64)`, and labels, int32: 1,408 digits to
        train on, which is 22 batches of 64, and the other 389 to judge by.
    """
    digits = sklearn.datasets.load_digits()
    train_pixels, pixels, train_labels, labels = sklearn.model_selection.train_test_split(
        digits.data.astype("float32") / 16,
        digits.target.astype("int32"),
        train_size=1408,
        random_state=0,
    )
    return (train_pixels, train_labels), (pixels, labels)
