"""Trains an encoder-decoder Transformer from scratch with AdamW and with Sage, side by side.

    python examples/train_translation.py
    python examples/train_translation.py --dataset ted_hrlr_translate/pt_to_en --depth 4

The sentences are the English and French strings of JupyterLab's interface. Both optimizers start
from the same weights and see the same batches. What they learned is judged by BLEU and chrF, of
translations that a beam search finds. The script prints one table and some translations, and draws
the validation losses and Sage's final sensitivities.
"""

import io

import keras
import keras_hub
import numpy as np
import sacrebleu
import sentencepiece
from common import make_parser, parse, positive_integer, print_rows, ratio, stop
from common.comparison import draw, fit, recipe
from common.datasets import Translations, interface_strings, tfds_translations
from common.downloads import UnavailableError
from keras import ops

from sage_keras import Sage

PAD, UNKNOWN, START, END = range(4)

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


class Tokenizer:
    """Word pieces that are learned on sentences of both languages.

    Args:
        sentences: List of strings.
        vocabulary_size: Integer, how many pieces at most.
    """

    def __init__(self, sentences, vocabulary_size):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            vocab_size=vocabulary_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD,
            unk_id=UNKNOWN,
            bos_id=START,
            eos_id=END,
            minloglevel=2,
        )
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())

    @property
    def vocabulary_size(self):
        """How many pieces there are."""
        return self._processor.vocab_size()

    def tokenize(self, sentences):
        """Token ids of sentences, with start and end, as a list of lists."""
        return self._processor.encode(list(sentences), add_bos=True, add_eos=True)

    def encode(self, sentences, length):
        """Token ids of sentences that are no longer than a length, padded to it.

        Args:
            sentences: List of strings.
            length: Integer.

        Returns:
            An int32 array of shape `(sentences, length)`.
        """
        rows = self.tokenize(sentences)
        return np.array([row + [PAD] * (length - len(row)) for row in rows], dtype="int32")

    def decode(self, tokens):
        """Sentences of token ids, each up to its end.

        Args:
            tokens: Integer array of shape `(sentences, length)`.

        Returns:
            List of strings.
        """
        rows = ([int(token) for token in row] for row in tokens)
        return [
            self._processor.decode(row[: row.index(END)] if END in row else row) for row in rows
        ]


