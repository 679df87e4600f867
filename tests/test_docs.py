"""The documentation: its code runs and prints what it says, and it has every public name."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys
import textwrap

import keras
import pytest
from documents import code_blocks, run_blocks
from example_runs import whole_job

import sage_keras
from sage_keras import analysis, callbacks, compression, hub, sensitivity

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
NEEDS_DEVICES = {"distributed.md"}  # its code is read, not run
NEEDS_TENSORFLOW = {"tfhub.md"}
SLOW = {"keras_hub.md", "tfhub.md"}
PAGES = sorted(path for path in DOCS.glob("*.md") if code_blocks(path))
PUBLIC = (
    {
        f"{package.__name__}.{name}": getattr(package, name)
        for package in (sage_keras, analysis, callbacks, compression)
        for name in package.__all__
    }
    | {"sage_keras.hub.HubLayer": hub.HubLayer}
    | {
        f"sage_keras.sensitivity.{name}": function
        for name, function in vars(sensitivity).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }
)
DOCUMENTED = {name: value for name, value in PUBLIC.items() if not isinstance(value, tuple)}


# Eight jobs, each done by the blocks of one page and nothing else. What they leave behind:


def swapped(names):
    assert type(names["again"].optimizer) is type(names["model"].optimizer) is sage_keras.Sage
    assert int(names["again"].optimizer.iterations) == 24


def watched(names):
    assert names["log"].steps.tolist() == [4, 8, 12, 16, 20, 24]
    assert pathlib.Path("report.html").stat().st_size > 100_000
    assert list(pathlib.Path("logs/AdamW").glob("events.out.tfevents.*"))


def measured(names):
    assert list(names["curves"]) == ["sensitivity", "magnitude"]
    by_sensitivity, by_magnitude = (curve["loss"] for curve in names["curves"].values())
    assert by_sensitivity[0] == by_magnitude[0] < by_sensitivity[-1] < 1.2 * by_magnitude[-1]


def rates_by_layer(names):
    before, after = names["model"].optimizer, names["again"].optimizer
    assert type(after) is type(before) is names["LayerwiseSage"]
    assert after.get_config()["learning_rate_multipliers"]["encoder/"] == 0.5


def mixed_and_stopped(names):
    validation = names["x"][204:], names["y"][204:]
    losses = [names[one].evaluate(*validation, verbose=0) for one in ("model", "best")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # both have the best true weights


def resumed(names):
    assert int(names["model"].optimizer.iterations) == 48


def module_trained(names):
    assert int(names["again"].optimizer.iterations) == 8


def classifier_loaded(names):
    loaded = names["loaded"].optimizer
    assert type(loaded) is sage_keras.Sage and int(loaded.iterations) == 4


JOBS = {
    "index.md": swapped,
    "watch_training.md": watched,
    "measure.md": measured,
    "layerwise.md": rates_by_layer,
    "dps.md": mixed_and_stopped,
    "resume.md": resumed,
    "tfhub.md": module_trained,
    "keras_hub.md": classifier_loaded,
}


def runnable_pages():
    """All pages on TensorFlow; on JAX and torch every second one, and a job's page on both."""
    for index, page in enumerate(PAGES):
        elsewhere = keras.backend.backend() == ("jax", "torch")[index % 2]
        if elsewhere and page.name not in JOBS:
            continue
        marks = [pytest.mark.extended] if elsewhere or page.name in SLOW else []
        yield pytest.param(page, id=page.name, marks=marks)


@pytest.mark.parametrize("page", list(runnable_pages()))
def test_code_runs_and_prints_what_the_page_says(page, capsys, monkeypatch, tmp_path):
    elsewhere = page.name in NEEDS_TENSORFLOW and keras.backend.backend() != "tensorflow"
    if elsewhere or page.name in NEEDS_DEVICES:
        for code, _ in code_blocks(page):
            compile(code, page.name, "exec")
        return
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session(free_memory=False)  # names are counted from one again
    names = run_blocks(code_blocks(page), capsys)
    if page.name in JOBS:
        JOBS[page.name](names)


