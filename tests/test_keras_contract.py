"""The private names of Keras that the mixin leans on.

Each is the only way to its purpose. When Keras changes one, this file says which, and where to
look, before anything else fails in a stranger way.
"""

import inspect

import keras
import pytest
from modes import BACKEND

from sage_keras import Sage


@pytest.mark.parametrize(
    "name",
    [
        "_get_variable_index",  # guided.py: the slot of a variable
        "_var_key",  # guided.py: whether a variable is known
        "_trainable_variables_indices",
        "_filter_empty_gradients",  # guided.py: dense gradients before scaling and clipping
        "_overwrite_variable_with_gradient",  # mixin.py: variables without a slot
        "_model_variables_moving_average",  # gradual.py: the averages are masked too
        "_trainable_variables",  # guided.py: names of slots; prune_neurons.py: which is whose
        "_apply_weight_decay",  # layerwise.py: the decay at the rates of the layers
        "_use_weight_decay",
        "_get_current_learning_rate",
        "_track_variable",  # fine_tuning.py: vectors of chosen weights, at paths of their own
    ],
)
def test_optimizers_still_have(name):
    optimizer = keras.optimizers.AdamW(use_ema=True)
    optimizer.build([keras.Variable([1.0])])
    assert hasattr(optimizer, name), f"keras.optimizers.Optimizer lost `{name}`"


@pytest.mark.skipif(BACKEND != "torch", reason="only torch takes all variables at once")
@pytest.mark.parametrize(
    ("name", "slots"),
    {
        "Adadelta": ["_accumulated_grads", "_accumulated_delta_vars"],
        "Adagrad": ["_accumulators"],
        "Adam": ["_momentums", "_velocities", "_velocity_hats"],
        "AdamW": ["_momentums", "_velocities", "_velocity_hats"],
        "Adamax": ["_m", "_u"],
        "Lion": ["_momentums"],
        "Nadam": ["_momentums", "_velocities", "_u_product"],
        "RMSprop": ["_velocities", "_momentums", "_average_gradients"],
        "SGD": ["momentums"],
    }.items(),
)
def test_optimizers_still_have_what_their_rules_on_lists_need(name, slots):
    """foreach.py: the slots, and that these classes have rules on lists in Keras too."""
    options = {"Adam": {"amsgrad": True}, "AdamW": {"amsgrad": True}, "SGD": {"momentum": 0.9}}
    options["RMSprop"] = {"momentum": 0.9, "centered": True}
    optimizer = getattr(keras.optimizers, name)(**options.get(name, {}))
    optimizer.build([keras.Variable([1.0])])
    assert all(getattr(optimizer, slot) is not None for slot in slots)
    assert hasattr(optimizer, "_parallel_update_step")


def test_updates_still_go_through_one_call_for_all_variables():
    """base.py: where they are made at once."""
    parameters = inspect.signature(keras.optimizers.AdamW._backend_update_step).parameters
    assert list(parameters) == ["self", "grads", "trainable_variables", "learning_rate"]


def test_filter_empty_gradients_is_called_with_gradients_and_variables():
    parameters = list(inspect.signature(keras.optimizers.AdamW._filter_empty_gradients).parameters)
    assert parameters == ["self", "grads", "vars"]


def test_add_variable_takes_dtype_and_layout():
    parameters = inspect.signature(keras.optimizers.AdamW.add_variable).parameters
    assert {"shape", "dtype", "layout", "name"} <= set(parameters)


def test_a_name_scope_still_overrides_those_around_it():
    """fine_tuning.py: a vector of chosen weights is at the path of its variable."""
    with keras.name_scope("optimizer"), keras.name_scope("layer", override_parent="model"):
        assert keras.Variable([1.0], name="kernel").path == "model/layer/kernel"
    with keras.name_scope("optimizer"), keras.name_scope("", override_parent=""):
        assert keras.Variable([1.0], name="weight").path.strip("/") == "weight"


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX shards by layout")
def test_jax_variables_still_have_a_layout():
    assert hasattr(keras.Variable([1.0]), "_layout")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow places slots by strategy")
