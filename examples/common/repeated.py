"""Many short runs of one model: finished ones are kept in a file, and seeds decide the rest."""

import json
import typing

import keras
import keras_hub
import numpy as np
from keras import ops

from common import positive_integer, stop
from common.comparison import compile_classifier
from common.datasets import Dataset, Examples, movie_snippets
from common.downloads import UnavailableError
from common.encoders import load_preprocessor, minilm_folder, text_classifier, tokenize
from sage_keras.log.writing import JsonLines

MINILM = "all-MiniLM-L6-v2"
POOL = 8000  # the sentences that each seed draws its own from
QUICK = {"seeds": 1, "epochs": 1, "batch_size": 4, "sequence_length": 16, "validation_size": 100}
TRIAL = "a trial run on few sentences, one seed"


def add_arguments(parser, epochs):
    """Adds the command-line arguments of each run to a parser.

    Args:
        parser: An `argparse.ArgumentParser`.
        epochs: Integer, the default.
    """
    add = parser.add_argument
    add(
        "--epochs", type=positive_integer, default=epochs, help="passes over the training sentences"
    )
    add("--batch-size", type=positive_integer, default=16, help="sentences in a step")
    add("--sequence-length", type=positive_integer, default=24, help="tokens kept of a sentence")
    add("--validation-size", type=positive_integer, default=500, help="sentences to judge by")


def settings(options):
    """What the arguments of each run add to its key."""
    names = ("epochs", "batch_size", "sequence_length", "validation_size", "preset")
    return {name: getattr(options, name) for name in names}


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


def load_task(options):
    preset = minilm_folder() if options.preset == MINILM else options.preset
    preprocessor = load_preprocessor(preset, options.sequence_length)
    return Task(preset, preprocessor, movie_snippets(POOL, options.validation_size, seed=0))


def run_all(arms, keys, check, train, options):
    """Makes the runs of all arms that are not in the file yet, and returns those of each arm.

    Args:
        arms: List of tuples.
        keys: Function of an arm's entries and `options` that returns the keys of its runs.
        check: Function of the same that raises `ValueError` if the arm cannot be trained.
        train: Function of an arm, the keys of missing runs, the `Task` and the `Runs`, that trains
            once for each key and adds what came of it.
        options: What the command line said.

    Returns:
        Dict of arm to a list of results.
    """
    try:
        for arm in arms:
            check(*arm, options)  # whatever it refuses, before the first run
        task = load_task(options)
    except (UnavailableError, ValueError) as error:
        stop(error)
    options.output.mkdir(parents=True, exist_ok=True)
    runs = Runs(options.output / "runs.jsonl")
    for arm in arms:
        missing = [key for key in keys(*arm, options) if key not in runs]
        if missing:
            train(arm, missing, task, runs)
            keras.utils.clear_session()
    return {arm: [runs[key] for key in keys(*arm, options)] for arm in arms}


class Runs:
    """The finished runs in a file: what was run, as a dict, to what came of it, as a dict.

    Args:
        path: The file of JSON lines. It is continued if it exists.
    """

    def __init__(self, path):
        self._lines = JsonLines(path)  # removes what a killed run left of its last line
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        self._results = {_frozen(line["run"]): line["result"] for line in lines}

    def __contains__(self, key):
        return _frozen(key) in self._results

    def __getitem__(self, key):
        return self._results[_frozen(key)]

    def add(self, key, result):
        self._lines.append({"run": key, "result": result})
        self._results[_frozen(key)] = result


def _frozen(key):
    return json.dumps(key, sort_keys=True)


class Start:
    """Takes a classifier back to where training begins, so that it is compiled only once.

    Args:
        classifier: A compiled keras-hub classifier whose optimizer is built.
    """

    def __init__(self, classifier):
        self.classifier = classifier
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
        head = self.classifier.get_layer("logits")
        initializer = keras.initializers.TruncatedNormal(stddev=0.02, seed=seed)
        head.kernel.assign(initializer(head.kernel.shape))

    def _variables(self):
        return [*self.classifier.variables, *self.classifier.optimizer.variables]


def compiled_start(optimizer, task):
    """The `Start` of the classifier of a task, compiled with an optimizer."""
    classifier = text_classifier(task.preset, len(task.data.class_names), seed=0)
    compile_classifier(classifier, optimizer)
    optimizer.build(classifier.trainable_variables)
    return Start(classifier)


def fit_seed(start, task, key, callbacks=()):
    """Trains from the start on the sentences of a seed.

    Args:
        start: A `Start`.
        task: A `Task`.
        key: Dict with `size`, `seed`, `epochs` and `batch_size`.
        callbacks: Sequence of callbacks. Defaults to none.
    """
    start.restore(key["seed"])
    examples = draw_examples(task.data.train, key["size"], key["seed"])
    in_order = all_epochs(examples, key["epochs"], key["batch_size"], key["seed"])
    batches = tokenize(task.preprocessor, in_order).batch(key["batch_size"])
    # Torch's dropout has no other seed, and `fit` draws from it before it begins to train.
    reseed = keras.callbacks.LambdaCallback(
        on_train_begin=lambda logs: keras.utils.set_random_seed(key["seed"])
    )
    start.classifier.fit(batches, shuffle=False, callbacks=[reseed, *callbacks])


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


def accuracy_cells(accuracies):
    """The mean, the standard deviation and the worst of the seeds, as they are printed."""
    spread = f"{np.std(accuracies, ddof=1):.4f}" if len(accuracies) > 1 else "-"
    return [f"{np.mean(accuracies):.4f}", spread, f"{np.min(accuracies):.4f}"]


def difference_cells(differences):
    """How many pairs of runs there are, and their mean difference and its standard error."""
    count = len(differences)
    error = f"{np.std(differences, ddof=1) / count**0.5:.4f}" if count > 1 else "-"
    return [str(count), f"{np.mean(differences):+.4f}", error]


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