@pytest.mark.extended
@whole_job("torch")
def test_page_about_resuming_survives_a_kill(tmp_path):
    [(code, _)] = code_blocks(DOCS / "resume.md")
    script = tmp_path / "train.py"
    # Slow epochs, so that the kill comes between the first and the last.
    slow = "keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: __import__('time').sleep(1))"
    changed = code.replace("callbacks=[backup]", f"callbacks=[{slow}, backup]")
    assert changed != code
    script.write_text(changed, encoding="utf-8")
    command = [sys.executable, "-u", str(script)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as first:
        for line in first.stdout:
            if line.startswith("Epoch 4/6"):
                first.kill()
                break
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    epochs = re.findall(r"^Epoch (\d)/6", again.stdout, re.MULTILINE)
    assert epochs in (["4", "5", "6"], ["3", "4", "5", "6"])  # killed before or after the save
    assert again.stdout.splitlines()[-1] == "48"
    straight = tmp_path / "straight"
    straight.mkdir()
    whole = subprocess.run(
        [sys.executable, str(script)], cwd=straight, capture_output=True, text=True, check=True
    )
    losses = [re.findall(r"loss: ([\d.]+)", run.stdout)[-1] for run in (again, whole)]
    assert losses[0] == losses[1]


def test_the_table_of_mean_scales_is_what_its_code_prints(capsys):
    page = DOCS / "learning_rate.md"
    run_blocks(code_blocks(page), capsys)
    printed = re.findall(r"\d\.\d\d$", capsys.readouterr().out, re.MULTILINE)
    table = re.findall(r"\| (\d\.\d\d) \|", page.read_text(encoding="utf-8"))
    assert printed == table
    assert len(table) == 5


@pytest.mark.backend_agnostic
def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\ntheme:")[0]
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert pages == set(re.findall(r"[\w/]+\.md", navigation))


_IMAGE = r'<img src="(.*?)" width="\d+" alt="(.*?)">'


@pytest.mark.backend_agnostic
def test_pictures_say_what_they_show():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        source = page.read_text(encoding="utf-8")
        found = re.findall(r"!\[(.*?)\]\((.*?)\)", source)
        found += [(alt, target) for target, alt in re.findall(_IMAGE, source)]
        for text, target in found:
            assert len(text) > 20, f"{page.name}: {target}"
            assert (page.parent / target).is_file()
        assert len(re.findall(r"<img |!\[", source)) == len(found)


# Words at which a reader stops, and what to write instead. A number is a value, not a figure, which
# is what Matplotlib calls the whole of a picture.
AVOIDED = {
    r"anew": "again",
    r"hang(?:s|ing)? on": "depends on",
    r"(?:is|are|was|were) said": "say who says it, or leave it out",
    r"(?:to|can|cannot|could not) be had": "available",
    r"a share": "a part, or some of them",
    r"in words": "leave it out",
    r"with the same eyes": "in the same way",
    r"the base's affair": "left to the base",
    r"not so, as far as": "not distinguishable from chance",
    r"thrown out": "removed",
    r"(?<!new )(?<!Matplotlib )figures?": "value, number or picture",
    r"slots?": "variable of the optimizer, or its state",
}
FOR_DEVELOPERS = {"one_step.md"}
PROSE = [
    *(page for page in DOCS.rglob("*.md") if page.name not in FOR_DEVELOPERS),
    *ROOT.glob("*.md"),
    *ROOT.glob("*/README.md"),
]


def avoided(text):
    """The words to avoid in a text. Backticks hold code, and the report has tags and styles."""
    text = re.sub(r"`[^`]+`|<[^>]+>|^.*\{.*\}$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\s+", " ", text)
    return [found[0] for found in re.finditer(rf"(?i)\b(?:{'|'.join(AVOIDED)})\b", text)]


def texts_in_code():
    """Pairs of a place and a text of it that users read: docstrings of public names, messages."""
    for name, value in DOCUMENTED.items():
        yield name, inspect.getdoc(value)
        for attribute, member in vars(value).items() if inspect.isclass(value) else ():
            if not attribute.startswith("_") and not _is_hook(attribute):
                yield f"{name}.{attribute}", inspect.getdoc(member) or ""
    for folder in ("sage_keras", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            if folder == "examples":  # it is the help of a command
                yield path.name, ast.get_docstring(tree) or ""
            docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                text = getattr(node, "value", None) if isinstance(node, ast.Constant) else None
                if isinstance(text, str) and " " in text and id(node) not in docstrings:
                    yield f"{path.name}:{node.lineno}", text


@pytest.mark.backend_agnostic
def test_words_that_stop_a_reader():
    for page in PROSE:
        assert not avoided(page.read_text(encoding="utf-8")), page
    for place, text in texts_in_code():
        assert not avoided(text), place
    sentence = "It hangs on a share of `slots`, and is\nsaid anew in a new figure with slots."
    assert avoided(sentence) == ["hangs on", "a share", "is said", "anew", "slots"]


def test_the_reference_has_every_public_name():
    pages = [path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))]
    listed = [name for text in pages for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]
    of_the_measure = {name for name in PUBLIC if name.startswith("sage_keras.sensitivity.")}
    assert set(listed) == set(PUBLIC) - of_the_measure | {"sage_keras.sensitivity"}
    assert len(listed) == len(set(listed))


