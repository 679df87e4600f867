"""How long the first training step takes, and the most memory of training, to AdamW's.

    python -m benchmarks.starts
    python -m benchmarks.starts --backends torch --encoders minilm --rounds 9

The first step is that of `fit` on a BERT encoder: the slots, tracing, compilation and one batch.
Every one is made in a process of its own, AdamW's and the other's in turn, and the median of the
ratios pair by pair counts: of seconds, and of the processor's seconds, which a busy machine lets
alone. Memory is the peak of the resident memory of that process after two more steps. What AdamW's
takes and the slots that AdamW has not are what it is compared with; `over the model` leaves out
what the process held before its first step.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

from tqdm import tqdm

from benchmarks import common
from benchmarks.train_step import fit, make_batch, make_model

BASE = "AdamW"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--backends", nargs="+", default=["tensorflow", "jax", "torch"])
    add("--encoders", nargs="+", default=["minilm", "bert_base"], choices=common.ENCODERS)
    add("--optimizers", nargs="+", default=["Sage"], help="by their class's name")
    add("--batch-size", type=int, default=32, help="sentences in a step")
    add("--length", type=int, default=64, help="tokens of a sentence")
    add("--rounds", type=int, default=7, help="fresh processes for each optimizer")
    add("--no-record", action="store_true", help="print only")
    add("--start", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        return print_start(options.encoders[0], options.start, options)

    lines = []
    for backend in options.backends:
        for encoder in options.encoders:
            lines += measure(backend, encoder, options)
    print_lines(lines)
    if not options.no_record:
        common.record("starts", lines)


def measure(backend, encoder, options):
    """One line of values for each optimizer but AdamW."""
    names = [BASE, *options.optimizers]
    with tqdm(total=options.rounds * len(names), desc=f"{backend} {encoder}") as progress:

        def start(name):
            values = run(backend, encoder, name, options)
            progress.update()
            return values

        starts = common.interleave(start, names, options.rounds)
    values = {name: list(zip(*starts[name])) for name in names}
    return [line(backend, encoder, name, values, options.rounds) for name in options.optimizers]


def line(backend, encoder, name, values, rounds):
    (seconds, busy, before, peak, state), base = values[name], values[BASE]
    slots = state[0] - base[4][0]
    expected = common.median(base[3]) + slots
    grown = common.median([high - low for low, high in zip(before, peak)])
    base_grown = common.median([high - low for low, high in zip(base[2], base[3])])
    return {
        "backend": backend,
        "encoder": encoder,
        "optimizer": name,
        "first_step_seconds": common.median(seconds),
        "first_step_ratio": common.ratio(seconds, base[0]),
        "first_step_cpu_ratio": common.ratio(busy, base[1]),
        "peak_bytes": common.median(peak),
        "slot_bytes": slots,
        "peak_ratio": common.median(peak) / expected,
        "grown_ratio": grown / (base_grown + slots),
        "rounds": rounds,
    }


def run(backend, encoder, name, options):
    """Seconds and processor's seconds of a first step, bytes before it, at most, and of slots."""
    command = [sys.executable, "-m", "benchmarks.starts", "--encoders", encoder, "--start", name]
    command += ["--length", str(options.length), "--batch-size", str(options.batch_size)]
    chosen = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=chosen)
    seconds, busy, *sizes = done.stdout.split()[-5:]
    return float(seconds), float(busy), *map(int, sizes)


def print_start(encoder, name, options):
    from benchmarks.steps import byte_count

    model = make_model(encoder, name, options.length)
    batch = make_batch(encoder, options, 1)
    before = peak_bytes()
    began, busy = time.perf_counter(), time.process_time()
    fit(model, batch, options)
    seconds, busy = time.perf_counter() - began, time.process_time() - busy
    fit(model, make_batch(encoder, options, 2), options)
    state = sum(byte_count(one) for one in model.optimizer.variables if len(one.shape))
    print(seconds, busy, before, peak_bytes(), state)


def peak_bytes():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def print_lines(lines):
    print(f"\n{common.machine()}\n")
    rows = [["", "first step, s", "to AdamW", "CPU", "peak MiB", "to the sum", "over the model"]]
    for one in lines:
        rows.append(
            [
                f"{one['backend']} {one['encoder']} {one['optimizer']}",
                f"{one['first_step_seconds']:.1f}",
                f"{one['first_step_ratio']:.2f}",
                f"{one['first_step_cpu_ratio']:.2f}",
                f"{one['peak_bytes'] / 2**20:.0f}",
                f"{one['peak_ratio']:.3f}",
                f"{one['grown_ratio']:.3f}",
            ]
        )
    common.print_table(rows)


if __name__ == "__main__":
    main()
