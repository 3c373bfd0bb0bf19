"""Documents out of files, folders and Hugging Face datasets, one at a time.

Promises: lines end at line feeds alone; a broken row is named file:line, with the reason, and left to the caller to
stop at or to count; a file's hash is of its bytes on disk. Refuses to know: tokenizers, templates.

A row is JSON with one of: text · messages [{role, content}] · conversations [{from, value}] · prompt and completion ·
turns (prompts alone, as Spec-Bench has them). Other keys are ignored.
"""

import gzip
import hashlib
import importlib
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec

from foredraft.data.tokens import Source
from foredraft.records import Record

Mode = Literal["text", "chat", "prompts"]
Broken = Callable[[str], None]  # takes "file:line: why"; raises to stop

LINES, TEXTS = (".jsonl", ".ndjson"), (".txt", ".md")
SHOWN = 3  # skipped rows that are named
CHUNK = 2**18  # bytes of a packed file unpacked at a time
ROLES_RENAMED = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "function": "tool"}
ROLES = ("system", "user", "assistant", "tool", "developer")


class Message(Record, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Regenerated(Record, frozen=True):
    """What a target answered, token by token: `tokens` as it read and wrote them, `answers` the [start, end) of its
    own, and why each ended. Ids of the tokenizer whose tokenizer.json has this hash.
    """

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    finish: tuple[str, ...]
    tokenizer_sha256: str


class Document(NamedTuple):
    """A row. Plain text is `text`, after a `prompt` that is given and not to be predicted; a conversation is `messages`."""

    where: str
    text: str = ""
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    id: str | None = None
    regenerated: Regenerated | None = None

    def texts(self) -> tuple[str, ...]:
        """All that is written in it."""
        written = (self.prompt, self.text, *(message.content for message in self.messages))
        return tuple(text for text in written if text)

    def characters(self) -> int:
        return sum(map(len, self.texts()))


class _Row(msgspec.Struct):
    """What a line may hold; checked by hand, since other data sets use these names for other things."""

    text: Any = None
    messages: Any = None
    conversations: Any = None
    prompt: Any = None
    completion: Any = None
    turns: Any = None
    id: Any = None
    question_id: Any = None
    regenerated: Any = None


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
        files = sorted(file for file in path.rglob("*") if file.is_file() and _ending(file))
        if not files:
            raise ValueError(f"{path}: no data in the folder; files must end in {_endings()}")
        return [Origin(str(file), file, bytes=file.stat().st_size) for file in files]
    if not path.is_file():
        raise ValueError(f"{path}: No such file or folder; a data set of the Hub is written hf:{name}")
    if not _ending(path):
        raise ValueError(f"{path}: unknown ending; name it {_endings()}")
    return [Origin(str(path), path, bytes=path.stat().st_size)]


def _ending(path: Path) -> str | None:
    """The kind of a file, ".jsonl" or ".txt" and their like, without its packing."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return next((ending for ending in LINES + TEXTS if name.endswith(ending)), None)


def _endings() -> str:
    return ", ".join(LINES + TEXTS) + " (plain, .gz or .zst)"


def read(origin: Origin, mode: Mode, broken: Broken) -> Iterator[Document]:
    """Yield the documents of an origin in order, empty ones left out. `broken` is told of each row that is none."""
    rows = _file_rows(origin, broken) if origin.path else _hub_rows(origin)
    for where, row in rows:
        try:
            document = _document(where, _parsed(row), mode)
        except ValueError as error:
            origin.skipped += 1
            broken(f"{where}: {error}")
            continue
        if document:
            yield document


def _parsed(row: bytes | dict[str, Any]) -> _Row:
    try:
        return msgspec.convert(row, _Row) if isinstance(row, dict) else msgspec.json.decode(row, type=_Row)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"broken line ({error})") from None


def _file_rows(origin: Origin, broken: Broken) -> Iterator[tuple[str, bytes | dict[str, Any]]]:
    assert origin.path is not None
    number = 0
    with origin.path.open("rb") as raw:
        try:
            stream = _unpacked(origin.path, raw)
            if _ending(origin.path) in TEXTS:
                yield origin.name, {"text": stream.read().decode("utf-8-sig")}
                return
            for number, line in enumerate(stream, 1):
                origin.done_bytes = raw.tell()
                if line.strip():
                    yield f"{origin.name}:{number}", line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        except UnicodeDecodeError as error:
            origin.skipped += 1
            broken(f"{origin.name}: not UTF-8 ({error.reason} at byte {error.start:,})")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            origin.skipped += 1
            broken(f"{origin.name}:{number + 1}: truncated or corrupt ({error or 'unexpected end'})")
        finally:
            origin.done_bytes = origin.bytes or 0


def _unpacked(path: Path, raw: IO[bytes]) -> IO[bytes]:
    if path.suffix == ".gz":
        return gzip.open(raw)  # type: ignore[return-value]
    return io.BufferedReader(_Zstandard(raw), CHUNK) if path.suffix == ".zst" else raw


class _Zstandard(io.RawIOBase):
    """The text of a .zst file of any number of frames; EOFError where it ends inside one, which the package's reader takes for an end."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.packed, self.text = raw, b"", memoryview(b"")
        self.frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.text:
            packed = self.packed or self.raw.read(CHUNK)
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

        self.frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
        try:
            text = self.frame.decompress(packed)
        except zstandard.ZstdError as error:
            raise EOFError(str(error)) from None
        self.packed = b""
        if self.frame.eof:
            self.packed, self.frame = self.frame.unused_data, None
        return text


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
            yield f"hf:{name}:{split}:{number}", _picked(dict(row), origin.column)
    except (OSError, ValueError) as error:
        raise ValueError(f"{origin.name}: {str(error).splitlines()[0]}") from None


def _picked(row: dict[str, Any], column: str | None) -> dict[str, Any]:
    """A row, or its one column under the name that its contents have here; without that column, nothing."""
    if column is None:
        return row
    value = row.get(column)
    if isinstance(value, list):
        return {"messages" if any("role" in turn for turn in value) else "conversations": value}
    return {"text": value}


def _document(where: str, row: _Row, mode: Mode) -> Document | None:
    """Return a row as a document of the mode; None where it holds nothing. Raises ValueError with what is wrong."""
    name = row.id if row.id is not None else row.question_id
    document = Document(where, id=None if name is None else str(name), regenerated=_regenerated(row.regenerated))
    for kind in {"text": ("text", "completion", "chat"), "chat": ("chat", "completion", "text")}.get(
        mode, ("turns", "chat", "prompt", "text")
    ):
        filled = _FILL[kind](document, row)
        if filled is None:
            continue
        if mode == "text" and kind == "chat":
            raise ValueError("a conversation; pass --chat to put it into the tokenizer's chat template")
        return filled if filled.characters() else None
    raise ValueError(_lacking(row))


def _lacking(row: _Row) -> str:
    if row.turns is not None:
        return "prompts without answers ('turns'); have the target answer them with foredraft data regenerate"
    return "no 'text', 'messages', 'conversations' or 'prompt' and 'completion'"


def _with_text(document: Document, row: _Row) -> Document | None:
    return None if row.text is None else document._replace(text=_string(row.text, "text"))


def _with_completion(document: Document, row: _Row) -> Document | None:
    if row.completion is None or row.prompt is None:
        return None
    return document._replace(prompt=_string(row.prompt, "prompt"), text=_string(row.completion, "completion"))


def _with_prompt(document: Document, row: _Row) -> Document | None:
    return None if row.prompt is None else document._replace(text=_string(row.prompt, "prompt"))


def _with_turns(document: Document, row: _Row) -> Document | None:
    if row.turns is None:
        return None
    turns = [_string(turn, "turns") for turn in _list(row.turns, "turns")]
    return document._replace(messages=tuple(Message(role="user", content=turn) for turn in turns))


def _with_chat(document: Document, row: _Row) -> Document | None:
    if row.messages is not None:
        turns, role, content = _list(row.messages, "messages"), "role", "content"
    elif row.conversations is not None:
        turns, role, content = _list(row.conversations, "conversations"), "from", "value"
    else:
        return None
    return document._replace(messages=tuple(_message(turn, role, content) for turn in turns))


def _message(turn: Any, role: str, content: str) -> Message:
    if not isinstance(turn, dict) or role not in turn or content not in turn:
        raise ValueError(f"a turn must be an object with {role!r} and {content!r}")
    name = _string(turn[role], role)
    name = ROLES_RENAMED.get(name, name)
    if name not in ROLES:
        raise ValueError(f"{role!r} is {name!r}; must be one of {', '.join((*ROLES, *ROLES_RENAMED))}")
    return Message(role=name, content=_string(turn[content], content))


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a string, got {type(value).__name__}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name!r} must be a list, got {type(value).__name__}")
    return value


def _regenerated(value: Any) -> Regenerated | None:
    """Only our own notes count; other data sets may use the key as they like."""
    if not isinstance(value, dict) or "tokenizer_sha256" not in value:
        return None
    try:
        return msgspec.convert(value, Regenerated)
    except msgspec.ValidationError as error:
        raise ValueError(f"'regenerated': {error}") from None


_FILL: dict[str, Callable[[Document, _Row], Document | None]] = {
    "text": _with_text, "completion": _with_completion, "chat": _with_chat, "prompt": _with_prompt, "turns": _with_turns,
}  # fmt: skip
