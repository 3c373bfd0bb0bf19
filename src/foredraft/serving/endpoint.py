"""A running server under load: prompts at a concurrency or a request rate, times by the client's clock,
acceptance by the engine's own counters.

Promises: a request that fails is counted and named, never dropped; other traffic on the server is told of where the totals show
it. Refuses to know: what a draft is, the laws.
"""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import numpy as np

from foredraft.data.prompts import CHATS, Question
from foredraft.engines.counters import Totals
from foredraft.records import Record
from foredraft.serving.endpoint_http import Address, Connections
from foredraft.serving.endpoint_wire import (
    MODELS,
    AnswerSettings,
    Endpoint,
    Failure,
    StreamedAnswer,
    answer,
    find_server,
    read_totals,
)

SETTLE_S, STEP_S = 3.0, 0.1  # how long the totals are waited for, which an engine brings up to date behind its answers
TRIAL = "Hello"
CACHES = ("cold", "warm")
WARM = 0.5  # share of prompt tokens out of the prefix cache from which a load that should meet a cold one is warned of


class LoadSettings(Record, frozen=True):
    """How to load a server. Each of `concurrency` is a number of clients that always have one request open; each of `rates` a
    Poisson stream of requests per second. `prefix_cache`: "cold", each load under a salt of its own, or "warm". `chat`: as in
    `Encoding`; "auto" asks a prompt without a format as a chat where the server has a template.
    """

    concurrency: tuple[int, ...] = (1,)
    rates: tuple[float, ...] = ()
    max_tokens: int = 128
    temperatures: tuple[float, ...] = (0.0,)
    chat: str = "auto"
    stop: bool = True
    seed: int = 0
    width: float = 0.1
    prefix_cache: str = "cold"

    def __post_init__(self) -> None:
        for name, values, least in (("concurrency", self.concurrency, 1), ("temperature", self.temperatures, 0)):
            if not all(math.isfinite(value) and value >= least for value in values):
                raise ValueError(f"{name} must list numbers of at least {least}, got {list(values)}")
        if not all(math.isfinite(rate) and rate > 0 for rate in self.rates):
            raise ValueError(f"request-rate must list positive numbers of requests per second, got {list(self.rates)}")
        if not (self.concurrency or self.rates) or not self.temperatures:
            raise ValueError("concurrency or request-rate, and temperature, must name at least one value each")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not (math.isfinite(self.width) and self.width > 0):
            raise ValueError(f"width must be a positive number of tokens per step, got {self.width}")
        if self.prefix_cache not in CACHES:
            raise ValueError(f"prefix_cache must be one of {', '.join(CACHES)}, got {self.prefix_cache!r}")
        if self.chat not in CHATS:
            raise ValueError(f"chat must be one of {', '.join(CHATS)}, got {self.chat!r}")


class OfferedLoad(NamedTuple):
    """One load: so many clients, or so many requests per second."""

    temperature: float
    concurrency: int | None = None
    rate: float | None = None

    def __str__(self) -> str:
        what = f"concurrency {self.concurrency}" if self.rate is None else f"{self.rate:g} requests/s"
        return f"{what}, temperature {self.temperature:g}"


class Round(NamedTuple):
    """What came of a load: whole answers, failures, wall seconds, and the server's totals before and after where it shows them."""

    load: OfferedLoad
    answers: list[StreamedAnswer]
    failures: list[Failure]
    seconds: float
    before: Totals | None
    after: Totals | None
    salt: str | None = None

    @property
    def tokens(self) -> int | None:
        """Of all answers; None where the server did not count one of them."""
        counts = [answer.tokens for answer in self.answers]
        return None if None in counts else sum(count for count in counts if count is not None)


class Running(NamedTuple):
    """A server that has answered a trial, and the way each question will be asked."""

    server: Endpoint
    ways: list[str]
    questions: Sequence[Question]


