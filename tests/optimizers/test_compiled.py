"""The structure of the compiled step: how many loops XLA makes of it, and what they touch.

Structure and not time. The counts are those of XLA for CPU, which writes one array in a loop; see
benchmarks/NOTES.md for what they cost. Torch has no XLA.
"""

import re

import keras
import numpy as np
import pytest
from modes import BACKEND, Runner

from sage_keras import Platon, Sage, SageAdam, SageSGD

pytestmark = pytest.mark.skipif(BACKEND == "torch", reason="torch has no XLA")

SHAPE = (1024, 384)
LOOPS = {
    "AdamW": 3,  # both moments, and the weight
    "Sage": 5,  # those, the decay of the weight, and the sensitivity
    "Sage, bfloat16": 5,
    # The scale, which the mean reads; TensorFlow's XLA also divides the new average beforehand.
    "Sage, calibrated": 7 if BACKEND == "tensorflow" else 6,
    "SageAdam": 4,
    "SageSGD": 2,
}


def make(name):
    if name == "Sage, bfloat16":
        return Sage(sensitivity_dtype="bfloat16")
    if name == "Sage, calibrated":
        return Sage(calibrate=True)
    classes = {"AdamW": keras.optimizers.AdamW, "Sage": Sage, "SageAdam": SageAdam}
    return classes.get(name, SageSGD)()


def optimized_hlo(optimizer):
    """The program that XLA makes of one step on a single variable."""
    variable = keras.Variable(np.ones(SHAPE, "float32"))
    gradient = keras.ops.ones(SHAPE)
    optimizer.build([variable])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda g: optimizer.apply([g], [variable]), jit_compile=True)
        return step.experimental_get_compiler_ir(gradient)(stage="optimized_hlo")
    return lower(optimizer, variable, gradient).compile().as_text()


def lower(optimizer, variable, gradient):
    import jax

    def step(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    state = [slot.value for slot in optimizer.variables]
    return jax.jit(step, donate_argnums=(0, 1)).lower([variable.value], state, [gradient])


def instructions(program):
    """The opcodes of the entry computation whose result has the variable's shape."""
    entry = program[program.index("\nENTRY") :]
    shape = ",".join(map(str, SHAPE))
    return re.findall(rf"= \w+\[{shape}\]\S* ([\w-]+)\(", entry)


@pytest.mark.parametrize("name", LOOPS)
def test_loops_over_a_variable(name):
    found = instructions(optimized_hlo(make(name)))
    assert found.count("fusion") == LOOPS[name]
    # Nothing else of that size: no copy, no transpose, nothing that did not fuse.
    assert set(found) == {"fusion", "parameter"}


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX counts bytes")
@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("AdamW", 10),
        ("Sage", 18),
        ("Sage, bfloat16", 16.5),
        ("Sage, calibrated", 22),
        ("SageSGD", 8),
    ],
)
def test_floats_moved_for_each_parameter(name, floats):
    optimizer = make(name)
    variable = keras.Variable(np.ones(SHAPE, "float32"))
    optimizer.build([variable])
    compiled = lower(optimizer, variable, keras.ops.ones(SHAPE)).compile()
    moved = compiled.cost_analysis()["bytes accessed"] / 4 / np.prod(SHAPE)
    assert moved == pytest.approx(floats, abs=0.01)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX lowers for platforms that are absent")
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("name", ["Sage", "Sage, bfloat16"])
def test_lowered_for_accelerators_it_is_elementwise(name, platform):
    import jax

    optimizer = make(name)
    optimizer.build([keras.Variable(np.ones(SHAPE, "float32"))])

    def step(weights, state, gradients):
        return optimizer.stateless_apply(state, gradients, weights)

    arrays = [jax.ShapeDtypeStruct(SHAPE, "float32")]
    state = [jax.ShapeDtypeStruct(slot.shape, slot.dtype) for slot in optimizer.variables]
    exported = jax.export.export(jax.jit(step), platforms=[platform])(arrays, state, arrays)
    operations = set(re.findall(r"stablehlo\.(\w+)", exported.mlir_module()))
    elementwise = {"abs", "add", "convert", "divide", "maximum", "multiply", "power", "sqrt"}
    elementwise |= {"subtract", "minimum", "negate", "exponential_minus_one"}
    if name == "Sage, bfloat16":  # the random bits that it is rounded by
        elementwise |= {"and", "xor", "shift_right_arithmetic", "bitcast_convert", "iota"}
        elementwise |= {"is_finite", "compare", "select", "reshape"}
    assert operations <= elementwise | {"constant", "broadcast_in_dim"}


@pytest.mark.parametrize("name", ["Sage", "Sage, bfloat16"])
def test_fifty_steps_compile_once(name):
    runner = Runner(make(name), [keras.Variable(np.ones((3, 2), "float32"))], "xla")
    for step in range(50):
        runner.step([np.full((3, 2), np.sin(step), "float32")])
    assert runner.compilations == 1


@pytest.mark.parametrize("name", ["confidence", "magnitude"])
def test_pruning_reads_and_writes_each_array_once(name):
    """Masks are applied where the update is written, and the choice of weights is in a branch."""
    optimizer = Platon(total_steps=1000, score=name)
    found = instructions(optimized_hlo(optimizer))
    own = {"confidence": 2, "magnitude": 0}[name]  # the averages
    assert found.count("fusion") == 3 + own
    assert set(found) == {"fusion", "parameter", "get-tuple-element"}
