"""What only TensorFlow has: sparse gradients, its own checkpoints and strategies."""

import keras
import numpy as np
import pytest
from bases import guided, plain
from modes import BACKEND, MODES, Runner, to_numpy

from sage_keras import DPSDense, DPSMix, Platon, Sage

if BACKEND != "tensorflow":
    pytest.skip("about TensorFlow", allow_module_level=True)

import tensorflow as tf

ROWS, WIDTH, STEPS = 6, 3, 4
BASES = ("AdamW", "Adam", "Adamax", "SGD", "RMSprop", "Lion")
FEATURES = {
    "plain": {},
    "clipnorm": {"clipnorm": 0.5},
    "global_clipnorm": {"global_clipnorm": 0.5},
    "clipvalue": {"clipvalue": 0.4},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 4.0},
}
# Two bases do for what happens before the base's rule.
CELLS = [
    (name, feature)
    for name in BASES
    for feature in FEATURES
    if feature == "plain" or name in ("AdamW", "SGD")
]


def table():
    return np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype("float32")


def sparse_gradient(step):
    """Rows 1 and 4, row 1 looked up twice; row 5 in odd steps."""
    random = np.random.default_rng(step)
    indices = [1, 4, 1, 5 if step % 2 else 4]
    values = random.normal(size=(4, WIDTH)).astype("float32")
    return tf.IndexedSlices(tf.constant(values), tf.constant(indices), tf.constant([ROWS, WIDTH]))


class SparseRunner(Runner):
    def step(self, gradients):
        self._step(gradients)


def train(optimizer, mode, dense):
    runner = SparseRunner(optimizer, [keras.Variable(table(), name="table")], mode)
    for step in range(STEPS):
        gradient = sparse_gradient(step)
        runner.step([tf.convert_to_tensor(gradient) if dense else gradient])
    return runner.weights()[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "feature"), CELLS)
def test_sparse_gradients_equal_dense_ones(name, feature, mode):
    arguments = {"learning_rate": 0.1, **FEATURES[feature]}
    sparse = train(guided(name)(**arguments), mode, dense=False)
    dense = train(guided(name)(**arguments), mode, dense=True)
    np.testing.assert_allclose(sparse, dense, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("settings", [{"guide": False}, {"exclude": ["table"]}])
@pytest.mark.parametrize("name", BASES)
def test_sparse_gradients_that_are_not_guided_are_left_to_the_base(name, settings):
    expected = train(plain(name)(0.1), "eager", dense=False)
    np.testing.assert_array_equal(
        train(guided(name)(0.1, **settings), "eager", dense=False), expected
    )


def test_measuring_sums_duplicate_rows():
    weight = keras.Variable(table())
    optimizer = guided("SGD")(learning_rate=0.0, guide=False)
    optimizer.apply([sparse_gradient(1)], [weight])
    expected = np.abs(table() * to_numpy(tf.convert_to_tensor(sparse_gradient(1))))
    np.testing.assert_allclose(to_numpy(optimizer.sensitivity(weight)), expected, rtol=1e-6)


def test_an_embedding_trains_in_fit():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Embedding(10, 4), keras.layers.GlobalAveragePooling1D()])
    model.build((None, 5))
    model.compile(optimizer=Sage(0.05, weight_decay=0.0), loss="mse")
    tokens = np.array([[1, 1, 2, 3, 1]] * 8 * 60)
    before = model.get_weights()[0]
    targets = np.ones((len(tokens), 4))
    first = model.evaluate(tokens[:8], targets[:8], verbose=0)
    model.fit(tokens, targets, batch_size=8, verbose=0)
    assert model.evaluate(tokens[:8], targets[:8], verbose=0) < first / 2
    unused = [0, *range(4, 10)]
    np.testing.assert_array_equal(model.get_weights()[0][unused], before[unused])


def test_tensorflow_checkpoint_resumes_bit_equal(tmp_path):
    def make():
        optimizer = Sage(0.1, sensitivity_dtype="bfloat16")
        return optimizer, Runner(optimizer, [keras.Variable(table(), name="table")], "graph")

    gradients = [table() * (i + 1) for i in range(6)]
    _, expected = make()
    for gradient in gradients:
        expected.step([gradient])

    optimizer, first = make()
    for gradient in gradients[:3]:
        first.step([gradient])
    saved = tf.train.Checkpoint(optimizer=optimizer, weight=first.variables[0].value)
    path = saved.save(str(tmp_path / "checkpoint"))
    optimizer, second = make()
    restored = tf.train.Checkpoint(optimizer=optimizer, weight=second.variables[0].value)
    restored.restore(path).assert_existing_objects_matched()
    for gradient in gradients[3:]:
        second.step([gradient])
    np.testing.assert_array_equal(second.weights()[0], expected.weights()[0])


def test_slots_lie_with_their_variables():
    devices = tf.config.list_logical_devices("CPU")
    with tf.device(devices[0].name):
        weight = keras.Variable(table(), name="table")
    optimizer = Sage()
    optimizer.build([weight])
    (slot,) = optimizer.sensitivities.values()
    assert slot.value.device == weight.value.device


@pytest.mark.parametrize(
    "make_optimizer",
    [
        Sage,
        lambda rate: DPSDense(rate, stage_steps=3),
        lambda rate: DPSMix(rate, stage_steps=3, seed=0),
        lambda rate: Platon(rate, begin_step=0, end_step=6, update_freq=2),
    ],
    ids=["Sage", "DPSDense", "DPSMix", "Platon"],
)
@pytest.mark.filterwarnings("ignore:Between the steps")  # nobody looks at the weights in between
def test_mirrored_strategy_trains_as_one_device(make_optimizer):
    def fit(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
            model.compile(optimizer=make_optimizer(0.05), loss="mse", jit_compile=False)
        random = np.random.default_rng(0)
        x, y = random.normal(size=(32, 4)), random.normal(size=(32, 2))
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    alone = fit(tf.distribute.get_strategy())
    for one, other in zip(fit(tf.distribute.MirroredStrategy(["CPU:0"])), alone):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_slots_are_made_before_the_step_is_traced():
    """A function that made variables would be traced again, and have operations for each."""
    weights = [keras.Variable(np.ones((3, 2), "float32")) for _ in range(3)]
    optimizer = Sage(0.1, exclude=[weights[0].path], on_nonfinite="skip")
    traces = []

    @tf.function
    def step(gradients):
        traces.append(optimizer.built)
        optimizer.apply(gradients, weights)

    step([tf.ones((3, 2))] * 3)
    assert traces == [False]
    graph = step.get_concrete_function([tf.TensorSpec((3, 2))] * 3).graph
    assert not [one for one in graph.get_operations() if one.type == "VarHandleOp"]
    assert int(optimizer.iterations) == 1
