"""Fine-tunes a text encoder and prunes it meanwhile, by magnitude and by Platon.

    python examples/prune_encoder.py
    python examples/prune_encoder.py --quick
    python examples/prune_encoder.py --sparsities 0.8 --seeds 10

`AdamW` trains the dense encoder, `PrunedAdamW` and `Platon` the same one with more and more of its
weights at zero: of the attention and feed-forward matrices, the pooler and the head together. All
have the learning rate, the schedule and the clipping of AdamW, which were not tuned for any of
them, and the two that prune the same course of sparsity. A seed decides which sentences are trained
on, their order, the new head and the dropout, alike for all; the validation sentences are the same
in all runs, and are looked at once, when a run is over. The script prints a table with the mean,
the standard deviation and the worst of the seeds, and the differences between pairs of runs of one
seed, and draws every one.

Each run is appended to `runs.jsonl` in the output folder when it is finished, and one that is
there is not repeated: an interrupted script goes on where it stopped.
"""

import time

import keras
import numpy as np
from common import make_parser, parse, positive_integer, print_rows, ratio, repeated
from common.comparison import recipe, save
from common.encoders import tokenize
from matplotlib.figure import Figure

from sage_keras import TRANSFORMER_MATRICES, Platon, PrunedAdamW
from sage_keras.compression import sparsity

DENSE, MAGNITUDE, PLATON = "AdamW", "PrunedAdamW", "Platon"
PAIRS = ((MAGNITUDE, DENSE), (PLATON, DENSE), (PLATON, MAGNITUDE))
STYLES = {MAGNITUDE: ("tab:orange", "s", "--"), PLATON: ("tab:blue", "o", "-")}
QUICK = {"sparsities": [0.5], "size": 80, **repeated.QUICK}


def main(arguments=None):
    options = parse_arguments(arguments)
    results = repeated.run_all(
        arms(options),
        keys,
        make_optimizer,
        lambda arm, *rest: train(make_optimizer(*arm, options), *rest),
        options,
    )
    print_table(results)
    print_differences(results)
    draw(results, options.output / "prune_encoder.png")


def arms(options):
    """Optimizer and sparsity of each arm, the dense one first."""
    pruned = [(arm, share) for share in options.sparsities for arm in (MAGNITUDE, PLATON)]
    return [(DENSE, 0.0), *pruned]


def keys(arm, share, options):
    """What tells a run from others, for each seed: all that its result depends on."""
    return [
        {
            "arm": arm,
            "sparsity": share,
            "seed": seed,
            "size": options.size,
            "learning_rate": options.learning_rate,
            **repeated.settings(options),
        }
        for seed in range(options.seeds)
    ]


def make_optimizer(arm, share, options):
    """The optimizers differ in nothing but whether they prune, how much, and by what."""
    steps_per_epoch = options.size // options.batch_size
    train_size = steps_per_epoch * options.batch_size
    shared = {**recipe(options, options.learning_rate, train_size), "name": arm}
    if arm == DENSE:
        return keras.optimizers.AdamW(**shared)
    shared |= {
        "final_sparsity": share,
        "total_steps": options.epochs * steps_per_epoch,
        "include": TRANSFORMER_MATRICES,
    }
    return PrunedAdamW(**shared) if arm == MAGNITUDE else Platon(**shared)


def train(optimizer, missing, task, runs):
    """Trains once for each missing run. The model is built and compiled for the first of them."""
    start = repeated.compiled_start(optimizer, task)
    classifier = start.classifier
    validation = tokenize(task.preprocessor, task.data.validation).batch(100)
    for key in missing:
        print(f"\n{key['arm']}, {key['sparsity']:.0%} zero, seed {key['seed']}", flush=True)
        began = time.perf_counter()
        repeated.fit_seed(start, task, key)
        metrics = classifier.evaluate(validation, verbose=0, return_dict=True)
        result = {
            "accuracy": metrics["accuracy"],
            "loss": metrics["loss"],
            "zeros": sparsity(classifier, include=TRANSFORMER_MATRICES).total,
            "s": time.perf_counter() - began,
        }
        runs.add(key, result)
        print(f"validation accuracy {result['accuracy']:.4f}", flush=True)


def print_table(results):
    rows = [["optimizer", "zeros", "mean", "std", "worst", "s/run"]]
    for (arm, _), runs in results.items():
        accuracies = [run["accuracy"] for run in runs]
        zeros = f"{np.mean([run['zeros'] for run in runs]):.1%}"
        seconds = f"{np.median([run['s'] for run in runs]):.1f}"
        rows.append([arm, zeros, *repeated.accuracy_cells(accuracies), seconds])
    print_rows(rows)


def print_differences(results):
    """How much the accuracies of two arms differ, over the pairs of runs of one seed."""
    rows = [["difference", "sparsity", "pairs", "mean", "std error"]]
    for share in sorted({share for _, share in results} - {0.0}):
        for arm, other in PAIRS:
            base = results[other, 0.0 if other == DENSE else share]
            differences = [
                one["accuracy"] - two["accuracy"] for one, two in zip(results[arm, share], base)
            ]
            cells = [f"{share:.0%}", *repeated.difference_cells(differences)]
            rows.append([f"{arm} - {other}", *cells])
    print_rows(rows)


def draw(results, path):
    """Accuracy over sparsity: a point a seed, a line through the means, and the dense model's."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    dense = [run["accuracy"] for run in results[DENSE, 0.0]]
    axes.axhline(np.mean(dense), color="0.3", linestyle=":", label=f"{DENSE}, dense")
    axes.plot([0.0] * len(dense), dense, "x", color="0.3", markersize=5)
    shares = sorted({share for _, share in results} - {0.0})
    for place, (arm, (color, marker, dashes)) in enumerate(STYLES.items()):
        points = 100 * np.array(shares) + 0.8 * place - 0.4  # side by side
        values = [[run["accuracy"] for run in results[arm, share]] for share in shares]
        for point, accuracies in zip(points, values):
            axes.plot([point] * len(accuracies), accuracies, marker, color=color, alpha=0.35)
        means = [np.mean(accuracies) for accuracies in values]
        axes.plot(points, means, marker, color=color, linestyle=dashes, label=arm)
    axes.set(xlabel="weights at zero (%)", ylabel="validation accuracy")
    axes.grid(alpha=0.3)
    axes.legend()
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
        "--sparsities",
        type=ratio,
        nargs="+",
        default=[0.5, 0.8, 0.9],
        metavar="SHARE",
        help="shares of the weights that are zero in the end",
    )
    add("--seeds", type=positive_integer, default=5, help="runs of each optimizer and sparsity")
    add("--size", type=positive_integer, default=1000, help="sentences to train on")
    add("--learning-rate", type=float, default=2e-4, help="that of all optimizers")
    repeated.add_arguments(parser, epochs=8)
    return parse(parser, arguments, "results/prune_encoder", QUICK, repeated.TRIAL)


if __name__ == "__main__":
    main()
