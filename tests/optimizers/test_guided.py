"""The mixin: what it accepts, what it refuses, and what it lets people see."""

import warnings

import keras
import numpy as np
import pytest
from bases import BASES, guided
from modes import BACKEND, MODES, Runner, float64_allowed, to_numpy

import sage_keras
from sage_keras import Sage, SageSGD, SensitivityGuided, guided_optimizers


def two_layers():
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, name="first"), keras.layers.Dense(1, name="last")]
    )


# argument, value, what the message must say besides them
BAD_ARGUMENTS = [
    ("beta_3", 1.0, "at most 0.999"),
    ("beta_3", 0.0, "above 0"),
    ("beta_3", -0.1, "above 0"),
    ("beta_3", 1.5, "at most 0.999"),
    ("beta_3", float("nan"), "such as 0.75"),
    ("beta_3", float("inf"), "such as 0.75"),
    ("beta_3", "0.9", "must be a float"),
    ("beta_3", None, "must be a float"),
    ("beta_3", True, "must be a float"),
    ("beta_3", [0.9], "must be a float"),
    ("sensitivity_epsilon", 0, "above"),
    ("sensitivity_epsilon", -1e-12, "above"),
    ("sensitivity_epsilon", 1e-45, "above"),  # zero in float32
    ("sensitivity_epsilon", float("inf"), "such as 1e-12"),
    ("sensitivity_epsilon", float("nan"), "such as 1e-12"),
    ("sensitivity_epsilon", "1e-12", "must be a float"),
    ("bias_correction", "yes", "True or False"),
    ("bias_correction", 1, "True or False"),
    ("calibrate", "auto", "True or False"),
    ("guide", None, "True or False"),
    ("guide", 0, "True or False"),
    ("sensitivity_dtype", "int32", '"float32" or "bfloat16"'),
    ("sensitivity_dtype", "float16", '"float32" or "bfloat16"'),
    ("sensitivity_dtype", None, '"float32" or "bfloat16"'),
    ("sensitivity_dtype", ["float32"], '"float32" or "bfloat16"'),
    ("include", "attention", "list of regular expressions"),
    ("include", ["kernel", 3], "list of regular expressions"),
    ("include", {"kernel"}, "list of regular expressions"),
    ("include", [], "include=None"),
    ("include", ["(kernel"], "malformed"),
    ("exclude", "bias", "list of regular expressions"),
    ("exclude", [], "exclude=None"),
    ("exclude", ["*bias"], "malformed"),
    ("learning_rate", "fast", "float"),
    ("gradient_accumulation_steps", 1, ">= 2"),
    ("ema_momentum", 2.0, "range"),
]


@pytest.mark.parametrize(("argument", "value", "advice"), BAD_ARGUMENTS)
def test_refuses_bad_arguments(argument, value, advice):
    others = {"use_ema": True} if argument == "ema_momentum" else {}
    with pytest.raises((TypeError, ValueError)) as raised:
        Sage(**{argument: value}, **others)
    message = str(raised.value)
    assert argument in message
    assert f"{argument}={value}" in message or f"{argument}={value!r}" in message
    assert advice in message


@pytest.mark.parametrize("argument", ["include", "exclude"])
def test_patterns_that_match_nothing_name_the_paths(argument):
    model = two_layers()
    optimizer = Sage(**{argument: ["attention", "query"]})
    with pytest.raises(ValueError) as raised:
        optimizer.build(model.trainable_variables)
    message = str(raised.value)
    assert f"{argument}=['attention', 'query']" in message
    for path in ("first/kernel", "first/bias", "last/kernel", "last/bias"):
        assert path in message
    assert not optimizer.built
    assert len(optimizer.variables) == 2  # iterations and learning rate: nothing was changed


def test_one_idle_pattern_is_no_error():
    optimizer = Sage(include=["attention", "kernel$"], exclude=["pooler", "last"])
    optimizer.build(two_layers().trainable_variables)
    assert [path.split("/")[-2:] for path in optimizer.sensitivities] == [["first", "kernel"]]


