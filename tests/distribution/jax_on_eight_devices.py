"""Tests on eight devices, which JAX has to be told of before it starts: test_jax.py runs them."""

import collections
import functools
import re

import jax
import keras
import numpy as np
import pytest
from distribution import jobs

from sage_keras.callbacks import SensitivityLogger, SwapTrueWeights

assert jax.device_count() == 8
pytestmark = pytest.mark.filterwarnings("ignore:Between the steps")  # nobody looks in between

COLLECTIVES = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
LAYOUTS = {
    # Eight copies of the weights.
    "data": None,
    # Two copies, each on four devices. The patterns match the slots' names too.
    "model": {
        "mesh": ((2, 4), ("batch", "model")),
        ".*up.*kernel.*": (None, "model"),
        ".*up.*bias.*": ("model",),
        ".*down.*kernel.*": ("model", None),
    },
    # One copy, of which each device has an eighth, and an eighth of the batch.
    "fully sharded": {
        "mesh": ((8,), ("batch",)),
        ".*up.*kernel.*": (None, "batch"),
        ".*up.*bias.*": ("batch",),
        ".*down.*kernel.*": ("batch", None),
        ".*down.*bias.*": ("batch",),
    },
}
CELLS = [(layout, name) for layout in LAYOUTS for name in jobs.OURS]
all_cells = pytest.mark.parametrize(("layout", "name"), CELLS)


def make_distribution(layout):
    if LAYOUTS[layout] is None:
        return keras.distribution.DataParallel()
    (shape, axes), *patterns = LAYOUTS[layout].values()
    layout_map = keras.distribution.LayoutMap(keras.distribution.DeviceMesh(shape, axes))
    for pattern, axes in zip(list(LAYOUTS[layout])[1:], patterns):
        layout_map[pattern] = axes
    return keras.distribution.ModelParallel(layout_map=layout_map, batch_dim_name="batch")


@functools.cache
def trained(layout, name):
    """The model after its steps, and the program that XLA made of the step."""
    distribution = make_distribution(layout)
    with distribution.scope():
        model = jobs.compiled(name)
        callbacks = [SwapTrueWeights()] if name == "DPSMix" else []
        jobs.fit(model, *jobs.data(), callbacks=callbacks)
        step, arguments = train_step(model, distribution)
        return model, step.lower(*arguments).compile().as_text()


def train_step(model, distribution):
    """The step and its arguments as `fit` has them: the state comes back laid out as it was."""
    variables = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    state = tuple([variable.value for variable in group] for group in variables)
    shardings = jax.tree.map(lambda array: array.sharding, state)
    batch = tuple(
        jax.device_put(
            array[: jobs.BATCH_SIZE], distribution.get_data_layout(array.shape).backend_layout
        )
        for array in jobs.data()
    )
    step = jax.jit(model.train_step, donate_argnums=0, out_shardings=(None, shardings))
    return step, (state, batch)


def collectives(program):
    """Count of each kind of collective, by its result: what is moved, and in which shapes."""
    found = re.findall(rf"= (.+?) ({COLLECTIVES})(?:-start)?\(", program)
    # XLA puts several together as it likes: each of them counts.
    return collections.Counter(
        (kind, array) for what, kind in found for array in re.findall(r"\w+\[[\d,]*\]", what)
    )


def slots(model):
    """Pairs of a slot and its variable. The names of slots hold those of the variables."""
    for variable in model.trainable_variables:
        prefix = variable.path.replace("/", "_") + "_"
        for slot in model.optimizer.variables:
            if slot.path.split("/")[-1].startswith(prefix):
                yield slot, variable


@all_cells
def test_slots_are_laid_out_as_their_variables(layout, name):
    model, _ = trained(layout, name)
    found = list(slots(model))
    expected = {"Sage": 12, "calibrated Sage": 16, "DPSDense": 12, "DPSMix": 28, "Platon": 14}
    assert len(found) == expected[name]
    for slot, variable in found:
        layout = list(variable.value.sharding.spec)
        if slot.shape != variable.shape:  # one element for each column, or for all
            layout = [axis if size > 1 else None for axis, size in zip(layout, slot.shape)]
        mesh = variable.value.sharding.mesh
        expected = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*layout))
        assert slot.value.sharding.is_equivalent_to(expected, slot.value.ndim), slot.path


