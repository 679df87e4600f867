"""What runs the workers of the other tests here."""

import pytest
from distribution import processes


@pytest.mark.extended
@pytest.mark.backend_agnostic
def test_a_worker_that_fails_ends_its_peer_and_both_are_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "FOLDER", tmp_path)
    (tmp_path / "worker.py").write_text(
        "import sys, time\n"
        "print('this is', sys.argv[1], flush=True)\n"
        "if sys.argv[1] == 'one':\n"
        "    time.sleep(3)\n"
        "    raise ValueError('a port was taken')\n"
        "time.sleep(20)\n"
    )
    with pytest.raises(AssertionError) as failure:
        processes.run_workers("worker.py", [("one",), ("other",)], [{}, {}])
    first, second = str(failure.value).split("== process 1, ")
    assert "exit status 1\nthis is one" in first
    assert "ValueError: a port was taken" in first
    assert second.startswith("exit status None\nthis is other")
    assert 'worker.py", line 6' in second  # where it waited
