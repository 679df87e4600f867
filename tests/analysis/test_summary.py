"""The table of layers: its figures, and that it prints whatever the layers are called."""

import keras
import numpy as np
import pytest
from modes import to_numpy

from sage_keras import Sage, SageSGD
from sage_keras.analysis import summary


def net(optimizer=None, name="net", hidden="hidden"):
    keras.utils.set_random_seed(0)
    inner = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3, bias_initializer="ones", name=hidden)],
        name="inner",
    )
    out = keras.layers.Dense(2, bias_initializer="ones", name="out")
    model = keras.Sequential([keras.Input((4,)), inner, out], name=name)
    if optimizer is not None:
        model.compile(optimizer=optimizer, loss="mse")
    return model


def trained(optimizer):
    model = net(optimizer)
    random = np.random.default_rng(0)
    model.fit(random.normal(size=(16, 4)), random.normal(size=(16, 2)), batch_size=4, verbose=0)
    return model


def rows(*arguments, **keywords):
    """The table's rows and the lines below it, as {first cell: other cells}."""
    text = []
    assert summary(*arguments, **keywords, print_fn=text.append) is None
    assert len(text) == 1
    lines = [line.strip() for line in text[0].splitlines()]
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if "│" in line]
    below = [line.split(": ") for line in lines if ": " in line]
    return {row[0]: row[1:] for row in table} | dict(below)


SENSITIVITIES = {
    "inner/hidden/kernel": np.array([[4.0] * 3] * 3 + [[0.01] * 3]),
    "inner/hidden/bias": np.array([0.0, 0.0, 1.0]),
    "net/out/kernel": np.full((3, 2), 2.0),
}


def test_figures_of_given_sensitivities():
    table = rows(net(), SENSITIVITIES, {"out": {"scale_mean": 0.51234}, "unknown": {}})
    # The mean over 21 of the 23 parameters is (36.03 + 1 + 12) / 21 = 2.335: five are below 1 %.
    assert table == {
        "inner/hidden": ["15", "-", "2.47e+00", "33.3%", "-"],
        "out": ["8", "-", "2.00e+00", "0.0%", "0.512"],
        "Model": '"net"',
        "Trainable parameters": "23",
        "With a sensitivity": "21",
        "Mean sensitivity": "2.33e+00",
        "Redundant share": "23.8%",
    }


def test_averages_of_the_optimizer():
    optimizer = Sage(0.01, include=["kernel"])
    model = trained(optimizer)
    kernels = [model.trainable_variables[i] for i in (0, 2)]
    values = [to_numpy(optimizer.sensitivity(kernel)).astype("float64") for kernel in kernels]
    mean = np.concatenate([value.ravel() for value in values]).mean()
    table = rows(model)
    for name, count, value in zip(("inner/hidden", "out"), ("15", "8"), values):
        share = np.mean(value < 0.01 * mean)
        assert table[name] == [count, "1 of 2", f"{value.mean():.2e}", f"{share:.1%}", "-"]
    assert table["With a sensitivity"] == "18"
    assert table["Mean sensitivity"] == f"{mean:.2e}"


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        (lambda: Sage(0.01), ["guided", "guided"]),
        (lambda: Sage(0.01, guide=False), ["watched", "watched"]),
        (lambda: Sage(0.01, exclude=["out", "bias"]), ["1 of 2", "plain"]),
        (lambda: keras.optimizers.LossScaleOptimizer(Sage(0.01)), ["guided", "guided"]),
    ],
)
def test_what_is_guided(optimizer, states):
    table = rows(trained(optimizer()))
    assert [table[layer][1] for layer in ("inner/hidden", "out")] == states


def test_multi_optimizer():
    inner = {"hidden": Sage(0.01), "out": SageSGD(0.01, guide=False)}
    chosen = lambda variable: inner["hidden" if "hidden" in variable.path else "out"]  # noqa: E731
    table = rows(trained(keras.optimizers.MultiOptimizer(chosen)))
    assert [table[layer][1] for layer in ("inner/hidden", "out")] == ["guided", "watched"]
    assert table["With a sensitivity"] == "23"


def test_states_of_other_models():
    assert rows(net("adam"), SENSITIVITIES)["out"][1] == "plain"
    assert rows(net(Sage()), SENSITIVITIES)["out"][1] == "-"  # not built yet
    assert rows(net(), SENSITIVITIES)["out"][1] == "-"  # not compiled


def test_not_a_number_is_shown():
    table = rows(net(), SENSITIVITIES | {"net/out/kernel": np.full((3, 2), np.nan)})
    assert table["out"][2] == "nan"
    assert table["Redundant share"] == "nan%"


def test_names_are_not_read_as_markup(capsys):
    model = net(name="a[red]b", hidden="[bold]x")
    scores = {"inner/[bold]x/bias": np.ones(3)}
    assert rows(model, scores)["inner/[bold]x"][0] == "15"
    summary(model, scores)
    shown = capsys.readouterr().out
    assert 'Model: "a[red]b"' in shown
    assert "inner/[bold]x" in shown


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (lambda: net("adam"), {}, "no sensitivity-guided optimizer.*Pass `sensitivities`"),
        (net, {}, "no sensitivity-guided optimizer"),
        (lambda: net(Sage()), {}, "has not made a step"),
        (net, {"sensitivities": {"net/other": np.ones(2)}}, "'net/other'.*'net/out/bias'"),
        (net, {"sensitivities": {"net/out/bias": np.ones(3)}}, r"\(3,\).*net/out/bias.*\(2,\)"),
        (net, {"sensitivities": {}}, "`sensitivities`.*without entries"),
    ],
)
def test_refuses(make, arguments, message):
    with pytest.raises(ValueError, match=message):
        summary(make(), **arguments)


@pytest.mark.parametrize(("value", "share"), [(0.007, "25.0%"), (0.008, "0.0%")])
def test_redundant_is_what_is_under_a_hundredth_of_the_mean(value, share):
    dense = keras.layers.Dense(2, use_bias=False, name="dense")
    model = keras.Sequential([keras.Input((2,)), dense], name="tiny")
    found = rows(model, {"tiny/dense/kernel": [[1.0, 1.0], [1.0, value]]})
    assert found["Redundant share"] == share
