"""torch's DistributedDataParallel, in a training loop of one's own."""

import pytest
from distribution import jobs
from distribution.processes import free_address, load, run_workers
from modes import BACKEND

if BACKEND != "torch":
    pytest.skip("about torch", allow_module_level=True)

pytestmark = [
    pytest.mark.extended,
    pytest.mark.filterwarnings("ignore:Between the steps"),  # nobody looks in between
]


def test_two_processes_train_as_one(tmp_path):
    address = free_address()
    outputs = [tmp_path / f"{index}.npz" for index in range(2)]
    arguments = [(address, 2, index, output) for index, output in enumerate(outputs)]
    run_workers("torch_worker.py", arguments, [{}, {}])
    first, second = map(load, outputs)
    assert list(first) == list(second) == list(jobs.OURS)
    for name in jobs.OURS:
        for one, other in zip(first[name], second[name], strict=True):
            assert (one == other).all()
        jobs.assert_equal(first[name], jobs.weights_of_one_device(name))
