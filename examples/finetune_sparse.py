"""Fine-tunes a text encoder with little memory: BitFit, LoRA and SparseAdamW beside AdamW.

    python examples/finetune_sparse.py
    python examples/finetune_sparse.py --quick
    python examples/finetune_sparse.py --fractions 0.01 --seeds 10

`AdamW` trains all weights; BitFit the biases and the head; LoRA adapters of about as many weights
as a fraction of all; and `SparseAdamW` that fraction itself, chosen by the sensitivity of the first
steps, by their gradients, or at random. The head, which is new, trains as a whole in all of them.
A seed decides which sentences are trained on, their order, the new head, the dropout and the random
choice; the validation sentences are the same in all runs, and are looked at once, when a run is
over. The learning rate of each arm is an option, and none of them was tuned. The script prints a
table with the mean and the worst of the seeds, the weights that train, the optimizer's state, the
file that holds what has changed, and the difference to AdamW over pairs of runs of one seed.

Each run is appended to `runs.jsonl` in the output folder when it is finished, and one that is
there is not repeated: an interrupted script goes on where it stopped.
"""

import math
import pathlib
import re
import tempfile
import time

import keras
import numpy as np
from common import make_parser, parse, positive_integer, print_rows, ratio, repeated
from common.comparison import compile_classifier, recipe, save
from common.encoders import text_classifier, tokenize
from matplotlib.figure import Figure

from sage_keras import BIASES_AND_HEAD, LayerwiseAdamW, SparseAdamW
from sage_keras.compression import save_delta

FULL, BITFIT, LORA = "AdamW", "BitFit", "LoRA"
SPARSE = ("sensitivity", "gradient", "random")
HEAD = ["logits/"]
QUICK = {"fractions": [0.01], "size": 80, **repeated.QUICK}


def main(arguments=None):
    options = parse_arguments(arguments)
    results = repeated.run_all(
        arms(options),
        keys,
        make_optimizer,
        lambda arm, *rest: train(*arm, *rest, options),
        options,
    )
    print_table(results)
    print_differences(results)
    draw(results, options.output / "finetune_sparse.png")


def arms(options):
    """The method and the fraction of each arm, that of all weights first."""
    parts = [(arm, one) for one in options.fractions for arm in (LORA, *SPARSE)]
    return [(FULL, None), (BITFIT, None), *parts]


def label(arm, fraction):
    return arm if fraction is None else f"{arm} {fraction:.2%}"


def learning_rate(arm, options):
    rates = {FULL: options.learning_rate, BITFIT: options.bitfit_learning_rate}
    return rates.get(arm, options.lora_learning_rate if arm == LORA else options.sparse_rate)


def keys(arm, fraction, options):
    """What tells a run from others, for each seed: all that its result depends on."""
    return [
        {
            "arm": arm,
            "fraction": fraction,
            "seed": seed,
            "size": options.size,
            "learning_rate": learning_rate(arm, options),
            **repeated.settings(options),
        }
        for seed in range(options.seeds)
    ]


def make_optimizer(arm, fraction, options, seed=0):
    steps_per_epoch = options.size // options.batch_size
    train_size = steps_per_epoch * options.batch_size
    shared = recipe(options, learning_rate(arm, options), train_size)
    if arm in (FULL, LORA):
        return keras.optimizers.AdamW(**shared)
    if arm == BITFIT:
        rates = dict.fromkeys(BIASES_AND_HEAD, 1.0) | {"": 0.0}
        return LayerwiseAdamW(**shared, learning_rate_multipliers=rates)
    return SparseAdamW(**shared, fraction=fraction, scores=arm, seed=seed, exclude=HEAD)


def train(arm, fraction, missing, task, runs, options):
    """Trains once for each missing run. The model is built and compiled for the first of them."""
    classifier = text_classifier(task.preset, len(task.data.class_names), seed=0)
    if arm == LORA:
        classifier.backbone.enable_lora(lora_rank(classifier, fraction))
    optimizer = make_optimizer(arm, fraction, options)
    compile_classifier(classifier, optimizer)
    optimizer.build(classifier.trainable_variables)
    start = repeated.Start(classifier)
    validation = tokenize(task.preprocessor, task.data.validation).batch(100)
    for key in missing:
        print(f"\n{label(arm, fraction)}, seed {key['seed']}", flush=True)
        if arm == "random":
            start = draw_choice(optimizer, key["seed"], fraction, classifier, options)
        start.restore(key["seed"])
        before = classifier.get_weights()
        began = time.perf_counter()
        repeated.fit_seed(start, task, key)
        seconds = time.perf_counter() - began
        metrics = classifier.evaluate(validation, verbose=0, return_dict=True)
        result = {
            "accuracy": metrics["accuracy"],
            "loss": metrics["loss"],
            "trained": trained_weights(optimizer, classifier.trainable_variables),
            "state": state_bytes(optimizer),
            "file": file_bytes(classifier, before),
            "s": seconds,
        }
        runs.add(key, result)
        print(f"validation accuracy {result['accuracy']:.4f}", flush=True)


