"""The README's code runs as it stands."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_block_runs(code, capsys):
    names = {"__name__": "readme"}
    exec(code, names)
    if "Sage(" in code:
        assert "guides 4 of 4 variables" in capsys.readouterr().out
    else:
        assert names["SageLion"](beta_3=0.9).get_config()["beta_3"] == 0.9


def test_there_are_blocks_to_run():
    assert len(BLOCKS) == 2
