"""What a row says: the many spellings of chats, tools and prompts that data sets have, as one kind of document.

Promises: what a row says goes on whole, to be put into a template, or the row is refused with what is wrong; keys that are not read
are named in the document. Refuses to know: files, templates, tokenizers.

A row is a JSON object with one of: text · messages, conversations or conversation (turns of role or from, content or value) · prompt and
completion (a text gone on with, or two lists of turns) · a question and its answer (prompt, instruction, question, query or input; response,
output or answer) · turns (prompts alone, as Spec-Bench has them). Beside turns it may have system, tools and chat_template_kwargs.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from foredraft.records import Record, parse, parse_loosely

Mode = Literal["text", "chat", "prompts"]

ROLES = ("system", "user", "assistant", "tool", "developer")
ROLES_RENAMED = {
    "human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "bot": "assistant",
    "chatbot": "assistant", "claude": "assistant", "gemini": "assistant", "model": "assistant", "ai": "assistant", "function": "tool",
    "observation": "tool", "ipython": "tool", "tool_response": "tool", "tool_output": "tool", "function_response": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")  # turns that are the assistant's calls, in JSON
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker"), ("content", "value", "text", "message", "refusal")
TURNS = ("messages", "conversations", "conversation")
SYSTEMS = ("system", "system_prompt", "system_message")
BESIDE = ("tools", "functions", "chat_template_kwargs")  # of a conversation; functions where there are no tools
ASKS, ANSWERS = ("prompt", "instruction", "question", "query", "input"), ("response", "output", "answer", "completion")
THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking",
)  # what engines and templates call what is thought before an answer
TEXT_PARTS, THOUGHT_PARTS = (None, "text", "input_text", "output_text"), ("thinking", "reasoning")
NOTED = ("id", "question_id", "regenerated")  # read of every row


class Message(Record, frozen=True):
    """One turn of a conversation: its words (or parts, {type, text}; None: no words), and by name what else templates may read of it."""

    role: str
    content: str | list[dict[str, Any]] | None
    more: dict[str, Any] = msgspec.field(default_factory=dict)

    def turn(self) -> dict[str, Any]:
        """Return the turn as templates and servers read it."""
        return {"role": self.role, "content": self.content, **self.more}


def words_of_turn(turn: Message) -> str:
    """Return the words of a turn, parts below each other."""
    parts = turn.content if isinstance(turn.content, list) else [{"text": turn.content or ""}]
    return "\n".join(part["text"] for part in parts)


class Regenerated(Record, frozen=True):
    """What a target answered, token by token: `tokens` as it read and wrote them, `answers` the [start, end) of its
    own, and why each ended. Ids of the tokenizer whose tokenizer.json has this hash.
    """

    tokens: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]
    finish: tuple[str, ...]
    tokenizer_sha256: str


class Document(NamedTuple):
    """A row. Plain text is `text`, after a `prompt` that is given and not to be predicted; a conversation is `messages`, with `tools` and
    `options` for the template; `form`: "chat" or "raw", how its prompt is asked, where it says. `regenerated`: its answers' tokens, in parts
    where the target never read it in one piece. `unread`: keys that were not read; `remarks`: what else is to be known of it.
    """

    where: str
    text: str = ""
    prompt: str = ""
    messages: tuple[Message, ...] = ()
    id: str | None = None
    regenerated: tuple[Regenerated, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    options: Mapping[str, Any] = {}
    unread: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    form: str | None = None

    def texts(self) -> tuple[str, ...]:
        """All that is written in it."""
        written = [self.prompt, self.text]
        for message in self.messages:
            parts = message.content if isinstance(message.content, list) else [{"text": message.content}]
            written += [part.get("text") or "" for part in parts]
            written += [message.more[name] for name in THOUGHTS if isinstance(message.more.get(name), str)]
        return tuple(text for text in written if text)

    def characters(self) -> int:
        return sum(map(len, self.texts()))


def document_of(where: str, row: Mapping[str, Any], mode: Mode) -> Document | None:
    """Return a row as a document of the mode; None where it holds nothing. Raises ValueError with what is wrong."""
    name = next((row[key] for key in ("id", "question_id") if row.get(key) is not None), None)
    form = row.get("format") if row.get("format") in ("chat", "raw") else None
    document = Document(
        where, id=None if name is None else str(name), regenerated=_regenerated(row.get("regenerated")), form=form
    )
    for kind in _ORDER[mode]:
        if (filled := _FILL[kind](document, row)) is None:
            continue
        document, keys = filled
        if mode == "text" and document.messages:
            raise ValueError("a conversation; pass --chat to put it into the tokenizer's chat template")
        unread = tuple(sorted(key for key, value in row.items() if key not in (*NOTED, *keys) and value is not None))
        document = document._replace(unread=unread)
        return document if document.characters() or any(message.more for message in document.messages) else None
    raise ValueError(_lacking(row))


def _lacking(row: Mapping[str, Any]) -> str:
    if row.get("turns") is not None:
        return "prompts without answers ('turns'); have the target answer them with foredraft data regenerate"
    has = ", ".join(key for key in list(row)[:9]) or "nothing"
    return f"no 'text', 'messages', 'conversations', 'prompt' and 'completion' or 'response', 'instruction' and 'output'; it has {has}"


Filled = tuple[Document, tuple[str, ...]]  # a document, and the keys that were read for it


def _with_text(document: Document, row: Mapping[str, Any]) -> Filled | None:
    if row.get("text") is None:
        return None
    remark = "rows of 'text' are read as they stand, no chat template touches them"
    return document._replace(text=_string(row["text"], "text"), remarks=(remark,)), ("text",)


def _with_completion(document: Document, row: Mapping[str, Any]) -> Filled | None:
    prompt, completion = row.get("prompt"), row.get("completion")
    if prompt is None or completion is None:
        return None
    if isinstance(prompt, list) or isinstance(completion, list):
        turns = [*_turn_list(prompt, "prompt", "user"), *_turn_list(completion, "completion", "assistant")]
        return _conversation(document, row, turns, ("prompt", "completion"))
    remark = "rows of 'prompt' and 'completion' are read as they stand, no chat template touches them"
    texts = {"prompt": _string(prompt, "prompt"), "text": _string(completion, "completion")}
    return document._replace(**texts, remarks=() if document.regenerated else (remark,)), ("prompt", "completion")


def _turn_list(value: Any, name: str, role: str) -> list[Any]:
    """A list of turns, or the words of a single turn of `role`."""
    return [{"role": role, "content": value}] if isinstance(value, str) else _list(value, name)


def _with_prompt(document: Document, row: Mapping[str, Any]) -> Filled | None:
    ask = next((key for key in ASKS if row.get(key) is not None), None)
    if ask is None:
        return None
    keys = (ask, *ANSWERS, *(("input",) if ask == "instruction" else ()))
    if isinstance(row[ask], list):
        return _conversation(document, row, row[ask], keys)
    words = _asked(row, ask)
    if any(row.get(key) is not None for key in (*SYSTEMS, *BESIDE)):
        return _conversation(document, row, [{"role": "user", "content": words}], keys)
    return document._replace(text=words), keys


def _with_pair(document: Document, row: Mapping[str, Any]) -> Filled | None:
    """A question and its answer, a turn each."""
    ask = next((key for key in ASKS if row.get(key) is not None), None)
    answer = next((key for key in ANSWERS if row.get(key) is not None), None)
    if ask is None or answer is None or (ask, answer) == ("prompt", "completion"):
        return None
    turns = [
        {"role": "user", "content": _asked(row, ask)},
        {"role": "assistant", "content": _string(row[answer], answer)},
    ]
    return _conversation(document, row, turns, (ask, answer, *(("input",) if ask == "instruction" else ())))


def _asked(row: Mapping[str, Any], ask: str) -> str:
    """The question; an instruction with its input below it."""
    words, given = _string(row[ask], ask), row.get("input") if ask == "instruction" else None
    return f"{words}\n\n{_string(given, 'input')}" if given else words


def _with_turns(document: Document, row: Mapping[str, Any]) -> Filled | None:
    if row.get("turns") is None:
        return None
    turns = [{"role": "user", "content": _string(turn, "turns")} for turn in _list(row["turns"], "turns")]
    return _conversation(document, row, turns, ("turns",))


def _with_chat(document: Document, row: Mapping[str, Any]) -> Filled | None:
    name = next((key for key in TURNS if row.get(key) is not None), None)
    return None if name is None else _conversation(document, row, _turns_of(_unfolded(row[name], name), name), (name,))


def _turns_of(value: Any, name: str) -> list[Any]:
    """A list of turns, each an object or one in JSON; or an object of lists, role by role and text by text, as tables have them."""
    columns = list(value.values()) if isinstance(value, dict) and not set(value).isdisjoint(ROLE_KEYS) else []
    if columns and all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns):
        return [dict(zip(value, turn, strict=True)) for turn in zip(*columns, strict=True)]
    return [_unfolded(turn, name, strict=False) for turn in _list(value, name)]


def _conversation(document: Document, row: Mapping[str, Any], turns: list[Any], keys: tuple[str, ...]) -> Filled:
    """Turns as messages, with what the row has beside them."""
    messages, remarks = [], []
    for turn in turns:
        message, remark = message_of(turn)
        messages.append(message)
        remarks += [remark] if remark else []
    system, read = _system(row)
    if system and messages and messages[0].role == "system":
        if messages[0].content != system[0].content:
            raise ValueError(f"two systems: {read[0]!r} and a first turn of system; leave one of them")
        system = ()
    options = row.get("chat_template_kwargs")
    if not (options is None or isinstance(options, dict)):
        raise ValueError(f"'chat_template_kwargs' must be an object, got {type(options).__name__}")
    document = document._replace(
        messages=(*system, *messages), tools=tools_of(row.get("tools") or row.get("functions")), options=options or {}, remarks=tuple(remarks)
    )  # fmt: skip
    return document, (*keys, *read, *(key for key in BESIDE if key != "functions" or row.get("tools") is None))


def _system(row: Mapping[str, Any]) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """What a row says to the system beside its turns, and the key that it stands under."""
    name = next((key for key in SYSTEMS if row.get(key) is not None), None)
    if name is None:
        return (), ()
    words = _string(row[name], name)
    return ((Message(role="system", content=words),) if words else ()), (name,)


def message_of(turn: Any) -> tuple[Message, str | None]:
    """Return a turn in either spelling as a message, with a remark on it. Raises ValueError with what is wrong."""
    role_key = next((key for key in ROLE_KEYS if isinstance(turn, dict) and key in turn), None)
    if role_key is None:
        raise ValueError("a turn must be an object with 'role' and 'content' or with 'from' and 'value'")
    content_key = next((key for key in CONTENT_KEYS if turn.get(key) is not None), "content")
    role = _string(turn[role_key], role_key)
    name, content = ROLES_RENAMED.get(role.lower(), role.lower()), turn.get(content_key)
    more = {key: value for key, value in turn.items() if key not in (role_key, content_key) and value is not None}
    if name in CALL_ROLES:
        return _called(content, name, more)
    if name not in ROLES:
        raise ValueError(f"{role_key!r} is {role!r}; must be one of {', '.join((*ROLES, *ROLES_RENAMED, *CALL_ROLES))}")
    if isinstance(content, list):
        content, thought = _parts(content)
        more |= {THOUGHTS[0]: thought} if thought else {}
    elif isinstance(content, dict) and name == "tool":
        content = _json(content)
    elif content is not None:
        content = _string(content, content_key)
    calls = more.pop("tool_calls", None) or ([more.pop("function_call")] if "function_call" in more else None)
    if calls is not None and (listed := _calls(calls)):
        more["tool_calls"] = listed
    if (
        content is None
        and not (name in ("tool", "system") and not set(CONTENT_KEYS).isdisjoint(turn))
        and not _says(more)
    ):
        raise ValueError(
            f"a turn of {role} says nothing: it must be an object with 'role' and 'content', a text, or with 'tool_calls'"
        )
    remark = (
        "turns of the assistant that are empty: answers that end at once"
        if name == "assistant" and not content and not _says(more)
        else None
    )
    return Message(role=name, content="" if content is None and name != "assistant" else content, more=more), remark


def _says(more: Mapping[str, Any]) -> bool:
    return any(more.get(name) for name in ("tool_calls", *THOUGHTS))


def _called(content: Any, name: str, more: dict[str, Any]) -> tuple[Message, str | None]:
    """A turn of function_call: the assistant's calls where it holds any, else its words."""
    value = _unfolded(content, name) if isinstance(content, str) and content.strip()[:1] in ("{", "[") else content
    listed = value if isinstance(value, list) else [value]
    functions = [call.get("function", call) if isinstance(call, dict) else None for call in listed]
    if functions and all(isinstance(function, dict) and function.get("name") for function in functions):
        return Message(role="assistant", content=None, more=more | {"tool_calls": _calls(listed)}), None
    words = content if isinstance(content, str) else _json(content)
    remark = f"turns of {name} that name no function are passed on as the assistant's words"
    return Message(role="assistant", content=words, more=more), remark


