"""The logger's values, against a whole training under DPS in NumPy and float64."""

import keras
import numpy as np
import pytest
import twin
import twin_dps
from mixing_jobs import inject_columns
from modes import BACKEND, to_numpy
from two_layers import BATCHES, CHEAPEST, fit, gradients, network

from sage_keras import DPSDense, DPSMix, Mixout
from sage_keras.analysis import read_dps_log
from sage_keras.callbacks import DPSLogger, SwapTrueWeights

LEARNING_RATE = 0.01
WHOLE, FIRST, SECOND = "model", "first", "second"
GROUPS = {WHOLE: [0, 1, 2, 3], FIRST: [0, 1], SECOND: [2, 3]}  # positions of the variables
COLUMNS = [(5, 1), (7,), (7, 1), (2,)]


def dense(stage_steps, **settings):
    return DPSDense(LEARNING_RATE, stage_steps=stage_steps, **settings)


class TwinTraining:
    """The network of `two_layers` under DPS, and the masks that it must select.

    Args:
        stage_steps: Integer, or one of each variable; `None` where all weights always train.
        make: The twin of a variable that is trained in part.
        columns: For each step the columns that Mix draws.
        accumulation: Integer, the batches of an update.
    """

    def __init__(self, stage_steps, make=twin_dps.Dense, columns=None, accumulation=1):
        every = [stage_steps] * 4 if isinstance(stage_steps, int) else stage_steps
        bases = [
            twin.Adam(to_numpy(weight), LEARNING_RATE, guide=False, weight_decay=0.004)
            for weight in network(dense(1)).trainable_variables
        ]
        self.twins = [
            base if steps is None else make(base, steps, drop_rate=0.3)
            for base, steps in zip(bases, every)
        ]
        self.every = every
        self.bases = bases
        self.columns = columns
        self.accumulation = accumulation

    def reports(self, epochs, batches=BATCHES):
        """Dict of step to (dict of group to values), of the steps that ended with a selection."""
        accumulated, self.masks, reports = [], [[] for _ in self.twins], {}
        self._prepare()
        for batch in [*range(batches)] * epochs:
            weights = [getattr(one, "effective", one.weight) for one in self.twins]
            accumulated.append(gradients(weights, batch, batches))
            if len(accumulated) < self.accumulation:
                continue
            for one, *parts in zip(self.twins, *accumulated):
                one.step(np.mean(parts, axis=0))
            accumulated = []
            self._prepare()
            if self._select():
                reports[self.bases[0].iterations] = {
                    name: self._values(group) for name, group in GROUPS.items()
                }
        assert all(one.gap > 1e-4 for one in self.twins if hasattr(one, "gap"))
        return reports

    def _prepare(self):
        step = self.bases[0].iterations
        for position, one in enumerate(self.twins):
            if isinstance(one, twin_dps.Mix):
                one.prepare(self.columns[step][position])
            elif isinstance(one, twin_dps.Dense):
                one.prepare()

    def _select(self):
        step = self.bases[0].iterations
        begun = [
            position
            for position, steps in enumerate(self.every)
            if steps is not None and step % (2 * steps) == steps
        ]
        for position in begun:
            self.masks[position].append(self.twins[position].mask.copy())
        return begun

    def _values(self, group):
        history = [self.masks[i] for i in group if self.every[i] is not None]
        found = {"share": np.nan, "overlap": np.nan}
        if all(len(one) >= 1 for one in history):
            last = np.concatenate([one[-1].ravel() for one in history])
            found["share"] = last.sum() / last.size
        if all(len(one) >= 2 for one in history):
            before = np.concatenate([one[-2].ravel() for one in history])
            found["overlap"] = (last & before).sum() / (last | before).sum()
        return found


def assert_equal_to_twin(log, expected, steps, unknown=(), reported_at=None):
    """To the last bit. In the steps of `unknown` the subnetwork before was never seen."""
    assert log.steps.tolist() == (reported_at or steps)
    for row, step in enumerate(steps):
        for name, series in {WHOLE: log.model, **log.groups}.items():
            wanted = dict(expected[step][name])
            if step in unknown:
                wanted["overlap"] = np.nan
            found = {key: series.values[key][row] for key in wanted}
            np.testing.assert_equal(found, wanted, err_msg=f"{name}, step {step}")


class CountedLogger(DPSLogger):
    """Counts how often it makes the host wait for the device."""

    reads = 0

    def _iterations(self):
        self.reads += 1
        return super()._iterations()


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "scaled"])
def test_values_of_dense_are_those_of_the_twin(scaled, tmp_path):
    optimizer = dense(stage_steps=3)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=16.0)
    logger = CountedLogger(tmp_path)
    history = fit(network(optimizer, **(CHEAPEST if scaled else {})), logger, epochs=3).history
    expected = TwinTraining(3).reports(epochs=3)
    log = read_dps_log(tmp_path)
    assert_equal_to_twin(log, expected, [3, 9, 15])
    assert 0 < log.model.values["overlap"][1] < 1
    assert log.model.values["cycle"].tolist() == [1, 2, 3]
    assert log.epochs.tolist() == [0, 1, 2]
    assert log.optimizers == [{"class": "DPSDense", "stage_steps": 3, "drop_rate": 0.3}]
    assert log.model.parameters == 58
    assert log.groups["second"].parameters == 16
    assert history["dps/stage"] == [1, 1, 1]
    assert history["dps/cycle"] == [1, 2, 3]
    for key in ("share", "overlap"):
        np.testing.assert_array_equal(history[f"dps/{key}"], log.model.values[key])
    assert logger.reads == 4  # where training begins, and where a selection is due