@pytest.mark.extended
@pytest.mark.backend_agnostic
def test_the_reference_shows_every_public_name_with_its_signature(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    shown = {}
    for path in (tmp_path / "api").glob("*.html"):
        page = path.read_text(encoding="utf-8")
        assert "<blockquote>" not in page  # an example that was not read as one
        shown |= signatures(page)
    assert set(PUBLIC) <= set(shown)
    for name, value in PUBLIC.items():
        if callable(value):
            wanted = [name.rpartition(".")[2], *inspect.signature(value).parameters]
        else:
            wanted = [name.rpartition(".")[2]]
        assert re.findall(rf"\b(?:{'|'.join(wanted)})\b", shown[name])[: len(wanted)] == wanted, (
            name
        )


def signatures(page):
    """A dict of the names that a built page documents to their signatures, as plain text."""
    found = {}
    for part in page.split('<div class="doc doc-object doc-')[1:]:
        name = re.search(r'id="(\S+)" class="doc doc-heading"', part)[1]
        signature = re.search(r'<div class="doc-signature[ "].*?</div>', part, re.DOTALL)
        found[name] = re.sub(r"<[^>]+>", "", signature[0]) if signature else ""
    return found


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("name", DOCUMENTED)
def test_public_names_are_documented(name):
    value = DOCUMENTED[name]
    text = inspect.getdoc(value)
    problems = [*undocumented_arguments(value, text), *missing_sections(value, text)]
    if inspect.isclass(value):
        for attribute, member in vars(value).items():
            if attribute.startswith("_") or not callable(member) or _is_hook(attribute):
                continue
            text = inspect.getdoc(member) or ""
            found = [*undocumented_arguments(member, text), *missing_sections(member, text)]
            problems += [f"{attribute}: {problem}" for problem in found]
    assert not problems


def _is_hook(attribute):
    """Whether Keras documents it, and calls it: a method of the class that this one builds on."""
    bases = (keras.callbacks.Callback, keras.optimizers.Optimizer, keras.layers.Layer)
    return any(hasattr(base, attribute) for base in bases)


def undocumented_arguments(value, text):
    entries = {}
    section = re.search(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n|\n)*)", text + "\n", re.MULTILINE)
    if section:
        for entry in re.split(r"^    (?=\S)", section[1], flags=re.MULTILINE)[1:]:
            name, _, rest = entry.partition(":")
            entries[name] = rest
    if not inspect.signature(value).parameters and not inspect.isclass(value):
        return
    for name, parameter in inspect.signature(value).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in entries:
            if "**kwargs" not in entries:  # which says where the others are
                yield f"argument `{name}` is not documented"
        elif parameter.default is not parameter.empty:
            default = parameter.default
            shown = "" if default is None else _written(default)  # None stands for something
            if f"Defaultsto{shown}" not in re.sub(r"[\s`]+", "", entries[name]):
                yield f"the default of `{name}` is not said: {default!r}"


def _written(default):
    """A default as the docstrings write it, without spaces."""
    written = default.__name__ if callable(default) else repr(default)
    return written.replace("'", '"').replace(" ", "")


def missing_sections(value, text):
    if inspect.isclass(value):
        if value.__module__.startswith("sage_keras.optimizers") and "Reference:" not in text:
            yield "no `Reference:`"
        return
    function = inspect.unwrap(value)
    body = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    nodes = [node for statement in body.body for node in ast.walk(statement)]
    returns = any(isinstance(node, ast.Return) and node.value is not None for node in nodes)
    own = value.__name__ not in {"get_config", "update_step"}
    if own and returns and "Returns" not in text:
        yield "no `Returns:`"
    if any(isinstance(node, ast.Raise) and node.exc for node in nodes) and "Raises:" not in text:
        yield "no `Raises:`"
