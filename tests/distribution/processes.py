"""Runs what needs processes of its own: several devices, or several processes that talk."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import numpy as np

FOLDER = pathlib.Path(__file__).parent
TIMEOUT = 300  # seconds: a worker whose peer has failed would wait for ever


def run_tests(name, **environment):
    """Runs a file of tests that pytest does not collect by itself."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q"]
    [(code, output)] = _run([([*command, str(FOLDER / name)], environment)])
    assert code == 0, output


def run_workers(name, arguments, environments):
    """Runs a script once for each list of arguments, all at a time; raises if one fails."""
    command = [sys.executable, str(FOLDER / name)]
    jobs = [([*command, *map(str, own)], env) for own, env in zip(arguments, environments)]
    for code, output in _run(jobs):
        assert code == 0, output


def free_address():
    """A port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def load(path):
    """The weights that a worker saved, by optimizer."""
    weights = {}
    with np.load(path) as arrays:
        for key in arrays:
            weights.setdefault(key.rsplit(" ", 1)[0], []).append(arrays[key])
    return weights


def _run(jobs):
    """Pairs of exit status and output of the commands, each with changes to the environment."""
    path = os.pathsep.join([str(FOLDER.parent), *sys.path])
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in jobs]
        processes = [
            subprocess.Popen(
                command,
                env={**os.environ, "PYTHONPATH": path, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            for (command, environment), output in zip(jobs, outputs)
        ]
        try:
            for process in processes:
                process.wait(TIMEOUT)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        for output in outputs:
            output.seek(0)
        return [(process.returncode, out.read()) for process, out in zip(processes, outputs)]