def test_building_on_no_variables_is_no_error():
    optimizer = Sage(include=["attention"])
    optimizer.build([])
    assert optimizer.sensitivities == {}
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines == [repr(optimizer), "  guided  path  shape"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Ftrl", "learning rate"),
        ("Adafactor", "caps"),
        ("LossScaleOptimizer", "wraps other optimizers. Pass yours to it"),
        ("MultiOptimizer", "wraps other optimizers. Pass yours to it"),
    ],
)
def test_refuses_bases_that_cannot_be_guided(name, reason):
    with pytest.raises(TypeError, match=f"`Guided`.*`{name}`.*{reason}.*takes SGD"):
        type("Guided", (SensitivityGuided, getattr(keras.optimizers, name)), {})


def test_refuses_the_wrong_order_of_bases():
    with pytest.raises(TypeError, match="must come before `AdamW`"):
        type("Guided", (keras.optimizers.AdamW, SensitivityGuided), {})


def test_a_mixin_alone_says_what_to_write():
    with pytest.raises(TypeError, match=r"MyOptimizer\(SensitivityGuided, keras"):
        SensitivityGuided()


def test_a_mixin_may_be_made_of_it():
    further = type("Further", (SensitivityGuided,), {"further": True})
    with pytest.raises(TypeError, match=r"MyOptimizer\(Further, keras"):
        further(1e-3)
    optimizer = type("Guided", (further, keras.optimizers.AdamW), {})(1e-3)
    assert optimizer.further
    assert optimizer.beta_3 == 0.75


def test_a_mixin_between_and_a_subclass_of_a_guided_class_are_accepted():
    class Counting:
        steps = 0

        def update_step(self, *args):
            self.steps += 1
            super().update_step(*args)

    class Guided(Counting, SensitivityGuided, keras.optimizers.SGD):
        pass

    class Further(Guided):
        pass

    optimizer = Further(learning_rate=0.1)
    weight = keras.Variable([1.0])
    optimizer.apply([keras.ops.array([1.0])], [weight])
    assert optimizer.steps == 1


@pytest.mark.parametrize("name", ["Sage", "SageAdam", "SageAdamax", "SageSGD"])
def test_registered_name_and_defaults(name):
    # The bare string is refused from Keras 3.16 on.
    optimizer = keras.optimizers.get({"class_name": f"sage_keras>{name}", "config": {}})
    assert type(optimizer) is getattr(sage_keras, name)
    config = optimizer.get_config()
    base = type(optimizer).__bases__[-1]().get_config()
    config.pop("name"), base.pop("name")  # numbered, by how many there have been
    own = {key: config.pop(key) for key in set(config) - set(base)}
    assert config == base
    assert own == {
        "beta_3": 0.75,
        "sensitivity_epsilon": 1e-12,
        "bias_correction": name in ("Sage", "SageAdam"),
        "include": None,
        "exclude": None,
        "on_nonfinite": "propagate",
        "sensitivity_dtype": "float32",
        "calibrate": False,
        "guide": True,
    }


@pytest.mark.parametrize("name", BASES)
def test_config_round_trip(name):
    settings = {
        "beta_3": 0.9,
        "sensitivity_epsilon": 1e-10,
        "bias_correction": False,
        "include": ["kernel", "bias"],
        "exclude": ["norm"],
        "sensitivity_dtype": "bfloat16",
        "calibrate": True,
        "guide": False,
    }
    optimizer = guided(name)(learning_rate=0.5, **BASES[name], **settings)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert type(again) is type(optimizer)
    assert again.get_config() == optimizer.get_config()
    assert {key: optimizer.get_config()[key] for key in settings} == settings


