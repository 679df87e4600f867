"""The logger's values, against a whole training in NumPy and float64, and where they go."""

import csv
import json
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from twin import TWINS
from two_layers import BATCH, BATCHES, CHEAPEST, data, fit, gradients, network, rewound

import sage_keras
from sage_keras import SageSGD, SubnetworkSelection
from sage_keras.analysis import read_dps_log, read_log
from sage_keras.callbacks import SensitivityLogger

HERE = pathlib.Path(__file__)
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NAMES = ["mean", "redundant_share", "gini", *(f"q{q:g}" for q in QUANTILES)]
SCALE_NAMES = ["scale_mean", "scale_max", *(f"scale_q{q:g}" for q in QUANTILES)]


def sage_sgd():
    return SageSGD(0.02)


def accumulating():
    return SageSGD(0.02, gradient_accumulation_steps=3)


def loss_scaled():
    return keras.optimizers.LossScaleOptimizer(SageSGD(0.02), initial_scale=16.0)


class TwinTraining:
    """The same network under the twins of `twin.py`: the values it must have at each step."""

    def __init__(self, name, learning_rate, accumulation=1, **settings):
        make = TWINS[name]
        self.parameters = [
            make(to_numpy(weight), learning_rate=learning_rate, **settings)
            for weight in network(SageSGD()).trainable_variables
        ]
        self.accumulation = accumulation

    def reports(self, epochs=2, batches=BATCHES):
        """Dict of step to (dict of group to values)."""
        accumulated, reports = [], {}
        for index in [*range(batches)] * epochs:
            weights = [one.weight for one in self.parameters]
            accumulated.append(gradients(weights, index, batches))
            if len(accumulated) == self.accumulation:
                for parameter, *parts in zip(self.parameters, *accumulated):
                    parameter.step(np.mean(parts, axis=0))
                accumulated = []
                reports[self.parameters[0].iterations] = self._report()
        return reports

    def _report(self):
        values = [
            (one.state["sensitivity"] / (1 - one.beta_3**one.iterations)).ravel()
            for one in self.parameters
        ]
        scales = [one.scale.ravel() for one in self.parameters]
        limit = 0.01 * np.concatenate(values).mean()
        groups = {"model": [0, 1, 2, 3], "first": [0, 1], "second": [2, 3]}
        return {
            name: exact_values(
                np.concatenate([values[i] for i in chosen]),
                np.concatenate([scales[i] for i in chosen]),
                limit,
            )
            for name, chosen in groups.items()
        }


def exact_values(values, scales, limit):
    ordered = np.sort(values)
    ranks = 2 * np.arange(1, len(values) + 1) - len(values) - 1
    exact = {
        "mean": values.mean(),
        "redundant_share": np.mean(values < limit),
        "gini": (ranks * ordered).sum() / (len(values) * ordered.sum()),
        "scale_mean": scales.mean(),
        "scale_max": scales.max(),
    }
    for q in QUANTILES:
        exact[f"q{q:g}"] = np.quantile(values, q, method="inverted_cdf")
        exact[f"scale_q{q:g}"] = np.quantile(scales, q, method="inverted_cdf")
    return exact


def assert_equal_to_twin(log, expected, steps, scales=True):
    assert log.steps.tolist() == steps
    for name, series in {"model": log.model, **log.groups}.items():
        for row, step in enumerate(steps):
            for key in NAMES + (SCALE_NAMES if scales else []):
                tolerance = 1 / 60 if "q" in key or key == "gini" else 2e-4
                # The first corrected scale is zero but for rounding: at most 1e-6.
                rounding = 1e-6 if step == 1 and key.startswith("scale") else 1e-7
                assert series.values[key][row] == pytest.approx(
                    expected[step][name][key], rel=tolerance, abs=rounding
                ), (name, step, key)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Sage", {"weight_decay": 0.0}),
        ("SageSGD", {"bias_correction": False, "beta_3": 0.9}),
        ("SageAdam", {"guide": False}),
    ],
)
def test_values_are_those_of_the_twin(name, settings, tmp_path):
    optimizer = getattr(sage_keras, name)(learning_rate=0.02, **settings)
    model = network(optimizer, **({} if name == "Sage" else CHEAPEST))
    fit(model, SensitivityLogger(tmp_path, update_freq="batch"))
    expected = TwinTraining(name, learning_rate=0.02, **settings).reports()
    log = read_log(tmp_path)
    assert_equal_to_twin(log, expected, list(range(1, 13)))
    assert log.epochs.tolist() == [0] * 6 + [1] * 6
    assert log.model.parameters == 58
    assert log.groups["second"].parameters == 16
    assert log.model.histogram.counts.sum(axis=1) + log.model.histogram.zeros == pytest.approx(58)
    described = {"class": name, "bias_correction": optimizer.bias_correction}
    described |= {"beta_3": optimizer.beta_3, "guide": optimizer.guide}
    assert described.items() <= log.optimizers[0].items()


