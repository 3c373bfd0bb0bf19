"""Configurations answering prompts on the engine: what every request's steps counted, and the seconds of those that ran together.

Requests run in groups of the batch; the last group is filled up with the first requests again, which are timed with it but
counted once. Every group runs on every configuration in turn, so that a slow minute hurts all alike.

Promises: counts are the engine's own, from its first pass over the prompts, and the same for the same seed; one clock for
every configuration. Refuses to know: what the counts mean.

Shapes: D requests, G groups, S positions of a chain or levels of a tree.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

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
    """One configuration over all requests: `answers` and `counts` of each [D], and `times_GT` of each group, medians over rounds.

    Seconds of a group in all, tokens and requests in it; over its requests the sums of the time to the first token, of the time
    to the last, of the time between those, and of the tokens behind the first; the target's passes, and over these the sums of
    the time to draft, to score and of everything else.
    """

    answers: list[list[int]]
    counts: list[Counts]
    times_GT: Array


class _StepCount(NamedTuple):
    """A sequence's part of a StepRecord."""

    drafted: int
    accepted: int
    emitted: int
    looked_up: bool


class _Group:
    """Counts and clocks of the requests of one group."""

    def __init__(self, sequences: Sequence[Running], positions: int) -> None:
        self.steps: dict[int, list[_StepCount]] = {sequence.id: [] for sequence in sequences}
        self.first_s: dict[int, float] = {}
        self.last_s: dict[int, float] = {}
        self.passes: list[StepRecord] = []
        self.positions = positions

    def run(self, engine: Engine) -> float:
        """Let the engine run dry; give its seconds."""
        start = time.perf_counter()
        for step in engine.run():
            now = time.perf_counter() - start
            self.passes.append(step)
            looked_up = step.looked_up or (False,) * len(step.drafted)
            counts = map(_StepCount, step.drafted, step.accepted, step.emitted, looked_up)
            for sequence, count in zip(engine.running, counts, strict=True):
                self.steps[sequence.id].append(count)
                self.first_s.setdefault(sequence.id, now)
                self.last_s[sequence.id] = now
        return time.perf_counter() - start

    def counts(self, sequence: Running) -> Counts:
        steps = self.steps[sequence.id]
        at_risk, reached = Counter[int](), Counter[int]()
        for _, accepted, emitted, _ in steps:
            inside = min(accepted, emitted)
            reached.update(range(inside))
            at_risk.update(
                range(inside + (emitted > accepted))
            )  # a token was emitted behind them: the next was refused
        drafted, accepted, emitted, _ = (sum(column) for column in zip(*steps, strict=True))
        places, looked_up = range(self.positions), [step for step in steps if step.looked_up]
        return Counts(
            len(steps), emitted, drafted, accepted, tuple(at_risk[i] for i in places), tuple(reached[i] for i in places),
            len(looked_up), sum(step.drafted for step in looked_up), sum(step.accepted for step in looked_up),
        )  # fmt: skip

    def times(self, seconds: float, sequences: Sequence[Running]) -> list[float]:
        """A row of TIMES."""
        tokens = [len(sequence.answer) for sequence in sequences]
        first, last = ([at[sequence.id] for sequence in sequences] for at in (self.first_s, self.last_s))
        parts = (sum(getattr(step, name) for step in self.passes) for name in ("draft_s", "target_s", "other_s"))
        return [
            seconds, sum(tokens), len(tokens), sum(first), sum(last), sum(last) - sum(first), sum(tokens) - len(tokens),
            len(self.passes), *parts,
        ]  # fmt: skip


def check_batch(batch: int, num: int) -> None:
    """Raise ValueError where fewer requests are there than are to be decoded together: what was measured would not be that batch."""
    if batch > num:
        raise ValueError(
            f"batch {batch} needs as many prompts, got {num}; give more prompts (or raise --num), or lower --batch"
        )


def groups_of(num: int, batch: int) -> list[list[int]]:
    """Indices of the requests that run together, `batch` in each group; the last is filled up from the beginning."""
    return [[i % num for i in range(start, start + batch)] for start in range(0, num, batch)]


def decode_in_turn(
    engines: Mapping[str, Engine],
    requests: Sequence[Request],
    batch: int,
    *,
    rounds: int = 1,
    progress: Callable[[], object] | None = None,
) -> dict[str, Decoding]:
    """Let every configuration answer every group of `batch` requests, `rounds` times after a warm-up, which is not timed.

    The warm-up is one group; on a GPU, where every new shape costs once, all of them. `progress` is called after each group of
    each configuration: `turns(…)` times in all. Raises ValueError without a round or a request.
    """
    if rounds < 1 or not requests:
        raise ValueError(f"rounds ({rounds}) and requests ({len(requests)}) must be at least 1")
    groups = groups_of(len(requests), batch)
    engine = next(iter(engines.values()))
    warm = _warm(groups, engine)
    times = {name: np.zeros((rounds, len(groups), len(TIMES))) for name in engines}
    answered: dict[str, dict[int, tuple[list[int], Counts]]] = {name: {} for name in engines}
    for number, todo in enumerate([warm, *[groups] * rounds]):
        for g, group in enumerate(todo):
            for name, engine in engines.items():
                row, results = _group(engine, [requests[i] for i in group])
                if number:
                    times[name][number - 1, g] = row
                    answered[name] = dict(zip(group, results, strict=True)) | answered[name]
                if progress:
                    progress()
    order = range(len(requests))
    return {
        name: Decoding([results[i][0] for i in order], [results[i][1] for i in order], np.median(times[name], axis=0))
        for name, results in answered.items()
    }


def turns(engines: Mapping[str, Engine], num: int, batch: int, rounds: int) -> int:
    """How often `decode_in_turn` will call `progress` with `num` requests."""
    groups = groups_of(num, batch)
    return len(engines) * (len(_warm(groups, next(iter(engines.values())))) + rounds * len(groups))


def _warm(groups: list[list[int]], engine: Engine) -> list[list[int]]:
    return groups if engine.target.device.type == "cuda" else groups[:1]


def _group(engine: Engine, requests: Sequence[Request]) -> tuple[list[float], list[tuple[list[int], Counts]]]:
    budget = engine.schedule(len(requests))
    positions = budgeted(budget).deepest
    sequences = [engine.add(request) for request in requests]
    group = _Group(sequences, positions)
    synchronize(engine.target.device)
    seconds = group.run(engine)
    return group.times(seconds, sequences), [(sequence.answer, group.counts(sequence)) for sequence in sequences]
