"""Fine-tunes a pre-trained text encoder with AdamW and with Sage, side by side.

    python examples/finetune_text.py
    python examples/finetune_text.py --quick --text "A film to remember."
    python examples/finetune_text.py --preset bert_base_en --dataset glue/mrpc

Both optimizers start from the same weights and see the same batches. The script prints one table,
draws both validation curves and the final sensitivities into one picture, saves the better model,
loads it again, and lets it classify the sentences given with `--text`.
"""

import argparse
import pathlib

import keras
import keras_hub
import numpy as np
from common.comparison import EpochTimer, Run, final_sensitivities, print_accuracies
from common.downloads import UnavailableError
from common.encoders import minilm_folder
from common.plots import plot_sensitivity_histogram, plot_validation_curves
from common.text import movie_snippets, tfds_text
from common.training import (
    compiled_classifier,
    positive_integer,
    tokenize,
    warmup_and_decay,
)
from keras import ops
from matplotlib.figure import Figure

from sage_keras import TRANSFORMER_BLOCKS, Sage, guided_optimizers
from sage_keras.callbacks import SensitivityLogger

MINILM = "all-MiniLM-L6-v2"
SNIPPETS = "movie-snippets"
QUICK = {
    "train_size": 480,
    "validation_size": 160,
    "epochs": 1,
    "batch_size": 16,
    "sequence_length": 32,
    "learning_rate": 3e-4,  # fewer steps, larger ones
    "sage_learning_rate": 6e-4,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = load_data(options)
        check_texts(options.text, data.train.texts)
        preset = minilm_folder() if options.preset == MINILM else options.preset
    except (UnavailableError, ValueError) as error:
        raise SystemExit(f"finetune_text.py: {error}") from error
    preprocessor = keras_hub.models.TextClassifierPreprocessor.from_preset(
        preset, sequence_length=options.sequence_length
    )
    runs = {
        optimizer.name: train(optimizer, preset, preprocessor, data, options)
        for optimizer in make_optimizers(options)
    }
    print_accuracies(runs)

    options.output.mkdir(parents=True, exist_ok=True)
    draw(runs, options.output / "finetune_text.png")
    better = max(runs, key=lambda name: runs[name].history["val_accuracy"][-1])
    path = options.output / "finetune_text.keras"
    save(runs[better].model, preprocessor, path)
    print(f"Saved the model of {better} as {path}")

    # keras-hub's models do not restore how they were compiled, and say so at length.
    reloaded = keras.saving.load_model(path, compile=False)
    predicted = classify(reloaded, data.validation.texts).argmax(axis=-1)
    accuracy = np.mean(predicted == data.validation.labels, dtype="float32")
    print(f"Loaded again, validation accuracy {accuracy:.4f}")
    if options.text:
        print_classes(reloaded, options.text, data.class_names)


def load_data(options):
    sizes = {"train_size": options.train_size, "validation_size": options.validation_size}
    if options.dataset == SNIPPETS:
        return movie_snippets(**sizes, seed=options.seed)
    return tfds_text(options.dataset, options.data_dir, **sizes)


def check_texts(typed, texts):
    columns = 2 if isinstance(texts, tuple) else 1
    for sentences in typed:
        if len(sentences) != columns:
            raise ValueError(
                f"Argument --text must be followed by {columns} quoted sentence(s), as many as "
                f"the data set has in one example. Received: {sentences}"
            )


def make_optimizers(options):
    """AdamW and Sage, each at its own learning rate, otherwise alike."""

    def arguments(learning_rate):
        schedule = warmup_and_decay(
            learning_rate, options.epochs, options.train_size, options.batch_size
        )
        return {"learning_rate": schedule, "weight_decay": 0.01, "global_clipnorm": 1.0}

    return [
        keras.optimizers.AdamW(**arguments(options.learning_rate), name="AdamW"),
        Sage(
            **arguments(options.sage_learning_rate),
            beta_3=options.beta_3,
            include=TRANSFORMER_BLOCKS,
            name="Sage",
        ),
    ]


def train(optimizer, preset, preprocessor, data, options):
    """Trains a classifier from the preset's weights; the seed makes all runs begin alike."""
    print(f"\n{optimizer.name}", flush=True)
    class_count = len(data.class_names)
    classifier = compiled_classifier(preset, class_count, optimizer, options.seed)
    timer = EpochTimer()
    loggers = [SensitivityLogger()] if guided_optimizers(optimizer) else []
    training = tokenize(preprocessor, data.train).shuffle(options.train_size, seed=options.seed)
    history = classifier.fit(
        training.batch(options.batch_size),
        validation_data=tokenize(preprocessor, data.validation).batch(options.batch_size),
        epochs=options.epochs,
        shuffle=False,  # the data set does it
        callbacks=[*loggers, timer],
    )
    return Run(classifier, history.history, timer.seconds)


def draw(runs, path):
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, histogram = figure.subplots(1, 2)
    accuracies = {name: run.history["val_accuracy"] for name, run in runs.items()}
    plot_validation_curves(curves, accuracies)
    plot_sensitivity_histogram(histogram, final_sensitivities(runs["Sage"].model))
    figure.savefig(path, dpi=100)
    print(f"Drew {path}")


def save(classifier, preprocessor, path):
    """Saves the classifier with its preprocessor, so that it reads plain sentences."""
    classifier.compile()  # without the state of the optimizer, which keras-hub does not load again
    classifier.preprocessor = preprocessor
    classifier.save(path)


def classify(classifier, texts):
    """The probability of each class, by sentence."""
    logits = classifier.predict(texts, verbose=0)
    return ops.convert_to_numpy(ops.softmax(logits))


def print_classes(classifier, typed, class_names):
    """Prints the class of typed sentences, or of sentence pairs."""
    columns = [list(column) for column in zip(*typed)]
    texts = tuple(columns) if len(columns) == 2 else columns[0]
    for sentences, probabilities in zip(typed, classify(classifier, texts)):
        best = int(probabilities.argmax())
        print(f"{class_names[best]} ({probabilities[best]:.3f}): {' | '.join(sentences)}")


def parse_arguments(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--preset", default=MINILM, help="a keras-hub preset, or the folder of one")
    add("--dataset", default=SNIPPETS, help="these, or a set of TFDS such as glue/sst2")
    add("--data-dir", default="~/tensorflow_datasets", help="where TFDS keeps its sets")
    add("--learning-rate", type=float, default=1e-4, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=3e-4, help="that of Sage")
    add("--beta-3", type=float, default=0.75, help="decay of Sage's moving average")
    add("--epochs", type=positive_integer, default=2, help="passes over the training data")
    add("--batch-size", type=positive_integer, default=32, help="examples in a step")
    add("--sequence-length", type=positive_integer, default=40, help="tokens kept of an example")
    add("--train-size", type=positive_integer, default=1600, help="examples to train on")
    add("--validation-size", type=positive_integer, default=800, help="others to judge by")
    add("--seed", type=int, default=0, help="of the new head, dropout and the order of the data")
    add("--output", type=pathlib.Path, default="results/finetune_text", help="where files go")
    add(
        "--text",
        action="append",
        nargs="+",
        default=[],
        metavar="SENTENCE",
        help="a sentence to classify, or the two of a pair; repeatable",
    )
    add("--quick", action="store_true", help="a trial run on few sentences, of one epoch")
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**QUICK)
        options = parser.parse_args(arguments)
    return options


if __name__ == "__main__":
    main()
