"""Asking a running server: which engine it is, one request and its streamed answer with the client's own clock.

Three ways to ask: "chat" and "raw" through the OpenAI API, "native" through an engine's own API, whose responses have always
told their speculation. Promises: an answer that was not whole is a failure with its reason. Refuses to know: loads, figures.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from foredraft.data.prompts import Question
from foredraft.engines import SERVERS
from foredraft.engines.counters import RequestCounts, Totals, count_of, nested
from foredraft.engines.engine import ServingEngine
from foredraft.records import visible
from foredraft.serving.endpoint_http import SHOWN, Connections, NotJson, Refused

SPARE = 16  # pieces and tokens beyond those asked for, such as an end token that a server counts or shows
CHOICES = ("auto", *SERVERS)
MODELS = "/v1/models"
PATHS = {"chat": "/v1/chat/completions", "raw": "/v1/completions"}


class Endpoint(NamedTuple):
    """A server that was found. `info`: what it says of itself; `version` None: not told; `root`: the model behind the name `model`."""

    connections: Connections
    engine: ServingEngine
    model: str
    version: str | None = None
    info: Mapping[str, Any] = {}
    root: str | None = None


class AnswerSettings(NamedTuple):
    """How to answer. `stop` False: answers run on past their end token. `salt`: requests of another one share no prefix cache."""

    max_tokens: int
    temperature: float
    seed: int
    stop: bool = True
    salt: str | None = None


class StreamedAnswer(NamedTuple):
    """Seconds since the request was sent on an open connection; `tokens` None where the server did not count them. `text`: without thoughts."""

    question: Question
    first_s: float
    whole_s: float
    tokens: int | None
    prompt_tokens: int | None
    chunks: int
    counts: RequestCounts | None
    text: str = ""


class Failure(NamedTuple):
    """A question that got no whole answer. `chunks`: pieces of text that came all the same; `refused`: the server says so itself."""

    question: Question
    reason: str
    chunks: int
    refused: bool = False


async def find_server(connections: Connections, model: str | None = None, engine: str = "auto") -> Endpoint:
    """The server at an address. Raises ValueError on a model that it does not serve, and on an engine that nobody knows."""
    address = connections.address
    if engine not in CHOICES:
        raise ValueError(f"engine must be one of {', '.join(CHOICES)}, got {engine!r}")
    listing = await connections.get_json(MODELS)
    listed = listing.get("data") if isinstance(listing, dict) else None
    cards = [card for card in listed if isinstance(card, dict)] if isinstance(listed, list) else []
    names = [card["id"] for card in cards if isinstance(card.get("id"), str)]
    if not names:
        raise ValueError(f"{address}{MODELS}: lists no model; is this a server of the OpenAI API?")
    if model is not None and model not in names:
        raise ValueError(f"{address}: serves no model {model!r}, but {', '.join(names)}; pass one of them as --model")
    infos = {name: await _info(connections, candidate) for name, candidate in SERVERS.items()}
    if engine == "auto":
        engine = _engine_name(str(cards[0].get("owned_by") or "").lower(), infos)
    if not engine:
        labels = " nor ".join(candidate.label for candidate in SERVERS.values())
        raise ValueError(f"{address}: neither {labels} as far as it tells; say --engine to read its counters anyway")
    version = infos[engine].get("version")
    name = model or names[0]
    root = next((card.get("root") for card in cards if card.get("id") == name), None)
    return Endpoint(
        connections, SERVERS[engine], name, str(version) if version else None, infos[engine], root if isinstance(root, str) else None
    )  # fmt: skip


def _engine_name(owner: str, infos: Mapping[str, Mapping[str, Any]]) -> str:
    """By the owner of its model, else by what only its server tells, the most telling last; "" for none."""
    if owner in SERVERS:
        return owner
    return next((name for name in reversed(SERVERS) if SERVERS[name].answers(infos[name])), "")


async def _info(connections: Connections, engine: ServingEngine) -> dict[str, Any]:
    """What a server says of itself where `engine`'s would; {} where it says nothing."""
    for path in engine.info_paths:
        try:
            info = await connections.get_json(path)
        except (Refused, NotJson):
            continue
        if isinstance(info, dict) and info:
            return info
    return {}


async def read_totals(server: Endpoint) -> Totals | None:
    """The server's running totals; None where it shows none."""
    try:
        page = await server.connections.get_text("/metrics")
    except Refused:
        return None
    return server.engine.totals(page)


