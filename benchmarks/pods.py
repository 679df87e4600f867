"""What a step takes on pods of TPUs: state and memory of a chip, and what moves between chips.

    python -m benchmarks.pods

By the TPU's own compiler, without TPUs. The optimizer's step, clipping by the global norm included,
is that of a decoder of 7 billion parameters, whose weights and state are spread over all chips, or
over the model axis only. Its 32 layers are alike: one is compiled, with the embeddings, and the
bytes of all of them follow from the layouts. A whole training step is that of a small decoder of
keras-hub. Keras's distribution wants devices that are there, so the layouts are those of its
`LayoutMap`, given to JAX by hand. Appends to `results/pods.jsonl`; what is there already is not
compiled again.
"""

import argparse
import collections
import math
import os
import re

from benchmarks import accelerators, common, compilers

PODS = {"v5e:4x4": (4, 4), "v5e:16x16": (16, 16)}
NAMES = ("AdamW clipped", "Sage clipped", "Sage clipped, bfloat16")
AXES = ("batch", "model")
ALL, MODEL = "all chips", "model axis"
# Llama 2 of 7 billion parameters.
VOCABULARY, WIDTH, INNER, HEADS, LAYERS = 32000, 4096, 11008, 32, 32
_COLLECTIVE = (
    r"= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--pods", nargs="+", default=list(PODS), choices=PODS)
    add("--layouts", nargs="+", default=[ALL, MODEL], choices=[ALL, MODEL])
    add("--optimizers", nargs="+", default=NAMES, choices=NAMES)
    add("--no-training-step", action="store_true", help="the steps of the optimizers only")
    options = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"
    compilers.set_up("v5e")
    lines = []
    for pod in options.pods:
        chip = compilers.Chip(pod)
        for layout in options.layouts:
            for name in options.optimizers:
                about = {
                    "kind": "step",
                    "optimizer": name,
                    "layout": layout,
                    "state_of_all_layers": state_bytes(PODS[pod], name, layout),
                }
                lines.append(accelerators.line(chip, about, *step(chip, name, layout), record=pods))
    if not options.no_training_step:
        chip = compilers.Chip("v5e:4x4")
        for name in options.optimizers:
            about = {"kind": "training step", "optimizer": name, "layout": "LayoutMap"}
            lines.append(accelerators.line(chip, about, *training_step(chip, name), record=pods))
    print_lines(lines)


def pods(program):
    """What is recorded of a program."""
    return {
        "state_and_weights": program.aliased,
        "arguments": program.arguments,
        "temporaries": program.temporaries,
        "collectives": collectives(program.text),
        "seconds": program.seconds,
    }


