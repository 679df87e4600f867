"""The README: its code runs as it stands, it is short, and the site begins in the same way."""

import pathlib

import pytest
from documents import code_blocks

from sage_keras.analysis import read_log

ROOT = pathlib.Path(__file__).parents[1]
README = ROOT / "README.md"


def test_code_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    [(code, _)] = code_blocks(README)
    exec(code, names)
    assert names["model"].optimizer.calibrate
    assert read_log("logs/first").steps.tolist() == [4, 8, 12, 16, 20, 24]
    assert names["sensitivities"].keys() == {one.path for one in names["model"].variables[:4]}


@pytest.mark.backend_agnostic
def test_the_first_page_of_the_site_begins_as_the_readme():
    readme, page = (
        path.read_text(encoding="utf-8").partition("## Install")[0]
        for path in (README, ROOT / "docs" / "index.md")
    )
    assert page == readme.replace("docs/", "")
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 100
