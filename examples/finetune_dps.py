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
from common import make_parser, parse, positive_integer, print_rows, repeated
from common.comparison import recipe, save
from common.encoders import tokenize
from matplotlib.figure import Figure

from sage_keras import TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES, DPSDense, DPSMix, Sage
from sage_keras.callbacks import SwapTrueWeights

ARMS = ("AdamW", "Sage", "DPSDense", "DPSMix")
QUICK = {"sizes": [80], **repeated.QUICK}


def main(arguments=None):
    options = parse_arguments(arguments)
    results = repeated.run_all(
        [(arm, size) for size in options.sizes for arm in ARMS],
        keys,
        make_optimizer,
        lambda arm, *rest: train(make_optimizer(*arm, options), *rest),
        options,
    )
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
            **repeated.settings(options),
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
    start = repeated.compiled_start(optimizer, task)
    classifier = start.classifier
    validation = tokenize(task.preprocessor, task.data.validation).batch(100)
    callbacks = [SwapTrueWeights()] if isinstance(optimizer, DPSMix) else []
    for key in missing:
        print(f"\n{key['arm']}, {key['size']} sentences, seed {key['seed']}", flush=True)
        began = time.perf_counter()
        repeated.fit_seed(start, task, key, callbacks)
        metrics = classifier.evaluate(validation, verbose=0, return_dict=True)
        seconds = time.perf_counter() - began
        runs.add(key, {"accuracy": metrics["accuracy"], "loss": metrics["loss"], "s": seconds})
        print(f"validation accuracy {metrics['accuracy']:.4f}", flush=True)


def print_table(results, options):
    rows = [["sentences", "optimizer", "rate", "mean", "std", "worst", "s/run"]]
    for (arm, size), runs in results.items():
        cells = repeated.accuracy_cells([run["accuracy"] for run in runs])
        seconds = f"{np.median([run['s'] for run in runs]):.1f}"
        rows.append([str(size), arm, f"{learning_rate(arm, options):g}", *cells, seconds])
    print_rows(rows)


def print_differences(results):
    """How much better than AdamW the others are, over the pairs of runs of one size and seed."""
    sizes = list(dict.fromkeys(size for _, size in results))
    accuracies = {
        arm: np.array([run["accuracy"] for size in sizes for run in results[arm, size]])
        for arm in ARMS
    }
    rows = [["to AdamW", "pairs", "mean", "std error"]]
    for arm in ARMS[1:]:
        differences = accuracies[arm] - accuracies["AdamW"]
        rows.append([arm, *repeated.difference_cells(differences)])
    print_rows(rows)


def draw(results, path):
    """One panel a size, so that all arms of a size stand side by side."""
    sizes = list(dict.fromkeys(size for _, size in results))
    figure = Figure(figsize=(3.6 * len(sizes) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, size in zip(panels, sizes):
        accuracies = {arm: [run["accuracy"] for run in results[arm, size]] for arm in ARMS}
        repeated.plot_seeds(axes, accuracies)
        axes.set_title(f"{size} sentences")
    panels[0].set_ylabel("validation accuracy")
    save(figure, path)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        "--preset",
        default=repeated.MINILM,
        help="a keras-hub preset of a text encoder, or its folder",
    )
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
    repeated.add_arguments(parser, epochs=3)
    return parse(parser, arguments, "results/finetune_dps", QUICK, repeated.TRIAL)


if __name__ == "__main__":
    main()
