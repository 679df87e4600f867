"""The README's code runs as it stands."""

import pathlib

from documents import code_blocks

from sage_keras.analysis import read_log

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_code_blocks_run_one_after_the_other(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "readme"}
    quick_start, own_optimizer, seeing, selecting = [code for code, _ in code_blocks(README)]
    exec(quick_start, names)
    assert "guides 4 of 4 variables" in capsys.readouterr().out
    exec(own_optimizer, names)
    assert names["SageLion"](beta_3=0.9).get_config()["beta_3"] == 0.9
    exec(seeing, names)
    assert read_log("logs/first").steps.tolist() == [28, 32, 36, 40, 44, 48]
    assert names["sensitivities"].keys() == {one.path for one in names["model"].variables[:4]}
    exec(selecting, names)
    assert int(names["model"].optimizer.iterations) == 96
    assert names["model"].optimizer.total_steps == 100