def test_sensitivities_are_the_slots_of_guided_variables():
    model = two_layers()
    optimizer = SageSGD(learning_rate=0.0, exclude=["bias"])
    kernel, bias = model.trainable_variables[:2]
    assert optimizer.sensitivities == {}
    gradients = [keras.ops.full(v.shape, 2.0) for v in model.trainable_variables]
    optimizer.apply(gradients, model.trainable_variables)

    paths = [v.path for v in model.trainable_variables if "kernel" in v.path]
    assert list(optimizer.sensitivities) == paths
    value = np.abs(2.0 * to_numpy(kernel))
    np.testing.assert_allclose(to_numpy(optimizer.sensitivities[kernel.path]), 0.25 * value)
    np.testing.assert_allclose(to_numpy(optimizer.sensitivity(kernel)), value, rtol=1e-6)
    with pytest.raises(ValueError, match=f"variable={bias.path}"):
        optimizer.sensitivity(bias)
    with pytest.raises(ValueError, match=r"optimizer\.sensitivities"):
        optimizer.sensitivity(keras.Variable([1.0], name="stranger"))
    with pytest.raises(ValueError, match=r"optimizer\.sensitivities"):
        SageSGD().sensitivity(kernel)


def test_sensitivity_is_zero_before_the_first_step():
    weight = keras.Variable([1.0, 2.0])
    optimizer = Sage()
    optimizer.build([weight])
    np.testing.assert_array_equal(to_numpy(optimizer.sensitivity(weight)), [0.0, 0.0])


def test_paths_that_clash_are_numbered():
    weights = [keras.Variable([float(i + 1)], name="same") for i in range(3)]
    paths = {weight.path for weight in weights}
    assert len(paths) == 1
    optimizer = SageSGD(learning_rate=0.0)
    optimizer.apply([keras.ops.array([4.0])] * 3, weights)
    path = paths.pop()
    slots = {name: to_numpy(slot).tolist() for name, slot in optimizer.sensitivities.items()}
    assert slots == {path: [1.0], f"{path}#1": [2.0], f"{path}#2": [3.0]}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has variables without a path")
def test_raw_tensorflow_variables_go_by_their_name():
    import tensorflow as tf

    weights = [tf.Variable([1.0], name="raw"), tf.Variable([2.0], name="raw")]
    optimizer = SageSGD(learning_rate=0.0, include=["raw"])
    optimizer.apply([tf.constant([4.0])] * 2, weights)
    slots = {name: to_numpy(slot).tolist() for name, slot in optimizer.sensitivities.items()}
    assert slots == {"raw:0": [1.0], "raw:0#1": [2.0]}


@pytest.mark.parametrize("dtype", [np.dtype("float32"), "tf.bfloat16"], ids=str)
def test_a_slot_dtype_that_is_no_string_is_made_one(dtype):
    if dtype == "tf.bfloat16":
        dtype = pytest.importorskip("tensorflow").bfloat16
    name = Sage(sensitivity_dtype=dtype).get_config()["sensitivity_dtype"]
    assert type(name) is str
    assert name == ("float32" if isinstance(dtype, np.dtype) else "bfloat16")


def test_repr_and_summary_say_what_is_guided():
    optimizer = Sage(exclude=["bias"])
    start = "<Sage(learning_rate=0.001, exclude=['bias']) on AdamW, "
    assert repr(optimizer) == f"{start}not built>"
    model = two_layers()
    optimizer.build(model.trainable_variables)
    assert repr(optimizer) == f"{start}guides 2 of 4 variables>"
    lines = []
    optimizer.summary(print_fn=lines.append)
    assert lines[0] == repr(optimizer)
    assert [line.split()[0] for line in lines[1:]] == ["guided", "yes", "no", "yes", "no"]
    assert lines[1].split()[1:] == ["path", "shape"]
    assert lines[4].split()[1:] == [model.trainable_variables[2].path, "(3,", "1)"]
    # The columns stand below their titles.
    path = model.trainable_variables[2].path
    assert {lines[1].index("path"), lines[4].index(path)} == {10}
    assert lines[1].index("shape") == lines[4].index("(3, 1)")


