"""The example on one device, on four, on two hosts, and spread: the same losses."""

import json
import os
import subprocess
import sys

import pytest
from distribution.processes import free_address
from modes import BACKEND

if BACKEND != "jax":
    pytest.skip("the example is about JAX", allow_module_level=True)

# Directory, devices of each host, options.
RUNS = {
    "one device": (1, []),
    "four devices": (4, []),
    "spread": (4, ["--model-devices", "2"]),
}


def start(examples, output, devices, *options, **environment):
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, str(examples / "distributed_jax.py"), "--quick", *options]
    return subprocess.Popen(
        [*command, "--output", str(output)],
        env={**os.environ, "XLA_FLAGS": flags, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output


def read(folder):
    return json.loads((folder / "distributed_jax.json").read_text())


def test_the_losses_are_the_same_however_many_devices_and_hosts(examples, tmp_path):
    for name, (devices, options) in RUNS.items():
        finish(start(examples, tmp_path / name, devices, *options))
    hosts = {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": free_address(),
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    processes = [
        start(examples, tmp_path / str(i), 2, **hosts, KERAS_DISTRIBUTION_PROCESS_ID=str(i))
        for i in range(2)
    ]
    outputs = [finish(process) for process in processes]
    assert "loss by epoch" in outputs[0]
    assert outputs[1] == ""
    assert not (tmp_path / "1").exists()

    reports = {name: read(tmp_path / name) for name in [*RUNS, "0"]}
    expected = reports["one device"]
    assert [reports[name]["devices"] for name in [*RUNS, "0"]] == [1, 4, 4, 4]
    assert [reports[name]["copies"] for name in [*RUNS, "0"]] == [1, 4, 2, 4]
    assert [reports[name]["hosts"] for name in [*RUNS, "0"]] == [1, 1, 1, 2]
    assert expected["losses"][-1] < 0.7 * expected["losses"][0]
    for report in reports.values():
        assert report["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert report["mean sensitivity"] == pytest.approx(expected["mean sensitivity"], rel=1e-3)
        assert report["accuracy"] == pytest.approx(expected["accuracy"], abs=0.01)
    assert reports["spread"]["MB per device"] < 0.6 * expected["MB per device"]


def test_refuses_devices_that_do_not_divide(examples, tmp_path):
    process = start(examples, tmp_path, 1, "--model-devices", "3")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "--model-devices" in errors.splitlines()[-1]
