"""What all examples do alike on the command line."""

import distributed_jax
import finetune_dps
import finetune_glue
import finetune_lora
import finetune_sparse
import finetune_text
import finetune_tfhub
import prune_encoder
import pytest
import resume_training
import shrink_encoder
import train_translation
import train_vit
import tune_with_keras_tuner
import watch_training
from common import repeated
from common.downloads import UnavailableError
from example_runs import stopped
from modes import BACKEND

pytestmark = pytest.mark.backend_agnostic

EXAMPLES = [
    distributed_jax,
    finetune_dps,
    finetune_glue,
    finetune_lora,
    finetune_sparse,
    finetune_text,
    finetune_tfhub,
    prune_encoder,
    resume_training,
    shrink_encoder,
    train_translation,
    train_vit,
    tune_with_keras_tuner,
    watch_training,
]
ON_MINILM = [
    finetune_dps,
    finetune_lora,
    finetune_sparse,
    finetune_text,
    finetune_tfhub,
    prune_encoder,
    shrink_encoder,
    watch_training,
]


def test_every_example_is_here(examples):
    scripts = {path.stem for path in examples.glob("*.py")}
    loops = {name for name in scripts if name.startswith("custom_loop_")}
    assert {example.__name__ for example in EXAMPLES} == scripts - loops


@pytest.mark.parametrize("example", EXAMPLES)
def test_quick_gives_way_to_what_is_passed(example, tmp_path):
    quick, own = example.parse_arguments(["--quick"]), example.parse_arguments([])
    names = {name for name, value in vars(quick).items() if value != getattr(own, name)}
    assert names <= {"quick", *example.QUICK}
    assert {name: getattr(quick, name) for name in example.QUICK} == example.QUICK
    passed = ["--quick", "--output", str(tmp_path), "--seed", "3"]
    if "epochs" in example.QUICK:
        passed += ["--epochs", "13"]
        assert example.parse_arguments(passed).epochs == 13
    if example not in (finetune_dps, finetune_sparse, prune_encoder):  # which have seeds
        assert example.parse_arguments(passed).seed == 3
    assert example.parse_arguments(passed).output == tmp_path


@pytest.mark.parametrize("example", EXAMPLES)
def test_help_begins_with_the_docstring_and_shows_defaults(example, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        example.main(["--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert example.__doc__.split("\n")[0] in told
    assert f"(default: results/{example.__name__})" in told


@pytest.mark.parametrize("example", ON_MINILM)
def test_encoder_that_cannot_be_had_is_one_line_and_status_2(
    example, tmp_path, monkeypatch, capsys
):
    if example is finetune_tfhub and BACKEND != "tensorflow":
        pytest.skip("it refuses this backend first, which test_finetune_tfhub.py shows")

    def unavailable():
        raise UnavailableError("there is\nno network")

    for module in (example, repeated):
        if hasattr(module, "minilm_folder"):
            monkeypatch.setattr(module, "minilm_folder", unavailable)
    line = stopped(example, capsys, "--output", str(tmp_path / "out"))
    assert line.endswith(": there is no network")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["0", "1", "nan"])
def test_decay_of_the_moving_average_lies_between_0_and_1(value, capsys):
    with pytest.raises(SystemExit) as end:
        finetune_text.parse_arguments(["--beta-3", value])
    assert end.value.code == 2
    error = f"argument --beta-3: must be a number between 0 and 1. Received: {value}"
    assert error in capsys.readouterr().err
