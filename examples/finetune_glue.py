"""Fine-tunes a text encoder on a task of GLUE with AdamW and with Sage, side by side.

    python examples/finetune_glue.py
    python examples/finetune_glue.py --task cola --layer-decay 0.9
    python examples/finetune_glue.py --task stsb --preset bert_base_en --learning-rate 3e-5

The tasks come from TensorFlow Datasets, which downloads them the first time. Each is judged by the
metrics of GLUE: Matthews' correlation for cola, accuracy and F1 for mrpc and qqp, the correlations
of Pearson and Spearman for stsb, which is a regression, and accuracy for the others. Both
optimizers start from the same weights and see the same batches; with `--layer-decay` their rates
fall from the head to the embeddings. The script prints one table and draws both validation curves
and the final sensitivities.
"""

import keras
import numpy as np
from common import make_parser, parse, print_rows, ratio, stop
from common.comparison import draw, recipe
from common.datasets import tfds_text
from common.downloads import UnavailableError
from common.encoders import (
    add_arguments,
    fit,
    load_preprocessor,
    minilm_folder,
    text_classifier,
    tokenize,
)
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from sage_keras import (
    TRANSFORMER_BLOCKS,
    LayerwiseAdamW,
    LayerwiseSage,
    Sage,
    layerwise_decay,
)

MINILM = "all-MiniLM-L6-v2"
ACCURACY = {"accuracy": accuracy_score}
ACCURACY_AND_F1 = {"F1": f1_score, "accuracy": accuracy_score}
CORRELATIONS = {
    "Pearson": lambda labels, scores: pearsonr(labels, scores).statistic,
    "Spearman": lambda labels, scores: spearmanr(labels, scores).statistic,
}
# The first metric of a task is the one that is drawn.
TASKS = {
    "cola": {"Matthews": matthews_corrcoef},
    "mnli": ACCURACY,
    "mrpc": ACCURACY_AND_F1,
    "qnli": ACCURACY,
    "qqp": ACCURACY_AND_F1,
    "rte": ACCURACY,
    "sst2": ACCURACY,
    "stsb": CORRELATIONS,
    "wnli": ACCURACY,
}
QUICK = {
    "train_size": 256,
    "validation_size": 96,
    "epochs": 1,
    "batch_size": 16,
    "sequence_length": 32,
    "learning_rate": 3e-4,  # fewer steps, larger ones
    "sage_learning_rate": 6e-4,
}


class ValidationMetrics(keras.callbacks.Callback):
    """Reports the metrics of a task on its validation data after every epoch.

    They are of all the data at once, which is not the mean of what batches give.

    Args:
        validation: `tf.data.Dataset` of batches.
        labels: Array, the labels of all its examples.
        metrics: Dict of name to a function of labels and predictions.
    """

    def __init__(self, validation, labels, metrics):
        super().__init__()
        self._validation = validation
        self._labels = labels
        self._metrics = metrics

    def on_epoch_end(self, epoch, logs=None):
        outputs = self.model.predict(self._validation, verbose=0)
        predictions = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
        for name, metric in self._metrics.items():
            logs[f"val_{name}"] = float(metric(self._labels, predictions))


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = tfds_text(
            f"glue/{options.task}",
            options.data_dir,
            options.train_size,
            options.validation_size,
            scored=options.task == "stsb",
        )
        preset = minilm_folder() if options.preset == MINILM else options.preset
        preprocessor = load_preprocessor(preset, options.sequence_length)
    except (UnavailableError, ValueError) as error:
        stop(error)
    runs = {name: train(name, preset, preprocessor, data, options) for name in ("AdamW", "Sage")}
    metrics = TASKS[options.task]
    print_table(runs, metrics)
    draw(runs, options.output / f"finetune_glue_{options.task}.png", next(iter(metrics)))


def train(name, preset, preprocessor, data, options):
    """Trains a classifier, or one output for scores, from the preset's weights."""
    print(f"\n{name}", flush=True)
    scored = not data.class_names
    model = text_classifier(preset, 1 if scored else len(data.class_names), options.seed)
    model.compile(
        optimizer=make_optimizer(name, model, options),
        loss="mse" if scored else keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    validation = tokenize(preprocessor, data.validation).batch(options.batch_size)
    judge = ValidationMetrics(validation, data.validation.labels, TASKS[options.task])
    return fit(model, tokenize(preprocessor, data.train), None, options, [judge])


def make_optimizer(name, model, options):
    """AdamW or Sage, each at its own learning rate, otherwise alike."""
    adamw, sage, layers = keras.optimizers.AdamW, Sage, {}
    if options.layer_decay is not None:
        adamw, sage = LayerwiseAdamW, LayerwiseSage
        layers = {"learning_rate_multipliers": decay_by_depth(model, options.layer_decay)}
    if name == "AdamW":
        return adamw(**recipe(options, options.learning_rate, options.train_size), **layers)
    return sage(
        **recipe(options, options.sage_learning_rate, options.train_size),
        **layers,
        beta_3=options.beta_3,
        include=TRANSFORMER_BLOCKS,
    )


def decay_by_depth(model, decay):
    """The factors of `layerwise_decay`; a model whose blocks it does not know ends the script."""
    try:
        return layerwise_decay(model, decay)
    except ValueError as error:
        stop(error)


def print_table(runs, metrics):
    """The first metric by epoch, and all of them at the end."""
    first = next(iter(metrics))
    epochs = len(next(iter(runs.values())).seconds)
    header = [f"{first} {epoch + 1}" for epoch in range(epochs)]
    rows = [["optimizer", *header, *(f"final {name}" for name in metrics), "s/epoch", "mean scale"]]
    for name, run in runs.items():
        values = [*run.history[f"val_{first}"], *(run.history[f"val_{m}"][-1] for m in metrics)]
        cells = [f"{value:.4f}" for value in values]
        rows.append([name, *cells, f"{np.mean(run.seconds):.1f}", run.mean_scale])
    print_rows(rows)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--task", choices=TASKS, default="mrpc", help="which of GLUE")
    add("--preset", default=MINILM, help="a keras-hub preset, or the folder of one")
    add("--data-dir", default="~/tensorflow_datasets", help="where TFDS keeps its sets")
    add("--learning-rate", type=float, default=1e-4, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=3e-4, help="that of Sage")
    add("--layer-decay", type=ratio, help="of the rates from block to block, such as 0.9")
    add_arguments(parser)
    parser.set_defaults(train_size=2400, validation_size=400, sequence_length=64)
    return parse(parser, arguments, "results/finetune_glue", QUICK)


if __name__ == "__main__":
    main()
