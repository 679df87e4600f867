"""Fine-tunes a pre-trained text encoder with AdamW and with Sage, side by side.

    python examples/finetune_text.py
    python examples/finetune_text.py --quick --text "A film to remember."
    python examples/finetune_text.py --preset bert_base_en --dataset glue/mrpc

Both optimizers start from the same weights and see the same batches. The script prints one table,
draws both validation curves and the final sensitivities into one picture, saves the better model,
loads it again, and lets it classify the sentences given with `--text`.
"""

import keras
from common import make_parser, parse, stop
from common.comparison import compile_classifier, draw, print_accuracies, recipe
from common.datasets import movie_snippets, tfds_text
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

MINILM = "all-MiniLM-L6-v2"
SNIPPETS = "movie-snippets"
QUICK = {
    "train_size": 480,
    "validation_size": 160,
    "epochs": 1,
    "batch_size": 16,
    "sequence_length": 32,
    "learning_rate": 3e-4,  # fewer steps, larger ones
    "sage_learning_rate": 6e-4,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = load_data(options)
        check_texts(options.text, data.train.texts)
        preset = minilm_folder() if options.preset == MINILM else options.preset
        preprocessor = load_preprocessor(preset, options.sequence_length)
    except (UnavailableError, ValueError) as error:
        stop(error)
    runs = {
        optimizer.name: train(optimizer, preset, preprocessor, data, options)
        for optimizer in make_optimizers(options)
    }
    print_accuracies(runs)

    draw(runs, options.output / "finetune_text.png")
    better = max(runs, key=lambda name: runs[name].history["val_accuracy"][-1])
    path = options.output / "finetune_text.keras"
    save(runs[better].model, preprocessor, path)
    print(f"Saved the model of {better} as {path}")

    # keras-hub's models do not restore how they were compiled, and say so at length.
    print_reloaded(keras.saving.load_model(path, compile=False), data, options.text)


def load_data(options):
    sizes = {"train_size": options.train_size, "validation_size": options.validation_size}
    if options.dataset == SNIPPETS:
        return movie_snippets(**sizes, seed=options.seed)
    return tfds_text(options.dataset, options.data_dir, **sizes)


def check_texts(typed, texts):
    columns = 2 if isinstance(texts, tuple) else 1
    for sentences in typed:
        if len(sentences) != columns:
            raise ValueError(
                f"Argument --text must be followed by {columns} quoted sentence(s), as many as "
                f"the data set has in one example. Received: {sentences}"
            )


def make_optimizers(options):
    """AdamW and Sage, each at its own learning rate, otherwise alike."""
    plain, guided = (
        recipe(options, rate, options.train_size)
        for rate in (options.learning_rate, options.sage_learning_rate)
    )
    return [
        keras.optimizers.AdamW(**plain, name="AdamW"),
        Sage(**guided, beta_3=options.beta_3, include=TRANSFORMER_BLOCKS, name="Sage"),
    ]


def train(optimizer, preset, preprocessor, data, options):
    """Trains a classifier from the preset's weights; the seed makes all runs begin alike."""
    print(f"\n{optimizer.name}", flush=True)
    classifier = text_classifier(preset, len(data.class_names), options.seed)
    compile_classifier(classifier, optimizer)
    training, validation = (tokenize(preprocessor, part) for part in (data.train, data.validation))
    return fit(classifier, training, validation, options)


def save(classifier, preprocessor, path):
    """Saves the classifier with its preprocessor, so that it reads plain sentences."""
    classifier.compile()  # without the state of the optimizer, which keras-hub does not load again
    classifier.preprocessor = preprocessor
    classifier.save(path)


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--preset", default=MINILM, help="a keras-hub preset, or the folder of one")
    add("--dataset", default=SNIPPETS, help="these, or a set of TFDS such as glue/sst2")
    add("--data-dir", default="~/tensorflow_datasets", help="where TFDS keeps its sets")
    add("--learning-rate", type=float, default=1e-4, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=3e-4, help="that of Sage")
    add(
        "--text",
        action="append",
        nargs="+",
        default=[],
        metavar="SENTENCE",
        help="a sentence to classify, or the two of a pair; repeatable",
    )
    add_arguments(parser)
    trial = "a trial run on few sentences, of one epoch"
    return parse(parser, arguments, "results/finetune_text", QUICK, trial)


if __name__ == "__main__":
    main()
