"""An encoder-decoder Transformer of keras-hub's layers, its tokenizer, and its beam search."""

import io

import keras
import keras_hub
import numpy as np
import sentencepiece
from keras import ops

PAD, UNKNOWN, START, END = range(4)


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
