"""What the tasks are made of, without the encoder."""

import gzip

import keras
import numpy as np
import pytest

from evidence import grid, tasks
from evidence import lines as results
from sage_keras import TRANSFORMER_BLOCKS, arguments


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("pair", [False, True])
def test_tab_separated_sentences_are_read(tmp_path, pair):
    second = ("It's a lake.", "No.") if pair else ("", "")
    rows = [
        ("sentence1", "sentence2", "label"),
        ("A lake", second[0], "1"),
        ("B é", second[1], "0"),
    ]
    path = tmp_path / "rte.train.tsv.gz"
    path.write_bytes(gzip.compress("".join("\t".join(row) + "\n" for row in rows).encode()))
    texts, labels = tasks._read_tsv(path)
    assert texts == ((["A lake", "B é"], list(second)) if pair else ["A lake", "B é"])
    assert labels.tolist() == [1, 0]


@pytest.mark.backend_agnostic
def test_tokens_that_are_padding_do_not_count():
    labels = np.array([[3, 2, 0, 0], [1, 0, 0, 0]])
    logits = np.eye(4)[[[3, 1, 0, 0], [1, 2, 2, 2]]]
    assert tasks.token_accuracy(labels, logits) == {"value": 2 / 3}


@pytest.mark.backend_agnostic
def test_f1_goes_with_accuracy():
    values = tasks.accuracy_and_f1(np.array([1, 1, 0, 0]), np.eye(2)[[1, 0, 1, 0]])
    assert values == {"value": 0.5, "f1": 0.5}


def test_vision_transformer_has_blocks_that_the_authors_scope_finds():
    model = tasks.make_vit()
    assert model.count_params() == 105_418
    paths = [variable.path for variable in model.trainable_variables]
    guided = arguments.matches("include", TRANSFORMER_BLOCKS, paths, default=True)
    # Three blocks of four kernels of attention and two of the feed-forward layers, with biases.
    assert sum(guided) == 3 * 6 * 2


def test_weights_follow_from_the_seed():
    task = tasks.make_tasks()["vit_narrow"]
    model = task.make_model()
    draws = []
    for seed in (1, 1, 2):
        task.draw_weights(model, seed)
        draws.append(keras.ops.convert_to_numpy(model.get_layer("logits").kernel))
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.01


@pytest.mark.backend_agnostic
def test_every_task_is_tuned_over_the_rates_of_its_kind():
    made = tasks.make_tasks()
    assert set(results.MAIN_TASKS) <= set(made)
    scratch = {name for name in made if grid.rates_to_try([], name) == list(grid.SCRATCH_RATES)}
    for name in grid.GLUE:
        assert grid.rates_to_try([], name) == list(grid.GLUE_RATES)
    assert scratch == {name for name in made if made[name].make_model is not tasks.make_encoder}
