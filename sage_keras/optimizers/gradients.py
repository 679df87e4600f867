"""Gradients as TensorFlow gives them."""

import keras


def to_dense(gradient):
    """A gradient as one dense tensor.

    TensorFlow gives embeddings `tf.IndexedSlices`, in which a row that was looked up twice stands
    twice; a product with the gradient, or its square, needs their sum. `keras.ops` leaves the
    duplicates apart.
    """
    if keras.backend.backend() != "tensorflow":
        return gradient
    import tensorflow as tf

    return tf.convert_to_tensor(gradient)