class Translator(keras.Model):
    """An encoder-decoder Transformer; source, target and output share one embedding.

    Takes a dict of integer tokens, `"source"` and `"target"`, each of shape `(batch, length)` and
    0 where padded, and returns the logits of each next target token.

    Args:
        vocabulary_size: Integer.
        length: Integer, the longest source and target in tokens.
        width: Integer, the size of a token.
        depth: Integer, how many blocks in the encoder, and as many in the decoder.
        heads: Integer, how many attention heads in each.
        dropout: Float, the share of activations dropped. Defaults to `0.1`.
    """

    def __init__(self, vocabulary_size, length, width, depth, heads, dropout=0.1):
        super().__init__()
        block = {
            "intermediate_dim": 4 * width,
            "num_heads": heads,
            "dropout": dropout,
            "normalize_first": True,
        }
        self.cache_shape = (2, length, heads, width // heads)
        self.embedding = keras_hub.layers.TokenAndPositionEmbedding(
            vocabulary_size, length, width, tie_weights=True, name="embedding"
        )
        self.dropout = keras.layers.Dropout(dropout)
        self.encoder_blocks = [
            keras_hub.layers.TransformerEncoder(**block, name=f"encoder_layer_{index}")
            for index in range(depth)
        ]
        self.encoder_norm = keras.layers.LayerNormalization(name="encoder_norm")
        self.decoder_blocks = [
            keras_hub.layers.TransformerDecoder(**block, name=f"decoder_layer_{index}")
            for index in range(depth)
        ]
        self.decoder_norm = keras.layers.LayerNormalization(name="decoder_norm")

    def call(self, inputs, training=None):
        source, target = inputs["source"], inputs["target"]
        encoded = self.encode(source, training)
        source_mask = ops.not_equal(source, PAD)
        x = self.dropout(self.embedding(target), training=training)
        for block in self.decoder_blocks:
            x = block(x, encoded, encoder_padding_mask=source_mask, training=training)
        return self.logits(x)

    def encode(self, source, training=None):
        """What the decoder attends to."""
        mask = ops.not_equal(source, PAD)
        x = self.dropout(self.embedding(source), training=training)
        for block in self.encoder_blocks:
            x = block(x, padding_mask=mask, training=training)
        return self.encoder_norm(x)

    def decode_token(self, token, index, encoded, source_mask, caches, first=False):
        """The logits after one more target token, by the keys and values of those before it.

        Args:
            token: Tensor of shape `(batch, 1)`.
            index: Integer, where the token stands.
            encoded: Tensor, what `encode` returned.
            source_mask: Boolean tensor of shape `(batch, length)`, false where padded.
            caches: For each block a pair of tensors, as `empty_caches` makes them.
            first: Boolean, whether the keys and values of `encoded` are yet to be computed.
                Defaults to `False`.

        Returns:
            Logits of shape `(batch, vocabulary_size)`, and the new caches.
        """
        x = self.embedding(token, start_index=index)
        new_caches = []
        for block, (self_cache, cross_cache) in zip(self.decoder_blocks, caches):
            x, self_cache, cross_cache = block(
                x,
                encoded,
                encoder_padding_mask=source_mask,
                self_attention_cache=self_cache,
                self_attention_cache_update_index=index,
                cross_attention_cache=cross_cache,
                cross_attention_cache_update_index=0 if first else None,
            )
            new_caches.append((self_cache, cross_cache))
        return self.logits(x)[:, 0], new_caches

    def empty_caches(self, batch_size):
        """Keys and values of no token yet, for each block of the decoder."""
        empty = ops.zeros((batch_size, *self.cache_shape), self.compute_dtype)
        return [(empty, empty) for _ in self.decoder_blocks]

    def logits(self, x):
        """The logits of the next token, by the embedding that reads tokens in."""
        return self.embedding.token_embedding(self.decoder_norm(x), reverse=True)


class BeamSearch(keras.Model):
    """Translates source tokens into target tokens, for `predict`.

    Args:
        translator: A `Translator`.
        length: Integer, tokens of the longest translation.
        beams: Integer, how many translations are pursued at once.
    """

    def __init__(self, translator, length, beams):
        super().__init__()
        self.translator = translator
        self.length = length
        self.sampler = keras_hub.samplers.BeamSampler(num_beams=beams)
        self.built = True

    def call(self, source):
        batch_size = ops.shape(source)[0]
        mask = ops.not_equal(source, PAD)
        encoded = self.translator.encode(source)
        start = ops.full((batch_size, 1), START, "int32")
        caches = self.translator.empty_caches(batch_size)
        _, caches = self.translator.decode_token(start, 0, encoded, mask, caches, first=True)

        def next_logits(prompt, state, index):
            encoded, mask, caches = state
            token = ops.slice(prompt, (0, index - 1), (ops.shape(prompt)[0], 1))
            logits, caches = self.translator.decode_token(token, index - 1, encoded, mask, caches)
            # A finished beam goes on at no cost, or the others would overtake it.
            finished = ops.any(ops.equal(prompt, END), axis=-1, keepdims=True)
            padding = ops.where(ops.arange(ops.shape(logits)[-1]) == PAD, 0.0, -1e9)
            return ops.where(finished, padding, logits), None, (encoded, mask, caches)

        rest = ops.full((batch_size, self.length - 1), PAD, "int32")
        prompt = ops.concatenate([start, rest], axis=1)
        return self.sampler(
            next_logits,
            prompt,
            cache=(encoded, mask, caches),
            index=1,
            mask=ops.equal(prompt, START),
            stop_token_ids=[END],
            model=self.translator,
        )


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
