"""The documentation: its code runs and prints what it says, and it has every public name."""

import ast
import inspect
import pathlib
import re
import textwrap

import keras
import pytest
from documents import code_blocks, run_blocks

import sage_keras
from sage_keras import analysis, callbacks, compression, hub, sensitivity

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
NEEDS_DEVICES = {"distributed.md"}  # its code is read, not run
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_runs_and_prints_what_the_page_says(page, capsys, monkeypatch, tmp_path):
    if page.name in NEEDS_DEVICES:
        for code, _ in code_blocks(page):
            compile(code, page.name, "exec")
        return
    monkeypatch.chdir(tmp_path)
    keras.utils.clear_session()  # names are counted anew
    run_blocks(code_blocks(page), capsys)


def test_the_table_of_mean_scales_is_what_its_code_prints(capsys):
    page = DOCS / "learning_rate.md"
    run_blocks(code_blocks(page), capsys)
    printed = re.findall(r"\d\.\d\d$", capsys.readouterr().out, re.MULTILINE)
    table = re.findall(r"\| (\d\.\d\d) \|", page.read_text(encoding="utf-8"))
    assert printed == table
    assert len(table) == 5


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\ntheme:")[0]
    assert {path.name for path in DOCS.glob("*.md")} == set(re.findall(r"\w+\.md", navigation))


def test_pictures_say_what_they_show():
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        for text, target in re.findall(r"!\[(.*?)\]\((.*?)\)", page.read_text(encoding="utf-8")):
            assert len(text) > 20, f"{page.name}: {target}"
            assert (page.parent / target).is_file()


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    of_the_measure = {name for name in PUBLIC if name.startswith("sage_keras.sensitivity.")}
    assert set(listed) == set(PUBLIC) - of_the_measure | {"sage_keras.sensitivity"}
    assert len(listed) == len(set(listed))


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
