import pathlib
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))  # as it is for a script that is run from there


@pytest.fixture
def examples():
    """The folder of the example scripts."""
    return EXAMPLES