@asynccontextmanager
async def started(
    address: Address,
    questions: Sequence[Question],
    settings: LoadSettings,
    model: str | None = None,
    engine: str = "auto",
) -> AsyncIterator[Running]:
    """Find the server, try it once in each way, and decide how each question is asked; its connections stay open until the end.

    Later turns of chats become questions of their own, behind the server's answers to earlier ones, which nobody times. Raises ValueError,
    in the server's words, where a trial or an earlier turn fails, and where the load needs more questions.
    """
    async with Connections(address) as connections:
        server = await find_server(connections, model, engine)
        trials: dict[str, StreamedAnswer | Failure] = {}
        ways = [await _way(server, question, settings, trials) for question in questions]
        for way in dict.fromkeys(ways):
            if isinstance(trial := trials[way], Failure):
                raise ValueError(trial.reason)
        num = sum(1 + len(question.later) * (way == "chat") for question, way in zip(questions, ways, strict=True))
        if settings.concurrency and max(settings.concurrency) > num:
            raise ValueError(
                f"concurrency {max(settings.concurrency)} needs as many prompts, got {num}; raise --num or lower it"
            )
        yield await _with_later_turns(Running(server, ways, questions), settings)


async def _with_later_turns(running: Running, settings: LoadSettings) -> Running:
    """The later turns of questions that are asked as chats, each behind the first one of its own."""
    talks = [question for question, way in zip(running.questions, running.ways, strict=True) if way == "chat"]
    later: list[Question] = []
    turns = asyncio.Semaphore(max(settings.concurrency, default=1))

    async def ask(i: int, question: Question) -> Question:
        async with turns:
            given = AnswerSettings(settings.max_tokens, settings.temperatures[0], settings.seed + i, settings.stop)
            answered = await answer(running.server, question, "chat", given)
        if isinstance(answered, Failure):
            raise ValueError(f"{question.where}: {answered.reason}")
        return question.behind(answered.text)

    while talks := [question for question in talks if question.later]:
        talks = await asyncio.gather(*(ask(i, question) for i, question in enumerate(talks)))
        later += talks
    return Running(running.server, [*running.ways, *["chat"] * len(later)], [*running.questions, *later])


async def _way(
    server: Endpoint, question: Question, settings: LoadSettings, trials: dict[str, StreamedAnswer | Failure]
) -> str:
    async def trial(way: str) -> StreamedAnswer | Failure:
        if way not in trials:
            briefly = AnswerSettings(min(8, settings.max_tokens), 0.0, settings.seed, settings.stop)
            trials[way] = await answer(server, Question("trial", TRIAL), way, briefly)
        return trials[way]

    if settings.chat == "never" and (question.before or question.tools):
        raise ValueError(f"{question.where}: a system or tools, which --chat never would leave out")
    chat = settings.chat == "always" or (settings.chat == "auto" and question.format == "chat")
    if settings.chat == "auto" and question.format is None:
        tried = await trial("chat")
        if isinstance(tried, Failure) and not tried.refused:  # no answer to whether it has a template
            raise ValueError(tried.reason)
        chat = isinstance(tried, StreamedAnswer)
    way = "chat" if chat else "raw"
    result = await trial(way)
    silent = isinstance(result, StreamedAnswer) and result.counts is None
    if way == "raw" and silent and server.engine.native_path and "method" in server.engine.running(server.info):
        way = "native"  # it speculates, and its OpenAI API does not tell
        await trial(way)
    return way


async def rounds(running: Running, settings: LoadSettings) -> AsyncIterator[Round]:
    """Every load in turn, as it is done."""
    for temperature in settings.temperatures:
        loads = [OfferedLoad(temperature, concurrency=clients) for clients in settings.concurrency]
        for load in loads + [OfferedLoad(temperature, rate=rate) for rate in settings.rates]:
            yield await one_round(running, settings, load)


async def one_round(running: Running, settings: LoadSettings, load: OfferedLoad) -> Round:
    """All questions under one load."""
    before = await _quiet(running.server)
    await running.server.connections.warm(MODELS, load.concurrency or 1)
    salt = f"foredraft-{uuid.uuid4().hex}" if settings.prefix_cache == "cold" else None
    start = time.perf_counter()
    results = await (_closed if load.rate is None else _open)(running, settings, load, salt)
    seconds = time.perf_counter() - start
    answers = [result for result in results if isinstance(result, StreamedAnswer)]
    failures = [result for result in results if isinstance(result, Failure)]
    after = await _settled(running.server, before, answers)
    return Round(load, answers, failures, seconds, before, after, salt)


