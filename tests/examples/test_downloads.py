"""Downloads: what gets into the cache is whole and right, or is not there at all."""

import hashlib
import io
import os
import pathlib
import shutil
import tarfile
import time
import zipfile

import pytest
from common import downloads

pytestmark = pytest.mark.backend_agnostic
CONTENT = b"what the example needs"
METADATA = "Metadata-Version: 2.1\nName: tiny_package\nVersion: 1.0\n"
WHEEL = "tiny_package-1.0-py3-none-any.whl"
SOURCE = "tiny_package-1.0.tar.gz"
# A build backend of the archive's own: pip needs nothing else to run it. It leaves a trace.
BACKEND = """
import pathlib
pathlib.Path({trace!r}).touch()

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "tiny_package-1.0.dist-info")
    info.mkdir()
    (info / "METADATA").write_text({metadata!r})
    return info.name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def write_wheel(folder):
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = folder / WHEEL
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name in ("data.txt", "more.txt", "unwanted.txt"):
            wheel.writestr(f"tiny_package/{name}", CONTENT)
        wheel.writestr("tiny_package-1.0.dist-info/METADATA", METADATA)
        wheel.writestr("tiny_package-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tiny_package-1.0.dist-info/RECORD", "")
    return path


def write_source_archive(path, trace, special=None):
    """A source archive whose build leaves a trace, with a member of a special kind if asked."""
    files = {
        "backend.py": BACKEND.format(trace=str(trace), metadata=METADATA),
        "pyproject.toml": PROJECT,
        "PKG-INFO": METADATA,
        "data.txt": CONTENT.decode(),
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(f"tiny_package-1.0/{name}")
            member.size = len(text)
            if name == "data.txt" and special is not None:
                member.type, member.size, member.linkname = special, 0, "/etc/passwd"
            archive.addfile(member, io.BytesIO(text.encode()))
    return path


def package_of(path):
    """The package that the archive at a path is, as it is now."""
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return downloads.Package("tiny_package==1.0", path.name, sha256)


def cached_files(home):
    return [path.name for path in home.rglob("*") if path.is_file()]


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
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


@pytest.fixture
def copies(monkeypatch, index):
    """Has pip's part done by a copy, where it is not about pip; returns the calls."""
    calls = []

    def copy(package, folder):
        calls.append(package.archive)
        return pathlib.Path(shutil.copy(index / package.archive, folder))

    monkeypatch.setattr(downloads, "_pip_download", copy)
    return calls


def flip_byte(content):
    place = content.index(b"tiny_package/data.txt") + len("tiny_package/data.txt") + 3
    return content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :]


def set_method(content):
    """An unknown compression, at each file and in the directory."""
    for head in (b"PK\x03\x04\x14", b"PK\x01\x02\x14\x03\x14"):
        content = content.replace(head + b"\0\0\0\x08", head + b"\0\0\0\x63")
    return content


def set_version(content):
    """A later version of zip than there is."""
    return content.replace(b"PK\x01\x02\x14\x03\x14", b"PK\x01\x02\x14\x03\xff")


def truncate(content):
    return content[: len(content) // 2]


def extended(*values):
    """One of a kind is tried each time, and the others of it in the extended run."""
    return [pytest.param(value, marks=pytest.mark.extended) for value in values]


@pytest.mark.parametrize("alter", [flip_byte, *extended(set_method, set_version, truncate)])
def test_altered_wheel_is_refused_with_what_to_do(home, index, alter):
    wheel = write_wheel(index)
    package, content = package_of(wheel), wheel.read_bytes()
    wheel.write_bytes(alter(content))
    assert wheel.read_bytes() != content
    with pytest.raises(downloads.UnavailableError) as refusal:
        downloads.fetch(package)
    assert WHEEL in str(refusal.value)
    assert "Nothing of it was kept or run. Check the network and run this again." in str(
        refusal.value
    )
    assert cached_files(home) == []


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.REGTYPE,
        *extended(tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE),
    ],
    ids=["file", "folder", "pipe", "symbolic link", "hard link"],
)
def test_nothing_of_an_altered_source_archive_is_run(home, index, tmp_path, kind):
    trace = tmp_path / "it was run"
    package = package_of(write_source_archive(index / SOURCE, tmp_path / "another trace"))
    write_source_archive(index / SOURCE, trace, kind)
    with pytest.raises(downloads.UnavailableError, match="Nothing of it was kept or run"):
        downloads.fetch(package)
    assert not trace.exists()
    assert cached_files(home) == []


def test_source_archive_of_the_right_checksum_is_fetched(home, index, tmp_path):
    trace = tmp_path / "it was run"  # which shows that the test above can fail
    package = package_of(write_source_archive(index / SOURCE, trace))
    path = downloads.fetch(package)
    assert path == home / "sage_keras" / SOURCE
    assert cached_files(home) == [SOURCE]
    assert trace.exists()


