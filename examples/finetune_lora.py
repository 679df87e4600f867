"""Fine-tunes a text encoder through LoRA adapters with Sage, and, to compare, as a whole.

    python examples/finetune_lora.py
    python examples/finetune_lora.py --rank 16 --lora-learning-rate 3e-3
    python examples/finetune_lora.py --quick --text "A film to remember."

Both runs use Sage, start from the same weights and see the same batches. With LoRA only two thin
matrices beside each query and value kernel are trained, the biases of these layers and the new
head: Sage guides the adapters, and the others take the plain step. The script prints one table with
the parameters that each run trains, merges the adapters into the kernels, saves the plain
classifier, loads it again, and lets it classify the sentences given with `--text`.
"""

import math
import pathlib
import tempfile

import keras
import numpy as np
from common import make_parser, parse, positive_integer, print_rows, stop
from common.comparison import compile_classifier, draw, recipe
from common.datasets import movie_snippets
from common.downloads import UnavailableError
from common.encoders import (
    add_arguments,
    fit,
    load_preprocessor,
    minilm_folder,
    print_reloaded,
    text_classifier,
    tokenize,
)

from sage_keras import TRANSFORMER_BLOCKS, Sage

ADAPTERS = (r"lora_kernel_[ab]$",)
FULL, LORA = "full fine-tuning", "LoRA"
QUICK = {
    "train_size": 384,
    "validation_size": 160,
    "epochs": 2,
    "batch_size": 16,
    "sequence_length": 24,
    "learning_rate": 6e-4,  # fewer steps, larger ones
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = movie_snippets(options.train_size, options.validation_size, options.seed)
        preset = minilm_folder()
    except (UnavailableError, ValueError) as error:
        stop(error)
    preprocessor = load_preprocessor(preset, options.sequence_length)
    training, validation = (tokenize(preprocessor, part) for part in (data.train, data.validation))
    runs = {name: train(name, preset, training, validation, options) for name in (FULL, LORA)}
    print_table(runs)
    draw(runs, options.output / "finetune_lora.png", watched=LORA)

    path = options.output / "finetune_lora.keras"
    classifier = merged(runs[LORA].model, preset, options.seed)
    classifier.preprocessor = preprocessor
    classifier.save(path)
    print(
        f"Merged {runs[LORA].model.count_params():,} parameters into {classifier.count_params():,}"
    )
    print(f"Saved the model as {path}")

    # keras-hub's models do not restore how they were compiled, and say so at length.
    reloaded = keras.saving.load_model(path, compile=False)
    print_reloaded(reloaded, data, [[text] for text in options.text])


def train(name, preset, training, validation, options):
    """Trains all weights, or the adapters and the head."""
    print(f"\n{name}", flush=True)
    classifier = text_classifier(preset, 2, options.seed)
    if name == LORA:
        classifier.backbone.enable_lora(options.rank)
        rate, include = options.lora_learning_rate, ADAPTERS
    else:
        rate, include = options.learning_rate, TRANSFORMER_BLOCKS
    shared = recipe(options, rate, options.train_size)
    compile_classifier(classifier, Sage(**shared, beta_3=options.beta_3, include=include))
    return fit(classifier, training, validation, options)


def print_table(runs):
    epochs = [f"epoch {epoch + 1}" for epoch in range(len(runs[LORA].seconds))]
    rows = [["run", "trained", "guided", *epochs, "final", "s/epoch", "mean scale"]]
    for name, run in runs.items():
        counts = [
            f"{sum(math.prod(variable.shape) for variable in variables):,}"
            for variables in (run.model.trainable_variables, run.model.optimizer.guided_variables)
        ]
        accuracies = [f"{value:.4f}" for value in run.history["val_accuracy"]]
        seconds = f"{np.mean(run.seconds):.1f}"
        rows.append([name, *counts, *accuracies, accuracies[-1], seconds, run.mean_scale])
    print_rows(rows)


def merged(classifier, preset, seed):
    """A classifier without adapters that computes the same: Keras merges them as it saves."""
    plain = text_classifier(preset, 2, seed)
    for model in (classifier, plain):
        model.compile()  # no state of an optimizer is to be merged
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "merged.weights.h5"
        classifier.save_weights(path)
        plain.load_weights(path)
    return plain


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--rank", type=positive_integer, default=8, help="of the adapters")
    add("--learning-rate", type=float, default=3e-4, help="that of full fine-tuning")
    add("--lora-learning-rate", type=float, default=1e-2, help="that of LoRA")
    add("--text", action="append", default=[], metavar="SENTENCE", help="to classify; repeatable")
    add_arguments(parser)
    return parse(parser, arguments, "results/finetune_lora", QUICK)


if __name__ == "__main__":
    main()
