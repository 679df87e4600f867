"""The README's code runs as it stands."""

import pathlib

from documents import code_blocks

from sage_keras.analysis import read_log

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_code_blocks_run_one_after_the_other(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    (swap, _), (seeing, _), (pruning, printed) = code_blocks(README)
    exec(swap, names)
    assert names["model"].optimizer.calibrate
    exec(seeing, names)
    assert read_log("logs/first").steps.tolist() == [28, 32, 36, 40, 44, 48]
    assert names["sensitivities"].keys() == {one.path for one in names["model"].variables[:4]}
    capsys.readouterr()
    exec(pruning, names)
    assert capsys.readouterr().out == printed
    assert int(names["model"].optimizer.iterations) == 80
