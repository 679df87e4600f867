"""The package as it is imported."""

import importlib.metadata
import subprocess
import sys

import sage_keras
from sage_keras import analysis, compression


def test_public_names_are_there_and_documented():
    for package in (sage_keras, analysis, compression):
        for name in package.__all__:
            value = getattr(package, name)
            assert name.isupper() or value.__doc__


def test_version_is_that_of_the_metadata():
    assert importlib.metadata.version("sage_keras") == sage_keras.__version__


def test_imports_no_backend_and_no_plotting_of_its_own():
    code = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import sage_keras, sage_keras.analysis, sage_keras.callbacks, sage_keras.hub\n"
        "import sage_keras.compression\n"
        "print(*{name.split('.')[0] for name in set(sys.modules) - before})"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    foreign = set(run.stdout.split()) - set(sys.stdlib_module_names)
    assert foreign == {"sage_keras"}
