"""Outputs that one run writes at a time, and folders that appear whole or not at all. Refuses to know: what is in them."""

import errno
import glob
import os
import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SHOWN = 300  # characters of what a lock says


def hub_name(folder: str | Path) -> str | None:
    """org/model of a snapshot in the Hub's cache, whose own name is a commit's; None of any other folder."""
    parts = Path(os.path.abspath(folder)).parts
    if len(parts) < 3 or parts[-2] != "snapshots" or not parts[-3].startswith("models--"):
        return None
    return parts[-3].removeprefix("models--").replace("--", "/", 1)


class Lock:
    """A file that is locked until it is closed or this process ends, and removed when it is closed. A context manager, which closes it."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path, self._file = path, file

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self._file.close()


def lock(path: str | Path, busy: str) -> Lock:
    """Lock the file at `path`, in which stands who has it. Raises ValueError `busy`, with who that is, where another does."""
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ValueError(f"{busy}{_holder(path)}; wait for it or choose another --out") from None
        if _is_at(file, path):
            file.truncate(0)
            file.write(_self().encode(errors="replace"))
            file.flush()
            return Lock(path, file)
        file.close()  # removed in between by the run that had it


def _self() -> str:
    """This process, for those that find its lock: the words of its command that are no options, which may hold a key."""
    program = Path(sys.argv[0])
    words = [program.parent.name if program.stem == "__main__" else program.name, *sys.argv[1:3]]
    command = " ".join(word for word in words if word and not word.startswith("-"))
    return f"{command or 'python'}, process {os.getpid()} on {socket.gethostname()}"


def _holder(path: Path) -> str:
    """Who has a lock, as it says itself; "" where it does not."""
    try:
        words = " ".join(path.read_text(errors="replace")[:_SHOWN].split())
    except OSError:
        words = ""
    return f" ({words})" if words else ""


def _is_at(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def reserved(out: str | Path) -> Lock:
    """Keep other runs out of the output `out`, a file or a folder, and remove what a killed one left half-written.

    Raises ValueError where another run is at work on it.
    """
    out = Path(os.path.abspath(out))
    out_lock = lock(_lock_of(out), f"{out}: another run is at work on it")
    leftovers = [
        *out.parent.glob(f".{glob.escape(out.name)}.*.partial"),
        *(out.glob(".*.partial") if out.is_dir() else ()),
    ]
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    return out_lock


def _lock_of(out: Path) -> Path:
    """Beside an output; within a folder whose own parent may not be written, such as one mounted into a container."""
    within = out.is_dir() and (not out.name or not os.access(out.parent, os.W_OK))
    return out / ".lock" if within else out.with_name(f".{out.name}.lock")


@contextmanager
def whole_folder(path: str | Path, *, replace: bool = False, locked: bool = False) -> Iterator[Path]:
    """A new folder to fill, renamed to `path` once all in it is on disk, and removed when the block does not end well.

    `replace`: it takes the place of a folder that is there. `locked`: the caller has reserved `path`. What is in it can be read by others, as
    the umask has it. Raises ValueError where `path` already holds something or another run writes it, and OSError naming `path` where the
    disk is full, whoever met that.
    """
    path = Path(path)
    with reserved(path) if not locked else _nothing():
        if not replace and os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(f"{path}: exists already; remove it or choose another --out")
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            yield partial
            _finish(partial)
            _put(partial, path)
        except Exception as error:
            if not _is_full(error):
                raise
            raise _full(path) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _put(partial: Path, path: Path) -> None:
    """Give a folder its name, in the place of one that is there."""
    if not path.is_dir() or not any(path.iterdir()):
        os.replace(partial, path)
    else:
        old = path.with_name(f".{path.name}.{os.getpid()}.old.partial")
        os.replace(path, old)
        os.replace(partial, path)
        shutil.rmtree(old)
    _sync(path.parent)


def _is_full(error: Exception) -> bool:
    """Whether a disk was full, told in Python's words or in those of a library that wrote (safetensors)."""
    number = error.errno if isinstance(error, OSError) else None
    return number in _FULL or any(f"(os error {number})" in str(error) for number in _FULL)


def _full(path: Path) -> OSError:
    free = shutil.disk_usage(path.parent).free
    why = f"the disk is full ({free / 1e6:,.0f} MB free before cleaning up), nothing was kept; free some or choose another --out"
    return OSError(errno.ENOSPC, why, str(path))


def _finish(folder: Path) -> None:
    """Have everything on disk, readable as the umask allows, before it gets its name; a disk that fills late says so here."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file():
            make_readable(path)
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_readable(path: Path) -> None:
    """Give a file the mode that any new file has, since safetensors writes what its owner alone may read; execution stays."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod((path.stat().st_mode & 0o111) | (0o666 & ~umask))