def request_of(server: Endpoint, question: Question, way: str, settings: AnswerSettings) -> tuple[str, dict[str, Any]]:
    """Path and JSON of a request."""
    max_tokens, temperature, seed, stop, salt = settings
    if way == "native":
        assert server.engine.native_path is not None, "asked only where there is one"
        native = server.engine.native_body(question.words, max_tokens, temperature, stop=stop)
        return server.engine.native_path, native | ({server.engine.native_salt: salt} if salt else {})
    body: dict[str, Any] = {
        "model": server.model, "max_tokens": max_tokens, "temperature": temperature, "seed": seed, "stream": True,
        "stream_options": {"include_usage": True}, **server.engine.request_fields,
    }  # fmt: skip
    messages = [*question.before, {"role": "user", "content": question.words}]
    body |= {"messages": messages} if way == "chat" else {"prompt": question.words}
    body |= {"tools": list(question.tools)} if question.tools else {}
    body |= {server.engine.salt_field: salt} if salt else {}
    return PATHS[way], body if stop else body | {"ignore_eos": True}


async def answer(server: Endpoint, question: Question, way: str, settings: AnswerSettings) -> StreamedAnswer | Failure:
    """Ask one question and read its stream to the end."""
    stream = _Stream(server.engine, settings.max_tokens, server.connections.address.timeout_s)
    try:
        async with server.connections.ask(*request_of(server, question, way, settings), on_send=stream.begin) as reply:
            async for event in reply.events():
                stream.take(event)
    except ValueError as error:
        return Failure(question, str(error), stream.chunks, isinstance(error, Refused))
    if stream.error or stream.first_s is None:
        return Failure(question, stream.error or "the stream ended without any text", stream.chunks, bool(stream.error))
    return StreamedAnswer(
        question,
        stream.first_s,
        stream.last_s,
        stream.tokens,
        stream.prompt_tokens,
        stream.chunks,
        stream.counts,
        "".join(stream.pieces),
    )


class _Stream:
    """A stream as it is read. `take` raises ValueError where the server counts what cannot be, sends more than it was asked for, or no text
    for `timeout_s`.
    """

    def __init__(self, engine: ServingEngine, max_tokens: int, timeout_s: float) -> None:
        self.engine, self.max_tokens, self.timeout_s = engine, max_tokens, timeout_s
        self.start = 0.0
        self.first_s: float | None = None
        self.last_s = 0.0
        self.chunks = 0
        self.pieces: list[str] = []
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.counts: RequestCounts | None = None
        self.error: str | None = None

    def begin(self) -> None:
        self.start = time.perf_counter()

    def take(self, event: dict[str, Any]) -> None:
        now = time.perf_counter() - self.start
        if event.get("error"):
            error = event["error"]
            words = error.get("message", error) if isinstance(error, dict) else error
            self.error = f"the server says: {visible(' '.join(str(words).split()))[:SHOWN]}"
            return
        if _has_text(event):
            self.chunks += 1
            if self.chunks > self.max_tokens + SPARE:
                raise ValueError(
                    f"the server sends more pieces of text than the {self.max_tokens} tokens that it was asked for"
                )
            self.pieces.append(_words(event))
            self.first_s = now if self.first_s is None else self.first_s
            self.last_s = now
        elif now - self.last_s > self.timeout_s:
            raise ValueError(
                f"the server's stream brought no text for {self.timeout_s:g} s; raise --timeout if it needs more"
            )
        self._count(event)
        self.counts = self.engine.request_counts(event) or self.counts

    def _count(self, event: dict[str, Any]) -> None:
        for counts in (nested(event, "meta_info"), nested(event, "usage")):
            if (tokens := counts.get("completion_tokens")) is not None:
                self.tokens = count_of(tokens, "completion_tokens", self.max_tokens + SPARE)
                prompt = counts.get("prompt_tokens")
                self.prompt_tokens = self.prompt_tokens if prompt is None else count_of(prompt, "prompt_tokens")


def _has_text(event: dict[str, Any]) -> bool:
    """Whether an event brings text of the answer, thoughts included."""
    if event.get("text") or event.get("output_ids"):
        return True
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if not isinstance(choice, dict):
            continue
        delta = nested(choice, "delta")
        if choice.get("text") or any(delta.get(key) for key in ("content", "reasoning_content", "reasoning")):
            return True
    return False


def _words(event: dict[str, Any]) -> str:
    """The text of the answer that an event of a chat brings."""
    choices = event.get("choices")
    deltas = (
        [nested(choice, "delta") for choice in choices if isinstance(choice, dict)] if isinstance(choices, list) else []
    )
    return "".join(delta["content"] for delta in deltas if isinstance(delta.get("content"), str))
