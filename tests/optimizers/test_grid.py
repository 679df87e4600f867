"""One grid for every class: how it runs, in what precision, and with which feature of Keras.

Every cell trains the same small linear model, whose gradients can be written down, and is held
against the float64 twin, figure by figure.
"""

import keras
import numpy as np
import pytest
import twin
import twin_pruning
import twin_sparse
from cells import diagonals
from modes import BACKEND, Runner, to_numpy

import sage_keras
from sage_keras.random_bits import chosen, random_bits

LEARNING_RATE = 0.05
BATCH, STEPS = 8, 6
EMA_MOMENTUM = 0.9
DECAY_STEPS = 3

FEATURES = {
    "plain": {},
    "clip": {"global_clipnorm": 0.5},
    "ema": {"use_ema": True, "ema_momentum": EMA_MOMENTUM},
    "accumulation": {"gradient_accumulation_steps": 2},
    "schedule": {},
    "calibrate": {"calibrate": True},
}
# The distance allowed to the twin, as a share of the way that the weights went. The low
# precisions round the gradients, and s feels the rounding of a steady gradient most.
TOLERANCE = {"float32": 1e-4, "mixed_float16": 2e-2, "mixed_bfloat16": 1e-1, "bfloat16": 3e-1}
# What `fit` can be on each backend. Torch's compiler takes 10 s and more for Keras's whole train
# step, so there one cell is fitted compiled and `test_compiled_step` has every class and feature.
FIT_MODES = {
    "tensorflow": ("eager", "graph", "xla"),
    "jax": ("eager", "xla"),
    "torch": ("eager",),
}[BACKEND]
GUIDED = [*twin.TWINS, "LayerwiseSage"]
FACTORS = [0.5, 1.0]  # of the learning rates of kernel and bias, where they are by layer
CELLS = diagonals(
    GUIDED,
    TOLERANCE,
    FIT_MODES,
    FEATURES,
    every={"tensorflow": 4, "jax": 3, "torch": 2}[BACKEND],  # three modes, two and one
    # Keras's Adam family does not move bfloat16 variables: 0.999 rounds to 1.
    allowed=lambda name, precision, *_: (
        precision != "bfloat16" or name in ("SageAdamax", "SageSGD")
    ),
)


