"""JAX on eight devices, and in two processes."""

import pytest
from distribution import jobs
from distribution.processes import free_address, load, run_tests, run_workers
from modes import BACKEND

if BACKEND != "jax":
    pytest.skip("about JAX", allow_module_level=True)

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:Between the steps"),  # nobody looks in between
]


def test_on_eight_devices():
    run_tests("jax_on_eight_devices.py", JAX_NUM_CPU_DEVICES="8")


def test_two_processes_train_as_one(tmp_path):
    address = free_address()
    outputs = [tmp_path / f"{index}.npz" for index in range(2)]
    arguments = [(address, 2, index, output) for index, output in enumerate(outputs)]
    run_workers("jax_worker.py", arguments, [{}, {}])
    first, second = map(load, outputs)
    assert list(first) == list(second) == list(jobs.OURS)
    for name in jobs.OURS:
        for one, other in zip(first[name], second[name], strict=True):
            assert (one == other).all()
        jobs.assert_equal(first[name], jobs.weights_of_one_device(name))