def test_tensorflow_optimizers_still_have_a_strategy():
    assert hasattr(keras.optimizers.AdamW()._distribution_strategy.extended, "colocate_vars_with")


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has strategies")
def test_tensorflow_still_tells_what_its_strategies_support():
    """distribution.py: where accumulation and overwriting by averages do not work."""
    import tensorflow as tf

    supports = tf.__internal__.distribute.strategy_supports_no_merge_call
    assert supports()
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        assert not supports()


def test_variables_still_have_the_value_that_may_be_missing():
    """mixing.py: JAX takes it away during `fit`, and a failing step does not bring it back."""
    assert keras.Variable([1.0])._value is not None


def test_models_still_have_the_epoch_at_which_fit_begins():
    """examples/resume_training.py: `BackupAndRestore` sets it, and so does the class on top."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    assert model._initial_epoch is None


def test_seed_generators_still_have_a_state_that_next_returns():
    """mixing.py: the seed of a step."""
    generator = keras.random.SeedGenerator(3)
    state = keras.ops.convert_to_numpy(generator.state)
    assert state.tolist() == [3, 0]
    assert keras.ops.convert_to_numpy(generator.next()).tolist() == [3, 0]


def test_update_step_gets_one_gradient_one_variable_and_the_learning_rate():
    seen = []

    class Spy(Sage):
        def update_step(self, gradient, variable, learning_rate):
            seen.append((tuple(gradient.shape), tuple(variable.shape), float(learning_rate)))

    Spy(learning_rate=0.5).apply([keras.ops.ones((2, 3))], [keras.Variable(keras.ops.ones((2, 3)))])
    assert seen == [((2, 3), (2, 3), 0.5)]


def test_safe_mode_can_be_asked_for():
    """hub.py: a file must not run a module unless it is trusted."""
    from keras.src.saving.serialization_lib import SafeModeScope, in_safe_mode

    assert not in_safe_mode()
    with SafeModeScope(True):
        assert in_safe_mode()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow has such variables")
def test_variables_made_of_a_tensorflow_variable_share_it():
    """hub.py: a module's functions read what the optimizer writes."""
    import tensorflow as tf

    value = tf.Variable([1.0])
    assert keras.Variable(value, dtype=value.dtype).value is value


def test_models_still_list_all_their_layers():
    """layerwise/decay.py: the layers whose names Keras made up, nested ones included.

    compression/: the layers of keras-hub's blocks, and those inside of one layer alone.
    """
    inner = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="inner")])
    model = keras.Sequential([keras.Input((1,)), inner])
    assert "inner" in {layer.name for layer in model._flatten_layers(include_self=False)}
    direct = model._flatten_layers(include_self=False, recursive=False)
    assert inner in direct
    assert "inner" not in {layer.name for layer in direct}


@pytest.mark.skipif(BACKEND != "jax", reason="only JAX keeps the values out of the variables")
def test_jax_models_still_give_back_their_state():
    """backend.py: for callbacks that change weights in the middle of `fit`."""
    assert callable(keras.Model.jax_state_sync)


def test_saved_functional_models_still_say_who_reads_what():
    """compression/chains.py: the form of a saved file, in which the nodes are public."""
    inputs = keras.Input((1,), name="inputs")
    outputs = keras.layers.Dense(1, name="dense")(inputs)
    config = keras.Model(inputs, [outputs, outputs]).get_config()
    [node] = config["layers"][1]["inbound_nodes"]
    assert node["args"][0]["class_name"] == "__keras_tensor__"
    assert node["args"][0]["config"]["keras_history"] == ["inputs", 0, 0]
    assert config["output_layers"] == [["dense", 0, 0], ["dense", 0, 0]]
