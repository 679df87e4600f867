"""Training in mixed precision, in float64, and of adapters on int8 weights."""

import contextlib

import keras
import numpy as np
import pytest
from modes import float64_allowed, to_numpy

from sage_keras import DPSDense, DPSMix, Platon, Sage, guided_optimizers

pytestmark = [
    pytest.mark.filterwarnings("ignore:Between the steps"),  # nobody looks in between
    pytest.mark.filterwarnings("ignore:.*does not have a `quantize` method"),
]

STEPS, EPOCHS, BATCH_SIZE = 200, 4, 16
OPTIMIZERS = {
    "Sage": lambda: Sage(3e-3),
    "DPSDense": lambda: DPSDense(3e-3, stage_steps=10),
    "DPSMix": lambda: DPSMix(3e-3, stage_steps=10, seed=0),
    "Platon": lambda: Platon(3e-3, final_sparsity=0.5, total_steps=STEPS),
}


@contextlib.contextmanager
def dtype_policy(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        with float64_allowed() if policy == "float64" else contextlib.nullcontext():
            yield
    finally:
        keras.config.set_dtype_policy(before)


def make_model():
    model = keras.Sequential(
        [
            keras.Input((8,)),
            keras.layers.Dense(16, "tanh", name="hidden"),
            keras.layers.Dense(2, use_bias=False, name="logits"),
            keras.layers.Activation("softmax", dtype="float32"),
        ]
    )
    random = np.random.default_rng(1)  # Keras draws other weights in float64
    model.set_weights([random.normal(scale=0.3, size=w.shape) for w in model.get_weights()])
    return model


def data():
    """Two classes, a tenth of them labelled wrong, so that the loss stays above zero."""
    random = np.random.default_rng(0)
    x = random.normal(size=(STEPS // EPOCHS * BATCH_SIZE, 8)).astype("float32")
    y = x @ random.normal(size=(8,)) > 0
    return x, (y ^ (random.random(len(y)) < 0.1)).astype("int32")


def losses(name, policy):
    """The mean loss of each quarter of 200 steps, and the optimizer."""
    with dtype_policy(policy):
        model = make_model()
        model.compile(optimizer=OPTIMIZERS[name](), loss="sparse_categorical_crossentropy")
        history = model.fit(
            *data(), batch_size=BATCH_SIZE, epochs=EPOCHS, shuffle=False, verbose=0
        ).history
        assert model.layers[0].compute_dtype == policy.removeprefix("mixed_")
        return history["loss"], model.optimizer


@pytest.mark.extended
@pytest.mark.parametrize("name", ["Sage", "DPSMix"])
def test_losses_of_200_steps_are_those_of_float32(name):
    expected, _ = losses(name, "float32")
    assert expected[-1] < 0.85 * expected[0]
    tolerances = {"mixed_float16": 0.05, "mixed_bfloat16": 0.05}
    if name == "Sage":
        tolerances["float64"] = 0.01
    for policy, tolerance in tolerances.items():
        found, optimizer = losses(name, policy)
        np.testing.assert_allclose(found, expected, rtol=tolerance, err_msg=policy)
        wrapped = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        assert wrapped == (policy == "mixed_float16")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_overflows_in_float16_changes_nothing(name):
    x, y = (array[:BATCH_SIZE] for array in data())
    with dtype_policy("mixed_float16"):
        model = make_model()
        inner = OPTIMIZERS[name]()
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1024.0)
        model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
        for _ in range(3):
            model.train_on_batch(x, y)
        before = [to_numpy(v) for v in [*inner.variables, *model.trainable_variables]]
        # The loss is scaled by 1e6 more, beyond what float16 has.
        model.train_on_batch(x, y, sample_weight=np.full(BATCH_SIZE, 1e6, "float32"))
        after = [to_numpy(v) for v in [*inner.variables, *model.trainable_variables]]
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)
        assert int(inner.iterations) == 3
        assert float(to_numpy(optimizer.dynamic_scale)) == 512.0
        model.train_on_batch(x, y)
        assert int(inner.iterations) == 4


@pytest.mark.extended
def test_adapters_on_an_int8_backbone():
    import keras_hub

    keras.utils.set_random_seed(0)
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=16,
        dropout=0.0,
        max_sequence_length=4,
    )
    backbone.quantize("int8")
    backbone.enable_lora(4)
    model = keras.Model(backbone.input, backbone.output["pooled_output"])
    int8 = [v for v in model.non_trainable_variables if v.dtype == "int8"]
    assert len(int8) == 9  # two embeddings, four matrices of attention, two more, the pooler's
    before = [to_numpy(v) for v in int8]
    model.compile(optimizer=Sage(3e-2, include=["lora"]), loss="mse")  # there are biases too
    tokens = np.random.default_rng(0).integers(1, 8, size=(64, 4))
    x = {"token_ids": tokens, "segment_ids": 0 * tokens, "padding_mask": np.ones_like(tokens)}
    # What the backbone says with other adapters is what these ones can learn.
    adapters = [v for v in model.trainable_variables if "lora_kernel" in v.path]
    begin, random = [to_numpy(v) for v in adapters], np.random.default_rng(1)
    for variable in adapters:
        variable.assign(random.normal(size=variable.shape))
    y = model.predict(x, verbose=0)
    for variable, array in zip(adapters, begin):
        variable.assign(array)
    history = model.fit(x, y, batch_size=16, epochs=10, shuffle=False, verbose=0).history
    [optimizer] = guided_optimizers(model.optimizer)
    names = [path.split("/")[-2:] for path in optimizer.sensitivities]
    assert names == [
        [layer, f"lora_kernel_{part}"] for layer in ("query", "value") for part in "ab"
    ]
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    for variable, array in zip(int8, before):
        np.testing.assert_array_equal(to_numpy(variable), array)


@pytest.mark.extended
def test_adapters_on_int4_weights():
    x, y = data()
    model = make_model()
    layer = model.get_layer("hidden")
    model.get_layer("logits").trainable = False
    layer.quantize("int4")
    layer.enable_lora(4)
    packed = [v for v in layer.non_trainable_variables if v.dtype == "int8"]
    assert packed
    before = [to_numpy(v) for v in packed]
    model.compile(optimizer=Sage(3e-2), loss="sparse_categorical_crossentropy")
    history = model.fit(x, y, batch_size=BATCH_SIZE, epochs=3, shuffle=False, verbose=0).history
    [optimizer] = guided_optimizers(model.optimizer)
    names = [path.split("/")[-1] for path in optimizer.sensitivities]
    assert names == ["bias", "lora_kernel_a", "lora_kernel_b"]
    assert history["loss"][-1] < 0.9 * history["loss"][0]
    for variable, array in zip(packed, before):
        np.testing.assert_array_equal(to_numpy(variable), array)
