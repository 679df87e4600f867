"""Runs what needs processes of its own: several devices, or several processes that talk."""

import contextlib
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

FOLDER = pathlib.Path(__file__).parent
TIMEOUT = 600  # seconds: to end what hangs, not what is slow on a busy machine


def run_tests(name, **environment):
    """Runs a file of tests that pytest does not collect by itself."""
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-q"]
    _run([([*command, str(FOLDER / name)], environment)])


def run_workers(name, arguments, environments):
    """Runs a script once for each list of arguments, all at a time; raises if one fails."""
    command = [sys.executable, "-X", "faulthandler", str(FOLDER / name)]
    _run([([*command, *map(str, own)], env) for own, env in zip(arguments, environments)])


def free_address():
    """A port of this machine that nothing listens on.

    It lies below the ports that systems give to outgoing connections: one of those could be
    gone before the worker listens.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, 16_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return f"127.0.0.1:{port}"


def load(path):
    """The weights that a worker saved, by optimizer."""
    weights = {}
    with np.load(path) as arrays:
        for key in arrays:
            weights.setdefault(key.rsplit(" ", 1)[0], []).append(arrays[key])
    return weights


def _run(jobs):
    """Runs commands side by side, each with changes to the environment; raises if one fails.

    When one fails the others are ended, for they would wait for it.
    """
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
        stack.callback(_kill, processes)
        codes = _wait(processes)
        for process in processes:
            process.send_signal(signal.SIGABRT)  # faulthandler prints where it hangs
        time.sleep(0.1)
        for output in outputs:
            output.seek(0)
        report = "\n".join(
            f"== process {index}, exit status {code}\n{output.read()}"
            for index, (code, output) in enumerate(zip(codes, outputs))
        )
        assert codes == [0] * len(jobs), report


def _wait(processes):
    """The exit statuses once all have ended, one has failed or the time is over."""
    end = time.monotonic() + TIMEOUT
    while True:
        codes = [process.poll() for process in processes]
        if None not in codes or any(codes) or time.monotonic() > end:
            return codes
        time.sleep(0.1)


def _kill(processes):
    for process in processes:
        process.kill()
        process.wait()
