"""Times one optimizer step: this project's optimizers, their bases, and others.

    python -m benchmarks.step                       # the shapes of MiniLM, all backends
    python -m benchmarks.step --shapes bert_base bert_large

Every backend runs in a process of its own. At the shapes of MiniLM all of them are held at once,
so that any two rows are a pair; larger shapes take the backends one after the other.
"""

import argparse
import importlib.util
import multiprocessing

from tqdm import tqdm

from benchmarks import common
from benchmarks.steps import BFLOAT16, COPY, FUSED, LITERAL, STAGE_II, serve

BASES = {"Sage": "AdamW", "SageAdam": "Adam", "SageAdamax": "Adamax", "SageSGD": "SGD"}
DPS = [name + stage for name in ("DPSDense", "DPSMix") for stage in ("", STAGE_II)]
BASES |= dict.fromkeys(DPS, "AdamW")
PAIRS = [*BASES, *dict.fromkeys(BASES.values())]
BASES["LayerwiseAdamW"] = "AdamW"
OTHERS = (FUSED, LITERAL, "optax.adamw")
# The arms by backend, how they are run, and what is run.
FULL = {
    "tensorflow": {
        "graph": ["AdamW", "Sage", BFLOAT16, *DPS[:2], COPY],
        "xla": [*PAIRS, BFLOAT16, COPY],
    },
    "jax": {"xla": [*PAIRS, BFLOAT16, "optax.adamw", COPY]},
    "torch": {
        "eager": ["AdamW", "Sage", BFLOAT16, *DPS[:2], "LayerwiseAdamW", FUSED, LITERAL, COPY],
        "compiled": ["AdamW", "Sage"],
    },
}
LARGE = {
    "tensorflow": {"xla": ["AdamW", "Sage", COPY]},
    "jax": {"xla": ["AdamW", "Sage", COPY]},
}
# What a step has to move for each parameter, in bytes: it reads weight, gradient and slots, and
# writes weight and slots.
LEAST_BYTES = {
    "AdamW": 28, "LayerwiseAdamW": 28, "Adam": 28, "Adamax": 28, "optax.adamw": 28, FUSED: 28,
    "Sage": 36, "SageAdam": 36, "SageAdamax": 36, LITERAL: 36, **dict(zip(DPS, (36, 32, 44, 40))),
    BFLOAT16: 32, "SGD": 12, "SageSGD": 20, COPY: 8,
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shapes", nargs="+", default=["minilm"], choices=common.ENCODERS)
    add("--backends", nargs="+", default=list(FULL), choices=FULL)
    add("--repeats", type=int, default=9, help="interleaved rounds, at least 5 for a value")
    add("--calls", type=int, default=3, help="steps in a row, of which the mean counts")
    add("--no-record", action="store_true", help="print only")
    options = parser.parse_args()

    backends = [one for one in options.backends if importlib.util.find_spec(one)]
    lines = []
    for shapes in options.shapes:
        small = shapes in ("tiny", "minilm")
        plan = FULL if small else LARGE
        chosen = [backend for backend in backends if backend in plan]
        for together in [chosen] if small else [[backend] for backend in chosen]:
            arms = [
                (backend, mode, name)
                for backend in together
                for mode, names in plan[backend].items()
                for name in names
                if name != "optax.adamw" or importlib.util.find_spec("optax")
            ]
            new = measure(shapes, arms, options)
            print_lines(new)
            lines += new
    print_scaling(lines)
    if not options.no_record:
        common.record("step", lines)


def measure(shapes, arms, options):
    """Runs the arms interleaved and returns one line of values for each."""
    workers = start_workers(common.encoder_shapes(shapes), {backend for backend, _, _ in arms})

    def ask(arm, request, *arguments):
        backend, mode, name = arm
        workers[backend].send((request, f"{mode} {name}", *arguments))
        return workers[backend].recv()

    state_bytes = {arm: ask(arm, "make") for arm in tqdm(arms, desc=f"{shapes}: compiling")}
    with tqdm(total=options.repeats * len(arms), desc=f"{shapes}: timing") as progress:

        def seconds(arm):
            progress.update()
            return ask(arm, "seconds", options.calls)

        values = common.interleave(seconds, arms, options.repeats)
    for connection in workers.values():
        connection.send(None)
    parameters = common.parameter_count(common.encoder_shapes(shapes))
    return [line(shapes, arm, parameters, values, state_bytes[arm]) for arm in arms]


def start_workers(shapes, backends):
    context = multiprocessing.get_context("spawn")
    workers = {}
    for backend in backends:
        workers[backend], theirs = context.Pipe()
        arguments = (backend, shapes, theirs)
        context.Process(target=serve, args=arguments, daemon=True).start()
    return workers


def line(shapes, arm, parameters, values, state_bytes):
    backend, mode, name = arm
    seconds = common.median(values[arm])
    copy_mode = "eager" if mode == "compiled" else mode
    copy_seconds = common.median(values[backend, copy_mode, COPY])
    bandwidth = LEAST_BYTES[COPY] * parameters / copy_seconds
    base = (backend, mode, BASES.get(name, "AdamW"))
    literal = ("torch", "eager", LITERAL)
    return {
        "shapes": shapes,
        "parameters": parameters,
        "backend": backend,
        "mode": mode,
        "optimizer": name,
        "seconds": seconds,
        "nanoseconds_per_parameter": 1e9 * seconds / parameters,
        "ratio_to_base": common.ratio(values[arm], values[base])
        if name in (*BASES, BFLOAT16, *OTHERS)
        else None,
        "times_faster_than_literal": common.ratio(values[literal], values[arm])
        if literal in values
        else None,
        "state_bytes_per_parameter": state_bytes / parameters,
        "copy_bytes_per_second": bandwidth,
        "share_of_byte_limit": LEAST_BYTES[name] * parameters / bandwidth / seconds,
        "repeats": len(values[arm]),
    }


def print_lines(lines):
    shapes, parameters = lines[0]["shapes"], lines[0]["parameters"]
    print(f"\n{shapes}: {parameters / 1e6:.1f} million parameters, {common.machine()}\n")
    header = ["", "ms", "to its base", "x literal", "state B/parameter", "of byte limit"]
    rows = [header]
    for one in lines:
        ratio, faster = one["ratio_to_base"], one["times_faster_than_literal"]
        rows.append(
            [
                f"{one['backend']} {one['mode']} {one['optimizer']}",
                f"{1e3 * one['seconds']:.1f}",
                "" if ratio is None else f"{ratio:.2f}",
                "" if faster is None else f"{faster:.1f}",
                f"{one['state_bytes_per_parameter']:.1f}",
                f"{one['share_of_byte_limit']:.2f}",
            ]
        )
    common.print_table(rows)


def print_scaling(lines):
    """Prints the time for each parameter by size, where there is more than one size."""
    sizes = list(dict.fromkeys(one["shapes"] for one in lines))
    if len(sizes) < 2:
        return
    print("Sage, nanoseconds a parameter\n")
    found = {
        (one["backend"], one["mode"], one["shapes"]): one["nanoseconds_per_parameter"]
        for one in lines
        if one["optimizer"] == "Sage"
    }
    rows = [["", *sizes]]
    for backend, mode in dict.fromkeys(key[:2] for key in found if key[0] in LARGE):
        values = [found.get((backend, mode, size)) for size in sizes]
        if all(values):
            rows.append([f"{backend} {mode}", *(f"{value:.2f}" for value in values)])
    common.print_table(rows)


if __name__ == "__main__":
    main()
