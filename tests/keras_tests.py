"""Keras's own tests with this package's optimizers in the place of Adam, AdamW, SGD and Adamax.

    python -m tests.keras_tests                    # trainers, callbacks, saving, models, layers
    python -m tests.keras_tests trainers callbacks/early_stopping_test.py

Runs the tests that Keras's wheel ships, on the backend of KERAS_BACKEND, as they are and once more
with the classes exchanged, and prints for each file how many passed. The exchanged ones do not
guide (`guide=False`): their numbers have to be those of Keras's, while slots, saving and all else
are this package's. Ends with 1 where a test fails that passes without the exchange.
"""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import types
from importlib.util import find_spec

FOLDERS = ("trainers", "callbacks", "saving", "models", "layers")
# What trains or saves: the others never see an optimizer.
CONCERNED = re.compile(r"optimizer|compile\(|run_layer_test")
IMPORTED = re.compile(r"^(?:import|from) (\w+)", re.MULTILINE)
SWAP, RESULTS = "SAGE_KERAS_SWAP", "SAGE_KERAS_RESULTS"
ALL_PASSED, SOME_FAILED = 0, 1  # pytest's exit statuses
# What is not the same with the exchange, and is not to be.
EXPECTED = {
    "test_scalar_weight": "it counts a file's entries: two averages and a description more",
}
outcomes = {}


def pytest_configure(config):
    stand_in_for_the_conftest()
    if os.environ.get(SWAP):
        swap()


def pytest_runtest_logreport(report):
    if report.when == "call" or report.outcome != "passed":
        outcomes[report.nodeid] = report.outcome


def pytest_sessionfinish():
    pathlib.Path(os.environ[RESULTS]).write_text(json.dumps(outcomes))


def stand_in_for_the_conftest():
    """Some of the tests import a name of Keras's own conftest.py, which its wheel leaves out."""
    import keras
    import pytest

    def skip_if_backend(name, reason):
        return pytest.mark.skipif(keras.backend.backend() == name, reason=reason)

    sys.modules["conftest"] = types.ModuleType("conftest")
    sys.modules["conftest"].skip_if_backend = skip_if_backend


def swap():
    """Exchanges the classes wherever Keras looks for them, before its tests are imported."""
    import keras
    from keras.src import api_export, optimizers

    import sage_keras

    pairs = {
        "Adam": sage_keras.SageAdam,
        "AdamW": sage_keras.Sage,
        "SGD": sage_keras.SageSGD,
        "Adamax": sage_keras.SageAdamax,
    }
    for name, base in pairs.items():
        original = getattr(optimizers, name)
        mine = type(name, (base,), {"__init__": _without_guiding, "__module__": __name__})
        if keras.backend.backend() == "torch":  # there Keras makes another class of its own four
            mine.__new__ = staticmethod(lambda cls, *args, **kwargs: object.__new__(cls))
        for module in [keras.optimizers, optimizers, sys.modules[original.__module__]]:
            setattr(module, name, mine)
        optimizers.ALL_OBJECTS_DICT[name.lower()] = mine
        api_export.register_internal_serializable(f"keras.optimizers.{name}", mine)


def _without_guiding(self, *args, **kwargs):
    super(type(self), self).__init__(*args, **{"guide": False, **kwargs})


def parted(files):
    """Those that can be imported, and the others with the package that they lack."""
    left_out = []
    for path in files:
        packages = IMPORTED.findall(path.read_text(encoding="utf-8"))
        lacking = [one for one in packages if one != "conftest" and not find_spec(one)]
        left_out += [(path, one) for one in lacking[:1]]
    without = {path for path, _ in left_out}
    return [path for path in files if path not in without], left_out


def run(files, swapped):
    """The outcome of each test by its name, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        results = pathlib.Path(folder) / "results.json"
        environment = os.environ | {RESULTS: str(results), SWAP: "1" if swapped else ""}
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull]
        command += ["--rootdir", os.path.commonpath([path.parent for path in files])]
        command += ["-p", "tests.keras_tests", "-p", "no:cacheprovider", "-p", "no:xdist"]
        command += ["--import-mode", "importlib", "--tb", "line", "-W", "ignore"]
        command += ["-o", "markers=requires_trainable_backend", *map(str, files)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        ran = done.returncode in (ALL_PASSED, SOME_FAILED)
        if not ran or not results.exists():  # a file that cannot be imported, say
            raise SystemExit(done.stdout + done.stderr)
        return json.loads(results.read_text()), done.stdout


def passed_by_file(results):
    passed = collections.Counter()
    for name, outcome in results.items():
        passed[name.split("::")[0]] += outcome == "passed"
    return passed


def main(wanted):
    import keras

    root = pathlib.Path(keras.__file__).parent / "src"
    files = []
    for one in wanted or FOLDERS:
        path = root / one
        files += [path] if path.is_file() else sorted(path.rglob("*_test.py"))
    files = [path for path in files if CONCERNED.search(path.read_text(encoding="utf-8"))]
    files, left_out = parted(files)
    plain, _ = run(files, swapped=False)
    swapped, output = run(files, swapped=True)

    counts = passed_by_file(plain), passed_by_file(swapped)
    print(f"Keras {keras.__version__} on {keras.backend.backend()}: passed, and with the exchange")
    for file in counts[0]:
        print(f"{counts[0][file]:5} {counts[1][file]:5}  {file}")
    print(f"{counts[0].total():5} {counts[1].total():5}  in all")
    for path, package in left_out:
        print(f"not run, since {package} is not installed: {path.relative_to(root)}")
    failed = [
        name
        for name, outcome in plain.items()
        if outcome == "passed" and swapped.get(name) != "passed"
    ]
    broken = [name for name in failed if name.split("::")[-1] not in EXPECTED]
    for name in failed:
        why = EXPECTED.get(name.split("::")[-1])
        print("only with the exchange:", name, f"(expected: {why})" if why else "")
    if broken:
        print(output)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
