"""Trains, saves and loads with an installed sage_keras: what a wheel has to be able to do."""

import pathlib
import tempfile

import keras
import numpy as np

import sage_keras
from sage_keras.callbacks import SensitivityLogger

package = pathlib.Path(sage_keras.__file__).parent
assert "site-packages" in package.parts, f"not the installed package: {package}"
assert (package / "py.typed").is_file()

x = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")
y = x.sum(axis=1, keepdims=True)
rates = {"hidden": 0.5}
for optimizer in (
    sage_keras.Sage(1e-2),
    sage_keras.SageAdamax(1e-2),
    sage_keras.DPSDense(1e-2, stage_steps=4),
    sage_keras.LayerwiseAdamW(1e-2, learning_rate_multipliers=rates),
):
    hidden = keras.layers.Dense(8, activation="relu", name="hidden")
    model = keras.Sequential([keras.Input((4,)), hidden, keras.layers.Dense(1)])
    model.compile(optimizer=optimizer, loss="mse")
    guided = sage_keras.guided_optimizers(optimizer)
    callbacks = [SensitivityLogger()] if guided else []
    losses = model.fit(x, y, epochs=8, verbose=0, callbacks=callbacks).history["loss"]
    assert losses[-1] < losses[0], losses
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
    assert type(again.optimizer) is type(optimizer)
    assert int(again.optimizer.iterations) == 16
print(f"sage_keras {sage_keras.__version__} works on {keras.backend.backend()}")
