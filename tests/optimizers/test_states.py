"""Which saved states load, whole, in part with a warning, or not at all: by name."""

import contextlib
import copy
import functools
import json

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy

from sage_keras import (
    ChildTuningAdamW,
    DPSDense,
    DPSMix,
    LayerwiseAdamW,
    LayerwiseSage,
    Mixout,
    Platon,
    PrunedAdamW,
    Sage,
    SageAdam,
    SageAdamax,
    SparseAdamW,
    check_state_tree,
)
from sage_keras.optimizers import saved_state

NAMES = ("a/kernel", "b/kernel")


def variables(names=NAMES):
    """Weights of one shape, at paths of a model."""
    made = []
    for number, name in enumerate(names):
        *scopes, own = name.split("/")
        with contextlib.ExitStack() as stack:
            for scope in ("model", *scopes):
                stack.enter_context(keras.name_scope(scope))
            made.append(keras.Variable(np.full((3, 2), number + 1.0, "float32"), name=own))
    return made


def stepped(optimizer, names=NAMES, steps=2):
    weights = variables(names)
    for step in range(steps):
        gradients = [
            keras.ops.full((3, 2), 0.1 * (step + index + 1)) for index in range(len(names))
        ]
        optimizer.apply(gradients, weights)
    return optimizer


def saved(optimizer, *arguments, **options):
    store = {}
    stepped(optimizer, *arguments, **options).save_own_variables(store)
    return store


def values(optimizer):
    return [to_numpy(variable) for variable in optimizer.variables]


def assert_refused(optimizer, store, message):
    before = values(optimizer)
    with pytest.raises(ValueError, match=message):
        optimizer.load_own_variables(store)
    for one, other in zip(before, values(optimizer), strict=True):
        np.testing.assert_array_equal(one, other)


def rewritten(store, **changes):
    """The store with another description of the same values."""
    description = json.loads(store[saved_state.KEY].tobytes()) | changes
    arrays = {key: array for key, array in store.items() if key != saved_state.KEY}
    changed = dict(arrays)
    del description["checksum"]
    saved_state.write(changed, description, arrays)
    return changed


def rates(**multipliers):
    return LayerwiseAdamW(learning_rate_multipliers={f"{k}/": v for k, v in multipliers.items()})


def driven(**options):
    scores = {f"model/{name}": np.arange(6.0).reshape(3, 2) for name in NAMES}
    return ChildTuningAdamW(mode="driven", scores=scores, **options)