@pytest.mark.filterwarnings("error")  # Keras would warn of saving a function
def test_repr_shows_the_rate_and_what_is_not_the_default():
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    sgd = SageSGD(0.5, momentum=0.9, bias_correction=True, name="mine", clipnorm=1)
    shown = {
        sgd: "<SageSGD(learning_rate=0.5, clipnorm=1, momentum=0.9, bias_correction=True) on SGD",
        Sage(schedule, weight_decay=0.1): "<Sage(learning_rate=CosineDecay, weight_decay=0.1) on",
        Sage(lambda: 0.1): "<Sage(learning_rate=__lambda__) on AdamW",
    }
    for optimizer, text in shown.items():
        assert repr(optimizer).startswith(text)


@pytest.mark.skipif(BACKEND == "torch", reason="torch's variables have values always")
def test_repr_in_a_trace_leaves_out_what_has_no_value_there():
    optimizer = Sage(0.1, beta_3=0.9)
    texts = []

    def show(step):
        with keras.StatelessScope([(optimizer.iterations, step)]):
            texts.append(repr(optimizer))
        return step

    if BACKEND == "tensorflow":
        import tensorflow as tf

        tf.function(show)(tf.constant(1, optimizer.iterations.dtype))
    else:
        import jax

        jax.jit(show)(1)
    assert texts == ["<Sage(beta_3=0.9) on AdamW, not built>"]


def test_sensitivity_by_path():
    model = two_layers()
    optimizer = Sage(exclude=["bias"])
    first, _, last, _ = model.trainable_variables
    with pytest.raises(ValueError, match=r"build it, then.*Received: variable='any'$"):
        optimizer.sensitivity("any")
    optimizer.build(model.trainable_variables)
    slots = list(optimizer.sensitivities.values())
    for value, slot in enumerate(slots, start=1):
        slot.assign(keras.ops.full(slot.shape, value))
    for variable, value in ((first, 4.0), (last, 8.0)):  # one step is 1 - beta_3 of it
        found = optimizer.sensitivity(variable.path)
        np.testing.assert_allclose(to_numpy(found), np.full(variable.shape, value), rtol=1e-6)
        np.testing.assert_array_equal(to_numpy(found), to_numpy(optimizer.sensitivity(variable)))
    for wrong in (first.path.split("/", 1)[1], first.path.replace("kernel", "kernal")):
        with pytest.raises(ValueError) as refused:
            optimizer.sensitivity(wrong)
        message = str(refused.value)
        assert f"Received: variable='{wrong}'. Did you mean one of these?\n" in message
        assert message.splitlines()[1].strip() == first.path
    bias = first.path.replace("kernel", "bias")
    with pytest.raises(ValueError, match=f"this optimizer guides: .*variable='{bias}'"):
        optimizer.sensitivity(bias)
    with pytest.raises(ValueError, match=r"Received: variable='zzz'$"):
        optimizer.sensitivity("zzz")


def test_the_path_of_several_variables_is_refused():
    same = [keras.Variable([1.0], name="w") for _ in range(2)]
    optimizer = Sage()
    optimizer.build(same)
    with pytest.raises(ValueError, match=r"'w'\. It is the path of 2 variables: pass the"):
        optimizer.sensitivity("w")
    assert tuple(optimizer.sensitivity("w#1").shape) == (1,)


def test_finds_guided_optimizers_where_they_are():
    first, second = Sage(), SageSGD()
    multi = keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(first, {"head/.*": second, "x": keras.optimizers.SGD()})
    )
    assert set(guided_optimizers(multi)) == {first, second}
    assert guided_optimizers(first) == [first]
    assert guided_optimizers(keras.optimizers.LossScaleOptimizer(first)) == [first]
    assert guided_optimizers(keras.optimizers.Adam()) == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", BASES)
