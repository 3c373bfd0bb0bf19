"""Prompts for the models, by category, out of Spec-Bench's or ShareGPT's JSON or a text file, as token ids.

A JSON line, or element of a list, has `turns`, asked one after another in a chat, a conversation (`conversations`, `messages`), of which
the first turn of the user is asked behind the system's, with the row's `tools`, or a `prompt`. It may have `category`, `question_id`,
`reference` (a text or lists of them: what a good answer says) and `format`: "chat" for a turn of a conversation, "raw" for
text to be continued. Any other file has a prompt a line. Files may be packed (.gz, .zst).

Promises: the same file gives the same prompts in the same order; a broken line is named file:line with the reason, and left
out only where the caller says so. Refuses to know: models, what becomes of the answers.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import msgspec

from foredraft.data.rows import message_of, tools_of
from foredraft.data.sources import Skips
from foredraft.published.opened import text_of
from foredraft.records import Record, parse

CHATS = ("auto", "always", "never")
FORMATS = (None, "chat", "raw")
LINES = (".jsonl", ".ndjson", ".json")
USERS = ("human", "user")
TURN = ", turn "  # behind the place of a later turn


class Prompt(Record, frozen=True):
    """One request: where it stands, its token ids, and those of its reference, none where it has none. `words`: what a chat's first turn
    asks, and `later` what its later turns ask behind the answers; none where it is asked as it stands.
    """

    where: str
    category: str | None
    ids: tuple[int, ...]
    reference: tuple[int, ...] = ()
    words: str = ""
    later: tuple[str, ...] = ()


class Question(NamedTuple):
    """A prompt in words, for a server that has the tokenizer: where it stands, its category, and its `format` if it has one.

    `before`: turns that stand before it (the system's, and of a later turn what was said so far), and `tools`, both for a chat alone;
    `later`: what is asked behind the answer, one after another.
    """

    where: str
    words: str
    category: str | None = None
    format: str | None = None
    before: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    later: tuple[str, ...] = ()

    def behind(self, answer: str) -> "Question":
        """Return the next turn's question, behind the answer to this one."""
        said = ({"role": "user", "content": self.words}, {"role": "assistant", "content": answer})
        turn = 2 + sum(message["role"] == "user" for message in self.before)
        where = f"{self.where.partition(TURN)[0]}{TURN}{turn}"
        return self._replace(where=where, words=self.later[0], before=(*self.before, *said), later=self.later[1:])


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


class _Line(msgspec.Struct):
    """What a line may hold; other keys are ignored. Checked by hand, so that a message says what is wrong."""

    turns: Any = None
    conversations: Any = None
    messages: Any = None
    prompt: Any = None
    category: Any = None
    format: Any = None
    reference: Any = None
    system: Any = None
    tools: Any = None


class _PromptLine(NamedTuple):
    """A prompt as it stands in its file."""

    words: str
    category: str | None = None
    format: str | None = None
    reference: str | None = None
    before: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    later: tuple[str, ...] = ()


def read_prompts(path: str | Path, encoding: Encoding, skips: Skips, num: int | None = None) -> list[Prompt]:
    """Return the prompts of a file in its order, the first `num` of each category that can be prompt.

    Broken lines, and prompts too long for the context, go to `skips`. Raises ValueError where it stops at one, and where
    nothing is left to ask.
    """
    encoding.check()
    return _each(path, skips, num, lambda prompt, where: _encoded(prompt, where, encoding))


def read_questions(path: str | Path, skips: Skips, num: int | None = None) -> list[Question]:
    """Return the same prompts as words."""
    return _each(path, skips, num, _question)


def _question(prompt: _PromptLine, where: str) -> Question:
    return Question(where, prompt.words, prompt.category, prompt.format, prompt.before, prompt.tools, prompt.later)


def _each(
    path: str | Path, skips: Skips, num: int | None, encode: Callable[[_PromptLine, str], PromptType]
) -> list[PromptType]:
    """What `encode` makes of every prompt; what it refuses goes to `skips`."""
    if num is not None and num < 1:
        raise ValueError(f"num must be at least 1 prompt per category, got {num}")
    path, counts, prompts = Path(path), Counter[str | None](), []
    for where, read, line in _lines(path):
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


def _lines(path: Path) -> Iterator[tuple[str, Callable[[Any], _PromptLine | None], Any]]:
    """What may be a prompt, with its place and how to read it."""
    data = text_of(path)
    name = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if not name.endswith(LINES):
        yield from ((f"{path}:{number}", _plain, line) for number, line in enumerate(data.split(b"\n"), 1))
    elif data.lstrip().startswith(b"[") and (rows := _listed(data)) is not None:
        yield from ((f"{path}[{number}]", _jsonl, row) for number, row in enumerate(rows))
    else:
        yield from ((f"{path}:{number}", _jsonl, line) for number, line in enumerate(data.split(b"\n"), 1))


def _listed(data: bytes) -> list[bytes] | None:
    """The elements of a JSON list that is the whole file; None of anything else."""
    try:
        return [bytes(row) for row in parse(data, list[msgspec.Raw])]
    except ValueError:
        return None


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
        row = parse(line, _Line)
    except ValueError as error:
        raise ValueError(f"not a JSON object ({error})") from None
    words = _words(row)
    if not (row.category is None or isinstance(row.category, str)):
        raise ValueError(f"category must be a text, got {row.category!r}")
    if row.format not in FORMATS:
        raise ValueError(f"format must be chat or raw, got {row.format!r}")
    later = row.turns[1:] if isinstance(row.turns, list) else []
    if not all(isinstance(turn, str) and turn.strip() for turn in later):
        raise ValueError("'turns' must be texts that are not empty")
    return _PromptLine(
        words, row.category, row.format, _reference(row.reference), _before(row), tools_of(row.tools), tuple(later)
    )


def _words(row: _Line) -> str:
    """What the line asks. Raises ValueError where that is no text."""
    turns = row.conversations or row.messages
    if isinstance(row.turns, list) and row.turns:
        words = row.turns[0]
    elif isinstance(turns, list):
        words = next((turn.get("value", turn.get("content")) for turn in turns if _role(turn) in USERS), None)
    else:
        words = row.prompt
    if isinstance(words, list):  # parts, of which some are texts
        words = "".join(part.get("text", "") for part in words if isinstance(part, dict))
    if not (isinstance(words, str) and words.strip()):
        raise ValueError(
            "not a Spec-Bench line (JSON with a list 'turns', the first a text that is not empty), a conversation that a user "
            "begins, or a 'prompt'"
        )
    return words


def _before(row: _Line) -> tuple[dict[str, Any], ...]:
    """What the system says before the user: the row's own, or the turns that a conversation begins with."""
    turns = row.conversations or row.messages
    begins = takewhile(lambda turn: _role(turn) not in USERS, turns if isinstance(turns, list) else ())
    said = [message_of(turn)[0].turn() for turn in begins if _role(turn) in ("system", "developer")]
    system = (
        [{"role": "system", "content": row.system}] if isinstance(row.system, str) and row.system and not said else []
    )
    return (*system, *said)


def _role(turn: Any) -> Any:
    return turn.get("from", turn.get("role")) if isinstance(turn, dict) else None


def _reference(value: Any) -> str | None:
    """The first of several, in lists or lists of lists; null and an empty list are none."""
    while isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"reference must be a text or a list of them, got {type(value).__name__}")
    return value.strip() or None


