"""One model trained with several optimizers, side by side: the recipe, the table, the picture."""

import dataclasses
import math
import time

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common import print_rows
from sage_keras import guided_optimizers
from sage_keras.callbacks import SensitivityLogger


def recipe(options, learning_rate, train_size, weight_decay=0.01):
    """The arguments that all optimizers have in common: warm-up and decay, clipping.

    The learning rate rises over a tenth of the steps, and falls to 0 as a cosine.

    Args:
        options: What the command line said, with `epochs` and `batch_size`.
        learning_rate: Float, the highest rate.
        train_size: Integer, the number of examples of an epoch.
        weight_decay: Float. Defaults to `0.01`.

    Returns:
        Dict of keyword arguments of an AdamW.
    """
    steps = options.epochs * math.ceil(train_size / options.batch_size)
    warmup_steps = math.ceil(0.1 * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, steps - warmup_steps),
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
    return {"learning_rate": schedule, "weight_decay": weight_decay, "global_clipnorm": 1.0}


def compile_classifier(model, optimizer):
    """Makes a model whose outputs are logits ready for training."""
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )


class EpochTimer(keras.callbacks.Callback):
    """Records the seconds of every epoch, training and validation."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self._began = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self._began)


@dataclasses.dataclass
class Run:
    """What came of one optimizer.

    Args:
        model: The trained model.
        history: Dict of metric to a list of values, one for each epoch, as `fit` gives it.
        seconds: List of the epochs' seconds.
    """

    model: keras.Model
    history: dict
    seconds: list

    @property
    def mean_scale(self):
        """The mean of the learning-rate scale over all epochs, as text."""
        scales = self.history.get("sensitivity/scale_mean", [])
        return f"{np.mean(scales):.3f}" if scales else "-"


def fit(model, *data, callbacks=(), **arguments):
    """Trains a compiled model, timed, and with a logger if its optimizer is guided.

    Args:
        model: A compiled `keras.Model`.
        *data: What `fit` of the model takes first.
        callbacks: Sequence of callbacks that come before the others. Defaults to none.
        **arguments: Other arguments of `fit` of the model.

    Returns:
        A `Run`.
    """
    if model.built:  # or TensorFlow would trace a step that makes the slots, and then one more
        model.optimizer.build(model.trainable_variables)
    timer = EpochTimer()
    loggers = [SensitivityLogger()] if guided_optimizers(model.optimizer) else []
    history = model.fit(*data, **arguments, callbacks=[*callbacks, *loggers, timer]).history
    return Run(model, history, timer.seconds)


def print_accuracies(runs):
    """Prints the validation accuracy of the last epoch, and of up to five along the way.

    Args:
        runs: Dict of optimizer name to `Run`.
    """
    epochs = len(next(iter(runs.values())).seconds)
    shown = np.unique(np.linspace(0, epochs - 1, 5).round().astype(int))
    rows = [
        ["optimizer", *(f"epoch {epoch + 1}" for epoch in shown), "final", "s/epoch", "mean scale"]
    ]
    for name, run in runs.items():
        accuracies = [run.history["val_accuracy"][epoch] for epoch in [*shown, -1]]
        cells = [f"{accuracy:.4f}" for accuracy in accuracies]
        rows.append([name, *cells, f"{np.mean(run.seconds):.1f}", run.mean_scale])
    print_rows(rows)


def draw(runs, path, metric="accuracy", watched="Sage"):
    """Draws the validation curves of all runs and the final sensitivities of one.

    Args:
        runs: Dict of label to `Run`.
        path: A `pathlib.Path`, where the picture goes.
        metric: String, the metric of the curves. Defaults to `"accuracy"`.
        watched: String, the label of a run with a guided optimizer. Defaults to `"Sage"`.
    """
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    draw_runs(figure.subplots(1, 2), runs, metric, watched)
    save(figure, path)


def draw_runs(panels, runs, metric="accuracy", watched="Sage"):
    """What `draw` draws, on two axes."""
    curves, histogram = panels
    values = {name: run.history[f"val_{metric}"] for name, run in runs.items()}
    plot_validation_curves(curves, values, metric)
    plot_sensitivity_histogram(histogram, final_sensitivities(runs[watched].model))


def final_sensitivities(model):
    """The bias-corrected sensitivities of all guided parameters, as one array."""
    return np.concatenate(
        [
            np.ravel(ops.convert_to_numpy(optimizer.sensitivity(variable)))
            for optimizer in guided_optimizers(model.optimizer)
            for variable in optimizer.guided_variables
        ]
    )


def plot_validation_curves(axes, curves, metric="accuracy"):
    """Draws the validation accuracy, or another metric, by epoch.

    Args:
        axes: Matplotlib axes.
        curves: Dict of label to a list of values, one for each epoch.
        metric: String, what they are. Defaults to `"accuracy"`.
    """
    for label, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, marker="o", label=label)
    axes.set(title=f"Validation {metric}", xlabel="epoch", ylabel=metric)
    axes.set_xlim(0.5, max(map(len, curves.values())) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()


def plot_sensitivity_histogram(axes, values):
    """Draws how many parameters have which sensitivity, in logarithmic bins.

    Parameters of no sensitivity have no place on that scale: they are counted in the title.

    Args:
        axes: Matplotlib axes.
        values: Array of sensitivities, none of them negative.
    """
    positive = values[values > 0]
    zeros = values.size - positive.size
    title = f"Sensitivity of {values.size:,} parameters ({zeros:,} at zero)"
    axes.set(title=title, xlabel="|weight x gradient|, averaged", ylabel="parameters")
    if positive.size:
        bins = np.logspace(np.log10(positive.min()), np.log10(positive.max()), 61)
        axes.hist(positive, bins=bins)
        axes.set_xscale("log")
        axes.set_yscale("log")  # or the few insensitive ones could not be seen
    axes.grid(alpha=0.3)


def save(figure, path):
    """Writes a picture, and says so.

    Args:
        figure: A Matplotlib figure.
        path: A `pathlib.Path`, of which the folder is made where it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"Drew {path}")
