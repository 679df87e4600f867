"""Times a whole training step (forward, backward, update) with AdamW and with Sage.

    python -m benchmarks.train_step
    KERAS_BACKEND=jax python -m benchmarks.train_step --encoders bert_base --rounds 5

The first step (tracing and compilation) and the peak memory come from a fresh process for each
optimizer; the steady steps from one process that holds both and trains them in turn.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

import numpy as np
from tqdm import tqdm

from benchmarks import common

OPTIMIZERS = ("AdamW", "Sage")
EAGER = (*OPTIMIZERS, "DPSDense", "LayerwiseAdamW")  # on torch, which compiles no step


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--encoders", nargs="+", default=["minilm", "bert_base"], choices=common.ENCODERS)
    add("--batch-size", type=int, default=32, help="sentences in a step")
    add("--length", type=int, default=64, help="tokens of a sentence")
    add("--rounds", type=int, default=7, help="interleaved rounds, at least 5 for a value")
    add("--steps", type=int, default=3, help="steps in a round")
    add("--starts", type=int, default=3, help="fresh processes for each optimizer")
    add("--no-record", action="store_true", help="print only")
    add("--first-step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_step:
        return print_first_step(options.encoders[0], options.first_step, options)

    lines = [one for encoder in options.encoders for one in measure(encoder, options)]
    print_lines(lines)
    if not options.no_record:
        common.record("train_step", lines)


def measure(encoder, options):
    """One line of values for each optimizer."""
    import keras

    optimizers = EAGER if keras.backend.backend() == "torch" else OPTIMIZERS
    starts = {name: [] for name in optimizers}
    for _ in tqdm(range(options.starts), desc=f"{encoder}: first steps"):
        for name in optimizers:
            starts[name].append(first_step(encoder, name, options))
    batch = make_batch(encoder, options, options.steps)
    models = {name: make_model(encoder, name, options.length) for name in optimizers}

    def seconds(name):
        began = time.perf_counter()
        fit(models[name], batch, options)
        return time.perf_counter() - began

    for name in optimizers:
        seconds(name)  # compiles
    print(f"{encoder}: {options.rounds} rounds", flush=True)
    values = common.interleave(seconds, optimizers, options.rounds)
    return [
        {
            "encoder": encoder,
            "backend": keras.backend.backend(),
            "optimizer": name,
            "batch_size": options.batch_size,
            "length": options.length,
            "step_seconds": common.median(values[name]) / options.steps,
            "step_ratio": common.ratio(values[name], values["AdamW"]),
            "first_step_seconds": common.median([one for one, _ in starts[name]]),
            "first_step_ratio": common.ratio(
                [one for one, _ in starts[name]], [one for one, _ in starts["AdamW"]]
            ),
            "peak_bytes": common.median([one for _, one in starts[name]]),
            "rounds": options.rounds,
        }
        for name in optimizers
    ]


def first_step(encoder, name, options):
    """The seconds of the first step and the peak memory in bytes, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.train_step", "--encoders", encoder]
    command += ["--first-step", name, "--length", str(options.length)]
    command += ["--batch-size", str(options.batch_size)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    seconds, peak = run.stdout.split()[-2:]
    return float(seconds), int(peak)


def print_first_step(encoder, name, options):
    model = make_model(encoder, name, options.length)
    batch = make_batch(encoder, options, 1)
    began = time.perf_counter()
    fit(model, batch, options)
    seconds = time.perf_counter() - began
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(seconds, 1024 * kilobytes)


def make_model(encoder, name, length):
    import keras
    import keras_hub

    from benchmarks.steps import make_optimizer

    vocabulary, width, layers, inner, positions = common.ENCODERS[encoder]
    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=vocabulary,
        num_layers=layers,
        num_heads=max(12, width // 64),
        hidden_dim=width,
        intermediate_dim=inner,
        max_sequence_length=positions,
    )
    inputs = {
        name: keras.Input((length,), dtype="int32", name=name)
        for name in ("token_ids", "segment_ids", "padding_mask")
    }
    outputs = keras.layers.Dense(2)(backbone(inputs)["pooled_output"])
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer=make_optimizer(name),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def make_batch(encoder, options, steps):
    random = np.random.default_rng(0)
    shape = (steps * options.batch_size, options.length)
    tokens = random.integers(0, common.ENCODERS[encoder][0], shape).astype("int32")
    inputs = {
        "token_ids": tokens,
        "segment_ids": np.zeros(shape, "int32"),
        "padding_mask": np.ones(shape, "int32"),
    }
    return inputs, random.integers(0, 2, shape[0])


def fit(model, batch, options):
    model.fit(*batch, batch_size=options.batch_size, epochs=1, verbose=0, shuffle=False)


def print_lines(lines):
    first = lines[0]
    print(
        f"\n{first['backend']}, batch {first['batch_size']}, length {first['length']}, "
        f"{common.machine()}\n"
    )
    header = ["", "ms a step", "to AdamW", "first step, s", "to AdamW", "peak MiB"]
    rows = [header]
    for one in lines:
        rows.append(
            [
                f"{one['encoder']} {one['optimizer']}",
                f"{1e3 * one['step_seconds']:.0f}",
                f"{one['step_ratio']:.3f}",
                f"{one['first_step_seconds']:.1f}",
                f"{one['first_step_ratio']:.2f}",
                f"{one['peak_bytes'] / 2**20:.0f}",
            ]
        )
    common.print_table(rows)


if __name__ == "__main__":
    main()
