"""The list of faults fits the code: each finds its text and its tests. It is tried by hand."""

import pytest

from tests import mutants

# Extended, so that the run that has to notice a fault does not notice it here.
pytestmark = [pytest.mark.extended, pytest.mark.backend_agnostic]


def test_every_fault_finds_its_text_once():
    assert len(mutants.MUTANTS) >= 40
    mutants.check(mutants.MUTANTS)
