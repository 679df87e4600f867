"""Fine-tunes a text encoder with half of its neurons going, and makes a smaller model of it.

    python examples/shrink_encoder.py
    python examples/shrink_encoder.py --quick
    python examples/shrink_encoder.py --fraction 0.75 --epochs 4

Two fine-tunings with Sage begin with the same weights and see the same batches. In the second the
neurons of the least sensitivity are zeroed in a few rounds, and then cut out. The script times both
models by turns, prints one table, draws one picture, and saves and exports the smaller model: an
ordinary one of keras-hub, which needs no sage_keras.
"""

import statistics
import time

import keras
import numpy as np
from common import comparison, make_parser, parse, positive_integer, print_rows, ratio, stop
from common.datasets import movie_snippets
from common.downloads import UnavailableError
from common.encoders import (
    add_arguments,
    fit,
    load_preprocessor,
    minilm_folder,
    text_classifier,
    tokenize,
)
from matplotlib.figure import Figure

from sage_keras import TRANSFORMER_BLOCKS, Sage, compression
from sage_keras.callbacks import PruneNeurons

QUICK = {
    "train_size": 480,
    "validation_size": 160,
    "epochs": 1,
    "batch_size": 16,
    "sequence_length": 32,
    "learning_rate": 6e-4,  # fewer steps, larger ones
    "timings": 3,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        sizes = {"train_size": options.train_size, "validation_size": options.validation_size}
        data = movie_snippets(**sizes, seed=options.seed)
        preset = minilm_folder()
        preprocessor = load_preprocessor(preset, options.sequence_length)
    except (UnavailableError, ValueError) as error:
        stop(error)
    pruning = PruneNeurons(options.fraction, rounds=options.rounds)
    runs = {
        "dense": train(preset, preprocessor, data, options),
        "pruned": train(preset, preprocessor, data, options, [pruning]),
    }
    models = {"dense": runs["dense"].model, "compact": compression.compact(runs["pruned"].model)}
    compile_classifier(models["compact"], options)

    validation = tokenize(preprocessor, data.validation).batch(options.batch_size)
    accuracies = {name: model.evaluate(validation, verbose=0)[1] for name, model in models.items()}
    sizes = {
        name: save(model, preprocessor, options.output / f"{name}.keras")
        for name, model in models.items()
    }
    export(models["compact"], options.output / "compact_exported")
    for model in models.values():
        compile_classifier(model, options)
    speeds = measure_speeds(models, preset, data, options)
    print_models(models, accuracies, sizes, speeds)
    draw(runs, accuracies, sizes, speeds, options.output / "shrink_encoder.png")


def train(preset, preprocessor, data, options, callbacks=()):
    """Fine-tunes a classifier of the preset's weights; the seed makes all runs begin alike."""
    print("\nPruned" if callbacks else "\nDense", flush=True)
    classifier = text_classifier(preset, len(data.class_names), options.seed)
    compile_classifier(classifier, options)
    training, validation = (tokenize(preprocessor, part) for part in (data.train, data.validation))
    return fit(classifier, training, validation, options, callbacks)


def compile_classifier(classifier, options):
    recipe = comparison.recipe(options, options.learning_rate, options.train_size)
    optimizer = Sage(**recipe, beta_3=options.beta_3, include=TRANSFORMER_BLOCKS)
    comparison.compile_classifier(classifier, optimizer)


def save(classifier, preprocessor, path):
    """Saves a classifier that reads plain sentences, and returns the size of the file in MB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    classifier.compile()  # without the state of the optimizer, which keras-hub does not load again
    classifier.preprocessor = preprocessor
    classifier.save(path)
    classifier.preprocessor = None
    print(f"Saved {path}")
    return path.stat().st_size / 2**20


def export(classifier, path):
    """Exports a classifier of tokens for serving, as a SavedModel of TensorFlow."""
    if keras.backend.backend() != "tensorflow":
        # Keras needs torch_xla on torch, and on JAX one length for all sentences.
        print("Not exported: the whole encoder can be on TensorFlow")
        return
    classifier.export(path, verbose=False)
    print(f"Exported {path}")


def measure_speeds(models, preset, data, options):
    """Sentences a second by model, in prediction and in training: medians of runs by turns."""
    preprocessor = load_preprocessor(preset, options.timed_length)
    texts = data.train.texts[: 2 * options.batch_size]
    tokens = keras.tree.map_structure(keras.ops.convert_to_numpy, preprocessor(texts))
    labels = np.zeros(len(texts), dtype="int32")
    calls = {
        "prediction": lambda model: model.predict(tokens, batch_size=options.batch_size, verbose=0),
        "training": lambda model: model.fit(
            tokens, labels, batch_size=options.batch_size, verbose=0
        ),
    }
    speeds = {}
    for job, call in calls.items():
        for model in models.values():
            call(model)  # compiles
        seconds = {name: [] for name in models}
        for _ in range(options.timings):
            for name, model in models.items():
                began = time.perf_counter()
                call(model)
                seconds[name].append(time.perf_counter() - began)
        speeds[job] = {
            name: len(texts) / statistics.median(taken) for name, taken in seconds.items()
        }
    return speeds


def print_models(models, accuracies, sizes, speeds):
    rows = [["model", "accuracy", "parameters", "file", "predicted/s", "trained/s"]]
    for name, model in models.items():
        rows.append(
            [
                name,
                f"{accuracies[name]:.4f}",
                f"{model.count_params():,}",
                f"{sizes[name]:.1f} MB",
                *(f"{speeds[job][name]:.1f}" for job in speeds),
            ]
        )
    print_rows(rows)
    gains = [
        f"{speed['compact'] / speed['dense']:.2f} times in {job}" for job, speed in speeds.items()
    ]
    print(f"The compact model is faster: {', '.join(gains)}")


def draw(runs, accuracies, sizes, speeds, path):
    """Draws the validation curves, and accuracy, file and speeds of the two models."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    values = {name: run.history["val_accuracy"] for name, run in runs.items()}
    comparison.plot_validation_curves(curves, values)
    shares = {"accuracy": accuracies, "file size": sizes}
    shares |= {f"sentences/s\nin {job}": speed for job, speed in speeds.items()}
    heights = [values["compact"] / values["dense"] for values in shares.values()]
    drawn = bars.bar(list(shares), heights)
    bars.bar_label(drawn, [f"{height:.2f}" for height in heights])
    bars.axhline(1, color="black", linewidth=1)
    bars.set(
        title="The compact model beside the dense one (1 is the same)",
        ylim=(0, max(heights) * 1.15),
    )
    bars.grid(alpha=0.3, axis="y")
    comparison.save(figure, path)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--fraction", type=ratio, default=0.5, help="share of the neurons of each block to cut")
    add("--rounds", type=positive_integer, default=8, help="how many times neurons are zeroed")
    add("--learning-rate", type=float, default=3e-4, help="that of Sage")
    add("--timings", type=positive_integer, default=7, help="runs of each model, by turns")
    add("--timed-length", type=positive_integer, default=64, help="tokens of a timed sentence")
    add_arguments(parser)
    parser.set_defaults(epochs=3, validation_size=1500)
    trial = "a trial run on few sentences, of one epoch"
    return parse(parser, arguments, "results/shrink_encoder", QUICK, trial)


if __name__ == "__main__":
    main()
