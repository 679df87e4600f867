"""The optimizers, and their modes that add work, that `benchmarks.accelerators` looks at."""

from benchmarks.steps import BFLOAT16, LEARNING_RATE, STAGE_STEPS

_DECAY = {"weight_decay": 0.01}
_CLIPPED = {"global_clipnorm": 1.0}
_ACCUMULATED = {"gradient_accumulation_steps": 2}
_AVERAGED = {"use_ema": True}
_SKIPPED = {"on_nonfinite": "skip"}
_RATES = {"[02468]$": 0.5}  # every second variable, by the names that `variables` gives
CALIBRATED = "Sage calibrate"
# By name: the base that it is compared to, the class, and its arguments.
OPTIMIZERS = {
    "AdamW": (None, "AdamW", _DECAY),
    "Sage": ("AdamW", "Sage", _DECAY),
    BFLOAT16: ("AdamW", "Sage", _DECAY | {"sensitivity_dtype": "bfloat16"}),
    CALIBRATED: ("AdamW", "Sage", _DECAY | {"calibrate": True}),
    "Sage skip": ("AdamW", "Sage", _DECAY | _SKIPPED),
    "LayerwiseAdamW": ("AdamW", "LayerwiseAdamW", _DECAY | {"learning_rate_multipliers": _RATES}),
    "DPSDense": ("AdamW", "DPSDense", _DECAY | {"stage_steps": STAGE_STEPS}),
    "Mixout": ("AdamW", "Mixout", _DECAY | {"seed": 0}),
    "DPSMix": ("AdamW", "DPSMix", _DECAY | {"stage_steps": STAGE_STEPS, "seed": 0}),
    "AdamW clipped": (None, "AdamW", _DECAY | _CLIPPED),
    "Sage clipped": ("AdamW clipped", "Sage", _DECAY | _CLIPPED),
    "Sage clipped, skip": ("AdamW clipped", "Sage", _DECAY | _CLIPPED | _SKIPPED),
    "AdamW accumulated": (None, "AdamW", _DECAY | _ACCUMULATED),
    "Sage accumulated": ("AdamW accumulated", "Sage", _DECAY | _ACCUMULATED),
    "AdamW EMA": (None, "AdamW", _DECAY | _AVERAGED),
    "Sage EMA": ("AdamW EMA", "Sage", _DECAY | _AVERAGED),
    "Adam": (None, "Adam", {}),
    "SageAdam": ("Adam", "SageAdam", {}),
    "Adamax": (None, "Adamax", {}),
    "SageAdamax": ("Adamax", "SageAdamax", {}),
    "SGD": (None, "SGD", {}),
    "SageSGD": ("SGD", "SageSGD", {}),
}


def make(name):
    """A Keras or sage_keras optimizer by its name in `OPTIMIZERS`."""
    import keras

    import sage_keras

    _, kind, arguments = OPTIMIZERS[name]
    package = sage_keras if hasattr(sage_keras, kind) else keras.optimizers
    return getattr(package, kind)(learning_rate=LEARNING_RATE, **arguments)


def variables(arrays):
    """Variables with these values, of which the names end with their places."""
    import keras

    return [keras.Variable(one, name=f"weight_{place}") for place, one in enumerate(arrays)]
