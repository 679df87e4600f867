"""The memory of sparse fine-tuning: the optimizer's state, and the peak of a training step.

    KERAS_BACKEND=jax python -m benchmarks.sparse_memory
    KERAS_BACKEND=torch python -m benchmarks.sparse_memory

The state is counted on every backend. The peak is what JAX's compiler plans for a whole training
step of a BERT of MiniLM's size; TensorFlow and torch have no such plan to ask for. Appends to
`results/sparse_memory.jsonl`.
"""

import argparse
import math

import keras

from benchmarks import common
from sage_keras import SparseAdamW

OPTIMIZERS = {
    "AdamW": lambda: keras.optimizers.AdamW(1e-4),
    "SparseAdamW 5 %": lambda: SparseAdamW(1e-3, fraction=0.05),
    "SparseAdamW 5 %, random": lambda: SparseAdamW(1e-3, fraction=0.05, scores="random", seed=0),
    "SparseAdamW 1 %": lambda: SparseAdamW(1e-3, fraction=0.01),
    "SparseAdamW 1 %, random": lambda: SparseAdamW(1e-3, fraction=0.01, scores="random", seed=0),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--shapes", default="minilm", choices=common.ENCODERS)
    add("--batch-size", type=int, default=32)
    add("--sequence-length", type=int, default=40)
    add("--no-peak", action="store_true", help="count the state only")
    add("--no-record", action="store_true", help="print only")
    options = parser.parse_args()
    backend = keras.backend.backend()
    lines = []
    for name, make in OPTIMIZERS.items():
        line = {"optimizer": name, "backend": backend, "shapes": options.shapes}
        line["state_bytes"] = state_bytes(make(), options.shapes)
        line["of_adamw"] = line["state_bytes"] / (lines or [line])[0]["state_bytes"]
        if backend == "jax" and not options.no_peak:
            line["peak_bytes"] = peak_bytes(make(), options)
        lines.append(line)
        print(line, flush=True)
    rows = [["", "state MB", "of AdamW", "peak MB"]]
    for line in lines:
        peak = f"{line['peak_bytes'] / 1e6:.0f}" if "peak_bytes" in line else ""
        state = f"{line['state_bytes'] / 1e6:.2f}"
        rows.append([line["optimizer"], state, f"{line['of_adamw']:.4f}", peak])
    common.print_table(rows)
    if not options.no_record:
        common.record("sparse_memory", lines)


def state_bytes(optimizer, shapes):
    """The bytes of an optimizer's variables for an encoder's weights."""
    optimizer.build(
        [
            keras.Variable(initializer="zeros", shape=shape, name=f"weight_{index}")
            for index, shape in enumerate(common.encoder_shapes(shapes))
        ]
    )
    return sum(math.prod(one.shape) * size(one.dtype) for one in optimizer.variables)


def size(dtype):
    return 8 if "64" in dtype else 4


def peak_bytes(optimizer, options):
    """What XLA plans for one training step: its arguments, outputs and temporary arrays."""
    import jax
    import keras_hub

    vocabulary, width, layers, inner, positions = common.ENCODERS[options.shapes]
    model = keras_hub.models.BertTextClassifier(
        backbone=keras_hub.models.BertBackbone(
            vocabulary_size=vocabulary,
            num_layers=layers,
            num_heads=width // 32,
            hidden_dim=width,
            intermediate_dim=inner,
            max_sequence_length=positions,
        ),
        num_classes=2,
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=[])
    optimizer.build(model.trainable_variables)
    shape = (options.batch_size, options.sequence_length)
    names = ("token_ids", "segment_ids", "padding_mask")
    x = {name: jax.ShapeDtypeStruct(shape, "int32") for name in names}
    y = jax.ShapeDtypeStruct(shape[:1], "int32")
    groups = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
    state = tuple(
        [jax.ShapeDtypeStruct(tuple(one.shape), one.dtype) for one in group] for group in groups
    )

    def step(trainable, others, slots, x, y):
        gradients = jax.grad(model.compute_loss_and_updates, has_aux=True)
        grads, aux = gradients(trainable, others, [], x, y, None, True, slots)
        return optimizer.stateless_apply(slots, grads, trainable), aux[2]

    plan = jax.jit(step, donate_argnums=(0, 2)).lower(*state, x, y).compile().memory_analysis()
    return (
        plan.argument_size_in_bytes
        + plan.output_size_in_bytes
        + plan.temp_size_in_bytes
        - plan.alias_size_in_bytes
    )


if __name__ == "__main__":
    main()
