"""Random small models under random optimizers, described as JSON and trained on any backend.

As a script it is the second backend: it reads a case a line and prints what came of it.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import bases
import keras
import numpy as np
from hypothesis import strategies as st
from mixing_jobs import SageDPSMix
from modes import BACKEND, float64_allowed, to_numpy

import sage_keras
from sage_keras import GradualPruning, SensitivityGuided, SubnetworkSelection
from sage_keras.optimizers.dps.mixing import WeightMixing

STEPS = 5
BATCH_SIZE = 4
WIDTH = 4  # of the blocks that keep their shape
TOKENS = 6


@bases.register
class SageDPSDense(SubnetworkSelection, SensitivityGuided, keras.optimizers.AdamW):
    pass


_OURS = ("Sage", "SageAdam", "SageAdamax", "SageSGD", "DPSDense", "DPSMix", "Mixout", "PrunedAdamW")
OPTIMIZERS = {
    **{name: getattr(sage_keras, name) for name in _OURS},
    **{f"Guided{name}": bases.guided(name) for name in bases.BASES},
    "SageDPSDense": SageDPSDense,
    "SageDPSMix": SageDPSMix,
}
# A gradient may be zero but for rounding, as that of a bias before a normalisation. No two backends
# agree on its sign, its direction or its rank, which decide here: so these get no biases.
WITHOUT_BIASES = ("GuidedLion", "GuidedLamb", "GuidedMuon", "DPSMix", "SageDPSMix")


def blocks(kind):
    """Strategy for one block of a model, as a list of its name and arguments."""
    activation = st.sampled_from(["relu", "tanh", "gelu", "linear"])
    dense = st.tuples(st.just("dense"), st.integers(3, 5), activation)
    anywhere = [dense, st.tuples(st.just("shared"), activation)]
    anywhere += [st.tuples(st.sampled_from(["batch_norm", "layer_norm", "residual"]))]
    if kind == "image":
        anywhere += [st.tuples(st.just("conv"), st.integers(3, 4), st.integers(1, 2), activation)]
        anywhere += [st.tuples(st.just("depthwise"), activation)]
    if kind == "tokens":
        anywhere += [st.tuples(st.just("attention"), st.integers(1, 2))] * 2
    return st.one_of(anywhere).map(list)


@st.composite
def models(draw):
    kind = draw(st.sampled_from(["vector", "image", "tokens"]))
    chosen = draw(st.lists(blocks(kind), max_size=4))
    return {
        "kind": kind,
        "blocks": chosen,
        "frozen": draw(st.lists(st.integers(0, 3), max_size=2, unique=True)),
        "tied": kind == "tokens" and draw(st.booleans()),
        "loss": draw(st.sampled_from(["mse", "crossentropy"])),
    }


@st.composite
def optimizers(draw):
    name = draw(st.sampled_from(list(OPTIMIZERS)))
    cls = OPTIMIZERS[name]
    maybe = lambda strategy: st.one_of(st.none(), strategy)  # noqa: E731
    drawn = {
        "learning_rate": draw(st.sampled_from([1e-3, 1e-2, "cosine"])),
        "weight_decay": draw(maybe(st.just(0.01))),
        draw(st.sampled_from(["clipnorm", "clipvalue", "global_clipnorm"])): draw(
            maybe(st.sampled_from([0.1, 1.0]))
        ),
        "gradient_accumulation_steps": draw(maybe(st.just(2))),
        "loss_scale_factor": draw(maybe(st.just(8.0))),
        # Every model has a pooler and a head.
        "include": draw(maybe(st.sampled_from([["kernel"], ["pooler"], ["pooler", "head"]]))),
        "exclude": draw(maybe(st.just(["head"]))),
    }
    if draw(st.booleans()):
        drawn |= {"use_ema": True, "ema_momentum": 0.5}
        drawn["ema_overwrite_frequency"] = draw(maybe(st.just(3)))
    if issubclass(cls, SensitivityGuided):
        drawn |= {
            "beta_3": draw(st.sampled_from([0.5, 0.75, 0.9])),
            "sensitivity_epsilon": draw(st.sampled_from([1e-12, 1e-6])),
            "bias_correction": draw(st.booleans()),
            "sensitivity_dtype": draw(st.sampled_from(["float32", "bfloat16"])),
            "calibrate": draw(st.booleans()),
            "guide": draw(st.sampled_from([True, True, False])),
        }
    if issubclass(cls, (SubnetworkSelection, WeightMixing)):
        drawn["drop_rate"] = draw(st.sampled_from([0.0, 0.3, 0.7]))
    if issubclass(cls, SubnetworkSelection):
        drawn["stage_steps"] = draw(st.integers(1, 2))
    if issubclass(cls, WeightMixing):
        drawn["seed"] = 0
    if issubclass(cls, GradualPruning):
        drawn |= {
            "final_sparsity": draw(st.sampled_from([0.3, 0.7])),
            "begin_step": draw(st.integers(0, 1)),
            "end_step": draw(st.integers(2, 6)),
            "update_freq": draw(st.integers(1, 2)),
            "scope": draw(st.sampled_from(["global", "variable"])),
        }
    drawn |= bases.BASES.get(name.removeprefix("Guided"), {})
    return {"class": name, **{key: value for key, value in drawn.items() if value is not None}}


@st.composite
def cases(draw):
    model, optimizer = draw(models()), draw(optimizers())
    if model["kind"] == "tokens" and BACKEND == "tensorflow":
        # There Keras can neither scale nor add the sparse gradients of an embedding that is not
        # guided, and counts their duplicate rows apart in a norm.
        sparse = ("loss_scale_factor", "gradient_accumulation_steps", "clipnorm", "global_clipnorm")
        optimizer |= dict.fromkeys(sparse)
    return {
        "model": model,
        "optimizer": optimizer,
        "run_eagerly": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }


def run(case):
    """Trains the case in float64, saves it, loads it, and makes one more step with both.

    Returns:
        Dict of `losses`, `weights` and `slots`, as lists, and `resumed`: whether what was loaded
        was what had been saved, to the bit, and made the same next step.
    """
    keras.backend.clear_session()
    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with float64_allowed():
            return _run(case)
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


def _run(case):
    random = np.random.default_rng(case["seed"])
    model = build_model(case["model"], case["optimizer"]["class"] not in WITHOUT_BIASES)
    set_weights(model, random)
    optimizer = make_optimizer(case["optimizer"])
    loss = case["model"]["loss"]
    if loss == "crossentropy":
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, run_eagerly=case["run_eagerly"])
    batches = [make_batch(case["model"], model, random) for _ in range(STEPS + 1)]
    losses = [float(model.train_on_batch(*batch)) for batch in batches[:-1]]

    with true_weights(optimizer), tempfile.TemporaryDirectory() as folder:
        weights = state(model.variables)
        slots = state(compared_slots(optimizer))
        saved = weights + state(optimizer.variables)
        path = pathlib.Path(folder) / "model.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
    resumed = equal(saved, state(loaded.variables) + state(loaded.optimizer.variables))
    if isinstance(optimizer, WeightMixing):
        inject_columns(loaded.optimizer)
        if optimizer.is_mixed:
            loaded.optimizer.mix()
    for one in (model, loaded):
        one.train_on_batch(*batches[-1])
    states = [state(one.variables) + state(one.optimizer.variables) for one in (model, loaded)]
    return {
        "losses": losses,
        "weights": [one.tolist() for one in weights],
        "slots": [one.tolist() for one in slots],
        "resumed": resumed and equal(*states),
    }


def build_model(model, use_bias):
    inputs, x = make_input(model)
    width = x.shape[-1]
    reversible = x._keras_history.operation if model["tied"] else None
    following = [block[0] for block in model["blocks"][1:]] + ["pooler"]
    for index, (name, *arguments) in enumerate(model["blocks"]):
        # What a normalisation takes out again has a gradient of zero but for rounding.
        kept = not following[index].endswith("norm")
        layer, x = add_block(name, arguments, x, use_bias and kept, kept)
        # Keras loads a frozen attention with variables that are trainable.
        layer.trainable = index not in model["frozen"] or name == "attention"
    if len(x.shape) > 2:
        x = keras.ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))
    x = keras.layers.Dense(width, "tanh", use_bias=use_bias, name="pooler")(x)
    if model["tied"]:
        return keras.Model(inputs, reversible(x, reverse=True))
    return keras.Model(inputs, keras.layers.Dense(2, use_bias=use_bias, name="head")(x))


def make_input(model):
    if model["kind"] == "vector":
        inputs = keras.Input((WIDTH,))
        return inputs, inputs
    if model["kind"] == "image":
        inputs = keras.Input((5, 5, 2))
        return inputs, inputs
    inputs = keras.Input((3,), dtype="int32")
    if model["tied"]:
        return inputs, keras.layers.ReversibleEmbedding(TOKENS, WIDTH, name="head")(inputs)
    return inputs, keras.layers.Embedding(TOKENS, WIDTH, name="tokens")(inputs)


def add_block(name, arguments, x, use_bias, use_scale):
    """The layer of a block, and what comes out of it."""
    layers, width = keras.layers, x.shape[-1]
    if name == "dense":
        layer = layers.Dense(arguments[0], arguments[1], use_bias=use_bias)
    elif name == "conv":
        filters, strides, activation = arguments
        layer = layers.Conv2D(filters, 2, strides, "same", activation=activation, use_bias=use_bias)
    elif name == "depthwise":
        layer = layers.DepthwiseConv2D(
            2, padding="same", activation=arguments[0], use_bias=use_bias
        )
    elif name == "attention":
        # The bias of the keys has a gradient of zero but for rounding.
        layer = layers.MultiHeadAttention(arguments[0], 2, use_bias=False)
        return layer, x + layer(x, x)
    elif name in ("shared", "residual"):
        layer = layers.Dense(width, *arguments, use_bias=use_bias)
        return layer, layer(layer(x)) if name == "shared" else x + layer(x)
    elif name == "batch_norm":
        layer = layers.BatchNormalization(center=use_bias, scale=use_scale)
    else:
        layer = layers.LayerNormalization(center=use_bias, scale=use_scale)
    return layer, layer(x)


def set_weights(model, random):
    values = []
    for variable in model.weights:
        value = random.normal(size=variable.shape) * 0.5
        if "variance" in variable.path:
            value = np.abs(value) + 0.5
        if "bias" in variable.path and random.random() < 0.5:
            value = np.zeros(variable.shape)  # as it begins in practice
        values.append(value)
    model.set_weights(values)


def make_batch(description, model, random):
    shape = (BATCH_SIZE, *model.input.shape[1:])
    outputs = model.output.shape[-1]
    x = random.normal(size=shape)
    if description["kind"] == "tokens":
        x = random.integers(0, TOKENS, shape).astype("int32")
    y = random.normal(size=(BATCH_SIZE, outputs))
    if description["loss"] == "crossentropy":
        y = np.eye(outputs)[random.integers(0, outputs, BATCH_SIZE)]
    # As a tensor: of arrays Keras's losses make float32 on torch.
    return x, keras.ops.convert_to_tensor(y, "float64")


def make_optimizer(description):
    settings = {name: value for name, value in description.items() if name != "class"}
    if settings["learning_rate"] == "cosine":
        settings["learning_rate"] = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=10)
    optimizer = OPTIMIZERS[description["class"]](**settings)
    if isinstance(optimizer, WeightMixing):
        inject_columns(optimizer)
    return optimizer


def inject_columns(optimizer):
    """Has the optimizer draw from a table: each backend has random numbers of its own."""

    def draw(shape, seed):
        table = np.random.default_rng(7).random((STEPS + 2, *shape)) >= optimizer.drop_rate
        step = 0 if isinstance(seed, int) else keras.ops.convert_to_tensor(optimizer.iterations)
        return keras.ops.take(keras.ops.convert_to_tensor(table.astype("float32")), step, axis=0)

    optimizer._draw = draw


def true_weights(optimizer):
    if isinstance(optimizer, WeightMixing):
        return optimizer.true_weights()
    return contextlib.nullcontext()


def compared_slots(optimizer):
    """All but the thresholds, which are the bits of a score that may be zero but for rounding."""
    return [one for one in optimizer.variables if not one.path.endswith("thresholds")]


def state(variables):
    return [to_numpy(keras.ops.cast(one, "float64")) for one in variables]


def equal(one, other):
    return len(one) == len(other) and all(map(np.array_equal, one, other))


class OtherBackend:
    """A process that runs cases on another backend, from its start to `close`."""

    def __init__(self, backend):
        self.backend = backend
        paths = [str(pathlib.Path(sage_keras.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ
            | {"KERAS_BACKEND": backend, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def start(self, case):
        print(json.dumps(case), file=self._process.stdin, flush=True)

    def result(self):
        return json.loads(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def serve():
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # where libraries print
    for line in sys.stdin:
        try:
            found = run(json.loads(line))
        except Exception as error:
            found = {"error": f"{BACKEND}: {error!r}"}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    serve()
