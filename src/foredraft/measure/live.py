"""Configurations answering prompts on the engine: what every request's steps counted, and the seconds of those that ran together.

A batch stays full, as a server's under load: where an answer ends, the next prompt is read in its place. Requests come in groups
of the batch, and a group's seconds run from when its first request enters to when the next group's does; the last group is
filled up with the first requests again, which are timed with it but counted once. Not timed: first requests, cut short at
different lengths, that run ahead so that answers do not end together, and what is left running at the end. Every group runs on
every configuration in turn, so that a slow minute hurts all alike.

Promises: counts are the engine's own, from its first pass over the prompts, and the same for the same seed; one clock for
every configuration. Refuses to know: what the counts mean.

Shapes: D requests, G groups, S positions of a chain or levels of a tree.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace

from foredraft.decode.batch import Request
from foredraft.decode.batch import Sequence as Running
from foredraft.decode.engine import Engine, budgeted
from foredraft.hardware import synchronize
from foredraft.records import StepRecord
from foredraft.serving.bootstrap import Array

TIMES = (
    "seconds", "tokens", "requests", "first_s", "whole_s", "between_s", "gaps", "passes", "draft_s", "target_s", "other_s",
)  # fmt: skip  # columns of Decoding.times_GT


class Counts(NamedTuple):
    """One request's steps. `reached[i]`: steps that accepted more than i drafted tokens inside the answer; `at_risk[i]`: those
    in which token i was still the answer's to judge. A step at the answer's end is followed no further than the answer. `lookup_`:
    what of steps, drafted and accepted a look-up before the draft took.
    """

    steps: int
    emitted: int
    drafted: int
    accepted: int
    at_risk: tuple[int, ...]
    reached: tuple[int, ...]
    lookup_steps: int = 0
    lookup_drafted: int = 0
    lookup_accepted: int = 0


class Decoding(NamedTuple):
    """One configuration over all requests: `answers` and `counts` of each [D], `times_GT` of each group, medians over rounds, and
    `ran`, of each group all requests that had a row in its seconds.

    A group's seconds in all, the tokens emitted in them and the requests that entered; over these requests the sums of the time to
    the first token, of the time to the last, of the time between those, and of the tokens behind the first; of its seconds the
    target's passes, and over these the sums of the time to draft, to score and of everything else.
    """

    answers: list[list[int]]
    counts: list[Counts]
    times_GT: Array
    ran: list[frozenset[int]]


class _StepCount(NamedTuple):
    """A sequence's part of a StepRecord."""

    drafted: int
    accepted: int
    emitted: int
    looked_up: bool


@dataclass(eq=False)
class _Asked:
    """A request on its way: its place among the requests, when it entered, and its steps with the times they ended at."""

    place: int
    sequence: Running
    entered_s: float
    steps: list[_StepCount] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)

    def counts(self, positions: int) -> Counts:
        at_risk, reached = Counter[int](), Counter[int]()
        for _, accepted, emitted, _ in self.steps:
            inside = min(accepted, emitted)
            reached.update(range(inside))
            at_risk.update(
                range(inside + (emitted > accepted))
            )  # a token was emitted behind them: the next was refused
        drafted, accepted, emitted, _ = (sum(column) for column in zip(*self.steps, strict=True))
        places, looked_up = range(positions), [step for step in self.steps if step.looked_up]
        return Counts(
            len(self.steps), emitted, drafted, accepted, tuple(at_risk[i] for i in places), tuple(reached[i] for i in places),
            len(looked_up), sum(step.drafted for step in looked_up), sum(step.accepted for step in looked_up),
        )  # fmt: skip


