"""What SensitivityLogger costs.

    python -m benchmarks.logger

Prints, for a training step of MiniLM's size (22.7 million parameters, random weights), how much
longer it takes with a logger that reports every step, and from that every 50 steps; and, for the
shapes of BERT-base, how long a report takes over one step of the optimizer alone, and how much it
copies to the host. Turns with and without take turns, to and fro, and the median of
their ratios counts.
"""

import argparse
import tempfile
import time

import keras
import keras_hub
import numpy as np
from keras import ops

from benchmarks import common
from sage_keras import Sage
from sage_keras.callbacks import SensitivityLogger
from sage_keras.callbacks.sensitivity_values import SensitivityValues

MINILM = {"num_layers": 6, "num_heads": 12, "hidden_dim": 384, "intermediate_dim": 1536}
BERT_BASE = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "intermediate_dim": 3072}
VOCABULARY = 30522


class StepTimes(keras.callbacks.Callback):
    """Records the seconds of each batch, from the end of the one before."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_train_batch_end(self, batch, logs=None):
        now = time.perf_counter()
        if batch:
            self.seconds.append(now - self._ended)
        self._ended = now


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=8, help="turns of each kind")
    parser.add_argument("--steps", type=int, default=6, help="training steps in a turn")
    parser.add_argument("--skip", choices=["minilm", "bert"], help="one of the two measurements")
    options = parser.parse_args()
    print(f"keras {keras.__version__} on {keras.backend.backend()}")
    if options.skip != "minilm":
        training(options.rounds, options.steps)
    if options.skip != "bert":
        report()


def classifier(sizes):
    backbone = keras_hub.models.BertBackbone(vocabulary_size=VOCABULARY, dropout=0.0, **sizes)
    model = keras_hub.models.BertTextClassifier(backbone, num_classes=2, preprocessor=None)
    model.compile(
        optimizer=Sage(learning_rate=1e-5),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def training(rounds, steps, batch_size=32, length=64):
    model = classifier(MINILM)
    examples = batch_size * steps
    random = np.random.default_rng(0)
    x = {
        "token_ids": random.integers(0, VOCABULARY, (examples, length)).astype("int32"),
        "segment_ids": np.zeros((examples, length), "int32"),
        "padding_mask": np.ones((examples, length), "int32"),
    }
    y = random.integers(0, 2, examples)

    with tempfile.TemporaryDirectory() as folder:
        kinds = {
            "no logger": [],
            "every step": [SensitivityLogger(folder, update_freq="batch")],
            "never": [SensitivityLogger(folder, update_freq=10**9)],
        }

        def median_step(kind):
            times = StepTimes()
            # The last step is reported by all, at the end of the epoch, and not timed.
            callbacks = [*kinds[kind], times]
            model.fit(x, y, batch_size=batch_size, verbose=0, callbacks=callbacks)
            return common.median(times.seconds[:-1])

        for kind in kinds:  # compiles
            median_step(kind)
        figures = common.interleave(median_step, kinds, rounds)
    step = common.median(figures["no logger"])
    every, never = (common.ratio(figures[k], figures["no logger"]) for k in ("every step", "never"))
    parameters = model.count_params()
    print(f"training step, {parameters / 1e6:.1f} million parameters: {1e3 * step:.0f} ms")
    print(f"  a report every step: {every - 1:+.1%} ({1e3 * step * (every - never):.0f} ms each)")
    print(f"  every 50 steps: {(every - never) / 50 + never - 1:+.2%}")
    print(f"  logger that does not report: {never - 1:+.2%}")


def report():
    model = classifier(BERT_BASE)
    optimizer = model.optimizer
    optimizer.build(model.trainable_variables)
    step = optimizer_step(model)
    step()
    values = SensitivityValues(model, [optimizer], None, (0.05, 0.25, 0.5, 0.75, 0.95), True)
    copied = []
    convert = ops.convert_to_numpy

    def counting(tensor):
        array = convert(tensor)
        copied.append(array.nbytes)
        return array

    seconds = {"step": [], "report": []}
    for turn in range(6):
        began = time.perf_counter()
        copies = values.copy([optimizer])
        wait(copies)
        copying = time.perf_counter() - began

        began = time.perf_counter()
        step()
        stepping = time.perf_counter() - began

        copied.clear()
        ops.convert_to_numpy = counting
        began = time.perf_counter()
        values.report([optimizer], [turn + 2], copies)
        reporting = time.perf_counter() - began
        ops.convert_to_numpy = convert
        if turn:
            seconds["step"].append(stepping)
            seconds["report"].append(copying + reporting)
    step, whole = (common.median(one) for one in seconds.values())
    guided = sum(int(np.prod(one.shape)) for one in optimizer.guided_variables)
    print(f"step of the optimizer, {guided / 1e6:.1f} million parameters: {1e3 * step:.0f} ms")
    print(f"  a report: {1e3 * whole:.0f} ms, {whole / step:.2f} times the step")
    print(f"  copied to the host: {sum(copied) / 1024:.1f} KB")


def optimizer_step(model):
    """One compiled step with constant gradients, that returns when it is done."""
    optimizer, variables = model.optimizer, model.trainable_variables
    gradients = [ops.convert_to_tensor(0.01 * ops.convert_to_numpy(v) + 1e-4) for v in variables]
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        apply = tf.function(lambda: optimizer.apply(gradients, variables), jit_compile=True)
    elif backend == "jax":
        import jax

        compiled = jax.jit(optimizer.stateless_apply, donate_argnums=(0, 2))

        def apply():
            weights, state = compiled(
                [v.value for v in optimizer.variables], gradients, [v.value for v in variables]
            )
            for variable, value in zip([*variables, *optimizer.variables], [*weights, *state]):
                variable.assign(value)
    else:
        import torch

        apply = torch.no_grad()(lambda: optimizer.apply(gradients, variables))

    def step():
        apply()
        wait([variables[0].value, optimizer.variables[-1].value])

    return step


def wait(tensors):
    for tensor in tensors:
        ops.convert_to_numpy(ops.ravel(tensor)[:1])


if __name__ == "__main__":
    main()
