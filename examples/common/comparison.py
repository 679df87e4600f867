"""What the examples share that train one model with several optimizers, side by side."""

import dataclasses
import time

import keras
import numpy as np
from keras import ops
from matplotlib.figure import Figure

from common.plots import plot_sensitivity_histogram, plot_validation_curves, save
from common.tables import print_rows
from sage_keras import guided_optimizers
from sage_keras.callbacks import SensitivityLogger


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