# Those that choose weights, with each feature: each backend has a third of the cells, in modes and
# precisions that go round.
CHOOSING = {
    "PrunedAdamW": {"final_sparsity": 0.5, "begin_step": 1, "end_step": 3, "update_freq": 1},
    "Platon": {"final_sparsity": 0.5, "begin_step": 1, "end_step": 3, "update_freq": 1},
    "SparseAdamW": {"fraction": 0.5, "selection_steps": 2},
    "ChildTuningAdamW": {"fraction": 0.5, "seed": 3},
}
CELLS += [
    pytest.param(
        name,
        [one for one in TOLERANCE if one != "bfloat16"][(2 * place + number) % 3],
        FIT_MODES[(place // 3 + number) % len(FIT_MODES)],
        feature,
        marks=[] if mine else [pytest.mark.extended],
    )
    for number, name in enumerate(CHOOSING)
    for place, feature in enumerate(FEATURES)
    for mine in [(number + place) % 3 == ("tensorflow", "jax", "torch").index(BACKEND)]
    if feature != "calibrate" and (mine or BACKEND == "tensorflow")
]


@pytest.fixture
def policy(request):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy(before)


def job():
    random = np.random.default_rng(0)
    x = random.normal(size=(BATCH * STEPS, 4)).astype("float32")
    y = (x @ random.normal(size=(4, 3)) + random.normal(size=(BATCH * STEPS, 3))).astype("float32")
    start = [random.normal(size=(4, 3)).astype("float32"), np.float32([0.5, -0.5, 1.0])]
    return x, y, start


def batch_gradients(x, y, kernel, bias):
    error = 2 * (x @ kernel + bias - y) / y.size
    return [x.T @ error, error.sum(axis=0)]


class Guided:
    """The twins of a guided optimizer, one for each weight."""

    def __init__(self, optimizer, start, rate):
        self.twins = [
            twin.TWINS[type(optimizer).__name__.removeprefix("Layerwise")](
                w,
                learning_rate=rate,
                bias_correction=optimizer.bias_correction,
                weight_decay=optimizer.weight_decay or 0.0,
                calibrate=optimizer.calibrate,
            )
            for w in start
        ]

    @property
    def model(self):
        return [one.weight for one in self.twins]

    def masked(self, gradients):
        """What clipping sees."""
        return gradients

    def step(self, gradients):
        for one, gradient in zip(self.twins, gradients, strict=True):
            one.step(gradient)


class Layerwise(Guided):
    def __init__(self, optimizer, start, rate):
        rates = [
            (lambda step, factor=factor: factor * rate(step)) if callable(rate) else factor * rate
            for factor in FACTORS
        ]
        pairs = zip(start, rates, strict=True)
        self.twins = [Guided(optimizer, [w], own).twins[0] for w, own in pairs]


class Child(Guided):
    def __init__(self, optimizer, start, rate):
        self.twins = adams(optimizer, start, rate)
        self.seed, self.fraction = optimizer.seed, optimizer.fraction

    def masked(self, gradients):
        steps = self.twins[0].iterations
        masks = [
            to_numpy(chosen(random_bits(self.seed + index, steps, one.shape), self.fraction))
            for index, one in enumerate(gradients)
        ]
        return [one * mask / self.fraction for one, mask in zip(gradients, masks)]


class Sparse(Guided):
    def __init__(self, optimizer, start, rate):
        counts = [-(-one.size // 2) for one in start]  # the half, rounded up
        self.twins = [
            twin_sparse.Sparse(
                weight,
                lambda part: adams(optimizer, [part], rate)[0],
                count=count,
                selection_steps=optimizer.selection_steps,
            )
            for weight, count in zip(start, counts)
        ]

    def masked(self, gradients):
        masks = [np.isin(np.arange(one.weight.size), one.positions) for one in self.twins]
        return [one * mask.reshape(one.shape) for one, mask in zip(gradients, masks)]


class Pruned(Guided):
    def __init__(self, optimizer, start, rate):
        steps = (optimizer.begin_step, optimizer.end_step, optimizer.update_freq)
        sparsity = optimizer.final_sparsity
        kernel, self.bias = adams(optimizer, start, rate)
        self.kernel = twin_pruning.Pruned([kernel], optimizer.score, sparsity, *steps)

    @property
    def model(self):
        return [*self.kernel.model, self.bias.weight]

    def step(self, gradients):
        self.kernel.step(gradients[:1])
        self.bias.step(gradients[1])


def adams(optimizer, start, rate):
    decay = optimizer.weight_decay
    return [twin.Adam(one, rate, guide=False, weight_decay=decay) for one in start]


TWINS = {
    "LayerwiseSage": Layerwise,
    "PrunedAdamW": Pruned,
    "Platon": Pruned,
    "SparseAdamW": Sparse,
    "ChildTuningAdamW": Child,
}


def twin_fit(optimizer, feature):
    x, y, start = job()
    rate = LEARNING_RATE
    if feature == "schedule":
        rate = lambda step: LEARNING_RATE * 0.5 ** (step / DECAY_STEPS)  # noqa: E731
    twins = TWINS.get(type(optimizer).__name__, Guided)(optimizer, start, rate)
    averages = None
    together = 2 if feature == "accumulation" else 1
    selecting = getattr(optimizer, "selection_steps", 0)  # micro-steps
    for step in range(selecting):
        twins.step(batch_gradients(*_batch(x, y, step), *twins.model))
    for step in range(selecting, STEPS, together):
        gradients = [
            batch_gradients(*_batch(x, y, step + i), *twins.model) for i in range(together)
        ]
        gradients = twins.masked([np.mean(parts, axis=0) for parts in zip(*gradients)])
        if feature == "clip":
            gradients = twin.clip_by_global_norm(gradients, FEATURES["clip"]["global_clipnorm"])
        twins.step(gradients)
        weights = [one.copy() for one in twins.model]
        averages = [
            # A weight that is zero is so in the averages too.
            (EMA_MOMENTUM * old + (1 - EMA_MOMENTUM) * new) * (new != 0)
            for old, new in zip(averages or weights, weights)
        ]
    return averages if feature == "ema" else weights


@pytest.mark.parametrize(("name", "policy", "mode", "feature"), CELLS, indirect=["policy"])
def test_fit(name, policy, mode, feature, monkeypatch):
    compilations = Compilations(getattr(sage_keras, name), monkeypatch)
    fit_and_compare(name, policy, mode, feature, compilations)
    if mode != "eager":
        compilations.assert_first_steps_only()


@pytest.mark.skipif(BACKEND != "torch", reason="the cells of test_fit have it on other backends")
def test_compiled_fit_on_torch(monkeypatch):
    compilations = Compilations(sage_keras.Sage, monkeypatch)
    fit_and_compare("Sage", "float32", "xla", "plain", compilations)
    compilations.assert_first_steps_only()


@pytest.mark.extended
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("name", GUIDED)
def test_compiled_step(name, feature):
    optimizer = make_optimizer(name, feature)
    x, y, start = job()
    variables = [keras.Variable(w, name=f"weight_{i}") for i, w in enumerate(start)]
    # Generating C++ for every cell would take torch minutes; the twin's test does it.
    runner = Runner(optimizer, variables, "graph" if BACKEND == "torch" else "xla")
    compilations = []
    for step in range(STEPS):
        gradients = batch_gradients(*_batch(x, y, step), *runner.weights())
        runner.step([gradient.astype("float32") for gradient in gradients])
        compilations.append(runner.compilations)
    optimizer.finalize_variable_values(variables)

    assert_near(runner.weights(), twin_fit(optimizer, feature), start, TOLERANCE["float32"])
    if BACKEND == "torch" and feature == "accumulation":
        # Keras's condition breaks the graph in pieces; two steps have seen both of its branches.
        assert compilations[1] == compilations[-1]
    else:
        assert compilations == [1] * STEPS


def make_optimizer(name, feature):
    rate = LEARNING_RATE
    if feature == "schedule":
        rate = keras.optimizers.schedules.ExponentialDecay(rate, DECAY_STEPS, decay_rate=0.5)
    own = CHOOSING.get(name, {})
    if name == "LayerwiseSage":
        own = {"learning_rate_multipliers": {"kernel|weight_0": FACTORS[0]}}
    return getattr(sage_keras, name)(learning_rate=rate, **own, **FEATURES[feature])


def fit_and_compare(name, policy, mode, feature, compilations):
    optimizer = make_optimizer(name, feature)
    x, y, start = job()
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights(start)
    model.compile(
        loss="mse",
        # Keras's own first loss scale overflows on purpose and skips the first steps.
        optimizer=keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=64.0)
        if policy == "mixed_float16"
        else optimizer,
        run_eagerly=mode == "eager",
        jit_compile=mode == "xla",
    )

    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[compilations])

    assert_near(model.get_weights(), twin_fit(optimizer, feature), start, TOLERANCE[policy])


def assert_near(weights, expected, start, tolerance):
    way = max(np.max(np.abs(after - before)) for after, before in zip(expected, start))
    for weight, target in zip(weights, expected):
        assert np.max(np.abs(weight.astype("float64") - target)) <= tolerance * way


class Compilations(keras.callbacks.Callback):
    """Counts, step by step, how often the update has been compiled."""

    def __init__(self, optimizer_class, monkeypatch):
        super().__init__()
        self.update_steps = 0
        self.by_step = []
        update_step = optimizer_class.update_step

        def counted(optimizer, *args):
            self.update_steps += 1
            return update_step(optimizer, *args)

        if BACKEND == "torch":  # its compiler would replay the count with every step
            import torch

            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
        else:
            monkeypatch.setattr(optimizer_class, "update_step", counted)

    def on_train_batch_end(self, batch, logs=None):
        count = self.update_steps  # a trace runs the Python code, a step does not
        if BACKEND == "torch":
            import torch

            count = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        self.by_step.append(count)

    def assert_first_steps_only(self):
        # Torch compiles again in the second step, where Keras has filled a cache of its own.
        settled = 2 if BACKEND == "torch" else 1
        assert len(self.by_step) == STEPS
        assert 0 < self.by_step[settled - 1] == self.by_step[-1], self.by_step


def _batch(x, y, step):
    part = slice(step * BATCH, (step + 1) * BATCH)
    return x[part], y[part]
