"""Numbers at the edge: the largest and the smallest, long averages, masks bit by bit."""

import contextlib
import copy

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modes import BACKEND, MODES, Runner, float64_allowed, to_numpy

from sage_keras import DPSMix, Mixout, Sage, SageSGD

# Masks.


def twin_hash(number):
    number = number ^ (number >> np.uint32(16))
    number = number * np.uint32(0x7FEB352D)
    number = number ^ (number >> np.uint32(15))
    number = number * np.uint32(0x846CA68B)
    return number ^ (number >> np.uint32(16))


def twin_columns(seed, step, count, drop_rate):
    """Which columns are kept, from the seed and the number of the step alone."""
    key = twin_hash(np.array([(seed * 0x9E3779B9 + step) % 2**32], "uint32"))
    bits = twin_hash(key + np.arange(count, dtype="uint32")) ^ np.uint32(2**31)  # signed order
    return bits >= round(drop_rate * 2**32)


# Eagerly, and as Keras compiles a training step. It does not compile torch's.
RUN_MODES = {"tensorflow": MODES, "jax": ("eager", "xla"), "torch": ("eager",)}[BACKEND]


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize("optimizer_class", [Mixout, DPSMix])
def test_masks_follow_from_seed_and_iterations_on_every_backend_and_under_xla(
    optimizer_class, mode
):
    stages = {"stage_steps": 9} if optimizer_class is DPSMix else {}
    optimizer = optimizer_class(learning_rate=0.1, drop_rate=0.3, seed=5, **stages)
    kernels = [keras.Variable(np.ones(shape, "float32")) for shape in ((40, 2), (25, 3))]
    runner = Runner(optimizer, kernels, mode)
    for step in range(4):
        expected = np.split(twin_columns(5, step, 65, 0.3), [40])
        for kernel, columns in zip(kernels, expected):
            mask = to_numpy(optimizer.subnetwork(kernel))
            np.testing.assert_array_equal(mask, np.repeat(columns[:, None], mask.shape[1], 1))
        runner.step([np.ones(kernel.shape, "float32") for kernel in kernels])


@pytest.mark.filterwarnings("ignore:The weights of the model are loaded, but not the state")
def test_a_copy_of_a_built_optimizer_draws_the_same_masks():
    """Keras copies an optimizer by its settings, and builds it later."""
    kernel = keras.Variable(np.ones((30, 2), "float32"))
    optimizer = DPSMix(learning_rate=0.1, stage_steps=3, seed=5)
    optimizer.build([kernel])
    other = copy.deepcopy(optimizer)
    other.build([kernel])
    expected = twin_columns(5, 0, 30, 0.3)
    for one in (optimizer, other):
        np.testing.assert_array_equal(to_numpy(one.subnetwork(kernel))[:, 0], expected)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="the format is TensorFlow's")
