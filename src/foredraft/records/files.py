"""Records on disk: read strictly, written whole or not at all. Refuses to know: what is in them."""

import errno
import gzip
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

from foredraft.records.planned import Plan
from foredraft.records.record import with_hint

T = TypeVar("T")
GZIP = b"\x1f\x8b"  # what a packed file begins with


def decode(kind: type[T], data: bytes | str, *, name: str = "record") -> T:
    """Decode JSON into `kind`; raise ValueError with one line that names the file and the field."""
    if isinstance(data, bytes) and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise with_hint(ValueError(f"{name}: not UTF-8"), f"iconv -f UTF-16 -t UTF-8 {name}")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        failure = ValueError(f"{name}: {error}")
        raise (with_hint(failure, "plan again: foredraft plan TARGET --out DIR") if kind is Plan else failure) from None


def read_text(path: str | Path) -> str:
    """A text in UTF-8, with a byte-order mark or without. Raises ValueError naming a file in another encoding."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise with_hint(
            ValueError(f"{path}: not UTF-8 (byte {error.start})"), f"iconv -f {_encoding(error.object)} -t UTF-8 {path}"
        ) from None


def _encoding(data: bytes) -> str:
    """What a text that is no UTF-8 probably is, by its byte-order mark."""
    return "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"


def read(kind: type[T], path: str | Path) -> T:
    """Read one JSON document."""
    return decode(kind, Path(path).read_bytes(), name=str(path))


def read_lines(kind: type[T], path: str | Path) -> list[T]:
    """Read JSON lines, packed by gzip or not; raise ValueError naming the line; an empty file is an error."""
    lines = _unpacked(Path(path)).splitlines()  # of bytes: U+2028 in a text ends no line
    records = [decode(kind, line, name=f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise ValueError(f"{path}: no records in the file")
    return records


def _unpacked(path: Path) -> bytes:
    data = path.read_bytes()
    if not data.startswith(GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or corrupt ({error})") from None


def write(path: str | Path, record: Any) -> None:
    """Write one JSON document, indented, atomically."""
    write_bytes(
        path,
        msgspec.json.format(
            msgspec.json.encode(record, order="deterministic" if isinstance(record, dict) else None), indent=1
        )
        + b"\n",
    )


def write_lines(path: str | Path, records: Iterable[Any]) -> None:
    """Write JSON lines, atomically; packed where `path` ends in .gz, the same bytes for the same records."""
    lines = msgspec.json.Encoder().encode_lines(list(records))
    write_bytes(path, gzip.compress(lines, mtime=0) if Path(path).suffix == ".gz" else lines)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` in one step, so that a crash leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def lock(path: str | Path, busy: str) -> IO[bytes]:
    """Return the open file at `path`, locked until it is closed or this process ends. Raises ValueError `busy` where another holds it."""
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(busy) from None
    return file


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, renamed to `path` once all in it is on disk, and removed when the block does not end well.

    Raises ValueError where `path` already holds something, and OSError naming `path` where the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: exists already; remove it or choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.ENOSPC, f"the disk is full ({free / 1e6:,.0f} MB free before cleaning up), nothing was kept; free some or choose another --out",
            str(path),
        ) from None  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have everything on disk before it gets its name; a disk that fills late says so here."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
