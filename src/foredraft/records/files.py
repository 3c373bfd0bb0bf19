"""Records on disk: read strictly, written whole or not at all. Refuses to know: what is in them."""

import gzip
import io
import os
import select
import stat
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from foredraft.records.parsing import TooDeepError, parse, parse_loosely
from foredraft.records.planned import Plan
from foredraft.records.record import with_hint

T = TypeVar("T")
GZIP = b"\x1f\x8b"  # what a packed file begins with
_LFS = b"version https://git-lfs"  # what stands in a file's place where Git LFS did not fetch it
UNPACKED_BYTES = 2**29  # of a packed file of records at most
JSON_BYTES = 2**28  # of a JSON document that another program wrote
PATIENCE = 1.0  # seconds that a pipe may be without anyone who writes into it
_PLACES = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip


def decode(kind: type[T], data: bytes | str, *, name: str = "record") -> T:
    """Decode JSON into `kind`; raise ValueError with one line that names the file and the field."""
    if isinstance(data, bytes) and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise with_hint(ValueError(f"{name}: not UTF-8"), f"iconv -f UTF-16 -t UTF-8 {name}")
    try:
        return parse(data, kind)
    except ValueError as error:
        failure = ValueError(f"{name}: {error}")
        raise (with_hint(failure, "plan again: foredraft plan TARGET --out DIR") if kind is Plan else failure) from None


def read_text(path: str | Path) -> str:
    """A text in UTF-8, with a byte-order mark or without. Raises ValueError naming a file in another encoding."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise with_hint(
            ValueError(f"{path}: not UTF-8 (byte {error.start})"), f"iconv -f {_encoding(error.object)} -t UTF-8 {path}"
        ) from None


def _encoding(data: bytes) -> str:
    """What a text that is no UTF-8 probably is, by its byte-order mark."""
    return "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"


def other_than_file(path: str | Path) -> str | None:
    """What lies in a file's place, in words: a folder, a pipe, a socket, a device, a link to nothing; None of a file, and of nothing."""
    try:
        return _PLACES.get(stat.S_IFMT(os.stat(path).st_mode))
    except OSError:
        return "a link that leads nowhere" if os.path.islink(path) else None


def is_file(path: str | Path) -> bool:
    """Whether there is a file. Raises ValueError where there is something else in its place, which is not as good as none."""
    if what := other_than_file(path):
        raise no_file(path, what)
    return os.path.exists(path)


def no_file(path: str | Path, what: str) -> ValueError:
    """For a path at which something other than a file lies (see `other_than_file`)."""
    return ValueError(f"{path}: is {what}, where a file is expected")


def read_bytes(path: str | Path, most: int = UNPACKED_BYTES) -> bytes:
    """All of a file, or of what is written into a pipe (a shell's `<(…)`). Raises ValueError, at once, where that is more than `most`, and
    where it is neither: a folder, a device, a pipe that nobody writes into.
    """
    what = other_than_file(path)
    if what == "a pipe":
        data = _piped(path, most)
    elif what and not _is_terminal(path):
        raise no_file(path, what)
    else:
        with Path(path).open("rb") as file:
            data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"{path}: more than the {most:,} bytes that are read of such a file")
    return data


def _piped(path: str | Path, most: int) -> bytes:
    """What is written into a pipe, of more than `most` bytes the beginning. Opened so that it does not wait for one who writes: that it has
    any shows in its being without data, not at its end.
    """
    pipe, data, deadline = os.open(path, os.O_RDONLY | os.O_NONBLOCK), bytearray(), time.monotonic() + PATIENCE
    try:
        while len(data) <= most:
            try:
                part = os.read(pipe, 2**20)
            except BlockingIOError:
                select.select([pipe], [], [])
                continue
            data += part
            if not part and (data or time.monotonic() > deadline):
                break
            if not part:
                time.sleep(PATIENCE / 50)
    finally:
        os.close(pipe)
    if not data:
        raise ValueError(f"{path}: is a pipe that nobody writes into")
    return bytes(data)


def _is_terminal(path: str | Path) -> bool:
    """Whether what is typed is read, as by /dev/stdin."""
    try:
        with Path(path).open("rb", buffering=0) as file:
            return file.isatty()
    except OSError:
        return False


def read(kind: type[T], path: str | Path) -> T:
    """Read one JSON document."""
    return decode(kind, read_bytes(path, JSON_BYTES), name=str(path))


def read_json(path: str | Path) -> Any:
    """The JSON that another program wrote, whatever it holds, NaN too. Raises ValueError, one line, where it is none, too large or nested
    too deeply, and OSError where there is no file.
    """
    path = Path(path)
    data = read_bytes(path, JSON_BYTES)
    if data.startswith(_LFS):
        raise lfs_pointer(path)
    try:
        return parse_loosely(data)
    except TooDeepError as error:
        raise ValueError(f"{path}: {error}") from None
    except ValueError as error:  # UnicodeDecodeError and too long a number among them
        raise ValueError(f"{path}: not valid JSON ({error}); download the file again") from None


def is_lfs(path: Path) -> bool:
    """Whether a file is a pointer of Git LFS."""
    with path.open("rb") as file:
        return file.read(len(_LFS)) == _LFS


def lfs_pointer(path: Path) -> ValueError:
    """For a file that is a pointer of Git LFS."""
    error = ValueError(f"{path}: a pointer of Git LFS, which stands for a file that was not downloaded")
    return with_hint(error, f"git -C {path.parent} lfs pull, or hf download OWNER/NAME --local-dir DIR")


def read_lines(kind: type[T], path: str | Path) -> list[T]:
    """Read JSON lines, packed by gzip or not; raise ValueError naming the line; an empty file is an error."""
    lines = _unpacked(Path(path)).splitlines()  # of bytes: U+2028 in a text ends no line
    records = [decode(kind, line, name=f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise ValueError(f"{path}: no records in the file")
    return records


def _unpacked(path: Path) -> bytes:
    data = read_bytes(path)
    if not data.startswith(GZIP):
        return data
    try:
        return gunzipped(data, path)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: truncated or corrupt ({error})") from None


def gunzipped(data: bytes, path: Path, most: int = UNPACKED_BYTES) -> bytes:
    """Unpacked bytes. Raises ValueError where they are more than `most`, before they fill the memory."""
    with gzip.open(io.BytesIO(data)) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise ValueError(f"{path}: unpacks to more than {most:,} bytes")
    return text


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
    """Replace the file at `path` in one step, on disk before it gets its name, so that a crash leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
