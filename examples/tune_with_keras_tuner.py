"""Searches for a learning rate and beta_3 with KerasTuner, Sage being one value of a dimension.

    python examples/tune_with_keras_tuner.py
    python examples/tune_with_keras_tuner.py --trials 40 --epochs 20

Each trial trains a small classifier of handwritten digits with AdamW or with Sage, at a learning
rate between 1e-4 and 1e-1; Sage's beta_3 is a dimension that only its own trials have. The script
prints a table of the trials, the best first, and draws their losses by learning rate.
"""

import keras
import keras_tuner
from common import make_parser, parse, positive_integer, print_rows
from common.comparison import compile_classifier, save
from keras import layers
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sage_keras import Sage

QUICK = {"trials": 6, "epochs": 4}


def main(arguments=None):
    options = parse_arguments(arguments)
    digits = load_digits()
    train_images, images, train_labels, labels = train_test_split(
        digits.data / 16, digits.target, train_size=1408, random_state=0
    )
    tuner = keras_tuner.RandomSearch(
        lambda parameters: build_model(parameters, options.seed),
        objective="val_loss",
        max_trials=options.trials,
        seed=options.seed + 1,  # it takes 0 for none, and draws one
        directory=str(options.output),
        project_name="trials",
        overwrite=True,
    )
    tuner.search(
        train_images,
        train_labels,
        validation_data=(images, labels),
        epochs=options.epochs,
        batch_size=options.batch_size,
        verbose=options.verbose,
    )
    trials = tuner.oracle.get_best_trials(options.trials)
    print_table(trials)
    draw(trials, options.output / "tune_with_keras_tuner.png")


def build_model(parameters, seed):
    """A compiled classifier with the optimizer of a trial.

    Args:
        parameters: A `keras_tuner.HyperParameters`.
        seed: Integer, with which all trials begin alike.

    Returns:
        A `keras.Model`.
    """
    name = parameters.Choice("optimizer", ["AdamW", "Sage"])
    learning_rate = parameters.Float("learning_rate", 1e-4, 1e-1, sampling="log")
    with parameters.conditional_scope("optimizer", ["Sage"]):
        beta_3 = parameters.Float("beta_3", 0.6, 0.9)
    if name == "Sage":
        optimizer = Sage(learning_rate, beta_3=beta_3)
    else:
        optimizer = keras.optimizers.AdamW(learning_rate)
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10),
        ]
    )
    compile_classifier(model, optimizer)
    return model


def print_table(trials):
    rows = [["optimizer", "learning rate", "beta_3", "val loss", "val accuracy"]]
    for trial in trials:
        values = trial.hyperparameters.values
        beta_3 = f"{values['beta_3']:.3f}" if values["optimizer"] == "Sage" else "-"
        accuracy = trial.metrics.get_best_value("val_accuracy")
        rate, loss = f"{values['learning_rate']:.2e}", f"{trial.score:.4f}"
        rows.append([values["optimizer"], rate, beta_3, loss, f"{accuracy:.4f}"])
    print_rows(rows)


def draw(trials, path):
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in ("AdamW", "Sage"):
        chosen = [t for t in trials if t.hyperparameters.values["optimizer"] == name]
        rates = [trial.hyperparameters.values["learning_rate"] for trial in chosen]
        axes.scatter(rates, [trial.score for trial in chosen], label=name)
    axes.set(
        title="Best validation loss of each trial",
        xlabel="learning rate",
        ylabel="loss",
        xscale="log",
        yscale="log",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    save(figure, path)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--trials", type=positive_integer, default=24, help="models to train")
    add("--epochs", type=positive_integer, default=12, help="passes over the training data of each")
    add("--batch-size", type=positive_integer, default=64, help="digits in a step")
    add("--seed", type=int, default=0, help="of the search, the weights and the order of the data")
    add("--verbose", type=int, default=1, help="0 for no progress bar")
    output, trial = "results/tune_with_keras_tuner", "a trial run of few trials"
    return parse(parser, arguments, output, QUICK, trial)


if __name__ == "__main__":
    main()
