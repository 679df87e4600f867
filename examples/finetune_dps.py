"""Fine-tunes a text encoder on few sentences with AdamW, Sage, DPSDense and DPSMix.

    python examples/finetune_dps.py
    python examples/finetune_dps.py --quick
    python examples/finetune_dps.py --sizes 300 --seeds 10

The low-resource setting of the DPS paper, on movie-review snippets. A seed decides which sentences
are trained on, their order, the new head and the dropout, alike for all optimizers; the validation
sentences are the same in all runs, and are looked at once, when a run is over. `DPSMix`
draws the same columns with every seed. The script prints a table with the mean, the standard
deviation and the worst of the seeds, and the difference to AdamW over all of them, and draws every
one.

Each run is appended to `runs.jsonl` in the output folder when it is finished, and one that is
there is not repeated: an interrupted script goes on where it stopped.
"""

import time

import keras
import numpy as np
from common import make_parser, parse, positive_integer, print_rows, stop
from common.comparison import compile_classifier, recipe, save
from common.downloads import UnavailableError
from common.encoders import text_classifier, tokenize
from common.repeated import MINILM, Runs, Start, fit_seed, load_task, plot_seeds
from matplotlib.figure import Figure

from sage_keras import TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES, DPSDense, DPSMix, Sage
from sage_keras.callbacks import SwapTrueWeights