@all_cells
def test_the_compiled_step_moves_between_devices_what_that_of_adamw_moves(layout, name):
    expected = collectives(trained(layout, "AdamW")[1])
    assert expected
    moved = collectives(trained(layout, name)[1])
    more = moved - expected
    assert not expected - moved
    sharded = sum(
        not variable.value.sharding.is_fully_replicated
        for variable in trained(layout, name)[0].trainable_variables
    )
    if name == "Sage":
        assert not more
    elif name == "calibrated Sage":
        # The sum of the scales: four bytes, for each variable that is sharded.
        assert more == +collections.Counter({("all-reduce", "f32[]"): sharded})
    elif name == "Platon":
        # Likewise, for all variables together, and for the place of ties.
        assert set(more) == ({("all-reduce", "s32[]")} if sharded else set())
        assert ("all-reduce", "s32[]") not in collectives(
            trained(layout, name)[1].split("\nENTRY")[1]
        )
    else:
        # How many scores reach a threshold: four bytes, for each variable that is sharded.
        count = ("all-reduce", "s32[]")
        assert more == +collections.Counter({count: sharded})
        # In the branch that begins stage II, and not on every step's way.
        assert count not in collectives(trained(layout, name)[1].split("\nENTRY")[1])


@all_cells
def test_twenty_steps_equal_those_of_one_device(layout, name):
    model, _ = trained(layout, name)
    assert int(model.optimizer.iterations) == 20
    jobs.assert_equal(model.get_weights(), jobs.weights_of_one_device(name))
    if name == "Platon":
        kernels = [weight for weight in model.get_weights() if weight.ndim == 2]
        assert sum(int(np.sum(kernel == 0)) for kernel in kernels) == 614  # 0.8 of 768
        assert model.optimizer.sparsity == 614 / 768


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("name", jobs.OURS)
def test_the_train_step_lowers_for_tpu(name, policy):
    """As far as one gets without a TPU: the program for it, on eight devices."""
    distribution = make_distribution("model")
    keras.config.set_dtype_policy(policy)
    try:
        with distribution.scope():
            model = jobs.compiled(name)
            model.optimizer.build(model.trainable_variables)
            # Keras makes the metrics in the first step of `fit`.
            model.evaluate(*jobs.data(), steps=1, batch_size=jobs.BATCH_SIZE, verbose=0)
            step, arguments = train_step(model, distribution)
            exported = jax.export.export(step, platforms=["tpu"])(*arguments)
    finally:
        keras.config.set_dtype_policy("float32")
    assert exported.platforms == ("tpu",)
    assert exported.nr_devices == 8
    program = exported.mlir_module()
    assert "stablehlo.dot_general" in program
    assert ("bf16" in program) == (policy == "mixed_bfloat16")


def test_the_logger_reports_the_same_on_one_device():
    def figures():
        model = jobs.compiled("Sage")
        logger = SensitivityLogger(logs="all")
        x, y = jobs.data()
        return model.fit(
            x, y, jobs.BATCH_SIZE, shuffle=False, verbose=0, callbacks=[logger]
        ).history

    expected = figures()
    with make_distribution("model").scope():
        found = figures()
    assert any(name.startswith("sensitivity/") for name in expected)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)


def test_a_saved_run_goes_on_with_other_devices(tmp_path):
    x, y = jobs.data()
    half = len(x) // 2
    with make_distribution("model").scope():
        model = jobs.compiled("Sage")
        jobs.fit(model, x[:half], y[:half]).save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    jobs.fit(again, x[half:], y[half:])
    jobs.assert_equal(again.get_weights(), jobs.weights_of_one_device("Sage"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_chosen_weights_train_as_on_one_device_and_no_other_bit_changes(layout):
    single = jobs.fit(jobs.compiled("SparseAdamW"), *jobs.data())
    start = jobs.make_model().get_weights()
    with make_distribution(layout).scope():
        model = jobs.fit(jobs.compiled("SparseAdamW"), *jobs.data())
    assert int(model.optimizer.iterations) == jobs.STEPS - 4
    jobs.assert_equal(model.get_weights(), single.get_weights())
    pairs = zip(model.trainable_variables, single.optimizer.chosen_positions.values(), strict=True)
    for (variable, chosen), before in zip(pairs, start, strict=True):
        positions = model.optimizer.chosen_positions[variable.path]
        np.testing.assert_array_equal(positions, chosen)
        moved = np.flatnonzero(np.asarray(variable).ravel() != before.ravel())
        assert moved.tolist() == np.asarray(chosen).tolist()
    laid_out = {variable.path: variable.value.sharding for variable in model.trainable_variables}
    for slot in model.optimizer.variables:  # vectors of a few weights: every device has them all
        assert slot.value.sharding.is_fully_replicated, slot.path
    assert layout == "data" or not all(one.is_fully_replicated for one in laid_out.values())