def test_wheel_is_fetched_and_unpacked_as_far_as_it_is_wanted(home, index):
    path = downloads.fetch(package_of(write_wheel(index)))
    assert path == home / "sage_keras" / WHEEL
    folder = downloads.unpack(path, "tiny_package", ["data.txt", "more.txt"])
    assert folder == path.parent / "tiny_package-1.0-py3-none-any"
    assert sorted(cached_files(home)) == ["data.txt", "more.txt", WHEEL]
    assert (folder / "data.txt").read_bytes() == CONTENT


def test_unreachable_index_says_what_to_do(home, index):
    wheel = write_wheel(index)
    package = package_of(wheel)
    wheel.unlink()
    advice = f"`python -m pip download --no-deps --only-binary tiny_package {package.requirement}`"
    with pytest.raises(downloads.UnavailableError) as refusal:
        downloads.fetch(package)
    assert advice in str(refusal.value)
    assert f"copy {WHEEL} into {home / 'sage_keras'}." in str(refusal.value)
    assert cached_files(home) == []


def test_only_what_is_not_right_is_fetched_again(home, index, copies):
    wheel = write_wheel(index)
    package, content = package_of(wheel), wheel.read_bytes()
    path = downloads.fetch(package)
    assert downloads.fetch(package) == path
    assert copies == [WHEEL]
    path.write_bytes(content[:-1])
    assert downloads.fetch(package).read_bytes() == content
    path.unlink()
    os.mkfifo(path)  # which nobody writes to: reading it would wait for ever
    assert downloads.fetch(package).read_bytes() == content
    assert copies == [WHEEL] * 3


def test_damaged_unpacked_file_is_unpacked_again(home, index, copies):
    path = downloads.fetch(package_of(write_wheel(index)))
    folder = downloads.unpack(path, "tiny_package", ["data.txt", "more.txt"])
    (folder / "data.txt").write_bytes(CONTENT[:-1])
    untouched = (folder / "more.txt").stat().st_mtime_ns
    downloads.unpack(path, "tiny_package", ["data.txt", "more.txt"])
    assert (folder / "data.txt").read_bytes() == CONTENT
    assert (folder / "more.txt").stat().st_mtime_ns == untouched


def test_interruption_leaves_the_cache_empty(home, index, monkeypatch):
    package = package_of(write_wheel(index))

    def interrupted(package, folder):
        (folder / "half").write_bytes(CONTENT)
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_pip_download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        downloads.fetch(package)
    assert list((home / "sage_keras").iterdir()) == []


def test_what_a_kill_left_is_removed_after_a_day(home, index, copies):
    cache = home / "sage_keras"
    for name, hours in {"download-old": 25, "download-running": 23, "tokens": 99}.items():
        (cache / name).mkdir(parents=True)
        (cache / name / "half").touch()
        os.utime(cache / name, (then := time.time() - hours * 3600, then))
    downloads.fetch(package_of(write_wheel(index)))
    assert {path.name for path in cache.iterdir()} == {"download-running", "tokens", WHEEL}


def break_home(home):
    home.write_text("a file")


def break_cache(home):
    home.mkdir()
    (home / "sage_keras").write_text("a file")


def break_archive(home):
    (home / "sage_keras" / WHEEL / "inside").mkdir(parents=True)


@pytest.mark.parametrize("break_it", [break_home, break_cache, break_archive])
def test_unusable_cache_says_what_to_do(home, index, copies, break_it):
    package = package_of(write_wheel(index))
    break_it(home)
    with pytest.raises(downloads.UnavailableError, match=r"cannot be used: .*KERAS_HOME"):
        downloads.fetch(package)


@pytest.mark.parametrize("method", ["mkdir", "open", "glob"])
def test_forbidden_cache_says_what_to_do(home, index, copies, monkeypatch, method):
    package = package_of(write_wheel(index))
    if method == "open":
        (home / "sage_keras").mkdir(parents=True)
        shutil.copy(index / WHEEL, home / "sage_keras")

    def forbidden(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, method, forbidden)  # root may do all else
    with pytest.raises(downloads.UnavailableError, match=r"Permission denied.*KERAS_HOME"):
        downloads.fetch(package)


def test_forbidden_folder_of_unpacked_files_says_what_to_do(home, index, copies):
    path = downloads.fetch(package_of(write_wheel(index)))
    path.with_suffix("").write_text("a file where the folder should be")
    with pytest.raises(downloads.UnavailableError, match=r"cannot be used: .*KERAS_HOME"):
        downloads.unpack(path, "tiny_package", ["data.txt"])