def draw_choice(optimizer, seed, fraction, classifier, options):
    """Gives a compiled optimizer another random choice, and returns where training begins."""
    other = make_optimizer("random", fraction, options, seed)
    other.build(classifier.trainable_variables)
    for path, positions in other.chosen_positions.items():
        optimizer.chosen_positions[path].assign(positions)
    return repeated.Start(classifier)


def lora_rank(classifier, fraction):
    """The rank at which the adapters of queries and values have about this share of the weights."""
    kernels = [
        variable.shape
        for variable in classifier.backbone.trainable_variables
        if re.search(r"(?:query|value)/kernel$", variable.path)
    ]
    each = sum(math.prod(shape[:-1]) + shape[-1] for shape in kernels)
    return max(1, round(fraction * classifier.count_params() / each))


def trained_weights(optimizer, variables):
    """How many weights an optimizer trains."""
    counts = {one.path: math.prod(one.shape) for one in variables}
    for path, positions in getattr(optimizer, "chosen_positions", {}).items():
        counts[path] = positions.shape[0]
    for path, factor in getattr(optimizer, "multipliers", {}).items():
        counts[path] *= factor > 0
    return sum(counts.values())


def state_bytes(optimizer):
    return sum(keras.ops.convert_to_numpy(one).nbytes for one in optimizer.variables)


def file_bytes(classifier, before):
    """The size of the file that makes the fine-tuned model of the one before."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "task.delta"
        save_delta(classifier, before, path)
        return path.stat().st_size


def print_table(results):
    rows = [["arm", "trained", "state MB", "file MB", "mean", "std", "worst", "s/run"]]
    for one, runs in results.items():
        cells = repeated.accuracy_cells([run["accuracy"] for run in runs])
        sizes = [f"{np.mean([run[name] for run in runs]) / 1e6:.2f}" for name in ("state", "file")]
        seconds = f"{np.median([run['s'] for run in runs]):.1f}"
        rows.append([label(*one), f"{runs[0]['trained']:,}", *sizes, *cells, seconds])
    print_rows(rows)


def print_differences(results):
    """How much the accuracies differ from AdamW's, over the pairs of runs of one seed."""
    rows = [["to AdamW", "pairs", "mean", "std error"]]
    for one, runs in list(results.items())[1:]:
        pairs = zip(runs, results[FULL, None], strict=True)
        differences = [run["accuracy"] - base["accuracy"] for run, base in pairs]
        rows.append([label(*one), *repeated.difference_cells(differences)])
    print_rows(rows)


def draw(results, path):
    """Every seed of every arm, side by side."""
    figure = Figure(figsize=(1.1 * len(results) + 0.6, 4.2), layout="constrained")
    axes = figure.subplots()
    names = {one: label(*one).replace(" ", "\n") for one in results}
    repeated.plot_seeds(
        axes, {names[one]: [run["accuracy"] for run in runs] for one, runs in results.items()}
    )
    axes.set_ylabel("validation accuracy")
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
        "--fractions",
        type=ratio,
        nargs="+",
        default=[0.001, 0.01, 0.05],
        metavar="SHARE",
        help="shares of the weights that SparseAdamW trains",
    )
    add("--seeds", type=positive_integer, default=5, help="runs of each arm")
    add("--size", type=positive_integer, default=500, help="sentences to train on")
    add("--learning-rate", type=float, default=2e-4, help="that of AdamW")
    add("--bitfit-learning-rate", type=float, default=2e-3, help="that of BitFit")
    add("--lora-learning-rate", type=float, default=3e-3, help="that of LoRA")
    add("--sparse-rate", type=float, default=2e-3, help="that of SparseAdamW")
    repeated.add_arguments(parser, epochs=4)
    return parse(parser, arguments, "results/finetune_sparse", QUICK, repeated.TRIAL)


if __name__ == "__main__":
    main()
