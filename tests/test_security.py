"""What comes from outside is read as data, and what goes outside is harmless there."""

import ast
import html.parser
import json
import pathlib
import string

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from logs import report, write_log

import sage_keras
from sage_keras import Sage
from sage_keras.analysis import read_log, write_report
from sage_keras.analysis.text import printable
from sage_keras.callbacks import SensitivityLogger

PACKAGE = pathlib.Path(sage_keras.__file__).parent
# Modules that unpickle or run what they read, and calls that do.
MODULES = {"code", "ctypes", "dill", "cloudpickle", "joblib", "marshal", "pickle", "shelve"}
MODULES |= {"subprocess", "yaml"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
METHODS = {("np", "load"), ("numpy", "load"), ("torch", "load"), ("os", "system"), ("os", "popen")}
METHODS |= {("ast", "literal_eval"), ("keras.config", "enable_unsafe_deserialization")}
KEYWORDS = {"allow_pickle", "safe_mode", "shell"}
HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "../../up", "/up/x"]
HOSTILE += ["C:\\up", "a\nb", "&amp;", "'; x", "{}", "$\\frac{", "x" * 300]


def faults(source):
    """What in a module's source could run what is read, in words."""
    for node in ast.walk(ast.parse(source)):
        imported = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        yield from (name for name in imported if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            owner, _, name = called.rpartition(".")
            if called in CALLS or (owner, name) in METHODS:
                yield called
            yield from (one.arg for one in node.keywords if one.arg in KEYWORDS)


@pytest.mark.backend_agnostic
@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from yaml import load",
        "eval(x)",
        "np.load(x)",
        "read(x, allow_pickle=True)",
        "torch.load(x)",
        "keras.saving.load_model(x, safe_mode=False)",
        "import os; os.system(x)",
    ],
)
def test_the_check_of_the_package_can_fail(source):
    assert list(faults(source))


@pytest.mark.backend_agnostic
@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_the_package_runs_nothing_that_it_reads(path):
    assert list(faults(path.read_text(encoding="utf-8"))) == []


def json_values():
    simple = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    keys = st.sampled_from(["step", "values", "mean", "counts", "zeros"]) | st.text(max_size=3)
    return st.recursive(simple, lambda x: st.lists(x, max_size=3) | st.dictionaries(keys, x))


@pytest.mark.backend_agnostic
@given(st.data())
def test_a_damaged_report_is_read_as_numbers_or_refused_by_its_line(tmp_path_factory, data):
    damaged = json.loads(json.dumps(report(2)))
    place, kind = damaged, dict
    while kind in (dict, list) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        parent, key = place, data.draw(st.sampled_from(keys))
        place, kind = parent[key], type(parent[key])
        if data.draw(st.booleans()):
            break
    parent[key] = data.draw(json_values())
    folder = write_log(tmp_path_factory.mktemp("log"), report(1), damaged)
    try:
        log = read_log(folder)
    except ValueError as error:
        assert "Line 2 of" in str(error)
        return
    for series in (log.model, *log.groups.values()):
        assert all(values.dtype == "float64" for values in series.values.values())
        assert not any(np.isinf(values).any() for values in series.values.values())
    assert log.steps.dtype == "int64"


@pytest.mark.backend_agnostic
@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"step": 1e999}', '{"step": ' + "9" * 5000 + "}", '{"step": Infinity}'],
    ids=["deep", "infinite", "long", "constant"],
)
def test_what_only_python_would_read_is_refused(tmp_path, line):
    folder = write_log(tmp_path, report(1))
    path = folder / "sensitivity.jsonl"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="Line 2 of"):
        read_log(folder)


class Tags(html.parser.HTMLParser):
    """The tags of a page, with the names of their attributes."""

    def __init__(self):
        super().__init__()
        self.found = set()
        self.text = []

    def handle_starttag(self, tag, attributes):
        self.found |= {tag, *(f"{tag} {name}" for name, _ in attributes)}

    def handle_data(self, data):
        self.text.append(data)


def read_tags(path):
    tags = Tags()
    tags.feed(path.read_text(encoding="utf-8"))
    return tags


@pytest.mark.backend_agnostic
def test_hostile_names_of_groups_and_runs_are_text_in_the_report(tmp_path):
    plain = read_tags(write_report(read_logs(tmp_path / "1", ["a"], ["b"]), tmp_path / "1.html"))
    logs = read_logs(tmp_path / "2", HOSTILE[:4], HOSTILE)
    hostile = read_tags(write_report(logs, tmp_path / "2.html"))
    assert hostile.found <= plain.found
    assert set(map(printable, HOSTILE)) <= set(hostile.text)
    assert {path.name for path in tmp_path.iterdir()} == {"1", "1.html", "2", "2.html"}


def read_logs(folder, runs, groups):
    return {
        name: read_log(write_log(folder / str(number), report(1, groups), report(2, groups)))
        for number, name in enumerate(runs)
    }


def test_hostile_names_stay_inside_the_log_and_the_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # TensorFlow allows for fewer characters, and Keras for no slash.
    layer = "b>..x..y" if keras.backend.backend() == "tensorflow" else "<b> C:\\x & 'y'"
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, name=layer)])
    model.compile(optimizer=Sage(), loss="mse")
    x, y = np.ones((4, 2)), np.ones((4, 2))
    folder = tmp_path / "log"
    logger = SensitivityLogger(folder, groups=dict.fromkeys(HOSTILE, "."))
    model.fit(x, y, callbacks=[logger], verbose=0)

    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    jsonl, events = sorted(folder.iterdir(), reverse=True)
    assert jsonl.name == "sensitivity.jsonl"
    assert set(events.name) <= set(string.ascii_letters + string.digits + ".-_")
    assert list(read_log(folder).groups) == HOSTILE
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    assert {f"sensitivity_mean/{name}" for name in HOSTILE} <= set(tags)

    by_layer = tmp_path / "by_layer"
    model.fit(x, y, callbacks=[SensitivityLogger(by_layer)], verbose=0)
    assert list(read_log(by_layer).groups) == [layer]


def test_pattern_that_takes_forever_is_not_searched_without_compiling(tmp_path):
    """docs/reliability.md: how to load a file of a stranger."""
    dense = keras.layers.Dense(1, name="a" * 40)
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(optimizer=Sage(include=["(a+)+$"]), loss="mse")  # not built: it would hang here
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert loaded.get_layer("a" * 40).count_params() == 2
    assert not hasattr(loaded, "optimizer") or loaded.optimizer is None
