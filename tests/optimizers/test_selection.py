"""The selection of subnetworks, tensor by tensor."""

import fractions
import logging

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from modes import BACKEND, to_numpy

from sage_keras import DPSDense, DPSMix
from sage_keras.optimizers.columns import column_shape
from sage_keras.optimizers.dps import selection

few = settings(deadline=None, max_examples=60)
RATES = st.integers(0, 999).map(lambda thousandths: thousandths / 1000)


def compilations(caplog, steps):
    """How many programs JAX compiles while it makes some eager steps."""
    import jax

    caplog.clear()
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        steps()
    return sum("XLA compilation" in record.getMessage() for record in caplog.records)


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX compiles what runs eagerly")
@pytest.mark.parametrize("optimizer_class", [DPSDense, DPSMix])
def test_eager_stages_compile_nothing_after_the_first(optimizer_class, caplog):
    weights = [keras.Variable(np.ones(shape, "float32")) for shape in ((5, 3), (7,))]
    optimizer = optimizer_class(0.1, stage_steps=1)
    optimizer.build(weights)
    gradients = [ops.ones(weight.shape) for weight in weights]

    def steps(count):
        return lambda: [optimizer.apply(gradients, weights) for _ in range(count)]

    assert compilations(caplog, steps(4)) > 10
    assert compilations(caplog, steps(20)) == 0


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.999, 1e-6])
def test_longest_stages(ratio):
    most = selection.most_steps(ratio)
    assert selection.steps_per_stage(most, ratio) <= 2**30 - 1
    assert selection.steps_per_stage(most + 1, ratio) == 2**30


@pytest.mark.parametrize("optimizer_class", [DPSDense, DPSMix])
@pytest.mark.parametrize(
    ("arguments", "largest"),
    [
        ({"stage_steps": 2**30}, 1073741823),
        ({"total_steps": 10**12}, 21474836479),
        ({"total_steps": 10**12, "update_ratio": 0.5}, 2147483647),
    ],
)
def test_refuses_stages_beyond_int32(optimizer_class, arguments, largest):
    name = next(iter(arguments))
    with pytest.raises(
        ValueError, match=rf"`{name}` must be at most {largest}, .*={arguments[name]}"
    ):
        optimizer_class(**arguments)
    weight = keras.Variable(np.ones(3, "float32"))
    optimizer = optimizer_class(**arguments | {name: largest})
    optimizer.apply([ops.ones((3,))], [weight])
    assert optimizer.stage == 1


@few
@given(st.integers(1, 10**9), RATES)
def test_kept_count_is_the_smallest_that_is_enough(size, drop_rate):
    exact = size * (1 - fractions.Fraction(round(drop_rate * 1000), 1000))
    count = selection.kept_count(size, drop_rate)
    assert count - 1 < exact <= count


@few
@given(st.integers(1, 10**9), RATES)
def test_stages_have_the_whole_part_of_their_share(total, ratio):
    exact = total * fractions.Fraction(round(ratio * 1000), 1000)
    steps = selection.steps_per_stage(total, ratio)
    assert steps <= exact < steps + 1


def test_counts_that_binary_floats_put_one_off():
    assert selection.kept_count(10, 0.7) == 3
    assert selection.kept_count(10, 0.9) == 1
    assert selection.steps_per_stage(100, 0.29) == 29
    # The authors' four tasks.
    assert [selection.steps_per_stage(n, 0.05) for n in (468, 690, 1080, 1605)] == [23, 34, 54, 80]


@pytest.mark.parametrize("stage_steps", [49, 50, 80])
def test_frequency_factor(stage_steps):
    frequencies = np.arange(stage_steps + 1, dtype="float32")
    expected = 1 / np.maximum(frequencies, 1).astype("float64")
    if stage_steps >= 50:
        expected = expected * np.exp(-frequencies / stage_steps)
    factor = selection.frequency_factor(ops.convert_to_tensor(frequencies), stage_steps)
    np.testing.assert_allclose(to_numpy(factor), expected, rtol=1e-6)


@pytest.mark.parametrize("drop_rate", [0.0, 0.3, 0.9])
def test_mixture(drop_rate):
    random = np.random.default_rng(0)
    w, t = random.normal(size=(2, 6, 4)).astype("float32")
    m = random.random((6, 1)) >= drop_rate
    p = drop_rate
    expected = (m * w + (1 - m) * t - p * t.astype("float64")) / (1 - p)
    tensors = [ops.convert_to_tensor(array) for array in (w, t, m)]
    mixture = to_numpy(selection.mixed(*tensors, drop_rate))
    np.testing.assert_allclose(mixture, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(mixture[~m[:, 0]], t[~m[:, 0]])
    if drop_rate == 0:
        np.testing.assert_array_equal(mixture, w)


def test_the_mean_mixture_is_the_weight():
    """Over columns drawn with the probability 1 - drop_rate; here, over the two outcomes."""
    w, t, p = ops.array([3.0]), ops.array([-1.0]), 0.25
    kept, dropped = (
        float(selection.mixed(w, t, ops.array([mask]), p)[0]) for mask in (True, False)
    )
    assert (1 - p) * kept + p * dropped == pytest.approx(3.0)


BACKBONES = {
    "BERT": (
        lambda models: models.BertBackbone(30, 1, 2, 8, 16, max_sequence_length=12),
        {"query": (8, 1, 1), "key": (8, 1, 1), "value": (8, 1, 1), "attention_output": (2, 4, 1)},
    ),
    "Gemma": (
        lambda models: models.GemmaBackbone(30, 1, 2, 1, 8, 16, 4),
        {"query": (1, 8, 1), "key": (1, 8, 1), "value": (1, 8, 1), "attention_output": (2, 4, 1)},
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_columns_of_attention_are_its_inputs(name):
    import keras_hub

    make, expected = BACKBONES[name]
    found = {}
    for variable in make(keras_hub.models).trainable_variables:
        *_, layer, kind = variable.path.split("/")
        if layer in expected and kind == "kernel":
            found[layer] = column_shape(variable.path, variable.shape)
    assert found == expected


def test_columns_of_other_variables():
    assert column_shape("conv/kernel", (3, 3, 4, 8)) == (3, 3, 4, 1)
    assert column_shape("query/bias", (2, 4)) == (2, 4)
    assert column_shape("embeddings", (30, 8)) == (30, 1)
    assert column_shape("scale", ()) == ()
