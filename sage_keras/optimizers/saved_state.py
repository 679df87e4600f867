"""A description that travels with an optimizer's saved state, and is compared when it is loaded.

Keras saves the variables of an optimizer by position, without names. What the positions mean
depends on the class and on arguments such as `include`; the description says so.
"""

import json

import keras
import numpy as np

FORMAT = 1
KEY = "format"  # beside "0", "1", ..., the variables

# The arguments, of any optimizer, that decide which variables there are.
_SETTINGS = (
    "include",
    "exclude",
    "learning_rate_multipliers",
    "sensitivity_dtype",
    "calibrate",
    "on_nonfinite",
    "amsgrad",
    "centered",
    "momentum",
    "use_ema",
    "gradient_accumulation_steps",
)


def describe(optimizer):
    """The description of an optimizer's state, as a dict that JSON can hold."""
    config = optimizer.get_config()
    return {
        "format": FORMAT,
        "optimizer": type(optimizer).__name__,
        "settings": {name: config[name] for name in _SETTINGS if name in config},
        "variables": [[list(one.shape), one.dtype] for one in optimizer.variables],
    }


def write(store, description):
    """Puts a description into the store of a saved state."""
    store[KEY] = np.frombuffer(json.dumps(description).encode(), dtype="uint8")


def read(store):
    """The description in the store of a saved state, or None where another optimizer saved it.

    Raises:
        ValueError: If it is of a newer format.
    """
    if KEY not in list(store.keys()):
        return None
    return parse(np.array(store[KEY], dtype="uint8").tobytes())


def parse(text):
    """A description out of JSON.

    Raises:
        ValueError: If it is of a newer format.
    """
    description = json.loads(text)
    if description["format"] > FORMAT:
        raise ValueError(
            f"The optimizer's state was saved in format {description['format']}, by a newer "
            f"version of sage_keras: this one reads formats up to {FORMAT}. Install that "
            "version. To load the model's weights alone, load them before `model.compile`, or the "
            "model with `compile=False`."
        )
    return description


def differences(saved, present):
    """What distinguishes two descriptions, as a list of sentences."""
    found = []
    if saved["optimizer"] != present["optimizer"]:
        found.append(f"It was saved by {saved['optimizer']}, this is {present['optimizer']}.")
    for name in _SETTINGS:
        one, other = (entry["settings"].get(name) for entry in (saved, present))
        if (one or None) != (other or None):  # an older state may lack what is off
            found.append(f"It was saved with {name}={one!r}, here {name}={other!r}.")
    return found


def check(saved, optimizer):
    """Refuses a saved state whose variables are not those of the optimizer.

    Args:
        saved: A description.
        optimizer: The optimizer, built.

    Raises:
        ValueError: If their number, a shape or a dtype differs.
    """
    present = describe(optimizer)
    pairs = zip(saved["variables"], present["variables"])
    if len(saved["variables"]) != len(present["variables"]):
        fault = (
            f"has {len(saved['variables'])} variables, this optimizer ({optimizer!r}) has "
            f"{len(present['variables'])}"
        )
    elif unlike := [index for index, (one, other) in enumerate(pairs) if one != other]:
        (shape, dtype), path = saved["variables"][unlike[0]], optimizer.variables[unlike[0]].path
        fault = (
            f"has a {dtype} variable of shape {tuple(shape)} where this optimizer ({optimizer!r}) "
            f"has {path}, {' of shape '.join(_words(present['variables'][unlike[0]]))}"
        )
    else:
        return
    raise ValueError(
        " ".join(
            [
                f"The saved state {fault}.",
                *differences(saved, present),
                f"Create {type(optimizer).__name__} as it was when its state was saved, with the "
                "same variables to train. To load the model's weights alone, load them before the "
                "optimizer is built, or the model with `compile=False`.",
            ]
        )
    )


def checkpoint_state(optimizer):
    """An object that makes `tf.train.Checkpoint` compare descriptions too, or None elsewhere.

    It matches variables by position like Keras, but leaves what does not fit as it is, in silence.
    """
    if keras.backend.backend() != "tensorflow":
        return None
    import tensorflow as tf

    class Description(tf.train.experimental.PythonState):
        def serialize(self):
            return json.dumps(describe(optimizer))

        def deserialize(self, text):
            check(parse(text), optimizer)

    return Description()


def _words(variable):
    shape, dtype = variable
    return dtype, str(tuple(shape))
