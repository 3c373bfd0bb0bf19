"""Which words of a conversation a chat template leaves out: nothing is dropped without a word.

Promises: every text of turns and tools counts, thoughts apart from the words beside them. It is rendered where it stands in the text; since a
short one may stand there by chance, a mark put behind it must come out too. Refuses to know: how templates are run.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

SURE = 24  # characters; a longer text stands nowhere by chance
COMPARED = (
    "type",
    "required",
    "enum",
    "strict",
    "id",
    "tool_call_id",
)  # what templates compare or check, so that a mark would change more
MARK = "qzx{}xzq"  # put behind a text
THOUGHT_MARK = re.compile(r"(</?think>)")


class Words(NamedTuple):
    """A text of a conversation. `kind`: where it stands, such as "assistant tool_calls.function.name"; `turn`: in which, None in tools.

    `free`: a mark behind it changes nothing else.
    """

    kind: str
    text: str
    turn: int | None
    free: bool = True


Turns = Sequence[Mapping[str, Any]]


def words_of(turns: Turns, tools: Turns = ()) -> list[Words]:
    """Return all texts of turns and tools; roles and what is empty are none."""
    texts: list[Words] = []

    def note(words: Words) -> str:
        if words.text.strip():
            texts.append(words)
        return words.text

    _changed(turns, tools, note)
    return texts


def marked(turns: Turns, tools: Turns = ()) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return turns and tools with a mark behind each of `words_of` that is free, by its place among them."""
    place = -1

    def mark(words: Words) -> str:
        nonlocal place
        if not words.text.strip():
            return words.text
        place += 1
        return words.text + MARK.format(place) if words.free else words.text

    return _changed(turns, tools, mark)


def left_out(words: Sequence[Words], text: str, marked_text: Callable[[], str]) -> list[Words]:
    """Return those of `words` that are not in the rendered `text`; `marked_text` renders the same with marks."""
    gone = [not _stands(each.text.strip(), text) for each in words]
    unsure = [i for i, each in enumerate(words) if not gone[i] and each.free and len(each.text) < SURE]
    if unsure:
        try:
            marks = marked_text().lower()
        except ValueError:  # a template that takes no words but its own
            unsure, marks = [], ""
        for i in unsure:
            gone[i] = MARK.format(i) not in marks
    return [each for i, each in enumerate(words) if gone[i]]


def _stands(words: str, text: str) -> bool:
    """Whether words stand in a text as they are, or as JSON spells them."""
    return words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text or json.dumps(words)[1:-1] in text


def _changed(
    turns: Turns, tools: Turns, change: Callable[[Words], str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Turns and tools with what `change` gives for every text in them, in an order that is always the same."""
    new_turns = [
        {name: value if name == "role" else _new(value, (str(turn["role"]), name), i, change) for name, value in turn.items()}
        for i, turn in enumerate(turns)
    ]  # fmt: skip
    return new_turns, [_new(tool, ("tools",), None, change) for tool in tools]


def _new(value: Any, path: tuple[str, ...], turn: int | None, change: Callable[[Words], str]) -> Any:
    kind = f"{path[0]} {'.'.join(path[1:])}".strip()
    if path[-2:] == ("content", "type"):
        return value
    if isinstance(value, str):
        free = not set(COMPARED) & set(path)
        pieces = THOUGHT_MARK.split(value) if path[-1] in ("content", "text") else [value]
        return "".join(piece if i % 2 else change(Words(kind, piece, turn, free)) for i, piece in enumerate(pieces))
    if isinstance(value, dict):
        if path[-1] in ("arguments", "properties"):  # whose names are words too
            return {
                change(Words(f"{kind} names", key, turn)): _new(part, path, turn, change) for key, part in value.items()
            }
        return {key: _new(part, (*path, key), turn, change) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_new(part, path, turn, change) for part in value]
    return value