@pytest.mark.parametrize(
    ("update_freq", "steps"),
    [
        ("epoch", [6, 12]),
        (4, [4, 8, 12]),
        (9, [6, 9]),  # no report in the first epoch but at its end
        (100, [6, 12]),
    ],
)
def test_update_freq(update_freq, steps, tmp_path):
    history = fit(rewound(sage_sgd), SensitivityLogger(tmp_path, update_freq, logs="all"))
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports()
    assert_equal_to_twin(read_log(tmp_path), expected, steps)
    last = [max(step for step in steps if step <= end) for end in (6, 12)]
    for key in NAMES + SCALE_NAMES:
        # A key of the epoch itself, for each epoch.
        assert history.history[f"sensitivity/{key}"] == pytest.approx(
            [expected[step]["model"][key] for step in last], rel=1 / 60
        )


def test_gradient_accumulation(tmp_path):
    """Two steps in an epoch of seven batches, and a batch without a step at its end."""
    twin = TwinTraining("SageSGD", 0.02, accumulation=3, bias_correction=False)
    expected = twin.reports(epochs=3, batches=7)
    fit(rewound(accumulating), SensitivityLogger(tmp_path / "epoch"), epochs=3, batches=7)
    assert_equal_to_twin(read_log(tmp_path / "epoch"), expected, [2, 4, 7])
    # Due after 2, 4, 6 ... batches, and then made by the next batch that makes a step.
    fit(
        rewound(accumulating),
        SensitivityLogger(tmp_path / "two", update_freq=2),
        epochs=3,
        batches=7,
    )
    assert_equal_to_twin(read_log(tmp_path / "two"), expected, [1, 2, 3, 4, 5, 6, 7])


def test_resumed_training_counts_on(tmp_path):
    model = rewound(sage_sgd, **CHEAPEST)
    fit(model, SensitivityLogger(tmp_path, update_freq=4), epochs=1)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    logger = SensitivityLogger(tmp_path, update_freq=4)
    fit(again, logger, epochs=2, initial_epoch=1)
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports(epochs=3)
    log = read_log(tmp_path)
    assert_equal_to_twin(log, expected, [4, 8, 12])
    assert log.epochs.tolist() == [0, 1, 1]
    fit(again, logger, epochs=1)
    assert_equal_to_twin(read_log(tmp_path), expected, [4, 8, 12, 16])


def test_loss_scale_optimizer(tmp_path):
    fit(rewound(loss_scaled), SensitivityLogger(tmp_path, update_freq=3))
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports()
    assert_equal_to_twin(read_log(tmp_path), expected, [3, 6, 9, 12])


def test_a_step_that_overflows_is_not_reported(tmp_path):
    """From 2^125 the scaled gradients overflow until the scale is small enough."""
    model = rewound(loss_scaled)
    model.optimizer.dynamic_scale.assign(2.0**127)
    fit(model, SensitivityLogger(tmp_path, update_freq="batch"), epochs=1)
    log = read_log(tmp_path)
    steps = int(model.optimizer.inner_optimizer.iterations)
    assert 0 < steps < BATCHES
    assert log.steps.tolist() == list(range(1, steps + 1))
    assert np.isfinite(log.model.values["scale_mean"]).all()


def test_multi_optimizer(tmp_path):
    """Each layer at its own beta_3, the second one's biases unguided."""
    inner = {
        "first": SageSGD(0.02),
        "second": SageSGD(0.02, beta_3=0.9, include=["kernel"]),
    }
    chosen = lambda variable: inner["first" if "first" in variable.path else "second"]  # noqa: E731
    model = network(keras.optimizers.MultiOptimizer(chosen), **CHEAPEST)
    fit(model, SensitivityLogger(tmp_path), epochs=1)
    log = read_log(tmp_path)
    assert [one["beta_3"] for one in log.optimizers] == [0.75, 0.9]
    assert log.groups["second"].parameters == 14

    twin = TwinTraining("SageSGD", 0.02, bias_correction=False)
    for parameter in twin.parameters[2:]:
        parameter.beta_3 = 0.9
    twin.parameters[3].step = lambda gradient, one=twin.parameters[3]: plain_step(one, gradient)
    expected = twin.reports(epochs=1)[BATCHES]["first"]
    for key in SCALE_NAMES:
        found = log.groups["first"].values[key][0]
        assert found == pytest.approx(expected[key], rel=1 / 60)
    scale = twin.parameters[2].scale
    found = log.groups["second"].values
    assert found["scale_mean"][0] == pytest.approx(scale.mean(), rel=2e-4)
    assert found["scale_max"][0] == pytest.approx(scale.max(), rel=2e-4)


