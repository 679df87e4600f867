"""What the examples that train a text classifier share."""

import argparse
import math

import keras
import keras_hub
import tensorflow as tf
from keras import ops

from common.downloads import UnavailableError


def positive_integer(text):
    """Reads a command-line argument."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number above 0. Received: {text}")
    return value


def warmup_and_decay(learning_rate, epochs, examples, batch_size):
    """A learning rate that rises over a tenth of the steps, and falls to 0 as a cosine."""
    steps = epochs * math.ceil(examples / batch_size)
    warmup_steps = math.ceil(0.1 * steps)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, steps - warmup_steps),
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )


def load_preprocessor(preset, sequence_length):
    """The tokenizer of a preset, which makes what its model takes.

    Args:
        preset: String, a keras-hub preset or the folder of one.
        sequence_length: Integer, the tokens kept of an example.

    Returns:
        A `keras_hub.models.TextClassifierPreprocessor`.

    Raises:
        UnavailableError: If there is no such preset, or no network to download it.
    """
    try:
        return keras_hub.models.TextClassifierPreprocessor.from_preset(
            preset, sequence_length=sequence_length
        )
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"The preset {preset!r} cannot be loaded ({str(error).splitlines()[0][:120]}). Pass "
            "one of keras-hub where there is a network, or the folder of one, with --preset."
        ) from error


def tokenize(preprocessor, examples):
    """A data set of token ids, masks and labels, made once and outside the model.

    Not arrays, which keras-hub's `fit` would not shuffle. The labels go through the preprocessor
    because it would take a lone pair of sentences for sentences and labels.
    """
    tokenized = preprocessor(examples.texts, examples.labels)
    arrays = keras.tree.map_structure(ops.convert_to_numpy, tokenized)
    return tf.data.Dataset.from_tensor_slices(arrays)


def text_classifier(preset, class_count, seed):
    """A classifier of tokens with the preset's weights; the seed decides all that is random."""
    keras.utils.set_random_seed(seed)
    return keras_hub.models.TextClassifier.from_preset(
        preset, num_classes=class_count, preprocessor=None
    )


def compiled_classifier(preset, class_count, optimizer, seed):
    """A `text_classifier` that is ready for training."""
    classifier = text_classifier(preset, class_count, seed)
    classifier.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    return classifier


def print_rows(rows):
    """Prints rows of cells in columns that are as wide as they need to be."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
    print()
