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

import json
import time
import typing

import keras
import keras_hub
import numpy as np
from common import make_parser, parse, positive_integer, print_rows, stop
from common.comparison import compile_classifier, recipe, save
from common.datasets import Dataset, Examples, movie_snippets
from common.downloads import UnavailableError
from common.encoders import load_preprocessor, minilm_folder, text_classifier, tokenize
from keras import ops
from matplotlib.figure import Figure

from sage_keras import TRANSFORMER_BLOCKS, TRANSFORMER_MATRICES, DPSDense, DPSMix, Sage
from sage_keras.callbacks import SwapTrueWeights
from sage_keras.callbacks.sinks import JsonLinesSink

ARMS = ("AdamW", "Sage", "DPSDense", "DPSMix")
MINILM = "all-MiniLM-L6-v2"
POOL = 8000  # the sentences that each seed draws its own from
QUICK = {
    "sizes": [80],
    "seeds": 1,
    "epochs": 1,
    "batch_size": 4,
    "sequence_length": 16,
    "validation_size": 100,
}


class Task(typing.NamedTuple):
    """What all runs share.

    Args:
        preset: String, the keras-hub preset.
        preprocessor: The keras-hub preprocessor of the preset.
        data: A `Dataset` of `Examples`.
    """

    preset: str
    preprocessor: keras_hub.models.TextClassifierPreprocessor
    data: Dataset


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


def load_task(options):
    preset = minilm_folder() if options.preset == MINILM else options.preset
    preprocessor = load_preprocessor(preset, options.sequence_length)
    return Task(preset, preprocessor, movie_snippets(POOL, options.validation_size, seed=0))


class Runs:
    """The finished runs in a file: what was run, as a dict, to what came of it, as a dict.

    Args:
        path: The file of JSON lines. It is continued if it exists.
    """

    def __init__(self, path):
        self._sink = JsonLinesSink(path)  # removes what a killed run left of its last line
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._results = {_frozen(line["run"]): line["result"] for line in lines}

    def __contains__(self, key):
        return _frozen(key) in self._results

    def __getitem__(self, key):
        return self._results[_frozen(key)]

    def add(self, key, result):
        self._sink.write({"run": key, "result": result})
        self._results[_frozen(key)] = result


def _frozen(key):
    return json.dumps(key, sort_keys=True)


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
        start.restore(key["seed"])
        examples = draw_examples(task.data.train, key["size"], key["seed"])
        in_order = all_epochs(examples, key["epochs"], key["batch_size"], key["seed"])
        batches = tokenize(task.preprocessor, in_order).batch(key["batch_size"])
        # Torch's dropout has no other seed, and `fit` draws from it before it begins to train.
        reseed = keras.callbacks.LambdaCallback(
            on_train_begin=lambda logs, seed=key["seed"]: keras.utils.set_random_seed(seed)
        )
        classifier.fit(batches, shuffle=False, callbacks=[reseed, *callbacks])
        metrics = classifier.evaluate(validation, verbose=0, return_dict=True)
        seconds = time.perf_counter() - began
        runs.add(key, {"accuracy": metrics["accuracy"], "loss": metrics["loss"], "s": seconds})
        print(f"validation accuracy {metrics['accuracy']:.4f}", flush=True)


class Start:
    """Takes a classifier back to where training begins, so that it is compiled only once.

    Args:
        classifier: A compiled keras-hub classifier whose optimizer is built.
    """

    def __init__(self, classifier):
        self._classifier = classifier
        self._values = [ops.convert_to_numpy(one).copy() for one in self._variables()]

    def restore(self, seed):
        """The weights of the preset, a new head, and an optimizer that has made no step.

        Args:
            seed: Integer, which head and which dropout.
        """
        for variable, value in zip(self._variables(), self._values):
            if variable.path.endswith("seed_generator_state"):
                value = np.array([value[0] + seed, 0], dtype=value.dtype)
            variable.assign(value)
        head = self._classifier.get_layer("logits")
        initializer = keras.initializers.TruncatedNormal(stddev=0.02, seed=seed)
        head.kernel.assign(initializer(head.kernel.shape))

    def _variables(self):
        return [*self._classifier.variables, *self._classifier.optimizer.variables]


def draw_examples(pool, size, seed):
    """The sentences of one seed; those of a smaller size are among those of a larger one."""
    chosen = np.random.default_rng(seed).permutation(len(pool.texts))[:size]
    return take(pool, chosen)


def all_epochs(examples, epochs, batch_size, seed):
    """The sentences of all epochs, one after the other, each in an order of its own.

    Whole batches only, since another shape would be another compilation. And not a data set that
    shuffles itself: `fit` takes a batch more from it where it builds the model.
    """
    random = np.random.default_rng(seed)
    count = len(examples.texts)
    whole = count // batch_size * batch_size
    orders = [random.permutation(count)[:whole] for _ in range(epochs)]
    return take(examples, np.concatenate(orders))


def take(examples, indices):
    return Examples([examples.texts[i] for i in indices], examples.labels[indices])


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


def plot_seeds(axes, results):
    """Draws every seed as a point, and the mean as a bar.

    Args:
        axes: Matplotlib axes.
        results: Dict of label to a list of numbers, one for each seed.
    """
    for place, values in enumerate(results.values()):
        shift = np.linspace(-0.12, 0.12, len(values)) if len(values) > 1 else [0.0]
        axes.plot(place + np.array(shift), values, "o", color="black", alpha=0.6, markersize=5)
        mean = np.mean(values)
        axes.hlines(mean, place - 0.22, place + 0.22, color="black", linewidth=2)
        axes.annotate(
            f"{mean:.3f}", (place + 0.24, mean), va="center", fontsize="small", clip_on=False
        )
    axes.set_xticks(range(len(results)), list(results))
    axes.set_xlim(-0.5, len(results) - 0.2)
    axes.grid(axis="y", alpha=0.3)


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