def collectives(text):
    """Count and bytes, on one chip, of what moves between chips, by kind."""
    found = collections.defaultdict(lambda: [0, 0])
    for kind, name, start in re.findall(_COLLECTIVE, text):
        results = [one for one in compilers.arrays(kind) if one[0] != "u32"]
        if start and name != "all-reduce":  # what is sent comes first
            results = results[len(results) // 2 :]
        found[name][0] += 1
        found[name][1] += sum(map(compilers.unpadded_bytes, results))
    return dict(found)


def decoder(layers):
    """Names and shapes of the weights of a decoder, with 32 layers of 7 billion parameters."""
    head = WIDTH // HEADS
    block = {
        **dict.fromkeys(("query", "key", "value"), (WIDTH, HEADS, head)),
        "attention_output": (HEADS, head, WIDTH),
        **dict.fromkeys(
            ("feedforward_gate_dense", "feedforward_intermediate_dense"), (WIDTH, INNER)
        ),
        "feedforward_output_dense": (INNER, WIDTH),
    }
    shapes = {"token_embedding/embeddings": (VOCABULARY, WIDTH)}
    for layer in range(layers):
        shapes |= {f"layer_{layer}/{name}/kernel": shape for name, shape in block.items()}
        shapes |= {f"layer_{layer}/{name}_layernorm/scale": (WIDTH,) for name in ("one", "two")}
    shapes["final_layernorm/scale"] = (WIDTH,)
    shapes["token_embedding/reverse_embeddings"] = (WIDTH, VOCABULARY)
    return shapes


def axes_of(shape, chips, layout):
    """The axes of the mesh along a weight's axes: the longest one is cut, that the chips divide."""
    parts = math.prod(chips) if layout == ALL else chips[1]
    fitting = [axis for axis, size in enumerate(shape) if size % parts == 0]
    axes = [None] * len(shape)
    if fitting and (len(shape) > 1 or layout == ALL):
        longest = max(fitting, key=lambda axis: shape[axis])
        axes[longest] = AXES if layout == ALL else "model"
    return axes


def state_bytes(chips, name, layout):
    """The bytes of weights and slots on one chip, of all layers."""
    slots = 4 + {"AdamW": 8, "Sage": 12}[name.split()[0]] - 2 * ("bfloat16" in name)
    total = 0
    for shape in decoder(LAYERS).values():
        parts = {None: 1, "model": chips[1], AXES: math.prod(chips)}
        cuts = [parts[axis] for axis in axes_of(shape, chips, layout)]
        total += slots * math.prod(shape) // math.prod(cuts)
    return total


def step(chip, name, layout):
    """The step of an optimizer on the decoder, its abstract arrays spread over the chips."""
    import jax
    import keras

    optimizer = make(name)
    shapes = decoder(1)

    def build():  # traced, so that no array is made
        variables = [
            keras.Variable(shape=shape, initializer="zeros", name=path.replace("/", "_"))
            for path, shape in shapes.items()
        ]
        optimizer.build(variables)
        made.extend(variables)
        return 0

    made = []
    jax.eval_shape(build)
    cut = {
        variable.path: axes_of(shape, PODS[chip.target], layout)
        for variable, shape in zip(made, shapes.values())
    }
    spread = Spread(chip, PODS[chip.target], cut)
    weights, state = spread.arrays(made), spread.arrays(optimizer.variables)

    def update(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    return update, (weights, state, weights), (0, 1)


def training_step(chip, name, sequences=64, length=128):
    """A training step of a small Llama by the layouts that keras-hub gives for it."""
    import jax
    import keras
    import keras_hub

    keras.config.set_dtype_policy("mixed_bfloat16")
    backbone = keras_hub.models.LlamaBackbone(
        vocabulary_size=4096,
        num_layers=1,
        num_query_heads=4,
        num_key_value_heads=4,
        hidden_dim=256,
        intermediate_dim=704,
    )
    size = PODS[chip.target]
    names = [f"tpu:{place}" for place in range(math.prod(size))]
    mesh = keras.distribution.DeviceMesh(size, AXES, names)
    layouts = keras_hub.models.LlamaBackbone.get_layout_map(mesh)
    optimizer = make(name)
    optimizer.build(backbone.trainable_variables)
    cut = {}
    for variable in backbone.variables:
        layout = layouts[variable.path]
        cut[variable.path] = [None] * len(variable.shape) if layout is None else list(layout.axes)
    spread = Spread(chip, size, cut)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def train(weights, others, state, tokens, labels):
        def loss(weights):
            inputs = {"token_ids": tokens, "padding_mask": keras.ops.ones_like(tokens)}
            mapping = [*zip(backbone.trainable_variables, weights)]
            mapping += zip(backbone.non_trainable_variables, others)
            with keras.StatelessScope(state_mapping=mapping):
                hidden = backbone(inputs, training=True)
                logits = backbone.token_embedding(hidden, reverse=True)
            return loss_of(labels, logits)

        value, gradients = jax.value_and_grad(loss)(weights)
        return value, *optimizer.stateless_apply(state, gradients, weights)

    tokens = spread.array((sequences, length), "int32", ["batch", None])
    parts = (backbone.trainable_variables, backbone.non_trainable_variables, optimizer.variables)
    return train, (*map(spread.arrays, parts), tokens, tokens), (0, 2)


class Spread:
    """Abstract arrays on a mesh of chips, of weights and of the slots that belong to them.

    Args:
        chip: A `compilers.Chip`.
        size: Tuple of integers, the chips along `AXES`.
        cut: Dict of a variable's path to the names of the mesh's axes along its own.
    """

    def __init__(self, chip, size, cut):
        import jax
        import numpy as np

        self.cut = cut
        self.mesh = jax.sharding.Mesh(np.array(chip.devices).reshape(size), AXES)
        self.by_slot = {path.replace("/", "_") + "_": axes for path, axes in cut.items()}

    def arrays(self, variables):
        return [self.array(one.shape, one.dtype, self._axes(one)) for one in variables]

    def array(self, shape, dtype, axes):
        import jax

        where = jax.sharding.NamedSharding(self.mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(tuple(shape), dtype, sharding=where)

    def _axes(self, variable):
        """As the variable, and a slot as the variable that its name begins with."""
        if variable.path in self.cut:
            return self.cut[variable.path]
        name = variable.path.split("/")[-1]
        found = [prefix for prefix in self.by_slot if name.startswith(prefix)]
        axes = self.by_slot[max(found, key=len)] if found else []
        return axes if len(axes) == len(variable.shape) else [None] * len(variable.shape)


def make(name):
    import keras

    import sage_keras

    more = {"sensitivity_dtype": "bfloat16"} if "bfloat16" in name else {}
    kind = keras.optimizers.AdamW if name.startswith("AdamW") else sage_keras.Sage
    return kind(1e-4, weight_decay=0.01, global_clipnorm=1.0, **more)


def print_lines(lines):
    rows = [
        ["", "GB of weights and state a chip", "temporaries, MB", "between chips: count, bytes"]
    ]
    for one in lines:
        moved = [f"{kind} {count}, {size:,}" for kind, (count, size) in one["collectives"].items()]
        rows.append(
            [
                f"{one['target']} {one['kind']}, {one['layout']}, {one['optimizer']}",
                f"{one.get('state_of_all_layers', one['state_and_weights']) / 1e9:.3f}",
                f"{one['temporaries'] / 1e6:.1f}",
                "; ".join(moved),
            ]
        )
    common.print_table(rows)


if __name__ == "__main__":
    main()
