"""The arguments of the optimizers: those of the Keras optimizer first, then their own."""

import inspect

import keras
import pytest

import sage_keras

pytestmark = pytest.mark.backend_agnostic

OWN = ["include", "exclude", "on_nonfinite"]
GUIDED = ["beta_3", "sensitivity_epsilon", "bias_correction", "sensitivity_dtype", "calibrate"]
STAGES = ["total_steps", "update_ratio", "stage_steps", "drop_rate"]
PRUNED = ["final_sparsity", "score", "total_steps", "begin", "end", "begin_step", "end_step"]
PRUNED += ["update_freq", "scope", "pattern", "beta_3", "beta_4", "sensitivity_dtype", "seed"]
SPARSE = ["fraction", "scores", "scope", "rest", "selection_steps", "seed"]
# Where a class has another default than its mixin.
OWN_DEFAULTS = {"bias_correction", "beta_3", "score"}
CASES = {
    sage_keras.Sage: ("AdamW", [*GUIDED, "guide", *OWN]),
    sage_keras.SageAdam: ("Adam", [*GUIDED, "guide", *OWN]),
    sage_keras.SageAdamax: ("Adamax", [*GUIDED, "guide", *OWN]),
    sage_keras.SageSGD: ("SGD", [*GUIDED, "guide", *OWN]),
    sage_keras.DPSDense: ("AdamW", [*STAGES, *OWN]),
    sage_keras.DPSMix: ("AdamW", [*STAGES, "seed", *OWN]),
    sage_keras.Mixout: ("AdamW", ["drop_rate", "seed", *OWN]),
    sage_keras.Platon: ("AdamW", [*PRUNED, *OWN]),
    sage_keras.PrunedAdamW: ("AdamW", [*PRUNED, *OWN]),
    sage_keras.SparseAdamW: ("AdamW", [*SPARSE, *OWN]),
    sage_keras.ChildTuningAdamW: ("AdamW", ["mode", "fraction", "scores", "seed", *OWN]),
    sage_keras.LayerwiseSage: ("AdamW", [*GUIDED, "guide", "learning_rate_multipliers", *OWN]),
    sage_keras.LayerwiseAdamW: ("AdamW", ["learning_rate_multipliers", "on_nonfinite"]),
}


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_the_arguments_of_keras_come_first_with_its_defaults(cls):
    name, own = CASES[cls]
    keras_parameters = list(inspect.signature(getattr(keras.optimizers, name)).parameters.values())
    *parameters, kwargs = inspect.signature(cls).parameters.values()
    assert kwargs.kind is kwargs.VAR_KEYWORD
    positional = [one for one in parameters if one.kind is one.POSITIONAL_OR_KEYWORD]
    # Keras's own end in **kwargs too.
    assert [(one.name, one.default) for one in positional] == [
        (one.name, one.default) for one in keras_parameters[:-1]
    ]
    keywords = [one for one in parameters if one.kind is one.KEYWORD_ONLY]
    assert {one.name for one in keywords} == set(own)
    assert all(one.annotation is not one.empty for one in parameters)


@pytest.mark.parametrize("cls", CASES, ids=lambda cls: cls.__name__)
def test_each_argument_has_the_default_of_the_mixin(cls):
    parameters = inspect.signature(cls).parameters
    assert parameters["on_nonfinite"].default == "propagate"
    for mixin in cls.__mro__[1:]:
        for name, one in inspect.signature(vars(mixin).get("__init__", len)).parameters.items():
            if name in CASES[cls][1] and name not in OWN_DEFAULTS:
                assert parameters[name].default == one.default, name


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("lr", "learning_rate"),
        ("learn_rate", "learning_rate"),
        ("beta3", "beta_3"),
        ("beta0", "beta_3"),
        ("weightdecay", "weight_decay"),
        ("eps", "epsilon"),
        ("accumulation_steps", "gradient_accumulation_steps"),
    ],
)
def test_a_misspelled_argument_is_answered_with_the_right_one(wrong, right):
    with pytest.raises(ValueError, match=f"^`Sage` has no argument `{wrong}`. .*`{right}`\\?$"):
        sage_keras.Sage(**{wrong: 0.1})


def test_defaults_that_are_those_of_a_class():
    parameters = {cls.__name__: inspect.signature(cls).parameters for cls in CASES}
    assert parameters["Platon"]["score"].default == "confidence"
    assert parameters["PrunedAdamW"]["score"].default == "magnitude"
    assert parameters["Platon"]["beta_3"].default == 0.85
    for name in ("Sage", "LayerwiseSage"):
        assert parameters[name]["beta_3"].default == 0.75
        assert parameters[name]["bias_correction"].default is True
    assert parameters["SageAdamax"]["bias_correction"].default is False


def test_an_unknown_argument_is_answered_with_a_list():
    with pytest.raises(ValueError, match="`Mixout` has no argument `zzz`"):
        sage_keras.Mixout(zzz=1)


def test_an_argument_that_keras_has_given_up_is_warned_of_by_keras():
    with pytest.warns(UserWarning, match="`decay` is no longer supported"):
        sage_keras.Sage(decay=0.1)
