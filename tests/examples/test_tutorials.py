"""Tutorials: scripts, notebooks and pages are in step, and each notebook runs on little data."""

import ast
import re

import nbformat
import numpy as np
import pytest
from example_runs import whole_job

from tutorials import make

SCRIPTS = make.scripts()
NAMES = [script.stem for script in SCRIPTS]

# Sentences of the tiny preset's words, whatever set is asked for.
TINY_TEXT = """
import tensorflow as tf
import tensorflow_datasets

def load(name, split, as_supervised):
    texts = [f"a {adjective} sentence" for adjective in ("dull", "fine", "bad", "good")] * 4
    return [tf.data.Dataset.from_tensor_slices((texts, [0, 1] * 8)) for _ in split]

tensorflow_datasets.load = load
"""


@pytest.mark.backend_agnostic
def test_there_are_the_tutorials_that_the_readme_lists():
    readme = (make.FOLDER / "README.md").read_text(encoding="utf-8")
    assert len(NAMES) >= 4
    assert all(f"({name}.ipynb)" in readme for name in NAMES)


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_script_notebook_and_page_are_in_step(script):
    kept = nbformat.read(script.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(kept)
    made = make.make_notebook(script)
    wanted = [(cell.id, cell.cell_type, cell.source) for cell in made.cells]
    assert [(cell.id, cell.cell_type, cell.source) for cell in kept.cells] == wanted
    text, pictures = make.make_page(script, kept)
    assert (make.PAGES / f"{script.stem}.md").read_text(encoding="utf-8") == text
    files = {path.name: path.read_bytes() for path in make.PAGES.glob(f"{script.stem}_*.png")}
    assert files == pictures


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_notebook_has_the_outputs_of_a_whole_run(script):
    cells = make.code_cells(nbformat.read(script.with_suffix(".ipynb"), as_version=4))
    run = [cell for cell in cells if make.SKIPPED not in cell.metadata.get("tags", ())]
    assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
    for cell in run:
        kinds = [output.output_type for output in cell.outputs]
        assert "error" not in kinds
        pictures = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        assert pictures == cell.source.count("plt.show()  # ")
        printed = "".join(output.get("text", "") for output in cell.outputs)
        assert bool(printed.strip()) or "print(" not in cell.source
        assert not re.search("/(tmp|root|home|work|usr)/", printed)


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("script", SCRIPTS, ids=NAMES)
def test_script_is_complete_in_one_file(script):
    source = script.read_text(encoding="utf-8")
    about = make.header(script)
    assert list(about)[:5] == ["title", "author", "date created", "last modified", "description"]
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not {name.partition(".")[0] for name in imported} & {"common", "tutorials", "argparse"}
    assert all(part[0] != "_" for name in imported for part in name.split("."))


@pytest.mark.backend_agnostic
def test_parts_of_a_script():
    source = '"""T"""\n\n"""\n## A\n"""\n\n"""shell\npip install x\n"""\nx = """no text"""\n\n\n'
    source += 'def f():\n    """Nor this."""\n'
    code = 'x = """no text"""\n\n\ndef f():\n    """Nor this."""'
    wanted = [("text", "T"), ("text", "## A"), ("text", "shell\npip install x"), ("code", code)]
    assert make.parts(source) == wanted


@pytest.mark.backend_agnostic
def test_badge_follows_from_the_public_address(monkeypatch):
    assert (make.badge(SCRIPTS[0]) == "") == (make.REPOSITORY is None)
    monkeypatch.setattr(make, "REPOSITORY", "owner/name")
    path = f"github/owner/name/blob/main/tutorials/{NAMES[0]}.ipynb"
    assert make.badge(SCRIPTS[0]).endswith(f"(https://colab.research.google.com/{path})")
    assert make.badge(SCRIPTS[0]) in make.make_notebook(SCRIPTS[0]).cells[0].source


@pytest.mark.backend_agnostic
def test_outputs_are_kept_as_long_as_the_code_is_the_same(tmp_path):
    script, notebook = tmp_path / "one.py", tmp_path / "one.ipynb"
    about = "Title: T\nAuthor: A\nDate created: D\nLast modified: D\nDescription: D\n"
    script.write_text(f'"""\n{about}"""\n\nprint(1)\n\n"""\nText.\n"""\n', encoding="utf-8")
    made = make.make_notebook(script)
    output = nbformat.v4.new_output("stream", name="stdout", text="1\n")
    noise = nbformat.v4.new_output("stream", name="stderr", text="a warning\n")
    made.cells[1].outputs = [noise, output]
    nbformat.write(made, notebook)
    script.write_text(script.read_text().replace("Text", "Other text"), encoding="utf-8")
    assert make.keep_outputs(make.make_notebook(script), notebook).cells[1].outputs == [output]
    script.write_text(script.read_text().replace("print(1)", "print(2)"), encoding="utf-8")
    assert make.keep_outputs(make.make_notebook(script), notebook).cells[1].outputs == []


def printed(name, settings, before=""):
    """What the cells of a notebook print that runs in a process of its own."""
    notebook = make.make_notebook(make.FOLDER / f"{name}.py")
    cells = make.code_cells(make.execute(notebook, settings, before))
    outputs = [output for cell in cells for output in cell.outputs]
    return "".join(one.text for one in outputs if one.get("name") == "stdout")


@pytest.mark.extended
@whole_job("jax")
def test_text_classifier(tiny_preset):
    sizes = {"SEQUENCE_LENGTH": "8", "BATCH_SIZE": "8", "EPOCHS": "5", "LEARNING_RATE": "2e-2"}
    text = printed("finetune_text_classifier", {"PRESET": repr(tiny_preset), **sizes}, TINY_TEXT)
    assert "Training goes on at step 10" in text
    assert "guides 12 of 25 variables" in text
    assert text.count("good: ") + text.count("bad: ") == 2


@pytest.mark.extended
@whole_job("tensorflow")
def test_module_of_tensorflow_hub(tmp_path):
    import tensorflow as tf

    module = tf.train.Checkpoint()
    table = tf.Variable(np.random.default_rng(0).normal(size=(64, 4)).astype("float32"))
    module.variables = module.trainable_variables = [table]
    module.__call__ = tf.function(
        lambda texts: tf.gather(table, tf.strings.to_hash_bucket_fast(texts, 64)),
        input_signature=[tf.TensorSpec((None,), "string")],
    )
    tf.saved_model.save(module, str(tmp_path / "module"))
    settings = {"HANDLE": repr(str(tmp_path / "module")), "BATCH_SIZE": "8", "EPOCHS": "2"}
    text = printed("finetune_tfhub", settings, TINY_TEXT)
    assert "1 trainable variables in the module" in text
    assert "Sage 4\n" in text
    after, before = (
        text.splitlines()[-1].removeprefix("validation accuracy ").split(", before saving ")
    )
    assert after == before


@pytest.mark.extended
@whole_job("torch")
def test_vision_transformer():
    sizes = {"WIDTH": "16", "DEPTH": "1", "HEADS": "2", "BATCH_SIZE": "128", "EPOCHS": "3"}
    text = printed("vision_transformer", sizes | {"LEARNING_RATE": "1e-2"})
    assert "3,818 parameters" in text
    assert all(f"\n{name} " in text for name in ("AdamW", "Sage "))


@pytest.mark.extended
@whole_job("jax")
def test_watching_redundancy():
    text = printed("watch_redundancy", {"WIDTH": "16", "EPOCHS": "3", "UPDATE_FREQ": "45"})
    assert "3 reports, the last one at step 135" in text
    rows = [line.split() for line in text.splitlines()[-4:]]
    assert [row[0] for row in rows] == ["pruned", "sensitivity", "magnitude", "random"]
    assert {row[1] for row in rows[1:]} == {rows[1][1]}  # nothing is pruned
