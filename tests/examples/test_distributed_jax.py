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

import distributed_jax


def start(examples, output, devices, *options, **environment):
    command = [sys.executable, str(examples / "distributed_jax.py"), "--quick", *options]
    return subprocess.Popen(
        [*command, "--output", str(output)],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices), **environment},
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


@pytest.mark.extended
def test_the_losses_are_the_same_however_many_devices_and_hosts(examples, tmp_path):
    finish(start(examples, tmp_path / "alone", 1))
    finish(start(examples, tmp_path / "spread", 4, "--model-devices", "2"))
    hosts = {
        "KERAS_DISTRIBUTION_JOB_ADDRESSES": free_address(),
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
    }
    processes = [
        start(examples, tmp_path / f"host {i}", 2, **hosts, KERAS_DISTRIBUTION_PROCESS_ID=str(i))
        for i in range(2)
    ]
    first, second = map(finish, processes)
    assert "loss by epoch" in first
    assert "loss" not in second
    assert not (tmp_path / "host 1").exists()

    alone, spread, hosts = (read(tmp_path / name) for name in ("alone", "spread", "host 0"))
    layout = "hosts", "devices", "copies"
    assert [alone[name] for name in layout] == [1, 1, 1]
    assert [spread[name] for name in layout] == [1, 4, 2]
    assert [hosts[name] for name in layout] == [2, 4, 4]
    assert alone["losses"][-1] < 0.9 * alone["losses"][0]
    for report in (spread, hosts):
        assert report["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert report["mean sensitivity"] == pytest.approx(alone["mean sensitivity"], rel=1e-3)
        assert report["accuracy"] == pytest.approx(alone["accuracy"], abs=0.01)
    assert spread["MB per device"] < 0.6 * alone["MB per device"]
    assert hosts["MB per device"] == alone["MB per device"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model-devices", "3"], "--model-devices that divides"),
        (["--batch-size", "100"], "--batch-size that is a multiple"),
    ],
)
def test_refuses_what_does_not_divide(arguments, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        distributed_jax.make_distribution(distributed_jax.parse_arguments(arguments))
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