def test_warns_of_half_precision_variables_where_the_base_fails(name, dtype):
    weight = keras.Variable([[1.0, 2.0], [3.0, 4.0]], dtype=dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guided(name)().build([weight])
    messages = [str(w.message) for w in caught if "cannot train" in str(w.message)]
    if name in ("Adam", "AdamW", "Nadam", "Lamb"):
        assert len(messages) == 1
        assert f"mixed_{dtype}" in messages[0]
    else:
        assert messages == []


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["SGD", "Adamax"])
def test_half_precision_variables_follow_the_rule(name, dtype):
    """s is computed in float32, where 1e-12 is not zero: a zero weight takes the base step."""
    weight = keras.Variable([0.0, 1.0], dtype=dtype)
    optimizer = guided(name)(learning_rate=0.25, bias_correction=False)
    optimizer.apply([keras.ops.array([1.0, 1.0], dtype=dtype)], [weight])
    # The second has s = 3. Both bases' first step is one learning rate long.
    np.testing.assert_allclose(to_numpy(weight).astype("float32"), [-0.25, 0.25], atol=1e-2)
    assert keras.backend.standardize_dtype(weight.dtype) == dtype


def test_calibrated_scales_are_1_in_the_mean():
    """Over weights and steps, on noise of which Sage's own scales are about a half."""
    random = np.random.default_rng(0)
    means = {}
    for calibrate in (False, True):
        # No learning rate: the weights, and with them the noise, stay as they are.
        optimizer = SageSGD(learning_rate=0.0, bias_correction=True, calibrate=calibrate)
        scale, scales = optimizer._scale, []
        optimizer._scale = lambda *args: scales.append(to_numpy(scale(*args))) or scales[-1]  # noqa: B023
        weights = [keras.Variable(np.full(shape, 0.1)) for shape in ((40, 50), (2000,))]
        for _ in range(200):
            optimizer.apply(
                [random.normal(size=w.shape).astype("float32") for w in weights], weights
            )
        means[calibrate] = [np.mean(scales[200 + i :: 2]) for i in range(2)]
    np.testing.assert_allclose(means[False], 0.48, atol=0.01)  # as the formulas say
    np.testing.assert_allclose(means[True], 1.0, atol=0.03)


def test_calibrated_scale_does_not_spend_what_steady_gradients_have_saved_up():
    weight = keras.Variable([1.0, 1.0])
    optimizer = SageSGD(learning_rate=0.0, calibrate=True)
    for _ in range(100):
        optimizer.apply([keras.ops.array([1.0, 1.0])], [weight])
    (mean,) = (v for v in optimizer.variables if "mean_scale" in v.path)
    assert 0.0 < to_numpy(mean) < 0.05  # of the uncorrected average's beginning
    before = to_numpy(weight)
    optimizer.learning_rate = 1.0
    optimizer.apply([keras.ops.array([5.0, 1.0])], [weight])
    # The first one's sensitivity is 5, its average 2: a scale of 1.5, ten times, and not more.
    np.testing.assert_allclose(before - to_numpy(weight), [5 * 15.0, 0.0], atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_scale_is_that_of_the_bfloat16_slot(mode):
    weight = np.float32([1.0, 1.0, 0.3])
    gradient = np.float32([1.01, 1.0, 0.7])
    optimizer = SageSGD(learning_rate=1.0, sensitivity_dtype="bfloat16")
    runner = Runner(optimizer, [keras.Variable(weight)], mode)
    runner.step([gradient])
    (slot,) = optimizer.sensitivities.values()
    assert keras.backend.standardize_dtype(slot.dtype) == "bfloat16"
    # A quarter of |weight * gradient|, 0.2525, 0.25 and 0.0525, to 8 bits. Chance rounds down here.
    rounded = np.float32([0.251953125, 0.25, 0.052490234375])
    np.testing.assert_array_equal(to_numpy(slot).astype("float32"), rounded)
    scale = np.abs(weight * gradient - rounded) / rounded
    np.testing.assert_allclose(runner.weights()[0], weight - scale * gradient, rtol=1e-6)


def test_float64_variables_are_measured_in_float64():
    with float64_allowed():
        weight = keras.Variable(np.array([1.0]), dtype="float64")
        optimizer = SageSGD(learning_rate=2.0**-10)
        optimizer.apply([keras.ops.convert_to_tensor(np.array([1.0 / 3.0]))], [weight])
        assert keras.backend.standardize_dtype(optimizer.sensitivity(weight).dtype) == "float64"
        np.testing.assert_allclose(to_numpy(weight), [1.0 - 2.0**-10], rtol=1e-14)
