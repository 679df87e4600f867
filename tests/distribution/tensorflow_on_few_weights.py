"""Sparse fine-tuning on logical devices: test_tensorflow.py runs it in a process of its own.

TensorFlow's collectives remember the sizes of what they add up, which here are others.
"""

import functools

import numpy as np
import pytest
from distribution import jobs
from distribution.tensorflow_on_four_devices import fit
from modes import to_numpy

import sage_keras


@pytest.mark.parametrize("replicas", [2, 4])
@pytest.mark.parametrize("by", ["random", "gradient"])
def test_no_bit_of_weights_that_are_not_chosen_changes_on_any_replica(by, replicas):
    """A random choice trains as on one device; by gradients, those of the first replica choose."""
    make = functools.partial(
        sage_keras.SparseAdamW,
        jobs.LEARNING_RATE,
        fraction=0.1,
        scores=by,
        selection_steps=4,
        seed=0,
    )
    model = fit(replicas, make)
    for variable, before in zip(model.weights, jobs.make_model().get_weights(), strict=True):
        positions = to_numpy(model.optimizer.chosen_positions[variable.path])
        copies = variable.value.values
        assert len(copies) == replicas
        for copy in copies:
            np.testing.assert_array_equal(copy, copies[0])
            assert np.flatnonzero(copy != before).tolist() == positions.tolist()
    if by == "random":
        alone = jobs.make_model()
        alone.compile(optimizer=make(), loss="mse")
        jobs.assert_equal(model.get_weights(), jobs.fit(alone, *jobs.data()).get_weights())
    assert to_numpy(model.optimizer.iterations) == (20 if by == "random" else 16)
