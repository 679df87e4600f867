"""Trains a text encoder with AdamW and with Sage, and shows what became of its weights.

    python examples/watch_training.py
    python examples/watch_training.py --quick

Both runs are measured in the same way: AdamW by `Sage(guide=False)`, which measures and leaves the
training alone. Each run's `SensitivityLogger` reports every few steps. Afterwards the weights that
matter least on training data are set to zero, more and more of them, and the validation data show
what that costs. Logs and a page about both runs, report.html, are under results/.
"""

import re

from common import make_parser, parse, positive_integer, print_rows, stop
from common.comparison import compile_classifier, recipe
from common.datasets import movie_snippets
from common.downloads import UnavailableError
from common.encoders import (
    add_arguments,
    load_preprocessor,
    minilm_folder,
    text_classifier,
    tokenize,
)

from sage_keras import TRANSFORMER_BLOCKS, Sage, analysis
from sage_keras.callbacks import SensitivityLogger

FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
MEASURED_BATCHES = 20
QUICK = {
    "train_size": 128,
    "validation_size": 32,
    "epochs": 1,
    "batch_size": 8,
    "sequence_length": 16,
    "update_freq": 4,
    "learning_rate": 3e-4,  # fewer steps, larger ones
    "sage_learning_rate": 6e-4,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = movie_snippets(options.train_size, options.validation_size, options.seed)
        preset = minilm_folder()
    except (UnavailableError, ValueError) as error:
        stop(error)
    preprocessor = load_preprocessor(preset, options.sequence_length)
    training = tokenize(preprocessor, data.train)
    validation = tokenize(preprocessor, data.validation).batch(options.batch_size)

    logs, curves = {}, {}
    for name, optimizer in make_optimizers(options).items():
        classifier = text_classifier(preset, len(data.class_names), options.seed)
        compile_classifier(classifier, optimizer)
        logs[name] = train(classifier, name, training, validation, options)
        analysis.summary(classifier)
        curves |= prune(classifier, name, training.batch(options.batch_size), validation)

    print_table(logs, curves)
    path = analysis.write_report(logs, options.output / "report.html", curves)
    print(f"Wrote {path}")


def make_optimizers(options):
    """AdamW, watched only, and Sage: each at its own learning rate, otherwise alike."""

    def make(learning_rate, guide):
        return Sage(
            **recipe(options, learning_rate, options.train_size),
            beta_3=options.beta_3,
            include=TRANSFORMER_BLOCKS,
            guide=guide,
        )

    return {
        "AdamW": make(options.learning_rate, guide=False),
        "Sage": make(options.sage_learning_rate, guide=True),
    }


def train(classifier, name, training, validation, options):
    """Trains a compiled classifier, and returns the log of it."""
    print(f"\n{name}", flush=True)
    log_dir = options.output / name
    remove_log(log_dir)
    # Now, so that TensorFlow traces the step only once.
    classifier.optimizer.build(classifier.trainable_variables)
    logger = SensitivityLogger(log_dir, update_freq=options.update_freq, groups=name_sublayer)
    classifier.fit(
        training.shuffle(options.train_size, seed=options.seed).batch(options.batch_size),
        validation_data=validation,
        epochs=options.epochs,
        shuffle=False,  # the data set does it
        callbacks=[logger],
    )
    return analysis.read_log(log_dir)


def remove_log(log_dir):
    """Removes what an earlier run of this script logged, which a logger would continue."""
    for pattern in ("sensitivity.jsonl", "events.out.tfevents.*"):
        for path in log_dir.glob(pattern):
            path.unlink()


def name_sublayer(variable):
    """The group of a weight, finer than by layer: `layer_0/query` and so on."""
    parts = variable.path.split("/")
    return f"{parts[0].removeprefix('transformer_')}/{parts[-2]}"


def prune(classifier, name, training, validation):
    """Pruning curves by sensitivity and, to compare, by magnitude."""
    print("Measuring and pruning", flush=True)
    rankings = {
        f"{name}, by sensitivity": analysis.measure_sensitivity(
            classifier, training, batches=min(MEASURED_BATCHES, len(training))
        ),
        f"{name}, by magnitude": analysis.magnitude_scores(classifier),
    }
    return {
        label: analysis.pruning_curve(classifier, validation, in_blocks(scores), FRACTIONS)
        for label, scores in rankings.items()
    }


def in_blocks(scores):
    """The scores of the weights that both runs watch.

    Half of the others are embeddings of words that no sentence here has. They come at no loss.
    """
    patterns = "|".join(TRANSFORMER_BLOCKS)
    return {path: array for path, array in scores.items() if re.search(patterns, path)}


def print_table(logs, curves):
    rows = [["run", "steps", "mean sensitivity", "redundant", "mean scale"]]
    for name, log in logs.items():
        final = {key: values[-1] for key, values in log.model.figures.items()}
        share, scale = f"{final['redundant_share']:.1%}", f"{final['scale_mean']:.3f}"
        rows.append([name, f"{log.steps[-1]}", f"{final['mean']:.2e}", share, scale])
    print_rows(rows)
    rows = [["accuracy when pruned", *(f"{fraction:.0%}" for fraction in FRACTIONS)]]
    for name, curve in curves.items():
        rows.append([name, *(f"{accuracy:.4f}" for accuracy in curve["accuracy"])])
    print_rows(rows)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--learning-rate", type=float, default=1e-4, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=3e-4, help="that of Sage")
    add("--update-freq", type=positive_integer, default=5, help="steps from report to report")
    add_arguments(parser)
    parser.set_defaults(train_size=800, validation_size=400, sequence_length=32)
    trial = "a trial run on few sentences, of one epoch"
    return parse(parser, arguments, "results/watch_training", QUICK, trial)


if __name__ == "__main__":
    main()
