"""Times optimizer steps on the accelerator that is here: `benchmarks.accelerators --targets here`.

Calling a step takes longer there than running it. So many steps are one program, a loop whose steps
differ by a factor on the gradients, and what counts is its time by the number of steps.
"""

import concurrent.futures
import time

import jax
import numpy as np

from benchmarks import common, optimizers
from benchmarks.step import LEAST_BYTES
from benchmarks.steps import COPY, byte_count

NAMES = [
    COPY,
    "AdamW",
    "Sage",
    "Sage bfloat16",
    "Sage calibrate",
    "Adam",
    "SageAdam",
    "SGD",
    "SageSGD",
]
BYTES = {**LEAST_BYTES, "Sage calibrate": 36}


def print_lines(lines):
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
    bases = {one: optimizers.OPTIMIZERS[one][0] for one in NAMES[1:]}
    return [
        {
            "shapes": name,
            "parameters": parameters,
            "kind": "loop",
            "target": jax.devices()[0].device_kind,
            "optimizer": one,
            "seconds": common.median(times[one]),
            "nanoseconds_per_parameter": 1e9 * common.median(times[one]) / parameters,
            "ratio_to_base": common.ratio(times[one], times[bases[one]])
            if bases.get(one)
            else None,
            "state_bytes_per_parameter": made[one][2] / parameters,
            "copy_bytes_per_second": bandwidth,
            "share_of_byte_limit": BYTES[one] * parameters / bandwidth / common.median(times[one]),
            "repeats": options.repeats,
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
        optimizer = optimizers.make(name)
        variables = optimizers.variables(draws)
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
