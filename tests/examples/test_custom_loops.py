"""The loop of this backend as a whole job; the three end near the same accuracy."""

import re
import subprocess
import sys

import keras
import numpy as np
from common.digits import load_digits


def test_loop_learns_the_digits(examples):
    script = examples / f"custom_loop_{keras.backend.backend()}.py"
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr

    epochs = re.findall(r"^epoch \d+: loss (\S+), validation accuracy (\S+)$", result.stdout, re.M)
    losses, accuracies = np.array(epochs, dtype=float).T
    assert len(losses) == 20
    assert losses[0] > 1.0
    assert losses[-1] < 0.2
    assert 0.95 < accuracies[-1] < 0.99
    sensitivities = re.findall(r"^(\S+): mean sensitivity (\S+)$", result.stdout, re.M)
    assert [path.partition("/")[2] for path, _ in sensitivities] == [
        "dense/kernel",
        "dense/bias",
        "dense_1/kernel",
        "dense_1/bias",
    ]
    assert all(1e-5 < float(value) < 1e-1 for _, value in sensitivities)


def test_digits_are_cut_into_whole_batches():
    (train_pixels, train_labels), (pixels, labels) = load_digits()
    assert train_pixels.shape == (1408, 64)
    assert pixels.shape == (389, 64)
    assert (train_pixels.min(), train_pixels.max()) == (0.0, 1.0)
    assert set(train_labels) == set(labels) == set(range(10))
