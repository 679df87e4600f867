"""The list of faults fits the code: each finds its text and its tests. It is tried by hand."""

import pytest

from tests import mutants

# Extended, so that the run that has to notice a fault does not notice it here.
pytestmark = [pytest.mark.extended, pytest.mark.backend_agnostic]


def test_every_fault_finds_its_text_once():
    assert len(mutants.MUTANTS) >= 40
    mutants.check(mutants.MUTANTS)


def test_a_failure_with_several_workers_is_one(tmp_path):
    (tmp_path / "test_it.py").write_text("def test_it():\n    assert False\n")
    status, printed = mutants.run_tests(tmp_path, ["test_it.py"], "-n", "2")
    assert status == mutants.TESTS_FAILED
    assert mutants.FAILURE.search(printed)[1] == "test_it.py::test_it"
