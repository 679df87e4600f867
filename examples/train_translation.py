"""Trains an encoder-decoder Transformer from scratch with AdamW and with Sage, side by side.

    python examples/train_translation.py
    python examples/train_translation.py --dataset ted_hrlr_translate/pt_to_en --depth 4

The sentences are the English and French strings of JupyterLab's interface. Both optimizers start
from the same weights and see the same batches. What they learned is judged by BLEU and chrF, of
translations that a beam search finds. The script prints one table and some translations, and draws
the validation losses and Sage's final sensitivities.
"""

import keras
import numpy as np
import sacrebleu
from common.comparison import draw, fit
from common.downloads import UnavailableError
from common.failures import stop
from common.options import make_parser, parse, positive_integer, ratio
from common.tables import print_rows
from common.training import recipe
from common.translations import Translations, interface_strings, tfds_translations
from common.translator import PAD, BeamSearch, Tokenizer, Translator

from sage_keras import Sage

INTERFACE = "jupyterlab-en-fr"
QUICK = {
    "train_size": 800,
    "validation_size": 60,
    "epochs": 8,
    "width": 64,
    "depth": 1,
    "length": 16,
    "vocabulary_size": 600,
    "learning_rate": 5e-3,
    "sage_learning_rate": 1e-2,
}


def main(arguments=None):
    options = parse_arguments(arguments)
    try:
        data = load_data(options)
    except (UnavailableError, ValueError) as error:
        stop(error)
    tokenizer = Tokenizer([*data.train.sources, *data.train.targets], options.vocabulary_size)
    train_set = short_ones(data.train, tokenizer, options.length)
    validation_set = short_ones(data.validation, tokenizer, options.length)
    print(
        f"Of at most {options.length} tokens: {len(train_set.sources)} sentences to train on, "
        f"{len(validation_set.sources)} to judge by"
    )
    if not (train_set.sources and validation_set.sources):
        stop("Pass a larger --length: it leaves no sentence to train on, or none to judge by.")
    arrays = [examples(part, tokenizer, options.length) for part in (train_set, validation_set)]
    runs, translations = {}, {}
    for optimizer in make_optimizers(options, len(train_set.sources)):
        run = train(optimizer, tokenizer, *arrays, options)
        runs[optimizer.name] = run
        translations[optimizer.name] = translate(
            run.model, tokenizer, validation_set.sources, options.length, options.beams
        )
    print_table(runs, translations, validation_set.targets)
    print_translations(validation_set, translations, options.shown)
    draw(runs, options.output / "train_translation.png", metric="loss")


def load_data(options):
    sizes = {"train_size": options.train_size, "validation_size": options.validation_size}
    if options.dataset == INTERFACE:
        return interface_strings(**sizes, seed=options.seed)
    return tfds_translations(options.dataset, options.data_dir, **sizes)


def short_ones(translations, tokenizer, length):
    """The translations that fit into a length, start and end included."""
    kept = [
        pair
        for pair in zip(*translations)
        if max(len(tokens) for tokens in tokenizer.tokenize(pair)) <= length
    ]
    return Translations([source for source, _ in kept], [target for _, target in kept])


def examples(translations, tokenizer, length):
    """What the model is given, and the tokens that it should say next."""
    source = tokenizer.encode(translations.sources, length)
    target = tokenizer.encode(translations.targets, length)
    following = np.pad(target[:, 1:], ((0, 0), (0, 1)), constant_values=PAD)
    return {"source": source, "target": target}, following


def make_optimizers(options, train_size):
    """AdamW and Sage, each at its own learning rate, otherwise alike."""
    plain, guided = (
        recipe(options, rate, train_size)
        for rate in (options.learning_rate, options.sage_learning_rate)
    )
    return [
        keras.optimizers.AdamW(**plain, name="AdamW"),
        Sage(**guided, beta_3=options.beta_3, name="Sage"),
    ]


def train(optimizer, tokenizer, training, validation, options):
    """Trains a translator; the seed makes all runs begin alike."""
    print(f"\n{optimizer.name}", flush=True)
    keras.utils.set_random_seed(options.seed)
    translator = Translator(
        tokenizer.vocabulary_size,
        options.length,
        options.width,
        options.depth,
        options.heads,
        options.dropout,
    )
    translator.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=PAD),
    )
    return fit(
        translator,
        *training,
        validation_data=validation,
        epochs=options.epochs,
        batch_size=options.batch_size,
    )


def translate(translator, tokenizer, sentences, length, beams):
    """Translates sentences by a beam search."""
    search = BeamSearch(translator, length, beams)
    tokens = search.predict(tokenizer.encode(sentences, length), batch_size=64)
    return tokenizer.decode(tokens)


def print_table(runs, translations, references):
    rows = [["optimizer", "loss", "val loss", "BLEU", "chrF", "s/epoch", "mean scale"]]
    for name, run in runs.items():
        losses = [f"{run.history[key][-1]:.4f}" for key in ("loss", "val_loss")]
        bleu = sacrebleu.corpus_bleu(translations[name], [references]).score
        chrf = sacrebleu.corpus_chrf(translations[name], [references]).score
        seconds = f"{np.mean(run.seconds):.1f}"
        rows.append([name, *losses, f"{bleu:.1f}", f"{chrf:.1f}", seconds, run.mean_scale])
    print_rows(rows)


def print_translations(references, translations, count):
    for index in range(min(count, len(references.sources))):
        print(f"{references.sources[index]}\n    reference: {references.targets[index]}")
        for name, sentences in translations.items():
            print(f"    {name:>9}: {sentences[index]}")
    print()


def parse_arguments(arguments):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", default=INTERFACE, help="this, or a TFDS set such as wmt16_translate/de-en")
    add("--data-dir", default="~/tensorflow_datasets", help="where TFDS keeps its sets")
    add("--vocabulary-size", type=positive_integer, default=1500, help="word pieces to learn")
    add("--length", type=positive_integer, default=24, help="tokens; longer sentences are left out")
    add("--width", type=positive_integer, default=128, help="size of a token")
    add("--depth", type=positive_integer, default=2, help="blocks of encoder and of decoder")
    add("--heads", type=positive_integer, default=4, help="attention heads of a block")
    add("--dropout", type=float, default=0.1, help="share of activations dropped")
    add("--learning-rate", type=float, default=2e-3, help="that of AdamW")
    add("--sage-learning-rate", type=float, default=4e-3, help="that of Sage")
    add("--beta-3", type=ratio, default=0.75, help="decay of Sage's moving average")
    add("--epochs", type=positive_integer, default=25, help="passes over the training data")
    add("--batch-size", type=positive_integer, default=32, help="sentences in a step")
    add("--train-size", type=positive_integer, help="sentences to train on; all if not given")
    add("--validation-size", type=positive_integer, default=300, help="others to judge by")
    add("--beams", type=positive_integer, default=4, help="translations pursued at once")
    add("--shown", type=int, default=5, help="translations to print")
    add("--seed", type=int, default=0, help="of weights, dropout and the order of the data")
    trial = "a trial run of a small model on few sentences"
    return parse(parser, arguments, "results/train_translation", QUICK, trial)


if __name__ == "__main__":
    main()