def _encoded(prompt: _PromptLine, where: str, encoding: Encoding) -> Prompt:
    from foredraft import text

    chat = _as_chat(prompt, encoding)
    if not chat and (prompt.before or prompt.tools):
        raise ValueError(
            f"{'tools' if prompt.tools else 'a system'} and no chat template for it; pass --chat always, or prompts without"
        )
    ids = text.encode(encoding.tokenizer, prompt.words, chat, prompt.before, prompt.tools)
    if not ids:
        raise ValueError("the prompt has no tokens")
    if encoding.longest is not None and len(ids) + encoding.max_tokens > encoding.longest:
        raise ValueError(
            f"{len(ids)} tokens and max_tokens ({encoding.max_tokens}) exceed the context of {encoding.longest}"
        )
    answer = f"{'' if chat else ' '}{prompt.reference}" if prompt.reference else None
    reference = encoding.tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else ()
    talk = {"words": prompt.words, "later": prompt.later} if chat and not (prompt.before or prompt.tools) else {}
    return Prompt(where=where, category=prompt.category, ids=tuple(ids), reference=tuple(reference), **talk)


def _as_chat(prompt: _PromptLine, encoding: Encoding) -> bool:
    """Whether the tokenizer's chat template goes around the words."""
    if encoding.chat != "auto":
        return encoding.chat == "always"
    if prompt.format == "chat" and not encoding.tokenizer.chat_template:
        raise ValueError(
            "format is chat, but the tokenizer has no chat_template; pass --chat never to ask it as it stands"
        )
    return bool(encoding.tokenizer.chat_template) if prompt.format is None else prompt.format == "chat"
