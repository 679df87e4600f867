"""Times one optimizer step on an accelerator, where calling it takes longer than running it.

    KERAS_BACKEND=jax python -m benchmarks.accelerator_step

So many steps are one program, a loop whose steps differ by a factor on the gradients, and what
counts is its time by the number of steps. Appends to `results/step.jsonl`, mode `"xla loop"`.
"""

import argparse
import concurrent.futures
import time

import jax
import keras
import numpy as np

from benchmarks import common
from benchmarks.step import BASES, LEAST_BYTES
from benchmarks.steps import BFLOAT16, COPY, LEARNING_RATE, byte_count, make_optimizer

CALIBRATED = "Sage calibrate"
NAMES = [COPY, "AdamW", "Sage", BFLOAT16, CALIBRATED, "Adam", "SageAdam", "SGD", "SageSGD"]
BYTES = {**LEAST_BYTES, CALIBRATED: 36}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shapes", nargs="+", default=["minilm", "bert_base"], choices=common.ENCODERS)
    add("--repeats", type=int, default=9, help="interleaved rounds, at least 5 for a value")
    add("--steps", type=int, default=50, help="steps of a loop")
    add("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    lines = [line for shapes in options.shapes for line in measure(shapes, options)]
    rows = [["", "us", "to its base", "of byte limit"]]
    for line in lines:
        ratio = line["ratio_to_base"]
        rows.append(
            [
                f"{line['shapes']} {line['optimizer']}",
                f"{1e6 * line['seconds']:.1f}",
                "" if ratio is None else f"{ratio:.3f}",
                f"{line['share_of_byte_limit']:.2f}",
            ]
        )
    common.print_table(rows)
    if not options.no_record:
        common.record("step", lines)


def measure(name, options):
    """One line for each optimizer at the shapes of one encoder."""
    shapes = common.encoder_shapes(name)
    random = np.random.default_rng(0)
    draws = [0.02 * random.standard_normal(shape, dtype="float32") for shape in shapes]
    gradients = [jax.numpy.asarray(0.05 * draw) for draw in draws]
    factors = jax.numpy.asarray(random.uniform(0.5, 1.5, options.steps), "float32")
    made = {one: make(one, draws) for one in NAMES}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        lowered = {
            one: jax.jit(loop, donate_argnums=0).lower(state, gradients, factors)
            for one, (loop, state, _) in made.items()
        }
        compiled = dict(zip(lowered, pool.map(lambda one: one.compile(), lowered.values())))
    states = {one: state for one, (_, state, _) in made.items()}

    def seconds(one):
        began = time.perf_counter()
        states[one] = jax.block_until_ready(compiled[one](states[one], gradients, factors))
        return (time.perf_counter() - began) / options.steps

    for one in NAMES:
        seconds(one)
    times = common.interleave(seconds, NAMES, options.repeats)
    parameters = common.parameter_count(shapes)
    bandwidth = BYTES[COPY] * parameters / common.median(times[COPY])
    bases = BASES | dict.fromkeys((BFLOAT16, CALIBRATED), "AdamW")
    return [
        {
            "shapes": name,
            "parameters": parameters,
            "backend": "jax",
            "mode": "xla loop",
            "optimizer": one,
            "seconds": common.median(times[one]),
            "nanoseconds_per_parameter": 1e9 * common.median(times[one]) / parameters,
            "ratio_to_base": common.ratio(times[one], times[bases[one]]) if one in bases else None,
            "times_faster_than_literal": None,
            "state_bytes_per_parameter": made[one][2] / parameters,
            "copy_bytes_per_second": bandwidth,
            "share_of_byte_limit": BYTES[one] * parameters / bandwidth / common.median(times[one]),
            "repeats": options.repeats,
            "device": jax.devices()[0].device_kind,
        }
        for one in NAMES
    ]


def make(name, draws):
    """The loop of an optimizer, what it begins with, and the bytes of its slots."""
    if name == COPY:

        def step(state, _, factor):
            return [weight * factor for weight in state]

        state, size = [jax.numpy.array(one) for one in draws], 0
    else:
        optimizer = calibrated() if name == CALIBRATED else make_optimizer(name)
        variables = [keras.Variable(one) for one in draws]
        optimizer.build(variables)

        def step(state, gradients, factor):
            weights, slots = state
            return optimizer.stateless_apply(slots, [factor * one for one in gradients], weights)

        state = [one.value for one in variables], [one.value for one in optimizer.variables]
        size = sum(byte_count(one) for one in optimizer.variables if len(one.shape))

    def loop(state, gradients, factors):
        def body(state, factor):
            return step(state, gradients, factor), None

        return jax.lax.scan(body, state, factors)[0]

    return loop, state, size


def calibrated():
    import sage_keras

    return sage_keras.Sage(LEARNING_RATE, weight_decay=0.01, calibrate=True)


if __name__ == "__main__":
    if keras.backend.backend() != "jax":
        raise SystemExit("This needs KERAS_BACKEND=jax.")
    main()
