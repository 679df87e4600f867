"""The example killed while it trains and while it saves, and its parts."""

import json
import shutil

import keras
import numpy as np
import pytest
import resume_training
from example_runs import uncompiled
from modes import BACKEND

from benchmarks import crashes

WAY = {"tensorflow": "manager", "jax": "orbax", "torch": "backup"}[BACKEND]
# One optimizer on each backend: to what is saved they add slots, and no way of their own.
KILLED = {"tensorflow": "sage", "jax": "platon", "torch": "sparse"}[BACKEND]
SETTINGS = ["--steps", "16", "--save-every", "4", "--update-freq", "2"]


def train(output, *settings):
    with uncompiled():
        resume_training.main([*SETTINGS, "--output", str(output), *settings])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The folder of a run that was never killed."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    train(folder)
    return folder


def assert_equal(folder, reference):
    assert crashes.compare(folder, reference) == {"state_equal": True, "log_equal": True}


@pytest.mark.extended
def test_a_run_killed_twice_while_it_saves_ends_as_one_never_killed(tmp_path):
    settings = ["--steps", "120", "--save-every", "20", "--update-freq", "5"]
    settings += ["--optimizer", KILLED]
    resume_training.main([*settings, "--output", str(tmp_path / "reference")])
    job = crashes.Job(BACKEND, tmp_path / "run", [*settings, "--way", WAY])
    job.kill(0.0, while_saving=True)
    job.kill(0.5, while_saving=True)
    resume_training.main([*settings, "--output", str(job.output), "--way", WAY])
    assert job.kills == 2
    assert_equal(job.output, tmp_path / "reference")


@pytest.mark.extended
def test_the_comparison_sees_one_bit_and_one_report(reference, tmp_path):
    import h5py

    other = tmp_path / "run"
    (other / "log").mkdir(parents=True)
    lines = (reference / "log" / "sensitivity.jsonl").read_text().splitlines()
    (other / "log" / "sensitivity.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    copy = other / "final.weights.h5"
    copy.write_bytes((reference / "final.weights.h5").read_bytes())
    with h5py.File(copy, "r+") as file:
        slot = file["optimizer/vars/2"]
        slot[...] = np.nextafter(slot[...], 1)
    assert crashes.compare(other, reference) == {"state_equal": False, "log_equal": False}


class StoppedError(Exception):
    """Ends a run in its own process."""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run that saved by `BackupAndRestore` and came to step 12."""
    folder = tmp_path_factory.mktemp("stopped") / "run"

    def stop(epoch, logs):
        if epoch == 2:
            raise StoppedError

    with pytest.MonkeyPatch.context() as patch:
        loggers = resume_training.loggers
        last = keras.callbacks.LambdaCallback(on_epoch_end=stop)
        patch.setattr(resume_training, "loggers", lambda options: [*loggers(options), last])
        with pytest.raises(StoppedError):
            train(folder, "--way", "backup")
    return folder


def break_first(folder):
    """It was writing its very first file."""
    for path in folder.iterdir():
        path.unlink()
    (folder / "latest.weights.h5").write_bytes(b"")


def break_newest(folder):
    """It was writing the weights."""
    path = folder / "latest.weights.h5"
    path.write_bytes(path.read_bytes()[:1000])


def break_newest_after_its_head(folder):
    """It was writing the weights; HDF5 opens the file, and finds that the parts are not there."""
    path = folder / "latest.weights.h5"
    content = bytearray(path.read_bytes())
    content[40:48] = (2048).to_bytes(8, "little")  # where the file ends, by its first block
    path.write_bytes(content)


def break_order(folder):
    """It had written the weights, and not yet the epoch."""
    (folder / "training_metadata.json").write_text(json.dumps({"epoch": 2, "batch": 0}))


def break_epoch(folder):
    """It was writing the epoch."""
    (folder / "training_metadata.json").write_text("")


@pytest.mark.extended
@pytest.mark.parametrize(
    ("break_it", "start"),
    [
        (break_first, 0),
        (break_newest, 8),
        (break_newest_after_its_head, 8),
        (break_order, 12),
        (break_epoch, 12),
    ],
)
def test_backup_bears_all_that_a_kill_can_leave(
    reference, stopped, tmp_path, capsys, break_it, start
):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    break_it(tmp_path / "backup")
    train(tmp_path, "--way", "backup")
    assert f"Starting at step {start} of" in capsys.readouterr().out
    assert_equal(tmp_path, reference)


@pytest.mark.extended
def test_a_finished_run_is_left_alone(reference):
    before = crashes.read_state(reference / "final.weights.h5")
    train(reference)
    assert crashes.read_state(reference / "final.weights.h5") == before


def test_batches_follow_from_seed_and_step():
    class Options:
        batch_size, save_every, seed = 4, 5, 3

    x = np.arange(13)  # three batches a pass, and one left over
    batches = resume_training.Batches(x, x, Options)
    seen = [batches[index][0] for index in range(5)]
    batches.begin_at(5)
    seen += [batches[index][0] for index in range(5)]
    assert len(batches) == 5
    passes = [np.concatenate(seen[start : start + 3]) for start in (0, 3, 6)]
    assert all(len(set(one)) == 12 for one in passes)
    assert not np.array_equal(passes[0], passes[1])
    batches.begin_at(3)
    np.testing.assert_array_equal(batches[1][0], seen[4])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--steps", "50", "--save-every", "20"], "multiple of --save-every"),
        (["--steps", "0"], "--steps: must be a whole number above 0"),
        (["--way", "orbax" if BACKEND != "jax" else "manager"], "needs KERAS_BACKEND="),
    ],
)
def test_what_cannot_be_run_is_said(settings, message, capsys):
    with pytest.raises(SystemExit) as stopping:
        resume_training.parse_arguments(settings)
    assert stopping.value.code == 2
    assert message in capsys.readouterr().err
