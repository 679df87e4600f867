"""What the examples share that train a classifier, whatever of."""

import math

import keras


def recipe(options, learning_rate, train_size, weight_decay=0.01):
    """The arguments that all optimizers have in common: warm-up and decay, clipping.

    The learning rate rises over a tenth of the steps, and falls to 0 as a cosine.

    Args:
        options: What the command line said, with `epochs` and `batch_size`.
        learning_rate: Float, the highest rate.
        train_size: Integer, the number of examples of an epoch.
        weight_decay: Float. Defaults to `0.01`.

    Returns:
        Dict of keyword arguments of an AdamW.
    """
    steps = options.epochs * math.ceil(train_size / options.batch_size)
    warmup_steps = math.ceil(0.1 * steps)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0,
        decay_steps=max(1, steps - warmup_steps),
        warmup_target=learning_rate,
        warmup_steps=warmup_steps,
    )
    return {"learning_rate": schedule, "weight_decay": weight_decay, "global_clipnorm": 1.0}


def compile_classifier(model, optimizer):
    """Makes a model whose outputs are logits ready for training."""
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