class Stream:
    """An engine's way through the requests, group by group; its clock stands still between groups."""

    def __init__(self, engine: Engine, requests: Sequence[Request], groups: Sequence[Sequence[int]]) -> None:
        self.engine, self.requests, self.batch = engine, requests, len(groups[0])
        self.steps = engine.run()
        self.clock_s = 0.0
        self.asked: dict[int, _Asked] = {}
        self.ran: list[frozenset[int]] = []
        self.groups = [list(group) for group in groups]
        self.entered: list[list[_Asked]] = []
        self.parts: list[list[float]] = []
        for place in range(1, self.batch):  # they run ahead
            request = requests[groups[0][place]]
            self._ask(groups[0][place], replace(request, max_tokens=-(-request.max_tokens * place // self.batch)))
        if self.asked:
            self._step()

    def run_group(self) -> None:
        """The next group's seconds; behind the last one everything to its end."""
        synchronize(self.engine.target.device)
        start, waiting = self.clock_s, deque(self.groups[len(self.entered)])
        entered: list[_Asked] = []
        records: list[StepRecord] = []
        ran: set[int] = set()
        self.entered.append(entered)
        while True:
            while waiting and self._free():
                place = waiting.popleft()
                entered.append(self._ask(place, self.requests[place]))
            if not waiting and self._free():
                break
            records.append(self._step())
            ran.update(self.asked[sequence.id].place for sequence in self.engine.running)
        self.ran.append(frozenset(ran))
        emitted = sum(sum(record.emitted) for record in records)
        parts = (sum(getattr(record, name) for record in records) for name in ("draft_s", "target_s", "other_s"))
        self.parts.append([self.clock_s - start, emitted, len(entered), len(records), *parts])
        if len(self.entered) == len(self.groups):
            while self._free() < self.batch:
                self._step()
            next(self.steps, None)  # the last rows leave

    def _ask(self, place: int, request: Request) -> _Asked:
        sequence = self.engine.add(request)
        self.asked[sequence.id] = asked = _Asked(place, sequence, self.clock_s)
        return asked

    def _free(self) -> int:
        unfinished = sum(not sequence.finish for sequence in self.engine.running)
        return self.batch - unfinished - len(self.engine.waiting)

    def _step(self) -> StepRecord:
        start = time.perf_counter()
        step = next(self.steps)
        self.clock_s += time.perf_counter() - start
        looked_up = step.looked_up or (False,) * len(step.drafted)
        counts = map(_StepCount, step.drafted, step.accepted, step.emitted, looked_up)
        for sequence, count in zip(self.engine.running, counts, strict=True):
            self.asked[sequence.id].steps.append(count)
            self.asked[sequence.id].ended_s.append(self.clock_s)
        return step

    def times(self) -> list[list[float]]:
        """A row of TIMES for each group, once all are answered."""
        rows = []
        for (seconds, emitted, num, *passes), entered in zip(self.parts, self.entered, strict=True):
            first, whole = (sum(asked.ended_s[i] - asked.entered_s for asked in entered) for i in (0, -1))
            behind = sum(len(asked.sequence.answer) for asked in entered) - num
            rows.append([seconds, emitted, num, first, whole, whole - first, behind, *passes])
        return rows

    def results(self) -> dict[int, tuple[list[int], Counts]]:
        """Answer and counts by place; of a request that was asked twice the first."""
        positions = budgeted(self.engine.schedule(self.batch)).deepest
        asked = [asked for group in reversed(self.entered) for asked in reversed(group)]
        return {each.place: (each.sequence.answer, each.counts(positions)) for each in asked}


def check_batch(batch: int, num: int) -> None:
    """Raise ValueError where fewer requests are there than are to be decoded together: what was measured would not be that batch."""
    if batch > num:
        raise ValueError(
            f"batch {batch} needs as many prompts, got {num}; give more prompts (or raise --num), or lower --batch"
        )


def groups_of(num: int, batch: int) -> list[list[int]]:
    """Indices of the requests, `batch` in each group; the last is filled up from the beginning."""
    return [[i % num for i in range(start, start + batch)] for start in range(0, num, batch)]


def decode_in_turn(
    engines: Mapping[str, Engine],
    requests: Sequence[Request],
    batch: int,
    *,
    rounds: int = 1,
    progress: Callable[[], object] | None = None,
) -> dict[str, Decoding]:
    """Let every configuration answer all requests, `batch` at a time, `rounds` times after a warm-up, which is not timed.

    The warm-up is one group; on a GPU, where every new shape costs once, all of them. `progress` is called after each group of
    each configuration: `turns(…)` times in all. Raises ValueError without a round or a request.
    """
    if rounds < 1 or not requests:
        raise ValueError(f"rounds ({rounds}) and requests ({len(requests)}) must be at least 1")
    groups = groups_of(len(requests), batch)
    timed: dict[str, list[Stream]] = {name: [] for name in engines}
    for number, todo in enumerate([_warm(groups, next(iter(engines.values()))), *[groups] * rounds]):
        streams: dict[str, Stream] = {}
        for _ in todo:
            for name, engine in engines.items():
                stream = streams[name] = streams.get(name) or Stream(engine, requests, todo)
                stream.run_group()
                if progress:
                    progress()
        if number:
            for name, stream in streams.items():
                timed[name].append(stream)
    return {name: _decoding(rounds, len(requests)) for name, rounds in timed.items()}


def _decoding(rounds: Sequence[Stream], num: int) -> Decoding:
    """Answers, counts and `ran` are of the first round."""
    results, times_RGT = rounds[0].results(), np.array([stream.times() for stream in rounds])
    answers, counts = zip(*(results[i] for i in range(num)), strict=True)
    return Decoding([*answers], [*counts], np.median(times_RGT, axis=0), rounds[0].ran)


def turns(engines: Mapping[str, Engine], num: int, batch: int, rounds: int) -> int:
    """How often `decode_in_turn` will call `progress` with `num` requests."""
    groups = groups_of(num, batch)
    return len(engines) * (len(_warm(groups, next(iter(engines.values())))) + rounds * len(groups))


def _warm(groups: list[list[int]], engine: Engine) -> list[list[int]]:
    return groups if engine.target.device.type == "cuda" else groups[:1]
