"""Runs an example as its user does, and reads what it prints.

Each example runs once as a whole on one backend, on little data: as these tests are spread, each
backend has about a third of them. On the others it makes its first step, which test_first_steps.py
has. With `--extended`, those that fine-tune an encoder also run on a real one.
"""

import contextlib
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"
ADJECTIVES = {"dull": 0, "bad": 0, "fine": 1, "good": 1}  # of the tiny preset's vocabulary


def whole_job(backend):
    """Marks a test that runs a whole example: on one backend only."""
    return pytest.mark.skipif(
        keras.backend.backend() != backend,
        reason=f"the whole job runs on {backend}; here it makes its first step",
    )


def first_step(home):
    """Marks a test of an example's first steps: on all backends but that of its whole job."""
    return pytest.mark.skipif(
        keras.backend.backend() == home, reason="the whole job of it runs on this backend"
    )


@contextlib.contextmanager
def uncompiled():
    """Has TensorFlow run a model's steps as they stand, as torch does. JAX cannot."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)


def run_example(script, output, *arguments):
    """What a script prints that runs in a process of its own; it has to end well."""
    command = [sys.executable, str(EXAMPLES / script), "--output", str(output), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_here(example, capsys, output, *arguments):
    """What an example prints that runs in this process."""
    example.main([*map(str, arguments), "--output", str(output)])
    return capsys.readouterr().out


def stopped(example, capsys, *arguments):
    """The line that an example prints that cannot have what it needs; it ends with status 2."""
    with pytest.raises(SystemExit) as stop:
        example.main(arguments)
    assert stop.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    return line


def tiny_sentences(train_size, validation_size, seed=0):
    """Sentences of the tiny preset's words, as `movie_snippets` returns those of films."""
    from common.datasets import Dataset, Examples

    def examples(count):
        adjectives = (list(ADJECTIVES) * count)[:count]
        texts = [f"a {adjective} sentence" for adjective in adjectives]
        return Examples(texts, np.array([ADJECTIVES[one] for one in adjectives], dtype="int32"))

    return Dataset(examples(train_size), examples(validation_size), ["negative", "positive"])


def parse_table(output, column="mean scale", rows=2):
    """The table that has this column, as a dict of row name to a dict of column to text."""
    lines = iter(output.splitlines())
    header = next(re.split(r"\s{2,}", line.strip()) for line in lines if column in line)
    cells = [re.split(r"\s{2,}", next(lines).strip()) for _ in range(rows)]
    return {row[0]: dict(zip(header, row)) for row in cells}


def reloaded_accuracy(output):
    return float(re.search(r"Loaded again, validation accuracy (\S+)", output)[1])


def positive_probability(output, text):
    pattern = rf"^(positive|negative) \((\d\.\d{{3}})\): {re.escape(text)}$"
    label, probability = re.search(pattern, output, re.MULTILINE).groups()
    return float(probability) if label == "positive" else 1 - float(probability)
