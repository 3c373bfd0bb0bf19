"""Documents out of files, folders and Hugging Face datasets, one at a time.

Promises: a broken row is named by its file and place, with the reason, and left to the caller to stop at or to count; a file's hash is of
its bytes on disk. Refuses to know: how files hold rows (`files`), what a row says (`rows`), tokenizers, templates.
"""

import hashlib
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foredraft.data import files
from foredraft.data.rows import TURNS, Document, Mode, document_of, parsed
from foredraft.data.tokens import Source
from foredraft.records import no_file, other_than_file, with_hint

Broken = Callable[[str], None]  # takes "file:line: why"; raises to stop

SHOWN = 3  # skipped rows that are named


class Skips:
    """What to do about a broken row: "stop" raises ValueError, "skip" counts it."""

    def __init__(self, on_error: str) -> None:
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be stop or skip, got {on_error!r}")
        self.on_error, self.count = on_error, 0
        self.named: list[str] = []

    def __call__(self, what: str) -> None:
        if self.on_error == "stop":
            raise ValueError(f"{what}; mend it, or pass --on-error skip to leave it out")
        self.count += 1
        self.named += [what] if self.count <= SHOWN else []


@dataclass
class Origin:
    """A file or data set to read. `done_bytes` of a file's `bytes` have been read so far."""

    name: str
    path: Path | None = None
    column: str | None = None
    bytes: int | None = None
    done_bytes: int = 0
    skipped: int = 0

    def source(self, documents: int, licence: str | None = None) -> Source:
        """What a token folder that holds `documents` of it notes: a file's name without its folder, and its hash."""
        digest = None
        if self.path:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Source(
            name=self.path.name if self.path else self.name, documents=documents, bytes=self.bytes, sha256=digest,
            skipped=self.skipped, licence=licence,
        )  # fmt: skip


def origins(inputs: list[str]) -> list[Origin]:
    """Return what `inputs` name: files, folders (every file below with a known ending, by name), hf:NAME[@CONFIG][:SPLIT[:COLUMN]].

    Raises ValueError on a path that is not there, an ending that is not known, a folder without data.
    """
    sources = [origin for name in inputs for origin in _origins(name)]
    if not sources:
        raise ValueError("inputs: name at least one file, folder or hf: data set")
    return sources


def _origins(name: str) -> list[Origin]:
    if name.startswith("hf:"):
        parts = name.removeprefix("hf:").split(":")
        if not parts[0] or len(parts) > 3:
            raise ValueError(f"{name}: must be hf:NAME[@CONFIG][:SPLIT[:COLUMN]]")
        return [Origin(name, column=parts[2] if len(parts) == 3 else None)]
    path = Path(name)
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and files.holds_rows(file))
        if not inside:
            raise ValueError(f"{path}: no data in the folder; files must end in {_endings()}")
        return [Origin(str(file), file, bytes=file.stat().st_size) for file in inside]
    if what := other_than_file(path):  # a file is read twice, its hash beside its rows
        raise with_hint(no_file(path, what), f"save it as a file that ends in {_endings()}")
    if not path.exists():
        raise ValueError(f"{path}: No such file or folder; a data set of the Hub is written hf:{name}")
    if not files.ending(path):
        raise ValueError(f"{path}: unknown ending; name it {_endings()}")
    return [Origin(str(path), path, bytes=path.stat().st_size)]


def _endings() -> str:
    return ", ".join(files.ENDINGS) + " (plain, .gz or .zst)"


def read(origin: Origin, mode: Mode, broken: Broken) -> Iterator[Document]:
    """Yield the documents of an origin in order, empty ones left out. `broken` is told of each row that is none."""
    rows = _file_rows(origin, broken) if origin.path else _hub_rows(origin)
    for where, row in rows:
        try:
            document = document_of(where, _object(row), mode)
        except ValueError as error:
            origin.skipped += 1
            broken(f"{where}: {error}")
            continue
        if document:
            yield document


def _object(row: files.Row) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    if isinstance(row, files.LongLine):
        raise ValueError(f"longer than {files.LINE_BYTES:,} bytes")
    try:
        value = parsed(row)
    except ValueError as error:
        raise ValueError(f"broken line ({error})") from None
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return {TURNS[0]: value}  # a row that is its turns
    if not isinstance(value, dict):
        raise ValueError(f"broken line (must be a JSON object, got {type(value).__name__})")
    return value


def _file_rows(origin: Origin, broken: Broken) -> Iterator[tuple[str, files.Row]]:
    assert origin.path is not None
    place = ""
    with origin.path.open("rb") as raw:
        try:
            for place, row in files.lines(origin.path, raw):
                origin.done_bytes = raw.tell()
                yield f"{origin.name}{place}", row
        except UnicodeDecodeError as error:
            origin.skipped += 1
            broken(f"{origin.name}: not UTF-8 (byte {error.start:,})")
        except files.DAMAGED as error:
            origin.skipped += 1
            number = int(place.strip(":[]") or 0) + 1
            broken(f"{origin.name}:{number}: truncated or corrupt ({error or 'unexpected end'})")
        finally:
            origin.done_bytes = origin.bytes or 0


def _hub_rows(origin: Origin) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a data set on the Hub or in a folder, streamed: only what is read is fetched."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ImportError(f"{origin.name}: needs the package datasets: pip install 'foredraft[hub]'") from None
    name, split, *_ = [*origin.name.removeprefix("hf:").split(":"), "train"]
    name, _, config = name.partition("@")
    try:
        rows = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"hf:{name}:{split}:{number}", _picked(files.plain_of(dict(row)), origin.column)
    except (OSError, ValueError) as error:
        raise ValueError(f"{origin.name}: {str(error).splitlines()[0]}") from None


def _picked(row: dict[str, Any], column: str | None) -> dict[str, Any]:
    """A row, or its one column under the name that its contents have here; without that column, nothing."""
    if column is None:
        return row
    value = row.get(column)
    return {"messages" if isinstance(value, list) else "text": value}