def plain_step(twin, gradient):
    twin.weight = twin.weight - twin.learning_rate * gradient
    twin.iterations += 1
    twin.scale = np.ones_like(twin.weight)


@keras.saving.register_keras_serializable(package="tests")
class ThirdOfScale(SageSGD):
    """Of a scale of its own, which follows from the sensitivity and its average."""

    def _scale_of(self, value, average, step):
        return super()._scale_of(value, average, step) / 3 + 1 / step


def test_scale_values_are_what_the_optimizer_says_they_are(tmp_path):
    model = network(ThirdOfScale(0.02, guide=False), **CHEAPEST)
    fit(model, SensitivityLogger(tmp_path, update_freq=4))
    twin = TwinTraining("SageSGD", 0.02, bias_correction=False, guide=False).reports()
    scales = read_log(tmp_path).model.values["scale_mean"]
    expected = [twin[step]["model"]["scale_mean"] / 3 + 1 / step for step in (4, 8, 12)]
    assert scales == pytest.approx(expected, rel=2e-4)


class StatefulScale(SageSGD):
    def _scale(self, variable, value, average):
        return super()._scale(variable, value, average)


@pytest.mark.parametrize("reason", ["bfloat16", "steps_per_execution", "overrides `_scale`"])
def test_scale_values_are_left_out_with_one_warning(reason, tmp_path):
    if reason == "bfloat16":
        model = network(SageSGD(0.02, sensitivity_dtype="bfloat16"), **CHEAPEST)
    elif reason == "overrides `_scale`":
        model = network(StatefulScale(0.02), **CHEAPEST)
    elif BACKEND == "torch":
        pytest.skip("Keras runs one step per execution on torch")
    else:
        model = network(SageSGD(0.02), steps_per_execution=3)
    with pytest.warns(UserWarning, match=reason) as warned:
        history = fit(model, SensitivityLogger(tmp_path, update_freq=4, logs="all"))
    assert len([one for one in warned if "SensitivityLogger" in str(one.message)]) == 1
    assert sorted(one for one in history.history if "sensitivity" in one) == sorted(
        f"sensitivity/{name}" for name in NAMES
    )
    steps = [6, 9, 12] if reason == "steps_per_execution" else [4, 8, 12]
    log = read_log(tmp_path)
    assert log.steps.tolist() == steps
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports()
    means = [expected[step]["model"]["mean"] for step in steps]
    assert log.model.values["mean"] == pytest.approx(means, rel=5e-3)


def test_number_of_steps_unknown_to_keras(tmp_path):
    """A generator: which batch is the last is known afterwards only."""

    def batches():
        x, y = data()
        for start in range(0, len(x), BATCH):
            yield x[start : start + BATCH], y[start : start + BATCH]

    model = rewound(sage_sgd)
    model.fit(batches(), verbose=0, callbacks=[SensitivityLogger(tmp_path)])
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports(epochs=1)
    assert_equal_to_twin(read_log(tmp_path), expected, [6])


