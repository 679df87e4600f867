"""Logs with known values, in the form that `SensitivityLogger` writes."""

import json

from sage_keras.log.format import SENSITIVITY

EDGES = [2.0**-4, 1.5 * 2.0**-4, 2.0**-3, 1.5 * 2.0**-3, 2.0**-2]
MEAN = 0.125


def values(mean=MEAN, **others):
    return {
        "mean": mean,
        "redundant_share": 0.25,
        "gini": 0.5,
        "q0.05": 0.07,
        "q0.95": 0.2,
        "scale_mean": 0.5,
        "scale_max": 1.5,
        "scale_q0.05": 0.1,
        "scale_q0.95": 1.25,
        **others,
    }


def report(step, groups=("first", "second"), beta_3=0.75, bias_correction=True, **model):
    """A report of 20 parameters; group n has a mean of `MEAN * (n + 1) * step`."""
    settings = {"class": "Sage", "beta_3": beta_3, "bias_correction": bias_correction}
    entries = {
        name: {"parameters": 10, "values": values(mean=MEAN * (number + 1) * step)}
        for number, name in enumerate(groups)
    }
    histogram = {"zeros": 4, "counts": [2, 4, 8, 2]}
    return {
        "step": step,
        "epoch": 0,
        "optimizers": [{**settings, "guide": True}],
        "edges": EDGES,
        "model": {"parameters": 20, "values": values(**model), "histogram": histogram},
        "groups": entries,
    }


def metrics(step, epoch=0, **values):
    """The end of an epoch."""
    return {"step": step, "epoch": epoch, "metrics": values}


def write_log(folder, *reports):
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(one) + "\n" for one in reports)
    (folder / SENSITIVITY.file).write_text(lines, encoding="utf-8")
    return folder
