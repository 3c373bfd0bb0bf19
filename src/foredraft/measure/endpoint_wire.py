"""Asking a running server: which engine it is, one request and its streamed answer with the client's own clock.

Three ways to ask: "chat" and "raw" through the OpenAI API, "native" through SGLang's own /generate, whose responses have always
told their speculation. Promises: an answer that was not whole is a failure with its reason. Refuses to know: loads, figures.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from foredraft.data.prompts import Question
from foredraft.measure.endpoint_counts import Spec, Totals, spec_of, totals
from foredraft.measure.endpoint_http import Address, NotJson, Refused, ask, get_json, get_text

ENGINES = ("auto", "vllm", "sglang")
PATHS = {"chat": "/v1/chat/completions", "raw": "/v1/completions", "native": "/generate"}


class Server(NamedTuple):
    """`info`: what SGLang says of its settings; {} of vLLM, which says none. `version` None: not told."""

    address: Address
    engine: str
    model: str
    version: str | None = None
    info: Mapping[str, Any] = {}


class Wanted(NamedTuple):
    """How to answer. `stop` False: answers run on past their end token."""

    max_tokens: int
    temperature: float
    seed: int
    stop: bool = True


class Answer(NamedTuple):
    """Seconds since the request was sent; `tokens` None where the server did not count them."""

    question: Question
    first_s: float
    whole_s: float
    tokens: int | None
    prompt_tokens: int | None
    chunks: int
    spec: Spec | None


class Failure(NamedTuple):
    """A question that got no whole answer. `chunks`: pieces of text that came all the same."""

    question: Question
    why: str
    chunks: int


async def found(address: Address, model: str | None = None, engine: str = "auto") -> Server:
    """The server behind an address. Raises ValueError on a model that it does not serve, and on an engine that is neither."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    listed = await get_json(address, "/v1/models")
    cards = [card for card in listed.get("data") or [] if isinstance(card, dict)] if isinstance(listed, dict) else []
    names = [str(card.get("id")) for card in cards]
    if not names:
        raise ValueError(f"{address}/v1/models: lists no model; is this a server of the OpenAI API?")
    if model is not None and model not in names:
        raise ValueError(f"{address}: serves no model {model!r}, but {', '.join(names)}; pass one of them as --model")
    owner = str(cards[0].get("owned_by") or "").lower()
    vllm, sglang = await _optional(address, "/version"), await _info(address)
    if engine == "auto":
        engine = owner if owner in ENGINES[1:] else "sglang" if sglang.get("model_path") else "vllm" if vllm else ""
    if not engine:
        raise ValueError(
            f"{address}: neither vLLM nor SGLang as far as it tells; say --engine to read its counters anyway"
        )
    told = vllm if engine == "vllm" else sglang
    version = told.get("version")
    return Server(address, engine, model or names[0], str(version) if version else None, sglang if engine == "sglang" else {})  # fmt: skip


async def _info(address: Address) -> dict[str, Any]:
    """SGLang's settings; its newer versions nest what the scheduler says."""
    for path in ("/server_info", "/get_server_info"):
        if held := await _optional(address, path):
            return held
    return {}


async def _optional(address: Address, path: str) -> dict[str, Any]:
    """A JSON object where there is one."""
    try:
        held = await get_json(address, path)
    except (Refused, NotJson):
        return {}
    return held if isinstance(held, dict) else {}


async def read_totals(server: Server) -> Totals | None:
    """The server's running totals; None where it shows none (SGLang without --enable-metrics)."""
    try:
        page = await get_text(server.address, "/metrics")
    except Refused:
        return None
    return totals(page, server.engine)


def body_of(server: Server, question: Question, way: str, wanted: Wanted) -> dict[str, Any]:
    """The JSON of a request."""
    if way == "native":
        params = {"max_new_tokens": wanted.max_tokens, "temperature": wanted.temperature, "ignore_eos": not wanted.stop}
        return {"text": question.words, "sampling_params": params, "stream": True}
    body: dict[str, Any] = {
        "model": server.model, "max_tokens": wanted.max_tokens, "temperature": wanted.temperature, "seed": wanted.seed, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if way == "chat":
        body["messages"] = [{"role": "user", "content": question.words}]
    else:
        body["prompt"] = question.words
    if not wanted.stop:
        body["ignore_eos"] = True
    return body | ({"return_spec_tokens_details": True} if server.engine == "sglang" else {})


async def answer(server: Server, question: Question, way: str, wanted: Wanted) -> Answer | Failure:
    """Ask one question and read its stream to the end."""
    seen = _Seen()
    try:
        async with ask(server.address, PATHS[way], body_of(server, question, way, wanted)) as reply:
            async for event in reply.events():
                seen.take(event)
    except ValueError as error:
        return Failure(question, str(error), seen.chunks)
    if seen.error or seen.first_s is None:
        return Failure(question, seen.error or "the stream ended without any text", seen.chunks)
    return Answer(question, seen.first_s, seen.last_s, seen.tokens, seen.prompt_tokens, seen.chunks, seen.spec)


class _Seen:
    """A stream as it is read."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.first_s: float | None = None
        self.last_s = 0.0
        self.chunks = 0
        self.tokens: int | None = None
        self.prompt_tokens: int | None = None
        self.spec: Spec | None = None
        self.error: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        now = time.perf_counter() - self.start
        if event.get("error"):
            error = event["error"]
            self.error = f"the server says: {error.get('message', error) if isinstance(error, dict) else error}"
            return
        if _has_text(event):
            self.chunks += 1
            self.first_s = now if self.first_s is None else self.first_s
            self.last_s = now
        self._count(event)
        self.spec = spec_of(event) or self.spec

    def _count(self, event: dict[str, Any]) -> None:
        usage, meta = event.get("usage") or {}, event.get("meta_info") or {}
        for held in (meta, usage):
            if isinstance(held.get("completion_tokens"), int):
                self.tokens = held["completion_tokens"]
                self.prompt_tokens = held.get("prompt_tokens", self.prompt_tokens)


def _has_text(event: dict[str, Any]) -> bool:
    """Whether an event brings text of the answer, thoughts included."""
    if event.get("text") or event.get("output_ids"):
        return True
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if choice.get("text") or any(delta.get(key) for key in ("content", "reasoning_content", "reasoning")):
            return True
    return False