ARMS = ("AdamW", "Sage", "DPSDense", "DPSMix")
QUICK = {
    "sizes": [80],
    "seeds": 1,
    "epochs": 1,
    "batch_size": 4,
    "sequence_length": 16,
    "validation_size": 100,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    wanted = [(size, arm) for size in options.sizes for arm in ARMS]
    try:
        for size, arm in wanted:
            make_optimizer(arm, size, options)  # whatever it refuses, before the first run
        task = load_task(options)
    except (UnavailableError, ValueError) as error:
        stop(error)
    options.output.mkdir(parents=True, exist_ok=True)
    runs = Runs(options.output / "runs.jsonl")
    for size, arm in wanted:
        missing = [key for key in keys(arm, size, options) if key not in runs]
        if missing:
            train(make_optimizer(arm, size, options), missing, task, runs)
            keras.utils.clear_session()
    results = {(size, arm): [runs[key] for key in keys(arm, size, options)] for size, arm in wanted}
    print_table(results, options)
    print_differences(results)
    draw(results, options.output / "finetune_dps.png")


def keys(arm, size, options):
    """What tells a run from others, for each seed: all that its result depends on."""
    return [
        {
            "arm": arm,
            "size": size,
            "seed": seed,
            "learning_rate": learning_rate(arm, options),
            "drop_rate": options.drop_rate if arm.startswith("DPS") else None,
            "update_ratio": options.update_ratio if arm.startswith("DPS") else None,
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "sequence_length": options.sequence_length,
            "validation_size": options.validation_size,
            "preset": options.preset,
        }
        for seed in range(options.seeds)
    ]


def learning_rate(arm, options):
    return options.sage_learning_rate if arm == "Sage" else options.learning_rate


def make_optimizer(arm, size, options):
    """The optimizers differ in nothing but the arm, and in the learning rate of Sage."""
    steps_per_epoch = size // options.batch_size
    train_size = steps_per_epoch * options.batch_size
    shared = {**recipe(options, learning_rate(arm, options), train_size), "name": arm}
    if arm == "AdamW":
        return keras.optimizers.AdamW(**shared)
    if arm == "Sage":
        return Sage(**shared, include=TRANSFORMER_BLOCKS)
    shared |= {
        "total_steps": options.epochs * steps_per_epoch,
        "update_ratio": options.update_ratio,
        "drop_rate": options.drop_rate,
        "include": TRANSFORMER_MATRICES,
    }
    return DPSDense(**shared) if arm == "DPSDense" else DPSMix(**shared, seed=0)


def train(optimizer, missing, task, runs):
    """Trains once for each missing run. The model is built and compiled for the first of them."""
    classifier = text_classifier(task.preset, len(task.data.class_names), seed=0)
    compile_classifier(classifier, optimizer)
    optimizer.build(classifier.trainable_variables)
    start = Start(classifier)
    validation = tokenize(task.preprocessor, task.data.validation).batch(100)
    callbacks = [SwapTrueWeights()] if isinstance(optimizer, DPSMix) else []
    for key in missing:
        print(f"\n{key['arm']}, {key['size']} sentences, seed {key['seed']}", flush=True)
        began = time.perf_counter()
        fit_seed(start, task, key, callbacks)
        metrics = classifier.evaluate(validation, verbose=0, return_dict=True)
        seconds = time.perf_counter() - began
        runs.add(key, {"accuracy": metrics["accuracy"], "loss": metrics["loss"], "s": seconds})
        print(f"validation accuracy {metrics['accuracy']:.4f}", flush=True)


def print_table(results, options):
    rows = [["sentences", "optimizer", "rate", "mean", "std", "worst", "s/run"]]
    for (size, arm), runs in results.items():
        accuracies = [run["accuracy"] for run in runs]
        spread = f"{np.std(accuracies, ddof=1):.4f}" if len(runs) > 1 else "-"
        cells = [f"{np.mean(accuracies):.4f}", spread, f"{np.min(accuracies):.4f}"]
        seconds = f"{np.median([run['s'] for run in runs]):.1f}"
        rows.append([str(size), arm, f"{learning_rate(arm, options):g}", *cells, seconds])
    print_rows(rows)


def print_differences(results):
    """How much better than AdamW the others are, over the pairs of runs of one size and seed."""
    sizes = list(dict.fromkeys(size for size, _ in results))
    accuracies = {
        arm: np.array([run["accuracy"] for size in sizes for run in results[size, arm]])
        for arm in ARMS
    }
    rows = [["to AdamW", "pairs", "mean", "std error"]]
    for arm in ARMS[1:]:
        differences = accuracies[arm] - accuracies["AdamW"]
        count = len(differences)
        error = f"{np.std(differences, ddof=1) / count**0.5:.4f}" if count > 1 else "-"
        rows.append([arm, str(count), f"{np.mean(differences):+.4f}", error])
    print_rows(rows)


def draw(results, path):
    """One panel a size, so that all arms of a size stand side by side."""
    sizes = list(dict.fromkeys(size for size, _ in results))
    figure = Figure(figsize=(3.6 * len(sizes) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes):
        accuracies = {arm: [run["accuracy"] for run in results[size, arm]] for arm in ARMS}
        plot_seeds(axes, accuracies)
        axes.set_title(f"{size} sentences")
    panels[0].set_ylabel("validation accuracy")
    save(figure, path)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--preset", default=MINILM, help="a keras-hub preset of a text encoder, or its folder")
    add(
        "--sizes",
        type=positive_integer,
        nargs="+",
        default=[300, 500, 1000],
        metavar="SIZE",
        help="how many sentences to train on",
    )
    add("--seeds", type=positive_integer, default=5, help="runs of each optimizer and size")
    add(
        "--learning-rate", type=float, default=2e-4, help="that of AdamW, tuned by hand, and of DPS"
    )
    add("--sage-learning-rate", type=float, default=3e-4, help="that of Sage, tuned by hand")
    add("--drop-rate", type=float, default=0.3, help="share of weights that DPS leaves out")
    add("--update-ratio", type=float, default=0.05, help="share of the steps in a stage of DPS")
    add("--epochs", type=positive_integer, default=3, help="passes over the training sentences")
    add("--batch-size", type=positive_integer, default=16, help="sentences in a step")
    add("--sequence-length", type=positive_integer, default=24, help="tokens kept of a sentence")
    add("--validation-size", type=positive_integer, default=500, help="sentences to judge by")
    trial = "a trial run on few sentences, one seed"
    return parse(parser, arguments, "results/finetune_dps", QUICK, trial)


if __name__ == "__main__":
    main()