REFUSED = {
    "another model": (Sage(), Sage(), "is of model/a/kernel and so on, none of which"),
    "include": (
        Sage(include=["a/"]),
        Sage(include=["b/"]),
        "no sensitivity of model/b/kernel.*inc",
    ),
    "SageAdamax into SageAdam": (SageAdamax(), SageAdam(), "saved by SageAdamax, this is SageAdam"),
    "SageAdam into Sage": (SageAdam(), Sage(), "saved by SageAdam, this is Sage"),
    "use_ema into amsgrad": (SageAdam(use_ema=True), SageAdam(amsgrad=True), "has no velocity_hat"),
    "accumulation into EMA": (
        Sage(gradient_accumulation_steps=2),
        Sage(use_ema=True),
        "gradient_accumulation_steps=2, here gradient_accumulation_steps=None",
    ),
    "frozen": (rates(a=0.0), rates(b=0.0), "has no momentum of model/a/kernel"),
    "LayerwiseSage into Sage": (
        LayerwiseSage(learning_rate_multipliers={"a/": 0.5}),
        Sage(),
        "saved by LayerwiseSage, this is Sage",
    ),
    "DPS": (
        DPSDense(stage_steps=2, include=["a/"]),
        DPSDense(stage_steps=2, include=["b/"]),
        "has no score of model/b/kernel",
    ),
    "Mixout": (
        Mixout(include=["a/"], seed=0),
        Mixout(include=["b/"], seed=0),
        "has no true_weight of model/b/kernel",
    ),
    "pruned by another score": (
        Platon(total_steps=9),
        PrunedAdamW(total_steps=9),
        "saved by Platon, this is PrunedAdamW",
    ),
    "movement": (
        PrunedAdamW(total_steps=9, score="movement"),
        PrunedAdamW(total_steps=9),
        "is of score='movement', this optimizer has score='magnitude'",
    ),
    "pruned variables": (
        PrunedAdamW(total_steps=9, include=["a/"]),
        PrunedAdamW(total_steps=9, include=["b/"]),
        "has no mask of model/b/kernel",
    ),
    "pruned by another criterion": (
        PrunedAdamW(total_steps=9),
        PrunedAdamW(total_steps=9, score="random"),
        "is of score='magnitude', this optimizer has score='random'",
    ),
    "pruned in another scope": (
        Platon(total_steps=9),
        Platon(total_steps=9, scope="variable"),
        "is of scope='global', this optimizer has scope='variable'",
    ),
    "another fraction, as many weights": (
        SparseAdamW(fraction=0.5),
        SparseAdamW(fraction=0.4),
        "is of fraction=0.5, this optimizer has fraction=0.4",
    ),
    "sparse variables": (
        SparseAdamW(include=["a/"]),
        SparseAdamW(include=["b/"]),
        "has no position of model/b/kernel.*include=",
    ),
    "sparse, and the rest frozen": (
        SparseAdamW(include=["a/"]),
        SparseAdamW(include=["a/"], rest="freeze"),
        "has momentum of model/b/kernel, which .*rest='train', here rest='freeze'",
    ),
    "a larger child": (
        driven(),
        driven(fraction=0.5),
        "is of fraction=0.3, this optimizer has fraction=0.5",
    ),
    "a free child": (ChildTuningAdamW(seed=0), driven(), "mode='free', here mode='driven'"),
    "children": (driven(include=["a/"]), driven(include=["b/"]), "has no child of model/b/kernel"),
    "calibrate": (
        Sage(calibrate=True),
        Sage(),
        "has mean_scale of .*, which this optimizer has not",
    ),
    "dtype": (Sage(sensitivity_dtype="bfloat16"), Sage(), "is of sensitivity_dtype='bfloat16'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_state_of_other_meaning_is_refused_by_name(what):
    first, second, message = REFUSED[what]
    first, second = (type(one).from_config(one.get_config()) for one in (first, second))
    names = ("c/kernel", "d/kernel") if what == "another model" else NAMES
    assert_refused(stepped(second, names, steps=1), saved(first), message)


LOADED = {
    "PrunedAdamW": lambda: PrunedAdamW(begin_step=0, end_step=3, update_freq=1),
    "Platon": lambda: Platon(begin_step=0, end_step=3, update_freq=1),
    "SparseAdamW": lambda: SparseAdamW(selection_steps=1),
    "ChildTuningAdamW": driven,
}


@pytest.mark.parametrize("name", LOADED)
def test_a_state_that_chose_weights_loads_to_the_bit(name):
    first, second = stepped(LOADED[name]()), stepped(LOADED[name](), steps=1)
    assert any(np.any(one != other) for one, other in zip(values(first), values(second)))
    store = {}
    first.save_own_variables(store)
    second.load_own_variables(store)
    for one, other in zip(values(first), values(second), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_state_of_another_schedule_loads_and_the_masks_follow_the_new_one():
    weights = variables()
    gradients = [keras.ops.ones((3, 2))] * 2
    first = PrunedAdamW(0.0, final_sparsity=0.5, begin_step=0, end_step=1)
    first.apply(gradients, weights)
    assert first.sparsity == 0.5
    store = {}
    first.save_own_variables(store)
    second = PrunedAdamW(0.0, final_sparsity=0.75, begin_step=0, end_step=2)
    second.build(weights)
    second.load_own_variables(store)
    assert second.sparsity == 0.5
    second.apply(gradients, weights)
    assert second.sparsity == 0.75


def test_mixed_weights_of_another_choice_stay_where_they_are():
    """The kind: `include` moved from one layer to another between saving and loading."""
    store = saved(Mixout(include=["a/"], seed=0))
    optimizer = stepped(Mixout(include=["b/"], seed=0))
    optimizer.unmix()
    before = [to_numpy(variable) for variable in optimizer._trainable_variables]
    with pytest.raises(ValueError, match="has no true_weight of model/b/kernel"):
        optimizer.load_own_variables(store)
    optimizer.unmix()
    for one, variable in zip(before, optimizer._trainable_variables, strict=True):
        np.testing.assert_array_equal(one, to_numpy(variable))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
def test_dtypes_that_nobody_chose_are_converted(dtype):
    """A state of another backend, whose "int" is another, and of another floatx."""
    store = saved(Sage())
    other = {key: array for key, array in store.items() if key != saved_state.KEY}
    for key, array in other.items():
        other[key] = array.astype(dtype if np.issubdtype(array.dtype, np.integer) else "float64")
    description = json.loads(store[saved_state.KEY].tobytes())
    del description["checksum"]
    for variable in description["variables"]:
        variable[3] = dtype if "int" in variable[3] else "float64"
    other_store = dict(other)
    saved_state.write(other_store, description, other)
    optimizer = stepped(Sage(), steps=1)
    optimizer.load_own_variables(other_store)
    for one, other in zip(values(optimizer), values(stepped(Sage())), strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


DAMAGE = {
    "no description of variables": {"variables": []},
    "variables that are none": {"variables": 3},
    "a variable that is no list": {"variables": ["x"]},
    "a shape that is none": {"variables": [[None, "iteration", "()", "int32"]]},
    "a dtype that is none": {"variables": [[None, "iteration", [], "words"]]},
    "an index that is out of range": {"variables": [[9, "momentum", [], "int32"]]},
    "settings that are none": {"settings": []},
    "a class that is none": {"optimizer": None},
    "format 0": {"format": 0},
    "a format that is a string": {"format": "2"},
    "other values": {"checksum": 1},
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_description_is_refused(what):
    store = saved(Sage())
    if what == "other values":
        description = json.loads(store[saved_state.KEY].tobytes()) | DAMAGE[what]
        store[saved_state.KEY] = np.frombuffer(json.dumps(description).encode(), "uint8")
    else:
        store = rewritten(store, **DAMAGE[what])
    assert_refused(stepped(Sage(), steps=1), store, "damaged, and nothing of it was loaded")


def test_damaged_values_are_refused_before_anything_is_changed():
    store = saved(Sage())
    for key in [key for key in store if key != saved_state.KEY]:
        optimizer = stepped(Sage(), steps=1)
        renamed = {("99" if name == key else name): array for name, array in store.items()}
        assert_refused(optimizer, renamed, "damaged")
        reshaped = store | {key: np.zeros((7,), store[key].dtype)}
        assert_refused(optimizer, reshaped, "damaged")
        flipped = np.array(store[key])
        flipped.reshape(-1).view("uint8")[0] ^= 64
        assert_refused(optimizer, store | {key: flipped}, "damaged")


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_byte_anywhere_in_the_description_is_refused_or_harmless(seed):
    store = saved(Sage())
    text = np.array(store[saved_state.KEY])
    generator = np.random.default_rng(seed)
    text[generator.integers(len(text))] ^= np.uint8(1 << generator.integers(8))
    optimizer = stepped(Sage(), steps=1)
    before = values(optimizer)
    try:
        optimizer.load_own_variables(store | {saved_state.KEY: text})
        expected = values(stepped(Sage()))
    except ValueError:
        expected = before
    for one, other in zip(expected, values(optimizer), strict=True):
        np.testing.assert_array_equal(one, other)


def first_format(optimizer):
    """The state as it was written before variables had names."""
    store = saved(optimizer)
    config = optimizer.get_config()
    names = ("include", "exclude", "sensitivity_dtype", "on_nonfinite", "use_ema")
    description = {
        "format": 1,
        "optimizer": type(optimizer).__name__,
        "settings": {name: config[name] for name in names},
        "variables": [[list(one.shape), one.dtype] for one in optimizer.variables],
    }
    return store | {saved_state.KEY: np.frombuffer(json.dumps(description).encode(), "uint8")}


def test_a_state_of_the_first_format_loads():
    optimizer = stepped(Sage(), steps=1)
    optimizer.load_own_variables(first_format(Sage()))
    for one, other in zip(values(optimizer), values(stepped(Sage())), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (SageAdam(), "saved by SageAdam, this is Sage"),
        (Sage(include=["a/"]), "has 7 variables, this optimizer has 8"),
        (Sage(exclude=["norm"]), r"exclude=\['norm'\]"),
    ],
    ids=["class", "count", "setting"],
)
def test_a_state_of_the_first_format_that_does_not_fit_is_refused(first, message):
    store = first_format(type(first).from_config(first.get_config()))
    assert_refused(stepped(Sage(), steps=1), store, message)


def test_a_state_of_another_pattern_is_refused():
    """Its masks would stay as they are, once the schedule has ended."""
    store = {}
    steps = {"begin_step": 0, "end_step": 1, "final_sparsity": 0.5}
    weight = keras.Variable(np.ones((4, 2), "float32"), name="kernel")
    optimizer = PrunedAdamW(**steps)
    optimizer.apply([keras.ops.ones((4, 2))], [weight])
    optimizer.save_own_variables(store)
    other = PrunedAdamW(pattern="2:4", **steps)
    other.build([weight])
    assert_refused(other, store, "is of pattern=None, this optimizer has pattern='2:4'")


def of(optimizer, path, slot):
    """The value of a slot of a variable."""
    index = list(optimizer._names.shapes).index(path)
    position = next(at for at, one in optimizer._names.slots.items() if one == (index, slot))
    return to_numpy(optimizer.variables[position])


def test_other_variables_are_left_out_with_a_warning():
    """A layer that was frozen since, and one that came with LoRA."""
    first = stepped(Sage())
    store = {}
    first.save_own_variables(store)
    optimizer = stepped(Sage(), names=("b/kernel", "b/lora_kernel_a"), steps=1)
    began = of(optimizer, "model/b/lora_kernel_a", "momentum")
    with pytest.warns(UserWarning) as record:
        optimizer.load_own_variables(store)
    (message,) = [str(one.message) for one in record if "of other variables" in str(one.message)]
    assert "stay as they are: momentum of model/b/lora_kernel_a" in message
    assert "left out of the file: momentum of model/a/kernel" in message
    for slot in ("momentum", "velocity", "sensitivity"):
        found = of(optimizer, "model/b/kernel", slot)
        np.testing.assert_array_equal(found, of(first, "model/b/kernel", slot))
    np.testing.assert_array_equal(of(optimizer, "model/b/lora_kernel_a", "momentum"), began)
    assert int(optimizer.iterations) == 2


def test_names_that_keras_made_up_are_no_difference():
    store = saved(Sage(), names=("dense/kernel", "dense_1/kernel"))
    optimizer = stepped(Sage(), names=("dense_4/kernel", "dense_5/kernel"), steps=1)
    optimizer.load_own_variables(store)
    for one, other in zip(values(optimizer), values(stepped(Sage())), strict=True):
        np.testing.assert_array_equal(one, other)


def schedule_without_config():
    class Constant(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return 1e-3

    return Constant()


RATES = {
    "schedule without get_config": schedule_without_config,
    "partial": lambda: functools.partial(float, 1e-3),
    "callable": lambda: lambda: 1e-3,
}


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("cls", [Sage, DPSDense, Mixout], ids=lambda cls: cls.__name__)
def test_a_rate_that_has_no_configuration_can_be_saved(cls, rate):
    options = {"stage_steps": 2} if cls is DPSDense else {}
    store = saved(cls(RATES[rate](), **options))
    optimizer = stepped(cls(RATES[rate](), **options), steps=1)
    optimizer.load_own_variables(store)
    assert int(optimizer.iterations) == 2


def test_a_rate_that_became_a_schedule_is_left_out_with_a_warning():
    store = saved(Sage(1e-3))
    optimizer = stepped(Sage(keras.optimizers.schedules.ExponentialDecay(1e-3, 10, 0.9)), steps=1)
    with pytest.warns(UserWarning, match="left out of the file: learning_rate"):
        optimizer.load_own_variables(store)
    expected = of(stepped(Sage(1e-3)), "model/a/kernel", "sensitivity")
    np.testing.assert_allclose(of(optimizer, "model/a/kernel", "sensitivity"), expected, rtol=1e-6)


def test_skipping_may_be_switched_on_and_off():
    store = saved(Sage(on_nonfinite="skip"))
    optimizer = stepped(Sage(), steps=1)
    with pytest.warns(UserWarning, match="left out of the file: skipped_steps"):
        optimizer.load_own_variables(store)
    for one, other in zip(values(optimizer), values(stepped(Sage())), strict=True):
        np.testing.assert_array_equal(one, other)


def dense(optimizer):
    names = ("a", "b")
    layers = [keras.layers.Dense(3, name=name) for name in names]
    model = keras.Sequential([keras.Input((3,)), *layers])
    model.compile(optimizer=optimizer, loss="mse", run_eagerly=BACKEND != "jax")
    return model


def fitted(model):
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    model.fit(x, np.ones((8, 3), "float32"), batch_size=4, shuffle=False, verbose=0)
    return model


def freeze(model):
    model.layers[0].trainable = False


CHANGES = {
    "frozen": freeze,
    "LoRA": lambda model: model.layers[0].enable_lora(2),
    "int8": lambda model: model.layers[0].quantize("int8"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("layerwise", [False, True], ids=["Sage", "by layer"])
def test_a_model_that_was_changed_after_fit_is_saved_and_loads(change, layerwise, tmp_path):
    optimizer = Sage()
    if layerwise:
        optimizer = LayerwiseSage(learning_rate_multipliers={"a/": 0.5, "b/": 0.25})
    model = fitted(dense(optimizer))
    CHANGES[change](model)
    model.save(tmp_path / "model.keras")
    with pytest.warns(UserWarning, match="these are left out of the file: .*a/kernel"):
        again = keras.models.load_model(tmp_path / "model.keras")
    assert int(again.optimizer.iterations) == 2
    kernel = next(v for v in again.trainable_variables if v.path.endswith("b/kernel"))
    trained = next(v for v in model.trainable_variables if v.path.endswith("b/kernel"))
    np.testing.assert_array_equal(
        to_numpy(again.optimizer.sensitivity(kernel)),
        to_numpy(model.optimizer.sensitivity(trained)),
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="tf.train.Checkpoint is TensorFlow's")
@pytest.mark.parametrize("make", [Sage, lambda: Mixout(seed=0)], ids=["Sage", "Mixout"])
def test_a_tensorflow_checkpoint_restored_before_the_first_step_goes_on_where_it_was(
    make, tmp_path
):
    import tensorflow as tf

    model = fitted(dense(make()))
    path = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "c"))
    again = dense(make())
    tf.train.Checkpoint(model=again, optimizer=again.optimizer).restore(path)
    fitted(model)
    fitted(again)
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(to_numpy(one), to_numpy(other))


@pytest.mark.skipif(BACKEND != "tensorflow", reason="a SavedModel is TensorFlow's")
@pytest.mark.parametrize(
    "make",
    [Sage, lambda: Mixout(seed=0), lambda: DPSMix(stage_steps=2, seed=0)],
    ids=["Sage", "Mixout", "DPSMix"],
)
def test_a_saved_model_with_a_train_signature(make, tmp_path):
    import tensorflow as tf

    model = fitted(dense(make()))

    @tf.function(input_signature=[tf.TensorSpec((None, 3))])
    def train(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(model(x) ** 2)
        model.optimizer.apply(
            tape.gradient(loss, [v.value for v in model.trainable_variables]),
            model.trainable_variables,
        )
        return {"loss": loss}

    tf.saved_model.save(model, tmp_path / "saved", signatures={"train": train})
    loaded = tf.saved_model.load(tmp_path / "saved")
    x = tf.ones((4, 3))
    first = float(loaded.signatures["train"](x)["loss"])
    assert float(loaded.signatures["train"](x)["loss"]) < first


TREES = {
    "the same": (lambda: Sage(include=["a/"], name="s"), None),
    "another class": (lambda: SageAdam(name="s", include=["b/"]), "s/.*a_kernel_sensitivity"),
    "another choice": (lambda: Sage(include=["b/"], name="s"), "s/.*a_kernel_sensitivity"),
    "another name": (lambda: Sage(include=["a/"], name="t"), "s/iteration, .*"),
}


@pytest.mark.parametrize("what", TREES)
def test_a_state_tree_of_another_optimizer_is_refused(what):
    make, message = TREES[what]
    model = dense(Sage(include=["a/"], name="s"))
    model.optimizer.build(model.trainable_variables)
    state_tree = model.get_state_tree(value_format="numpy_array")
    model.compile(optimizer=make())
    model.optimizer.build(model.trainable_variables)
    expected = pytest.raises(ValueError, match=message) if message else contextlib.nullcontext()
    with expected:
        check_state_tree(model, state_tree)


def test_a_copy_has_the_settings():
    optimizer = stepped(DPSMix(stage_steps=2, seed=3))
    with pytest.warns(UserWarning, match="not the state of DPSMix"):
        twin = copy.deepcopy(optimizer)
    assert twin.get_config() == optimizer.get_config()
