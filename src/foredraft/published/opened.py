"""The bytes of a file as UTF-8 text, whatever it was packed and written with.

Promises: gzip and zstandard are told by their first bytes, UTF-16 by its mark or its zeros, and a UTF-8 mark is no part of the text;
what cannot be read is an error of one line. Refuses to know: what the text says.
"""

import codecs
import gzip
import zlib
from pathlib import Path

from foredraft.records import UNPACKED_BYTES, gunzipped, read_bytes, with_hint

GZIP, ZSTANDARD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def utf8_of(path: str | Path) -> bytes:
    """The text of a file as UTF-8 without a mark. Raises ValueError, one line, where it is broken or in another encoding."""
    data = text_of(path)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        message = f"{Path(path).name}: not UTF-8 ({error.reason} at byte {error.start:,})"
        raise with_hint(ValueError(message), "save it as UTF-8") from None
    return data


def text_of(path: str | Path) -> bytes:
    """The same, of which not every line need be UTF-8. Raises ValueError where it is packed or UTF-16, and broken."""
    data = _unpacked(Path(path))
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in data[:2]:
        encoding = "utf-16-be" if data[:1] == b"\0" else "utf-16-le"
    else:
        return data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode(encoding).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{Path(path).name}: broken UTF-16 ({error.reason} at byte {error.start:,})") from None


def _unpacked(path: Path) -> bytes:
    data = read_bytes(path)
    try:
        if data.startswith(GZIP):
            return gunzipped(data, path)
        if data.startswith(ZSTANDARD):
            import zstandard

            text = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read(UNPACKED_BYTES + 1)
            if len(text) > UNPACKED_BYTES:
                raise ValueError(f"{path}: unpacks to more than {UNPACKED_BYTES:,} bytes")
            return text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path.name}: truncated or corrupt ({error})") from None
    except ModuleNotFoundError:
        raise with_hint(
            ValueError(f"{path.name}: reading .zst needs the package zstandard"), "unpack it, or pip install zstandard"
        ) from None
    return data