class StopAt(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.model.stop_training = True


def test_training_that_is_stopped_in_mid_epoch(tmp_path):
    history = fit(rewound(sage_sgd), SensitivityLogger(tmp_path), callbacks=[StopAt(2)])
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports(epochs=1)
    log = read_log(tmp_path)
    assert log.steps.tolist() == [3]
    assert log.model.values["mean"][0] == pytest.approx(expected[3]["model"]["mean"], rel=1e-4)
    assert np.isnan(log.model.values["scale_mean"]).all()
    assert np.isnan(history.history["sensitivity/scale_mean"]).all()


class Seen(keras.callbacks.Callback):
    """What a callback finds in the logs."""

    def __init__(self):
        super().__init__()
        self.batches, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.batches.append(dict(logs))

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


def test_other_callbacks_see_the_values(tmp_path, capsys):
    seen, before, file = Seen(), Seen(), tmp_path / "log.csv"
    x, y = data()
    history = rewound(sage_sgd).fit(
        x,
        y,
        batch_size=BATCH,
        epochs=2,
        shuffle=False,
        verbose=2,
        callbacks=[
            before,
            SensitivityLogger(tmp_path, update_freq=4, logs=["mean"]),
            seen,
            keras.callbacks.CSVLogger(file),
        ],
    )
    means = history.history["sensitivity/mean"]
    reported = read_log(tmp_path).model.values["mean"]  # at the steps 4, 8 and 12
    assert means == [logs["sensitivity/mean"] for logs in seen.epochs] == [*reported[[0, 2]]]
    with open(file) as rows:
        assert [float(row["sensitivity/mean"]) for row in csv.DictReader(rows)] == means
    assert f"sensitivity/mean: {means[1]:.4f}" in capsys.readouterr().out
    # Where the progress bar is drawn again and again there are none.
    without = [*before.batches, *before.epochs, *seen.batches]
    assert len(without) == 26
    assert not any("sensitivity" in name for logs in without for name in logs)


def test_two_values_are_in_the_logs_or_those_that_are_asked_for():
    shown = lambda **arguments: [  # noqa: E731
        name.removeprefix("sensitivity/")
        for name in fit(rewound(sage_sgd), SensitivityLogger(**arguments), epochs=1).history
        if "sensitivity/" in name
    ]
    assert shown() == ["scale_mean", "redundant_share"]
    assert shown(logs=["q0.5", "mean"], quantiles=[0.5]) == ["q0.5", "mean"]
    assert shown(logs=[]) == []
    assert shown(logs="all") == NAMES + SCALE_NAMES


def rows_of_a_terminal(text, columns):
    """How many rows a text fills: a backspace does not leave a row, and the next one is full."""
    rows, column = 1, 0
    for character in re.sub(r"\x1b\[[0-9;]*m", "", text):
        if character == "\n":
            rows, column = rows + 1, 0
        elif character == "\r":
            column = 0
        elif character == "\b":
            column = max(column - 1, 0)
        else:
            if column == columns:
                rows, column = rows + 1, 0
            column += 1
    return rows


def test_a_terminal_shows_as_many_rows_as_without_the_logger(capsys, monkeypatch):
    monkeypatch.setattr(keras.utils.Progbar.update, "__defaults__", (None, None))
    model = network(SageSGD(0.02), metrics=["mae"], **CHEAPEST)
    x, y = data()
    texts = []
    for loggers in ([], [SensitivityLogger(update_freq=1)]):
        model.fit(x, y, BATCH, 2, validation_data=(x, y), callbacks=loggers)
        texts.append(capsys.readouterr().out)
    without, with_logger = ([rows_of_a_terminal(text, 100)] for text in texts)
    assert with_logger == without
    longest = [max(map(len, re.split("[\r\n]", re.sub("\b", "", text)))) for text in texts]
    assert longest[0] + 40 < longest[1] <= longest[0] + 100


def test_loss_and_metrics_are_in_the_log(tmp_path):
    """At each report the mean of the epoch so far; at its end those of the validation, too."""
    seen = Seen()
    model = network(SageSGD(0.02), metrics=["mae"], **CHEAPEST)
    callbacks = [keras.callbacks.LearningRateScheduler(lambda epoch: 0.02), seen]
    validation = data()
    fit(
        model,
        SensitivityLogger(tmp_path, update_freq=4),
        callbacks=callbacks,
        validation_data=validation,
    )
    log = read_log(tmp_path)
    assert log.steps.tolist() == [4, 8, 12]
    metrics = log.metrics
    assert metrics.steps.tolist() == [4, 6, 8, 12]
    batches = [seen.batches[3], seen.batches[5], seen.batches[7], seen.batches[11]]
    for name in ("loss", "mae"):
        assert metrics.values[name].tolist() == [one[name] for one in batches]
        ends = [logs[f"val_{name}"] for logs in seen.epochs]
        found = metrics.values[f"val_{name}"]
        np.testing.assert_array_equal(found, [np.nan, ends[0], np.nan, ends[1]])
    assert metrics.values.keys() == {"loss", "mae", "val_loss", "val_mae"}
    # The end of an epoch knows the frequency too.
    with pytest.raises(ValueError, match="Go on with update_freq=4"):
        fit(model, SensitivityLogger(tmp_path, update_freq=3))


def test_what_is_no_number_among_the_metrics_stops_no_training(tmp_path):
    class Adds(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs.update(text="1", list=[1.0], huge=1e300, none=None, array=np.array(3))
            logs["sensitivity/of_another_logger"] = 1.0

    adds, logger = Adds(), SensitivityLogger(tmp_path)
    fit(rewound(sage_sgd), adds, callbacks=[logger], epochs=1)
    values = read_log(tmp_path).metrics.values
    assert values.keys() == {"loss", "huge", "array"}
    assert np.isnan(values["huge"]).all()
    assert values["array"].tolist() == [3.0]


def test_groups_of_ones_own(tmp_path):
    model = network(SageSGD(0.02, include=["kernel"]), **CHEAPEST)
    groups = {"second": "second", "biases": "bias", "all": "."}
    fit(model, SensitivityLogger(tmp_path, groups=groups, histograms=False), epochs=1)
    log = read_log(tmp_path)
    assert {name: one.parameters for name, one in log.groups.items()} == {"second": 14, "all": 49}
    assert log.model.histogram is None
    for name, values in log.model.values.items():
        np.testing.assert_array_equal(values, log.groups["all"].values[name])


def test_quantiles_of_ones_own_and_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    model = rewound(sage_sgd, **CHEAPEST)
    fit(model, SensitivityLogger(tmp_path, quantiles=[0, 1]), epochs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["sensitivity.jsonl"]
    values = read_log(tmp_path).model.values
    assert [name for name in values if "q" in name] == ["q0", "q1", "scale_q0", "scale_q1"]
    assert values["scale_q1"] == pytest.approx(values["scale_max"], rel=1 / 60)


def test_a_model_that_is_not_built_before_training(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(optimizer=SageSGD(0.02), loss="mse")
    fit(model, SensitivityLogger(tmp_path, update_freq="batch"), epochs=1)
    log = read_log(tmp_path)
    assert log.steps.tolist() == [1, 2, 3, 4, 5, 6]
    # At first beta / (1 - beta), and 1 for the biases, which are zero.
    assert log.model.values["scale_mean"][0] == pytest.approx((21 * 3 + 5 * 1) / 26, rel=1e-3)
    assert np.isfinite(log.model.values["scale_mean"]).all()


def test_a_diverged_run_is_logged_as_strict_json(tmp_path):
    model = rewound(sage_sgd)
    model.optimizer.learning_rate = 1e20
    fit(model, SensitivityLogger(tmp_path), epochs=3)
    for line in (tmp_path / "sensitivity.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert np.isnan(read_log(tmp_path).model.values["mean"][-1])


def run(code):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True)


@pytest.mark.extended
@pytest.mark.skipif(BACKEND != "torch", reason="how a log is written is the same on all backends")
def test_a_killed_run_leaves_logs_that_read_back(tmp_path):
    """Of two loggers, with every scalar and histogram. Nor did they need TensorFlow."""
    killed = run(f"""
        import os, signal, sys
        import keras, numpy as np
        from sage_keras import SageSGD, SubnetworkSelection
        from sage_keras.callbacks import DPSLogger, SensitivityLogger

        class Selecting(SubnetworkSelection, SageSGD):
            pass

        class Kill(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):
                if batch == 5:
                    print("tensorflow" in sys.modules, flush=True)
                    os.kill(os.getpid(), signal.SIGKILL)

        layers = [keras.layers.Dense(3, name="a"), keras.layers.Dense(1, name="b")]
        model = keras.Sequential([keras.Input((2,)), *layers])
        model.compile(optimizer=Selecting(0.01, stage_steps=1), loss="mse")
        folder = {str(tmp_path)!r}
        loggers = [SensitivityLogger(folder, update_freq=2), DPSLogger(folder)]
        x = np.random.normal(size=(32, 2))
        model.fit(x, x[:, :1], batch_size=4, callbacks=[*loggers, Kill()], verbose=0)
    """)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout.split() == [b"False"]
    log = read_log(tmp_path)
    assert log.steps.tolist() == [2, 4, 6]
    dps_log = read_dps_log(tmp_path)
    assert dps_log.steps.tolist() == [1, 3, 5]

    events = EventAccumulator(str(tmp_path), size_guidance={"histograms": 0})
    events.Reload()
    assert_scalars(events, "dps/{}", dps_log.steps, dps_log.model)
    assert_scalars(events, "dps_{}/a", dps_log.steps, dps_log.groups["a"])
    for tag, series in {"sensitivity/{}": log.model, "sensitivity_{}/a": log.groups["a"]}.items():
        assert_scalars(events, tag, log.steps, series)
        counts = [sum(one.histogram_value.bucket) for one in events.Histograms(tag.format("log10"))]
        assert counts == series.histogram.counts.sum(axis=1).tolist()


def assert_scalars(events, tag, steps, series):
    for name, values in series.values.items():
        scalars = events.Scalars(tag.format(name))
        assert [one.step for one in scalars] == steps.tolist()
        np.testing.assert_allclose([one.value for one in scalars], values, rtol=1e-6)


class SelectingSageSGD(SubnetworkSelection, SageSGD):
    pass


TWO_DEVICES = {
    "tensorflow": """
        import tensorflow as tf
        (cpu,) = tf.config.list_physical_devices("CPU")
        halves = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, halves)
        strategy = tf.distribute.MirroredStrategy()
        assert strategy.num_replicas_in_sync == 2
        arguments = {"jit_compile": False}  # XLA fails under MirroredStrategy, in Keras's own steps
    """,
    "jax": """
        import os
        os.environ["JAX_NUM_CPU_DEVICES"] = "2"
        import keras
        assert len(keras.distribution.list_devices()) == 2
        strategy = keras.distribution.DataParallel()
        arguments = {}
    """,
}


@pytest.mark.extended
@pytest.mark.skipif(BACKEND not in TWO_DEVICES, reason="Keras has no distribution for torch")
def test_two_devices(tmp_path):
    devices = textwrap.dedent(TWO_DEVICES[BACKEND])
    ended = run(
        f"import sys; sys.path[:0] = {[str(path) for path in HERE.parents[:2]]!r}\n"
        + devices
        + textwrap.dedent(f"""
            import test_sensitivity_logger as here
            from sage_keras.callbacks import DPSLogger
            folder = {str(tmp_path)!r}
            with strategy.scope():
                model = here.network(here.SelectingSageSGD(0.02, stage_steps=12), **arguments)
                loggers = DPSLogger(folder), here.SensitivityLogger(folder, update_freq=4)
                here.fit(model, loggers[0], callbacks=loggers[1:])
        """)
    )
    assert ended.returncode == 0, ended.stderr.decode()
    expected = TwinTraining("SageSGD", 0.02, bias_correction=False).reports()
    assert_equal_to_twin(read_log(tmp_path), expected, [4, 8, 12])
    log = read_dps_log(tmp_path)  # selected after the last step, which until then all weights made
    assert log.steps.tolist() == [12]
    assert log.model.values["share"].tolist() == [42 / 58]


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.AdamW,
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.AdamW()),
        lambda: keras.optimizers.MultiOptimizer(
            keras.optimizers.OptimizerMap(keras.optimizers.SGD())
        ),
    ],
    ids=["plain", "scaled", "multi"],
)
def test_an_optimizer_that_measures_nothing_is_refused(optimizer, tmp_path):
    with pytest.raises(ValueError, match=r"measures no sensitivity.*sage_keras\.Sage.*guide=False"):
        fit(network(optimizer()), SensitivityLogger(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_groups_are_refused_before_training_goes_on():
    with pytest.raises(
        ValueError, match="Argument `groups` has a pattern that matches no trainable variable"
    ):
        fit(rewound(sage_sgd), SensitivityLogger(groups={"nothing": "nowhere"}))
    assert int(rewound(sage_sgd).optimizer.iterations) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"update_freq": "step"}, r'`update_freq` must be "epoch", "batch" or a whole number'),
        ({"update_freq": 0}, "`update_freq`.*Received: update_freq=0"),
        ({"update_freq": True}, "`update_freq`"),
        ({"quantiles": 0.5}, "`quantiles` must be a list of numbers from 0 to 1"),
        ({"quantiles": (0.5, 1.1)}, "`quantiles`"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        SensitivityLogger(**arguments)
    with pytest.raises(TypeError, match="`histograms` must be True or False"):
        SensitivityLogger(histograms="yes")
    with pytest.raises(TypeError, match='`logs` must be a list of names, such as logs=\\["mean"'):
        SensitivityLogger(logs="mean")
    with pytest.raises(
        ValueError, match=r"names of mean, .*, scale_q1, or .*Unknown are \['q0.5'\]"
    ):
        SensitivityLogger(logs=["mean", "q0.5"], quantiles=[1])
