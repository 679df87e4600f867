"""What an optimizer step becomes on GPU and TPU, by their own compilers, without GPU or TPU.

    python -m benchmarks.accelerators --targets h100 v5e v6e
    python -m benchmarks.accelerators --targets here          # times steps on what is here

Kernels, bytes, temporaries and seconds to compile of a step at the shapes of an encoder, and the
bytes and flops of a whole training step. A program that is in `results/accelerators.jsonl` already,
compiled by the same versions, is not compiled again.
"""

import argparse
import hashlib
import os
import subprocess
import sys

from benchmarks import common, compilers, optimizers

HERE = "here"
BATCH, LENGTH = 256, 128
TRAINED = ("AdamW", "Sage")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--targets", nargs="+", default=compilers.TARGETS, choices=(*compilers.TARGETS, HERE))
    add("--shapes", default="minilm", choices=common.ENCODERS)
    add("--optimizers", nargs="+", default=list(optimizers.OPTIMIZERS))
    add("--no-training-step", action="store_true", help="the steps of the optimizers only")
    add("--repeats", type=int, default=9, help="rounds, of what is timed here")
    add("--steps", type=int, default=50, help="steps of a loop, of what is timed here")
    options = parser.parse_args()
    if len(options.targets) == 1:
        return look_at(options.targets[0], options)
    for target in options.targets:  # each wants the environment its own way
        rest = sys.argv[1:]
        kept = [one for one in rest if one not in (*options.targets, "--targets")]
        command = [sys.executable, "-m", "benchmarks.accelerators", "--targets", target]
        subprocess.run([*command, *kept], check=True)


def look_at(target, options):
    """Compiles, or times, everything for one target."""
    os.environ["KERAS_BACKEND"] = "jax"
    if target == HERE:
        from benchmarks import loop

        lines = loop.measure(options.shapes, options)
        loop.print_lines(lines)
        return common.record("accelerators", lines)
    if reason := compilers.missing(target):
        raise SystemExit(f"{reason[0].upper()}{reason[1:]}. benchmarks/README.md says how.")
    compilers.set_up(target)
    chip = compilers.Chip(target)
    shapes = common.encoder_shapes(options.shapes)
    lines = {}
    for name in options.optimizers:
        about = {"kind": "step", "shapes": options.shapes, "optimizer": name}
        lines[name] = line(chip, about, *step(chip, name, shapes))
    print_lines(lines, common.parameter_count(shapes))
    if not options.no_training_step:
        print_training_steps(
            [
                line(
                    chip,
                    {"kind": "training step", "shapes": options.shapes, "optimizer": name},
                    *training_step(chip, name, options.shapes),
                )
                for name in TRAINED
            ]
        )


def step(chip, name, shapes):
    """An optimizer's step, which donates as Keras's trainer does, and its arguments."""
    import numpy as np

    optimizer = optimizers.make(name)
    variables = optimizers.variables(np.zeros(shape, "float32") for shape in shapes)
    optimizer.build(variables)

    def update(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    weights = chip.on_one([one.value for one in variables])
    state = chip.on_one([one.value for one in optimizer.variables])
    return update, (weights, state, weights), (0, 1)


def training_step(chip, name, encoder):
    """A whole training step of a BERT classifier in mixed_bfloat16, and its arguments."""
    import jax
    import keras

    from benchmarks.train_step import make_model

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = make_model(encoder, "AdamW", LENGTH)
    optimizer = optimizers.make(name)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train(weights, others, state, inputs, labels):
        def loss(weights):
            outputs, new = model.stateless_call(weights, others, inputs, training=True)
            return loss_of(labels, outputs), new

        (value, new), gradients = jax.value_and_grad(loss, has_aux=True)(weights)
        return value, new, *optimizer.stateless_apply(state, gradients, weights)

    def integers(*shape):
        return jax.ShapeDtypeStruct(shape, "int32")

    inputs = {one.name: integers(BATCH, LENGTH) for one in model.inputs}
    parts = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    arrays = [[one.value for one in part] for part in parts]
    return train, chip.on_one((*arrays, inputs, integers(BATCH))), (0, 1, 2)


def counts(program):
    """What is recorded of a program."""
    names = ("kernels", "bytes", "counted_bytes", "flops", "temporaries", "arguments", "seconds")
    return {name: getattr(program, name) for name in names}


def line(chip, about, function, arguments, donate, record=counts):
    """What is recorded of a program, from the results where it is there already.

    Args:
        chip: A `compilers.Chip`.
        about: Dict of what the program is, which the line begins with.
        function: Function that is compiled.
        arguments: Its abstract arguments.
        donate: The places of those that it may overwrite.
        record: Function of a `compilers.Program` that returns the rest of the line. Its name is
            that of the file. Defaults to `counts`.
    """
    benchmark = "accelerators" if record is counts else record.__name__
    lowered = chip.lower(function, *arguments, donate=donate)
    about = about | {
        "target": chip.target,
        "program": hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16],
    }
    for known in common.recorded(benchmark):
        if known["versions"] == common.versions() and about.items() <= known.items():
            return known
    found = about | record(compilers.Program(chip.target, lowered))
    common.record(benchmark, [found])
    return found


def print_lines(lines, parameters):
    rows = [["", "kernels", "B/parameter", "to its base", "counted", "temporaries, MB", "s"]]
    for name, one in lines.items():
        base = lines.get(optimizers.OPTIMIZERS[name][0])
        counted = one["counted_bytes"]
        rows.append(
            [
                f"{one['target']} {name}",
                str(one["kernels"]),
                f"{one['bytes'] / parameters:.2f}",
                f"{one['bytes'] / base['bytes']:.3f}" if base else "",
                f"{counted / parameters:.1f}" if counted else "",
                f"{one['temporaries'] / 1e6:.1f}",
                f"{one['seconds']:.0f}",
            ]
        )
    common.print_table(rows)


def print_training_steps(lines):
    rows = [["training step", "kernels", "GB", "to AdamW", "Gflops", "to AdamW", "s"]]
    base = lines[0]
    for one in lines:
        flops = one["flops"]
        rows.append(
            [
                f"{one['target']} {one['optimizer']}",
                str(one["kernels"]),
                f"{one['bytes'] / 1e9:.2f}",
                f"{one['bytes'] / base['bytes']:.4f}",
                f"{flops / 1e9:.1f}" if flops else "",
                f"{flops / base['flops']:.5f}" if flops else "",
                f"{one['seconds']:.0f}",
            ]
        )
    common.print_table(rows)


if __name__ == "__main__":
    main()
