"""The command that runs Keras's own tests: what it cannot import it names."""

import pytest

import tests.keras_tests as command

pytestmark = [pytest.mark.extended, pytest.mark.backend_agnostic]

# As in some of Keras's tests, whose conftest.py is not installed.
SOURCE = """
from conftest import skip_if_backend
import keras

@skip_if_backend(keras.backend.backend(), "here")
def test_skipped():
    assert False

@skip_if_backend("another", "elsewhere")
def test_adamw():
    assert keras.optimizers.AdamW(0.1).get_config()["guide"] is False
"""


def test_outcomes_by_name_and_a_file_that_cannot_be_imported(tmp_path):
    good, bad = tmp_path / "good_test.py", tmp_path / "bad_test.py"
    good.write_text(SOURCE)
    assert command.run([good], swapped=True)[0] == {
        "good_test.py::test_skipped": "skipped",
        "good_test.py::test_adamw": "passed",
    }
    bad.write_text("import a_module_that_is_nowhere\n")
    with pytest.raises(SystemExit, match="a_module_that_is_nowhere"):
        command.run([good, bad], swapped=False)
    assert command.parted([good, bad]) == ([good], [(bad, "a_module_that_is_nowhere")])