async def _closed(
    running: Running, settings: LoadSettings, load: OfferedLoad, salt: str | None
) -> list[StreamedAnswer | Failure]:
    """So many clients, each with its next question as soon as it has an answer."""
    todo = iter(range(len(running.questions)))
    results: dict[int, StreamedAnswer | Failure] = {}

    async def client() -> None:
        for i in todo:
            results[i] = await _ask(running, settings, load, i, salt)

    assert load.concurrency is not None, "a closed load has clients"
    await asyncio.gather(*(client() for _ in range(load.concurrency)))
    return [results[i] for i in range(len(running.questions))]


async def _open(
    running: Running, settings: LoadSettings, load: OfferedLoad, salt: str | None
) -> list[StreamedAnswer | Failure]:
    """Questions at exponential intervals of mean 1/rate, however many are open."""
    gaps = np.random.default_rng(settings.seed).exponential(1 / (load.rate or 1.0), len(running.questions))

    async def later(i: int, wait_s: float) -> StreamedAnswer | Failure:
        await asyncio.sleep(wait_s)
        return await _ask(running, settings, load, i, salt)

    starts = np.cumsum(gaps) - gaps[0]
    return list(await asyncio.gather(*(later(i, float(wait)) for i, wait in enumerate(starts))))


async def _ask(
    running: Running, settings: LoadSettings, load: OfferedLoad, i: int, salt: str | None
) -> StreamedAnswer | Failure:
    each = AnswerSettings(settings.max_tokens, load.temperature, settings.seed + i, settings.stop, salt)
    return await answer(running.server, running.questions[i], running.ways[i], each)


async def _quiet(server: Endpoint) -> Totals | None:
    """The totals once two readings agree, so that no earlier answer is still being counted; of a busy server the last reading."""
    earlier, deadline = await read_totals(server), time.perf_counter() + SETTLE_S / 3
    while earlier is not None and time.perf_counter() < deadline:
        await asyncio.sleep(STEP_S)
        now = await read_totals(server)
        if now == earlier:
            break
        earlier = now
    return earlier


async def _settled(server: Endpoint, before: Totals | None, answers: Sequence[StreamedAnswer]) -> Totals | None:
    """The totals once they hold all tokens of `answers`, or what they hold after a while."""
    if before is None:
        return None
    answered, deadline = sum(answer.tokens or 0 for answer in answers), time.perf_counter() + SETTLE_S
    while True:
        now = await read_totals(server)
        missing = now is not None and (grown(before, now, "generated") or 0) < answered
        if not missing or time.perf_counter() > deadline:
            return now
        await asyncio.sleep(STEP_S)


def grown(before: Totals, after: Totals, name: str) -> float | None:
    """How much a total grew; None where it is not told."""
    then, now = getattr(before, name), getattr(after, name)
    return None if now is None else now - (then or 0.0)


def traffic(load: Round) -> list[str]:
    """What the totals say of requests that are not ours, in words; nothing where they agree, or say nothing."""
    if load.before is None or load.after is None:
        return []
    notes = []
    cached, prompts = grown(load.before, load.after, "cached"), grown(load.before, load.after, "prompts")
    if load.salt and cached and prompts and cached > WARM * prompts:
        notes.append(
            f"{cached:g} of {prompts:g} prompt tokens came out of the prefix cache, which this server keeps over loads: start it anew for each"
        )
    if load.before.running:
        notes.append(f"{load.before.running:g} requests were running before the load began")
    tokens, answered = grown(load.before, load.after, "generated"), load.tokens
    if tokens is not None and answered is not None and not load.failures and tokens != answered:
        more = "other traffic is mixed in" if tokens > answered else "not all of ours are in it: several servers behind one address?"  # fmt: skip
        notes.append(f"the server generated {tokens:g} tokens and our answers have {answered}: {more}")
    requests, ours = grown(load.before, load.after, "requests"), len(load.answers) + len(load.failures)
    if requests is not None and requests > ours:
        notes.append(f"the server finished {requests:g} requests and {ours} were ours: other traffic is mixed in")
    return notes
