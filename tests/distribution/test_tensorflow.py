"""TensorFlow's strategies: several devices, and several workers."""

import json

import pytest
from distribution import jobs
from distribution.processes import free_address, load, run_tests, run_workers
from modes import BACKEND

if BACKEND != "tensorflow":
    pytest.skip("about TensorFlow", allow_module_level=True)

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:Between the steps"),  # nobody looks in between
]


def test_on_logical_devices():
    run_tests("tensorflow_on_four_devices.py")


def test_few_weights_on_logical_devices():
    run_tests("tensorflow_on_few_weights.py")


def test_a_bad_batch_on_logical_devices():
    run_tests("tensorflow_on_two_devices.py")


def test_two_workers_train_as_one(tmp_path):
    cluster = {"worker": [free_address(), free_address()]}
    outputs = [tmp_path / f"{index}.npz" for index in range(2)]
    environments = [
        {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        for index in range(2)
    ]
    arguments = [(index, 2, output) for index, output in enumerate(outputs)]
    run_workers("tensorflow_worker.py", arguments, environments)
    first, second = map(load, outputs)
    assert list(first) == list(second) == list(jobs.OURS)
    for name in jobs.OURS:
        for one, other in zip(first[name], second[name], strict=True):
            assert (one == other).all()
        jobs.assert_equal(first[name], jobs.weights_of_one_device(name))
