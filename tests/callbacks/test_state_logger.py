"""Both loggers in loops of one's own, on other optimizers, and in one `fit` after another."""

import gc
import weakref

import keras
import numpy as np
import pytest
from modes import BACKEND, to_numpy
from two_layers import BATCH, CHEAPEST, data, fit, network, rewound

from sage_keras import SageSGD, SubnetworkSelection
from sage_keras.analysis import read_dps_log, read_log
from sage_keras.backend import compiled
from sage_keras.callbacks import DPSLogger, SensitivityLogger, dps_logger, sensitivity_values

LOGGERS = pytest.mark.parametrize("make_logger", [SensitivityLogger, DPSLogger])


class Selecting(SubnetworkSelection, SageSGD):
    pass


def selecting():
    return Selecting(0.02, stage_steps=2)


def eager_model():
    """What these tests are about does not depend on how the model's own step is compiled."""
    return rewound(selecting, **CHEAPEST)


def batches():
    x, y = data()
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


def test_a_loop_of_ones_own_reports_what_fit_does(tmp_path):
    model = eager_model()
    expected = fit(
        model,
        SensitivityLogger(tmp_path / "fit", update_freq=2),
        epochs=1,
        callbacks=[DPSLogger(tmp_path / "fit")],
    ).history

    loggers = [SensitivityLogger(tmp_path / "loop", update_freq=2), DPSLogger(tmp_path / "loop")]
    eager_model()
    callbacks = keras.callbacks.CallbackList(loggers, model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    for number, (x, y) in enumerate(batches()):
        callbacks.on_train_batch_begin(number)
        model.train_on_batch(x, y)
        callbacks.on_train_batch_end(number)
    callbacks.on_epoch_end(0)
    logs = {}
    for logger in loggers:
        logger.on_epoch_end(0, logs)
    callbacks.on_train_end()

    for read, steps in {read_log: [2, 4, 6], read_dps_log: [2, 6]}.items():
        found, wanted = read(tmp_path / "loop"), read(tmp_path / "fit")
        assert found.steps.tolist() == wanted.steps.tolist() == steps
        for name, values in wanted.model.values.items():
            np.testing.assert_allclose(found.model.values[name], values, rtol=1e-5, err_msg=name)
    assert logs.keys() == {name for name in expected if "/" in name}


@LOGGERS
def test_a_loop_that_tells_of_epochs_only(make_logger):
    model, logger = eager_model(), make_logger()
    logger.set_model(model)
    logger.on_train_begin()
    for x, y in batches():
        model.train_on_batch(x, y)
        logger.on_train_batch_end(0)
    logs = {}
    logger.on_epoch_end(0, logs)
    if make_logger is SensitivityLogger:
        assert logs["sensitivity/redundant_share"] >= 0
        assert np.isnan(logs["sensitivity/scale_mean"])  # nobody said when a step begins
    else:
        assert logs["dps/cycle"] == 2


@LOGGERS
def test_an_epoch_without_batches(make_logger, tmp_path):
    """Of a model that is not built: there is nothing to report on."""
    model = keras.Sequential([keras.layers.Dense(3)])
    model.compile(optimizer=selecting(), loss="mse")
    logger, logs = make_logger(tmp_path), {"loss": 1.0}
    logger.set_model(model)
    logger.set_params({"steps": 0})
    logger.on_train_begin()
    logger.on_epoch_begin(0)
    logger.on_epoch_end(0, logs)
    logger.on_train_end()
    assert logs == {"loss": 1.0}
    assert {path.read_bytes() for path in tmp_path.glob("*.jsonl")} == {b""}


class Adversaries(keras.Model):
    """Two networks, each with an optimizer of its own."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name="g")])
        self.discriminator = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="d")])
        self.g_optimizer = keras.optimizers.SGD(0.1)
        self.d_optimizer = Selecting(0.1, stage_steps=1, drop_rate=0.5)


def test_an_optimizer_that_is_an_attribute_of_the_model(tmp_path):
    model = Adversaries()
    loggers = [
        SensitivityLogger(tmp_path, "batch", optimizer="d_optimizer"),
        DPSLogger(tmp_path, optimizer="d_optimizer"),
    ]
    callbacks = keras.callbacks.CallbackList(loggers, model=model)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    variables = model.discriminator.trainable_variables
    weights = [to_numpy(one) for one in variables]
    gradients = [np.full(one.shape, 0.5, "float32") for one in weights]
    callbacks.on_train_batch_begin(0)
    model.d_optimizer.apply([keras.ops.convert_to_tensor(one) for one in gradients], variables)
    callbacks.on_train_batch_end(0, {})

    log = read_log(tmp_path)
    exact = np.concatenate([np.abs(one * 0.5).ravel() for one in weights]).mean()
    assert log.model.values["mean"] == pytest.approx([exact], rel=1e-5)
    assert [name.split("/")[-1] for name in log.groups] == ["d"]
    assert read_dps_log(tmp_path).steps.tolist() == [1]


@LOGGERS
def test_what_holds_no_optimizer_is_refused(make_logger):
    logger = make_logger(optimizer="discriminator.optimiser")
    logger.set_model(eager_model())
    with pytest.raises(ValueError, match=r"`optimizer` must be the name .*'discriminator\.optimi"):
        logger.on_train_begin()
    with pytest.raises(TypeError, match="`optimizer` must be None or a string"):
        make_logger(optimizer=SageSGD())


@LOGGERS
def test_what_no_log_can_hold_is_refused_before_training(make_logger, tmp_path):
    model = eager_model()
    with pytest.raises(ValueError, match="`log_dir` must be a folder of a file system"):
        make_logger("gs://bucket/run")
    for groups, error in [
        (lambda variable: ("a", variable.path), TypeError),
        (lambda variable: "\ud800", ValueError),
        (lambda variable: None, ValueError),
    ]:
        with pytest.raises(error, match="Argument `groups`"):
            fit(model, make_logger(tmp_path / "log", groups=groups))
    assert not (tmp_path / "log").exists()
    assert int(model.optimizer.iterations) == 0


@LOGGERS
def test_groups_that_leave_out_what_the_optimizer_acts_on(make_logger):
    model = network(Selecting(0.02, stage_steps=2, include=["kernel"]))
    model.optimizer.build(model.trainable_variables)
    logger = make_logger(groups={"biases": "bias"})
    logger.set_model(model)
    with pytest.raises(ValueError, match=r"`groups` leaves out all .*\n.*first/kernel"):
        logger.on_train_begin()


def test_a_log_of_another_frequency_is_not_continued(tmp_path):
    for update_freq, fits in {3: True, 2: False}.items():
        logger = SensitivityLogger(tmp_path, update_freq=update_freq)
        logger.set_model(eager_model())
        if fits:
            fit(eager_model(), logger, epochs=1)
            continue
        with pytest.raises(ValueError, match=r"Go on with update_freq=3.*Received: update_freq=2"):
            logger.on_train_begin()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only TensorFlow checks every operation")
def test_the_model_says_whether_xla_compiles(tmp_path):
    import tensorflow as tf

    model = network(selecting(), jit_compile=False)
    tf.debugging.enable_check_numerics()  # XLA knows no such operation
    try:
        fit(
            model, SensitivityLogger(tmp_path), callbacks=[DPSLogger(tmp_path)], epochs=1, batches=2
        )
    finally:
        tf.debugging.disable_check_numerics()
    assert read_log(tmp_path).steps.tolist() == [2]
    assert read_dps_log(tmp_path).steps.tolist() == [2]


def test_compiled_once_for_a_model_and_its_optimizer(monkeypatch):
    """Python runs a compiled function when it is traced, and at each call on torch."""
    compilations, traces = [], []

    def counting(function, xla=True):
        compilations.append(function)

        def traced(*arguments):
            traces.append(function)
            return function(*arguments)

        return compiled(traced, xla)

    monkeypatch.setattr(sensitivity_values, "compiled", counting)
    monkeypatch.setattr(dps_logger, "compiled", counting)
    model = network(selecting(), **CHEAPEST)  # what the logger compiles does count
    reused = [SensitivityLogger(), DPSLogger()]
    for loggers in (reused, reused, [SensitivityLogger(), DPSLogger()]):
        fit(model, loggers[0], callbacks=loggers[1:], epochs=1, batches=2)
    assert len(compilations) == 3  # samples, values and counts
    if BACKEND != "torch":
        assert len(traces) == 3
    fit(model, SensitivityLogger(quantiles=[0.5]), epochs=1, batches=1)
    assert len(compilations) == 5


def test_what_was_compiled_goes_with_the_model():
    model = network(selecting(), **CHEAPEST)
    model.optimizer.build(model.trainable_variables)
    for quantile in (0.25, 0.5):
        logger = SensitivityLogger(quantiles=[quantile])
        logger.set_model(model)
        logger.on_train_begin()
        logger.on_train_batch_begin(0)
        logger.on_epoch_end(0)
    table = weakref.ref(logger._values._table)
    of_model = weakref.ref(model)
    del logger
    gc.collect()
    assert table() is not None
    model.compile(optimizer=selecting(), **CHEAPEST)  # the next logger finds the optimizer gone
    model.optimizer.build(model.trainable_variables)
    gc.collect()
    logger = SensitivityLogger()
    logger.set_model(model)
    logger.on_train_begin()
    gc.collect()
    assert table() is None
    table = weakref.ref(logger._values._table)
    del model, logger
    gc.collect()
    gc.collect()  # of what the model alone held
    assert of_model() is None
    assert table() is None


def test_subnetworks_that_are_empty(tmp_path, monkeypatch):
    """As scores select that are not numbers: nothing, and nothing is like nothing."""
    nothing = lambda self, variable: keras.ops.zeros(variable.shape, "bool")  # noqa: E731
    monkeypatch.setattr(Selecting, "subnetwork", nothing)
    history = fit(eager_model(), DPSLogger(tmp_path), epochs=1).history
    log = read_dps_log(tmp_path)
    assert log.steps.tolist() == [2, 6]
    assert log.model.values["share"].tolist() == [0, 0]
    assert np.isnan(log.model.values["overlap"]).all()
    assert np.isnan(history["dps/overlap"]).all()
