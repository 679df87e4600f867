"""What the examples share that fine-tune a text encoder with AdamW and with Sage."""

import pathlib

from matplotlib.figure import Figure

from common.comparison import EpochTimer, Run, final_sensitivities
from common.plots import plot_sensitivity_histogram, plot_validation_curves
from common.training import positive_integer, warmup_and_decay
from sage_keras import guided_optimizers
from sage_keras.callbacks import SensitivityLogger


def add_arguments(parser, output):
    """Adds the command-line arguments of a fine-tuning run to a parser, all but the rates.

    Args:
        parser: An `argparse.ArgumentParser`. `set_defaults` changes the defaults.
        output: String, the default of `--output`.
    """
    add = parser.add_argument
    add("--beta-3", type=float, default=0.75, help="decay of Sage's moving average")
    add("--epochs", type=positive_integer, default=2, help="passes over the training data")
    add("--batch-size", type=positive_integer, default=32, help="examples in a step")
    add("--sequence-length", type=positive_integer, default=40, help="tokens kept of an example")
    add("--train-size", type=positive_integer, default=1600, help="examples to train on")
    add("--validation-size", type=positive_integer, default=800, help="others to judge by")
    add("--seed", type=int, default=0, help="of the new head, dropout and the order of the data")
    add("--output", type=pathlib.Path, default=output, help="where files go")
    add("--quick", action="store_true", help="a trial run on few examples")


def parse(parser, arguments, quick):
    """Reads the command line, where `--quick` changes the defaults to those of the dict `quick`."""
    options = parser.parse_args(arguments)
    if options.quick:
        parser.set_defaults(**quick)
        options = parser.parse_args(arguments)
    return options


def recipe(options, learning_rate, train_size):
    """The arguments that all optimizers have in common: warm-up and decay, clipping.

    Args:
        options: What the command line said.
        learning_rate: Float, the highest rate.
        train_size: Integer, the number of examples of an epoch.

    Returns:
        Dict of keyword arguments of an AdamW.
    """
    schedule = warmup_and_decay(learning_rate, options.epochs, train_size, options.batch_size)
    return {"learning_rate": schedule, "weight_decay": 0.01, "global_clipnorm": 1.0}


def fit(model, training, validation, options, callbacks=()):
    """Trains a compiled model.

    Args:
        model: A compiled `keras.Model`.
        training: `tf.data.Dataset` of single examples, in an order of its own.
        validation: `tf.data.Dataset` of single examples, or `None`.
        options: What the command line said.
        callbacks: Sequence of callbacks that come before the others. Defaults to none.

    Returns:
        A `Run`.
    """
    timer = EpochTimer()
    loggers = [SensitivityLogger()] if guided_optimizers(model.optimizer) else []
    history = model.fit(
        training.shuffle(len(training), seed=options.seed).batch(options.batch_size),
        validation_data=None if validation is None else validation.batch(options.batch_size),
        epochs=options.epochs,
        shuffle=False,  # the data set does it
        callbacks=[*callbacks, *loggers, timer],
    ).history
    return Run(model, history, timer.seconds)


def draw(runs, path, metric="accuracy", watched="Sage"):
    """Draws the validation curves of all runs and the final sensitivities of one.

    Args:
        runs: Dict of label to `Run`.
        path: A `pathlib.Path`, where the picture goes.
        metric: String, the metric of the curves. Defaults to `"accuracy"`.
        watched: String, the label of a run with a guided optimizer. Defaults to `"Sage"`.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    curves, histogram = figure.subplots(1, 2)
    values = {name: run.history[f"val_{metric}"] for name, run in runs.items()}
    plot_validation_curves(curves, values, metric)
    plot_sensitivity_histogram(histogram, final_sensitivities(runs[watched].model))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"Drew {path}")