def test_values_of_mix_are_those_of_the_twin(tmp_path, monkeypatch):
    optimizer = DPSMix(LEARNING_RATE, stage_steps=2, seed=0)
    columns = inject_columns(optimizer, monkeypatch, steps=18, shapes=COLUMNS)
    logger = DPSLogger(tmp_path)
    history = fit(network(optimizer), SwapTrueWeights(), epochs=3, callbacks=[logger]).history
    expected = TwinTraining(2, twin_dps.Mix, columns).reports(epochs=3)
    log = read_dps_log(tmp_path)
    assert_equal_to_twin(log, expected, [2, 6, 10, 14, 18])
    assert (log.model.values["overlap"][1:] < 1).all()
    assert history["dps/stage"] == [2, 1, 2]
    assert history["dps/cycle"] == [2, 3, 5]


def test_gradient_accumulation(tmp_path):
    optimizer = dense(stage_steps=1, gradient_accumulation_steps=3)
    fit(network(optimizer, **CHEAPEST), DPSLogger(tmp_path), epochs=3, batches=7)
    expected = TwinTraining(1, accumulation=3).reports(epochs=3, batches=7)
    assert_equal_to_twin(read_dps_log(tmp_path), expected, [1, 3, 5, 7])


@pytest.mark.skipif(BACKEND == "torch", reason="Keras runs one step per execution on torch")
def test_an_execution_that_jumps_over_a_stage(tmp_path):
    """It looks after 3, 6, ... steps; stage II of the third cycle lasts from 10 to 12."""
    model = network(dense(stage_steps=2), steps_per_execution=3)
    history = fit(model, DPSLogger(tmp_path), epochs=3).history
    expected = TwinTraining(2).reports(epochs=3)
    log = read_dps_log(tmp_path)
    assert_equal_to_twin(log, expected, [2, 6, 14, 18], unknown=[14], reported_at=[3, 6, 15, 18])
    assert log.model.values["cycle"].tolist() == [1, 2, 4, 5]
    assert history["dps/cycle"] == [2, 3, 5]
    assert np.isnan(history["dps/share"]).tolist() == [False, True, False]


def test_resumed_training_counts_on(tmp_path):
    model = network(dense(stage_steps=4), **CHEAPEST)
    fit(model, DPSLogger(tmp_path), epochs=1)
    model.save(tmp_path / "model.keras")
    again, logger = keras.models.load_model(tmp_path / "model.keras"), DPSLogger(tmp_path)
    expected = TwinTraining(4).reports(epochs=4)
    fit(again, logger, epochs=2, initial_epoch=1)  # from stage II, to the selection after step 12
    assert_equal_to_twin(read_dps_log(tmp_path), expected, [4, 12])
    share = fit(again, logger, epochs=3, initial_epoch=2).history["dps/share"]
    assert share == [expected[12][WHOLE]["share"]]  # what it goes on with is not reported again
    fit(again, logger, epochs=4, initial_epoch=3)  # from stage I
    log = read_dps_log(tmp_path)
    assert_equal_to_twin(log, expected, [4, 12, 20], unknown=[20])
    assert log.epochs.tolist() == [0, 1, 3]


def test_multi_optimizer(tmp_path):
    """Stages of different lengths, and an optimizer that selects in none of its variables."""
    inner = {"first/kernel": dense(2), "first/bias": dense(1, exclude=["."]), "second": dense(3)}
    chosen = lambda variable: next(one for key, one in inner.items() if key in variable.path)  # noqa: E731
    model = network(keras.optimizers.MultiOptimizer(chosen), **CHEAPEST)
    logger = DPSLogger(tmp_path, groups={"first": "first", "second": "second"})
    history = fit(model, logger).history
    expected = TwinTraining([2, None, 3, 3]).reports(epochs=2)
    log = read_dps_log(tmp_path)
    assert_equal_to_twin(log, expected, [2, 3, 6, 9, 10])
    assert np.isfinite(log.model.values["share"]).tolist() == [False, True, True, True, True]
    assert log.groups["first"].parameters == 35
    assert [one["stage_steps"] for one in log.optimizers] == [2, 3]
    assert history["dps/stage"] == [2, 1]
    assert history["dps/cycle"] == [2, 3]


class Seen(keras.callbacks.Callback):
    """What a callback behind the logger finds in the logs of batches."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        if "dps/share" in logs:
            self.batches.append((batch, logs["dps/stage"], logs["dps/cycle"], logs["dps/share"]))


def test_a_model_that_is_not_built_before_training():
    """Selected after its first batch; 11 of 15, 3 of 3, 5 of 6 and 2 of 2 weights."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(2)])
    model.compile(optimizer=dense(stage_steps=1), loss="mse", **CHEAPEST)
    seen = Seen()
    fit(model, DPSLogger(), epochs=1, callbacks=[seen])
    assert seen.batches == [(0, 2, 1, 21 / 26), (2, 2, 2, 21 / 26), (4, 2, 3, 21 / 26)]


@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.AdamW,
        lambda: keras.optimizers.LossScaleOptimizer(Mixout(seed=0)),
    ],
    ids=["plain", "mixout"],
)
def test_an_optimizer_that_selects_nothing_is_refused(optimizer, tmp_path):
    with pytest.raises(ValueError, match=r"selects no subnetworks.*sage_keras\.DPSDense.*Received"):
        fit(network(optimizer()), DPSLogger(tmp_path / "log"))
    assert not (tmp_path / "log").exists()


def test_groups_are_refused_before_training_goes_on(tmp_path):
    with pytest.raises(
        ValueError, match="Argument `groups` has a pattern that matches no trainable variable"
    ):
        fit(network(dense(1)), DPSLogger(tmp_path / "log", groups={"nothing": "nowhere"}))
    assert not (tmp_path / "log").exists()
