"""The example as a whole job on a tiny encoder: what it trains, cuts, times and saves."""

import re

import keras
import shrink_encoder
import tensorflow as tf
from example_runs import parse_table, run_here, whole_job
from matplotlib.image import imread

pytestmark = whole_job("torch")


def test_whole_job_on_a_tiny_encoder(tmp_path, tiny_text, capsys):
    arguments = ["--train-size", "96", "--validation-size", "32", "--sequence-length", "8"]
    arguments += ["--epochs", "4", "--batch-size", "8", "--learning-rate", "0.01"]
    arguments += ["--timings", "1", "--timed-length", "8", "--fraction", "0.75"]
    output = run_here(tiny_text(shrink_encoder), capsys, tmp_path, *arguments)

    table = parse_table(output, column="parameters")
    assert list(table) == ["dense", "compact"]
    assert all(float(row["accuracy"]) > 0.9 for row in table.values())
    parameters = {name: int(row["parameters"].replace(",", "")) for name, row in table.items()}
    # Of each of 48 neurons a column of 32, a bias, and a row of 32.
    assert parameters["dense"] - parameters["compact"] == 48 * (32 + 1 + 32)
    for column in ("predicted/s", "trained/s"):
        assert all(float(row[column]) > 0 for row in table.values())
    gains = re.search(r"faster: (\S+) times in prediction, (\S+) times in training", output)
    for gain, column in zip(gains.groups(), ("predicted/s", "trained/s")):
        ratio = float(table["compact"][column]) / float(table["dense"][column])
        assert abs(float(gain) - ratio) < 0.01
    assert imread(tmp_path / "shrink_encoder.png").shape == (450, 1200, 4)

    model = keras.saving.load_model(tmp_path / "compact.keras", compile=False)
    assert model.backbone.intermediate_dim == 16
    sentences = ["a good sentence", "a bad sentence"]
    logits = model.predict(tf.constant(sentences), verbose=0)
    assert logits.argmax(axis=-1).tolist() == [1, 0]
    assert "Not exported" in output  # where it can be, tests/compression shows it
