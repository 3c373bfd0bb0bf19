"""Rows out of files: JSON lines, JSON lists, Parquet and texts, packed or not.

Promises: lines end at line feeds alone; rows come one at a time with their place, but for a JSON list, which is read whole; a file that ends
too early is an error. Refuses to know: what a row says.
"""

import codecs
import gzip
import importlib
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from foredraft.records import parse, parse_loosely

LINES, TEXTS, LISTS, PARQUET = (".jsonl", ".ndjson"), (".txt", ".md"), ".json", ".parquet"
ENDINGS = (*LINES, LISTS, PARQUET, *TEXTS)
CHUNK = 2**18  # bytes of a packed file unpacked at a time
WINDOW = 2**31  # bytes; the widest that zstd --long=31 writes
PIECE = 2**12  # bytes of a .zst file unpacked at a time, which are never more than 2**27
RATIO, SPARE = (
    200,
    2**23,
)  # how many times its size a packed file may unpack to, beyond the first bytes; text packs to a tenth
LINE_BYTES, TEXT_BYTES = 2**26, 2**30  # of a row of JSON lines, and of a text, which is a row
DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)  # what a packed file that is cut off or no such file raises


class LongLine(bytes):
    """The beginning of a line of more than LINE_BYTES, the rest of which was passed over."""


Row = bytes | dict[str, Any]


def ending(path: Path) -> str | None:
    """The kind of a file, ".jsonl" or ".txt" and their like, without its packing; None of another."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return next((known for known in ENDINGS if name.endswith(known)), None)


def holds_rows(path: Path) -> bool:
    """Whether a file in a folder is data: by its ending, and a .json file by being a list, since folders hold other JSON too."""
    if ending(path) != LISTS:
        return ending(path) is not None
    try:
        with path.open("rb") as raw:
            return unpacked(path, raw).read(CHUNK).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["
    except (*DAMAGED, OSError):
        return False


def lines(path: Path, raw: IO[bytes]) -> Iterator[tuple[str, Row]]:
    """Each row with its place in the file, ":3" or "[3]". Raises UnicodeDecodeError of a text, and what is in DAMAGED."""
    if ending(path) == PARQUET:
        yield from ((f"[{number}]", row) for number, row in enumerate(_parquet_rows(path), 1))
        return
    stream = unpacked(path, raw)
    if ending(path) in TEXTS:
        text = stream.read(TEXT_BYTES + 1)
        if len(text) > TEXT_BYTES:
            raise EOFError(f"a text of more than {TEXT_BYTES:,} bytes; cut it into files")
        yield "", {"text": text.decode("utf-8-sig")}
        return
    if ending(path) == LISTS:
        yield from _listed(_begun(stream.read()), 1)
        return
    begun = False
    for number, line in enumerate(_bounded(stream), 1):
        line = _begun(line) if number == 1 and not isinstance(line, LongLine) else line
        if not begun and line.lstrip()[:1] == b"[":  # all of it may be a list
            yield from _listed(line + stream.read(), number)
            return
        if line.strip():
            begun = True
            yield f":{number}", line


def _bounded(stream: IO[bytes]) -> Iterator[bytes]:
    """The lines of a stream, those that are too long as `LongLine`."""
    while line := stream.readline(LINE_BYTES + 1):
        if len(line) <= LINE_BYTES or line.lstrip()[:1] == b"[":  # a list may well be one line
            yield line
            continue
        begun = LongLine(line[:PIECE])
        while line and not line.endswith(b"\n"):
            line = stream.readline(LINE_BYTES)
        yield begun


def _begun(data: bytes) -> bytes:
    """The beginning of a file without UTF-8's mark. Raises UnicodeDecodeError where it has UTF-16's."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        data.decode()
    return data.removeprefix(codecs.BOM_UTF8)


def _listed(data: bytes, first: int) -> Iterator[tuple[str, Row]]:
    """The elements of a list that is all of `data`; of anything else its lines, from number `first` on."""
    elements = _elements(data)
    if elements is not None:
        yield from ((f"[{place}]", element) for place, element in enumerate(elements, 1))
        return
    for number, line in enumerate(data.split(b"\n"), first):
        if line.strip():
            yield f":{number}", line


def _elements(data: bytes) -> list[bytes] | None:
    """The elements of a JSON list, or of an object that is a list under one name; such an object of another kind alone; None of no JSON."""
    if data.lstrip()[:1] == b"[":
        with suppress(ValueError):
            return [bytes(element) for element in parse(data, list[msgspec.Raw])]
    try:  # objects; and NaN and half characters, each in its own row
        value = parse_loosely(data)
    except ValueError:
        return None
    if isinstance(value, dict):
        (*parts,) = value.values()
        value = parts[0] if len(parts) == 1 and isinstance(parts[0], list) else [value]
    return [json.dumps(element).encode() for element in value] if isinstance(value, list) else None


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ImportError(f"{path}: Parquet needs the package pyarrow: pip install 'foredraft[hub]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from map(plain_of, batch.to_pylist(maps_as_pydicts="strict"))
    except (OSError, ValueError) as error:  # pyarrow's own are both
        raise EOFError(str(error).splitlines()[0]) from None


def plain_of(value: Any) -> Any:
    """A value of a table without the keys whose value is null, since a table gives every row the keys of all; bytes that are a text as one."""
    if isinstance(value, dict):
        return {key: plain_of(part) for key, part in value.items() if part is not None}
    if isinstance(value, bytes):  # strings of writers that do not mark them as such
        with suppress(UnicodeDecodeError):
            return value.decode()
    return [plain_of(part) for part in value] if isinstance(value, list) else value


def unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    """The bytes of a file, unpacked as its name says."""
    if path.suffix == ".gz":
        return io.BufferedReader(_Measured(raw, gzip.open(raw)), CHUNK)
    return io.BufferedReader(_Measured(raw, _Zstandard(raw)), CHUNK) if path.suffix == ".zst" else raw


class _Measured(io.RawIOBase):
    """What a packed file unpacks to; EOFError where that is far more than texts do, before it is all read."""

    def __init__(self, raw: IO[bytes], text: Any) -> None:
        self.raw, self.text, self.size = raw, text, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self.text.readinto(buffer)
        self.size += size
        if self.size > RATIO * self.raw.tell() + SPARE:
            raise EOFError(f"it unpacks to more than {RATIO} times its size, as no text does")
        return size


class _Zstandard(io.RawIOBase):
    """The text of a .zst file of any number of frames; EOFError where it ends inside one, which the package's reader takes for an end."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.packed, self.text = raw, b"", memoryview(b"")
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            packed = self.packed or self.raw.read(PIECE)
            if not packed:
                if self.frame is not None:
                    raise EOFError("the file ends within a frame")
                return 0
            self.text = memoryview(self._unpack(packed))
        size = min(len(buffer), len(self.text))
        buffer[:size], self.text = self.text[:size], self.text[size:]
        return size

    def _unpack(self, packed: bytes) -> bytes:
        import zstandard

        self.frame = self.frame or zstandard.ZstdDecompressor(max_window_size=WINDOW).decompressobj()
        try:
            text = self.frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self.packed = b""
        if self.frame.eof:
            self.packed, self.frame = self.frame.unused_data, None
        return text
