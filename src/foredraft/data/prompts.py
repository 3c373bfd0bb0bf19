"""Prompts for the models, by category, out of Spec-Bench JSONL or a text file, as token ids.

A JSONL line has `turns`, of which the first counts, and may have `category`, `question_id`, `reference` (a text or a list
of them: what a good answer says) and `format`: "chat" for a turn of a conversation, "raw" for text to be continued. Any other
file has a prompt a line.

Promises: the same file gives the same prompts in the same order; a broken line is named file:line with the reason, and left
out only where the caller says so. Refuses to know: models, what becomes of the answers.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from foredraft.data.sources import Skips
from foredraft.records import Record

CHATS = ("auto", "always", "never")
FORMATS = (None, "chat", "raw")
LINES = (".jsonl", ".ndjson")


class Prompt(Record, frozen=True):
    """One request: where it stands, its token ids, and those of its reference, none where it has none."""

    where: str
    category: str | None
    ids: tuple[int, ...]
    reference: tuple[int, ...] = ()


class Question(NamedTuple):
    """A prompt in words, for a server that has the tokenizer: where it stands, its category, and its `format` if it has one."""

    where: str
    words: str
    category: str | None = None
    format: str | None = None


PromptType = TypeVar("PromptType")


class Encoding(NamedTuple):
    """How words become a request. `longest`: most tokens that prompt and answer may have together, None for any number."""

    tokenizer: Any
    chat: str = "auto"
    max_tokens: int = 128
    longest: int | None = None

    def check(self) -> "Encoding":
        """Return itself, or raise ValueError on settings that no prompt can meet."""
        if self.chat not in CHATS:
            raise ValueError(f"chat must be one of {', '.join(CHATS)}, got {self.chat!r}")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        return self


class _SpecBenchLine(msgspec.Struct):
    """What a line may hold; other keys are ignored. Checked by hand, so that a message says what is wrong."""

    turns: Any = None
    category: Any = None
    format: Any = None
    reference: Any = None


class _PromptLine(NamedTuple):
    """A prompt as it stands in its file."""

    words: str
    category: str | None = None
    format: str | None = None
    reference: str | None = None


def read_prompts(path: str | Path, encoding: Encoding, skips: Skips, num: int | None = None) -> list[Prompt]:
    """Return the prompts of a file in its order, the first `num` of each category that can be prompt.

    Broken lines, and prompts too long for the context, go to `skips`. Raises ValueError where it stops at one, and where
    nothing is left to ask.
    """
    encoding.check()
    return _each(path, skips, num, lambda prompt, where: _encoded(prompt, where, encoding))


def read_questions(path: str | Path, skips: Skips, num: int | None = None) -> list[Question]:
    """Return the same prompts as words."""
    return _each(path, skips, num, lambda prompt, where: Question(where, prompt.words, prompt.category, prompt.format))


def _each(
    path: str | Path, skips: Skips, num: int | None, encode: Callable[[_PromptLine, str], PromptType]
) -> list[PromptType]:
    """What `encode` makes of every prompt; what it refuses goes to `skips`."""
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1 prompt per category, got {num}")
    path, counts, prompts = Path(path), Counter[str | None](), []
    read = _jsonl if path.suffix in LINES else _plain
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        where = f"{path}:{number}"
        try:
            prompt = read(line)
            if prompt is None or counts[prompt.category] == num:
                continue
            prompts.append(encode(prompt, where))
        except ValueError as error:
            skips(f"{where}: {error}")
            continue
        counts[prompt.category] += 1
    if not prompts:
        raise ValueError(f"{path}: no prompts in the file" + (f" ({skips.count} lines skipped)" if skips.count else ""))
    return prompts


def _plain(line: bytes) -> _PromptLine | None:
    """A line of a text file; a blank one is none."""
    try:
        words = line.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from None
    return _PromptLine(words) if words.strip() else None


def _jsonl(line: bytes) -> _PromptLine | None:
    if not line.strip():
        return None
    try:
        row = msgspec.json.decode(line, type=_SpecBenchLine)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a JSON object ({error})") from None
    turns = row.turns
    if not (isinstance(turns, list) and turns and isinstance(turns[0], str) and turns[0].strip()):
        raise ValueError("not a Spec-Bench line (JSON with a list 'turns', the first a text that is not empty)")
    if not (row.category is None or isinstance(row.category, str)):
        raise ValueError(f"category must be a text, got {row.category!r}")
    if row.format not in FORMATS:
        raise ValueError(f"format must be chat or raw, got {row.format!r}")
    return _PromptLine(turns[0], row.category, row.format, _reference(row.reference))


def _reference(value: Any) -> str | None:
    """The first of several; null and an empty list are none."""
    first = value[0] if isinstance(value, list) and value else value
    if first is None or first == []:
        return None
    if not isinstance(first, str):
        raise ValueError(f"reference must be a text or a list of them, got {type(first).__name__}")
    return first.strip() or None


def _encoded(prompt: _PromptLine, where: str, encoding: Encoding) -> Prompt:
    from foredraft import text

    chat = _as_chat(prompt, encoding)
    ids = text.encode(encoding.tokenizer, prompt.words, chat)
    if not ids:
        raise ValueError("the prompt has no tokens")
    if encoding.longest is not None and len(ids) + encoding.max_tokens > encoding.longest:
        raise ValueError(
            f"{len(ids)} tokens and max_tokens ({encoding.max_tokens}) exceed the context of {encoding.longest}"
        )
    answer = f"{'' if chat else ' '}{prompt.reference}" if prompt.reference else None
    reference = encoding.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else ()
    return Prompt(where=where, category=prompt.category, ids=tuple(ids), reference=tuple(reference))


def _as_chat(prompt: _PromptLine, encoding: Encoding) -> bool:
    """Whether the tokenizer's chat template goes around the words."""
    if encoding.chat != "auto":
        return encoding.chat == "always"
    if prompt.format == "chat" and not encoding.tokenizer.chat_template:
        raise ValueError(
            "format is chat, but the tokenizer has no chat_template; pass --chat never to ask it as it stands"
        )
    return bool(encoding.tokenizer.chat_template) if prompt.format is None else prompt.format == "chat"