def _parts(parts: list[Any]) -> tuple[list[dict[str, Any]] | str, str]:
    """Parts that are texts, as they stand, and what was thought. Raises ValueError on a part that is neither."""
    texts: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if isinstance(part, dict) and kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part | {"type": "text"})
        elif (
            isinstance(part, dict)
            and kind in THOUGHT_PARTS
            and isinstance(words := part.get(kind, part.get("text")), str)
        ):
            thoughts.append(words)
        else:
            raise ValueError(
                f"a part of type {kind!r} in 'content'; only texts are read ({{'type': 'text', 'text': …}})"
            )
    return texts or "", "\n".join(thoughts)


def _calls(calls: Any) -> list[dict[str, Any]]:
    """Calls as OpenAI's API has them, {"function": {"name", "arguments"}}, their arguments as an object, as engines hand them to templates."""
    normal = []
    for call in _list(_unfolded(calls, "tool_calls"), "tool_calls"):
        function = call.get("function", call) if isinstance(call, dict) else None
        if isinstance(function, str):  # {"function": "name", "arguments": …}
            function = {"name": function} | {key: value for key, value in call.items() if key == "arguments"}
        if not (isinstance(function, dict) and isinstance(function.get("name"), str)):
            raise ValueError("a call in 'tool_calls' must be an object with 'function': {'name', 'arguments'}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str) and arguments.strip().startswith("{"):
            arguments = _unfolded(arguments, "arguments", strict=False)
        outside = (
            {}
            if function is call
            else {key: value for key, value in call.items() if key not in ("function", "arguments")}
        )
        normal.append({**outside, "function": function | {"arguments": arguments}})
    return normal


def tools_of(value: Any) -> tuple[dict[str, Any], ...]:
    """Return tools as OpenAI's API has them: {"type": "function", "function": {…}}. Raises ValueError with what is wrong."""
    value = _unfolded(value, "tools") if value else []
    tools = []
    for tool in [value] if isinstance(value, dict) else _list(value, "tools"):
        tool = _unfolded(tool, "tools")
        if not isinstance(tool, dict):
            raise ValueError(f"'tools' must be a list of objects, got one of {type(tool).__name__}")
        bare = "function" not in tool and isinstance(tool.get("name"), str)
        tools.append({"type": "function", "function": tool} if bare else tool)
    return tuple(tools)


def _unfolded(value: Any, name: str, *, strict: bool = True) -> Any:
    """What a text holds as JSON, anything else as it stands. Where not `strict`, a text that is no JSON too."""
    if not isinstance(value, str):
        return value
    try:
        return parsed(value.encode())
    except ValueError as error:
        if not strict:
            return value
        raise ValueError(f"{name!r} must be a list, got a text that is no JSON ({error})") from None


def parsed(data: bytes) -> Any:
    """JSON, NaN and infinities too, which Python and others write. Raises ValueError, on half a character (a lone surrogate) too."""
    try:
        return parse(data)
    except ValueError as error:
        try:
            value = parse_loosely(data)
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as half:
            raise ValueError(
                f"half a character: \\u{ord(half.object[half.start]):x} is the half of a pair, and its other half is missing"
            ) from None
        except ValueError:
            raise error from None
        return value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name!r} must be a string, got {type(value).__name__}")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name!r} must be a list, got {type(value).__name__}")
    return value


def _regenerated(value: Any) -> tuple[Regenerated, ...]:
    """Only our own notes count; other data sets may use the key as they like."""
    notes = value if isinstance(value, list) else [value]
    if not notes or not all(isinstance(note, dict) and "tokenizer_sha256" in note for note in notes):
        return ()
    try:
        return tuple(msgspec.convert(note, Regenerated) for note in notes)
    except msgspec.ValidationError as error:
        raise ValueError(f"'regenerated': {error}") from None


_FILL: dict[str, Callable[[Document, Mapping[str, Any]], Filled | None]] = {
    "text": _with_text, "completion": _with_completion, "chat": _with_chat, "prompt": _with_prompt, "pair": _with_pair, "turns": _with_turns,
}  # fmt: skip
_ORDER: dict[str, tuple[str, ...]] = {
    "text": ("text", "completion", "chat", "pair"), "chat": ("chat", "completion", "pair", "text"), "prompts": ("turns", "chat", "prompt", "text"),
}  # fmt: skip
