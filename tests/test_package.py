"""The package as it is imported."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys

import pytest

import sage_keras
from sage_keras import analysis, compression


def test_public_names_are_there_and_documented():
    for package in (sage_keras, analysis, compression):
        for name in package.__all__:
            value = getattr(package, name)
            assert name.isupper() or value.__doc__


def test_version_is_that_of_the_metadata():
    assert importlib.metadata.version("sage_keras") == sage_keras.__version__


def test_importing_it_brings_its_submodules_on_use_and_nothing_of_others():
    code = (
        "import sys, keras\n"
        "before = {*sys.modules}\n"
        "import sage_keras\n"
        "print([name for name in sys.modules if name.startswith('sage_keras.callb')])\n"
        "print(sage_keras.callbacks.SensitivityLogger.__name__, sage_keras.analysis.Log.__name__)\n"
        "print(sage_keras.compression.prune.__name__, sage_keras.hub.__name__)\n"
        "print({'analysis', 'callbacks', 'compression', 'hub'} <= {*dir(sage_keras)})\n"
        "new = {name.split('.')[0] for name in {*sys.modules} - before}\n"
        "print(*new - {*sys.stdlib_module_names})\n"
        "sage_keras.optimiser"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.split("\n")[:-1] == [
        "[]",
        "SensitivityLogger Log",
        "prune sage_keras.hub",
        "True",
        "sage_keras",  # no backend, and nothing that draws
    ]
    assert "AttributeError: module 'sage_keras' has no attribute 'optimiser'" in run.stderr


@pytest.mark.parametrize("name", ["analysis", "callbacks", "compression", "hub"])
def test_each_submodule_is_imported_on_use(name, monkeypatch):
    module = importlib.import_module(f"sage_keras.{name}")
    monkeypatch.delattr(sage_keras, name)  # as it is before
    assert getattr(sage_keras, name) is module


@pytest.mark.parametrize("package", [analysis, compression], ids=lambda one: one.__name__)
def test_model_data_and_scores_come_in_one_order(package):
    wanted = ["model", "data", "sensitivities", "scores"]
    for name in package.__all__:
        value = getattr(package, name)
        if inspect.isfunction(value):
            found = list(inspect.signature(value).parameters)
            positions = [found.index(one) for one in wanted if one in found]
            assert positions == sorted(positions), name
            if name.startswith(("measure", "prun", "summary")):
                assert positions[:1] == [0], name
