"""Every Keras optimizer that can be guided, made guided in two lines."""

import keras

from sage_keras import SensitivityGuided

register = keras.saving.register_keras_serializable(package="sage_keras_tests")

BASES = {
    "SGD": {"momentum": 0.9, "nesterov": True},
    "RMSprop": {"momentum": 0.5, "centered": True},
    "Adagrad": {},
    "Adadelta": {},
    "Adam": {"amsgrad": True},
    "AdamW": {},
    "ScheduleFreeAdamW": {"warmup_steps": 3},
    "Adamax": {},
    "Nadam": {},
    "Lion": {},
    "Lamb": {},
    "Muon": {},
}


@register
class GuidedSGD(SensitivityGuided, keras.optimizers.SGD):
    pass


@register
class GuidedRMSprop(SensitivityGuided, keras.optimizers.RMSprop):
    pass


@register
class GuidedAdagrad(SensitivityGuided, keras.optimizers.Adagrad):
    pass


@register
class GuidedAdadelta(SensitivityGuided, keras.optimizers.Adadelta):
    pass


@register
class GuidedAdam(SensitivityGuided, keras.optimizers.Adam):
    pass


@register
class GuidedAdamW(SensitivityGuided, keras.optimizers.AdamW):
    pass


@register
class GuidedScheduleFreeAdamW(SensitivityGuided, keras.optimizers.ScheduleFreeAdamW):
    pass


@register
class GuidedAdamax(SensitivityGuided, keras.optimizers.Adamax):
    pass


@register
class GuidedNadam(SensitivityGuided, keras.optimizers.Nadam):
    pass


@register
class GuidedLion(SensitivityGuided, keras.optimizers.Lion):
    pass


@register
class GuidedLamb(SensitivityGuided, keras.optimizers.Lamb):
    pass


@register
class GuidedMuon(SensitivityGuided, keras.optimizers.Muon):
    pass


def guided(name):
    return globals()[f"Guided{name}"]


def plain(name, mode="eager"):
    """The base as the guided class must behave.

    On torch Keras exchanges its classes themselves, and only those, for versions whose operations
    take all variables at once, and round otherwise. An eager step of a guided class equals these; a
    compiled one is an update a variable, as an empty subclass makes it.
    """
    base = getattr(keras.optimizers, name)
    if keras.backend.backend() != "torch" or mode == "eager":
        return base
    return type(base.__name__, (base,), {})