def test_a_saved_model_trains_with_the_masks_of_the_seed(tmp_path):
    import tensorflow as tf

    kernel = keras.Variable(np.ones((30, 2), "float32"))
    optimizer = Mixout(learning_rate=0.0, seed=5)
    optimizer.build([kernel])

    class Job(tf.Module):
        def __init__(self):
            super().__init__()
            self.weights = [kernel.value, *(one.value for one in optimizer.variables)]

        @tf.function(input_signature=[])
        def train(self):
            optimizer.apply([tf.ones((30, 2))], [kernel])
            return tf.convert_to_tensor(optimizer.iterations), optimizer.subnetwork(kernel)

    tf.saved_model.save(Job(), str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    for step in (1, 2):
        iterations, mask = loaded.train()
        assert int(iterations) == step
        np.testing.assert_array_equal(mask[:, 0], twin_columns(5, step, 30, 0.3))


# The sensitivity of extreme weights and gradients.


class SeenSageSGD(SageSGD):
    """Keeps the scales of its steps, which change no weight."""

    def _scale(self, variable, value, average):
        scale = super()._scale(variable, value, average)
        self.scales = [*getattr(self, "scales", []), to_numpy(scale)]
        return scale


def extremes(dtype):
    finfo = np.finfo(dtype)
    edges = [0.0, 1.0, finfo.max, finfo.tiny, finfo.smallest_subnormal, 1e30, 1e10, 1e-30]
    width = 32 if dtype == "float32" else 64
    finite = st.floats(width=width, allow_nan=False, allow_infinity=False)
    numbers = st.one_of(st.sampled_from(edges), st.sampled_from(edges).map(lambda x: -x), finite)
    return st.lists(numbers, min_size=12, max_size=12).map(lambda row: np.array(row, dtype))


SLOTS = ["float32", "bfloat16"]


@pytest.mark.parametrize("slot_dtype", SLOTS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@settings(max_examples=10)
@given(data=st.data())
def test_scales_of_all_finite_weights_and_gradients_are_in_their_bounds(dtype, slot_dtype, data):
    beta_3 = data.draw(st.sampled_from([0.1, 0.75, 0.9, 0.99]))
    corrected = data.draw(st.booleans())
    with float64_allowed() if dtype == "float64" else contextlib.nullcontext():
        weight = keras.Variable(data.draw(extremes(dtype)), dtype=dtype)
        optimizer = SeenSageSGD(
            0.0, beta_3=beta_3, bias_correction=corrected, sensitivity_dtype=slot_dtype
        )
        for gradient in data.draw(st.lists(extremes(dtype), min_size=1, max_size=4)):
            optimizer.apply([keras.ops.convert_to_tensor(gradient, dtype)], [weight])
    bound = max(1.0, beta_3 / (1 - beta_3))
    # What bfloat16 rounds away of the average, once, is up to 2^-7 of it.
    tolerance = 1e-5 if slot_dtype == "float32" else 2.0**-6 / (1 - beta_3)
    for scale in optimizer.scales:
        assert np.all((scale >= 0) & (scale <= bound + tolerance * (1 + bound)))


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize("slot_dtype", SLOTS)
def test_huge_products_leave_the_weights_finite_as_adamw_does(slot_dtype, mode):
    start, gradient = np.float32([1e30, -1e38, 1.0]), np.float32([1e10, 1e10, 1.0])
    optimizer = Sage(0.1, weight_decay=0.0, sensitivity_dtype=slot_dtype)
    runner = Runner(optimizer, [keras.Variable(start)], mode)
    for _ in range(3):
        runner.step([gradient])
    assert np.all(np.isfinite(runner.weights()[0]))
    (slot,) = optimizer.sensitivities.values()
    assert np.all(np.isfinite(to_numpy(slot).astype("float32")))


@pytest.mark.parametrize("mode", RUN_MODES)
@pytest.mark.parametrize("slot_dtype", SLOTS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_gradients_are_not_hidden(bad, slot_dtype, mode):
    """AdamW's weight is not a number after one of them, and stays so."""
    optimizer = Sage(0.1, sensitivity_dtype=slot_dtype)
    runner = Runner(optimizer, [keras.Variable(np.float32([1.0, 1.0]))], mode)
    for gradient in ([bad, 1.0], [1.0, 1.0]):
        runner.step([np.float32(gradient)])
    np.testing.assert_array_equal(np.isnan(runner.weights()[0]), [True, False])
    (slot,) = optimizer.sensitivities.values()
    np.testing.assert_array_equal(np.isnan(to_numpy(slot).astype("float32")), [True, False])


# Long averages.


@pytest.mark.parametrize("beta_3", [0.001, 0.3, 0.75, 0.99, 0.999])
def test_first_step_moves_almost_nothing(beta_3):
    weight = keras.Variable(np.linspace(0.1, 7.0, 100, dtype="float32"))
    optimizer = SeenSageSGD(1.0, beta_3=beta_3, bias_correction=True)
    optimizer.apply([keras.ops.ones((100,))], [weight])
    assert np.max(optimizer.scales[0]) <= 1e-6


@pytest.mark.parametrize(
    ("beta_3", "dtype", "largest"),
    [(0.99999, "float32", 0.999), (1 - 1e-9, "float32", 0.999), (0.999, "bfloat16", 0.99)],
)
def test_refuses_a_beta_3_that_the_slots_cannot_hold(beta_3, dtype, largest):
    with pytest.raises(ValueError, match=rf"above 0 and at most {largest}, .* beta_3={beta_3}"):
        Sage(beta_3=beta_3, sensitivity_dtype=dtype)
    assert Sage(beta_3=largest, sensitivity_dtype=dtype).beta_3 == largest


# The standard deviations that the docstring states, with some room.
DEVIATIONS = {0.6: 0.0035, 0.75: 0.004, 0.9: 0.006, 0.99: 0.016}


@pytest.mark.parametrize(
    ("beta_3", "noisy"), [(0.9, False), *((beta_3, True) for beta_3 in DEVIATIONS)]
)
def test_rounding_to_bfloat16_does_not_add_up(beta_3, noisy):
    random = np.random.default_rng(0)
    count, average = 2000, np.zeros(2000)
    optimizer = SageSGD(0.0, beta_3=beta_3, sensitivity_dtype="bfloat16")
    runner = Runner(optimizer, [keras.Variable(np.ones(count, "float32"))], RUN_MODES[-1])
    steady = random.uniform(1, 2, count).astype("float32")
    for _ in range(round(4 / (1 - beta_3))):
        value = np.abs(random.normal(size=count)).astype("float32") if noisy else steady
        runner.step([value])
        average = beta_3 * average + (1 - beta_3) * value.astype("float64")
    (slot,) = optimizer.sensitivities.values()
    error = to_numpy(slot).astype("float64") / average - 1
    assert error.std() < DEVIATIONS[beta_3]
    assert abs(error.mean()) < 4 * DEVIATIONS[beta_3] / np.sqrt(count)


def test_a_variable_whose_gradients_begin_late_has_no_correction():
    early, late = (keras.Variable(np.ones(2, "float32")) for _ in range(2))
    optimizer = SeenSageSGD(0.0, bias_correction=True)
    optimizer.build([early, late])
    one = keras.ops.ones((2,))
    for _ in range(30):
        optimizer.apply([one], [early])
    optimizer.apply([one], [late])
    # A quarter of the value is corrected by 1 - 0.75^31: a scale of 3, where a step 1 has 0.
    np.testing.assert_allclose(optimizer.scales[-1], 3.0 - 4 * 0.75**31, rtol=1e-5)
    np.testing.assert_allclose(optimizer.scales[0], 0.0, atol=1e-6)
