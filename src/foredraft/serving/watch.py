"""A server in use, watched by its page of metrics: what it generated and accepted at which number of running requests.

Nothing is asked of the server but its page. Promises: a stretch in which the server was started anew is left out and told of; idle time counts
for nothing. Refuses to know: who uses the server.
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from foredraft.engines.counters import Counters, Totals
from foredraft.records import Observation, Provenance
from foredraft.serving.endpoint_http import Address, Connections
from foredraft.serving.endpoint_rows import base_facts
from foredraft.serving.endpoint_wire import Endpoint, find_server, read_totals

SOURCE = "foredraft calibrate --watch"
STEADY = 0.35  # the running requests at a stretch's ends may differ by this share of their mean, and one
GROUP = 0.5  # of log2 of the running requests: stretches nearer than this are one load


UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """Seconds of 90s, 5m, 1h or a plain number. Raises ValueError on any other."""
    number, unit = (text[:-1], UNITS[text[-1]]) if text[-1:] in UNITS else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 7 * 86400:
        raise ValueError(f"--watch must be a time such as 90s, 5m or 1h, of at most 168h; got {text!r}")
    return seconds


class PageReading(NamedTuple):
    at_s: float
    totals: Totals


class Stretch(NamedTuple):
    """Between two readings: `running` on average; `spec` and `tokens_per_step` None where nothing was drafted, or it is not told."""

    seconds: float
    running: float
    tokens: float
    spec: Counters | None = None
    tokens_per_step: float | None = None


class Watched(NamedTuple):
    """A watched server: its rows, one a load, and what to mind. `shares`: clients, and the share of the busy time at which so many ran."""

    server: Endpoint
    rows: list[Observation]
    shares: dict[int, float]
    warnings: list[str]


async def watched(
    address: Address, seconds: float, every_s: float, facts: Mapping[str, Any], on_reading: Callable[[PageReading], object] = lambda _: None
) -> Watched:  # fmt: skip
    """Read the page of the server at `address` every `every_s` for `seconds`. Raises ValueError where it shows none."""
    async with Connections(address) as connections:
        server = await find_server(connections, facts.get("model"), facts.get("engine") or "auto")
        readings: list[PageReading] = []
        start = time.perf_counter()
        while not readings or time.perf_counter() - start < seconds:
            if readings:
                await asyncio.sleep(min(every_s, max(0.0, start + seconds - time.perf_counter())))
            totals = await read_totals(server)
            if totals is None or totals.generated is None or totals.running is None:
                raise ValueError(
                    f"{address}/metrics: shows no running requests and generated tokens; SGLang shows them with --enable-metrics"
                )
            readings.append(PageReading(time.perf_counter(), totals))
            on_reading(readings[-1])
        stretches, warnings = stretches_of(readings)
        rows, shares = rows_of_stretches(stretches, server, readings, facts)
        return Watched(server, rows, shares, warnings)


def stretches_of(readings: Sequence[PageReading]) -> tuple[list[Stretch], list[str]]:
    """Those in which the server ran requests, about as many at the end as at the beginning."""
    stretches, restarts, unsteady, queued = [], 0, 0, 0
    for before, after in pairwise(readings):
        then, now = before.totals, after.totals
        running = ((then.running or 0.0) + (now.running or 0.0)) / 2
        tokens = (now.generated or 0.0) - (then.generated or 0.0)
        try:
            spec = now.spec.since(then.spec) if now.spec and then.spec else None
        except ValueError:
            spec, tokens = None, -1.0
        if tokens < 0:
            restarts += 1
        elif running < 0.5 or not tokens:
            continue
        elif abs((now.running or 0.0) - (then.running or 0.0)) > 1 + STEADY * running:
            unsteady += 1
        else:
            queued += bool(now.waiting)
            stretches.append(Stretch(after.at_s - before.at_s, running, tokens, spec, now.tokens_per_step))
    notes = [
        (restarts, "the server was started anew {} times: those stretches are left out"),
        (
            unsteady,
            "{} stretches in which the number of running requests changed much are left out; a shorter --every keeps more",
        ),
        (queued, "requests were waiting at the end of {} stretches: the server was full"),
    ]
    return stretches, [words.format(count) for count, words in notes if count]


def rows_of_stretches(
    stretches: Sequence[Stretch], server: Endpoint, readings: Sequence[PageReading], facts: Mapping[str, Any]
) -> tuple[list[Observation], dict[int, float]]:
    """A row for stretches of a like number of running requests, and the share of the busy time of each."""
    groups: dict[int, list[Stretch]] = {}
    for stretch in stretches:
        groups.setdefault(round(math.log2(max(stretch.running, 1.0)) / GROUP), []).append(stretch)
    busy_s = sum(stretch.seconds for stretch in stretches)
    rows, shares = [], {}
    for group in (groups[key] for key in sorted(groups)):
        seconds = sum(stretch.seconds for stretch in group)
        clients = max(1, round(sum(stretch.running * stretch.seconds for stretch in group) / seconds))
        shares[clients] = shares.get(clients, 0.0) + seconds / busy_s
        rows.append(_row(group, clients, server, readings, facts))
    return rows, shares


def _row(
    group: Sequence[Stretch], clients: int, server: Endpoint, readings: Sequence[PageReading], facts: Mapping[str, Any]
) -> Observation:
    first, last = readings[0].totals, readings[-1].totals
    seconds, tokens = sum(stretch.seconds for stretch in group), sum(stretch.tokens for stretch in group)
    base = base_facts(server, facts, drafts=last.spec is not None or last.tokens_per_step is not None)
    note = f"{len(group)} stretches, {seconds:.0f} s, with {clients} requests running on average"
    requests = (last.requests or 0.0) - (first.requests or 0.0)
    lengths = {
        name: (now - (then or 0.0)) / requests
        for name, now, then in (
            ("input_len", last.prompts, first.prompts),
            ("output_len", last.generated, first.generated),
        )
        if now and requests > 0 and now > (then or 0.0)
    }
    provenance: Provenance = base.pop("provenance")
    fields: dict[str, Any] = (
        {key: value for key, value in base.items() if value is not None} | lengths | _accepted(group, base)
    )
    return Observation(
        **fields | {"concurrency": clients, "output_tok_s": tokens / seconds, "num_requests": round(requests) or None},
        provenance=Provenance(source=SOURCE, command=provenance.command, note=note, versions=provenance.versions, created=provenance.created),
    )  # fmt: skip


def _accepted(group: Sequence[Stretch], base: Mapping[str, Any]) -> dict[str, Any]:
    """Acceptance of the group's stretches together; where only τ of late is told, its mean over time."""
    counts = [stretch.spec for stretch in group if stretch.spec and stretch.spec.steps]
    if counts:
        positions = zip(*(each.by_position for each in counts), strict=True)
        all_counts = Counters(
            steps=sum(each.steps for each in counts), drafted=sum(each.drafted for each in counts),
            accepted=sum(each.accepted for each in counts), by_position=tuple(map(sum, positions)),
        )  # fmt: skip
        return {
            "steps": all_counts.steps, "drafted": all_counts.drafted, "accepted": all_counts.accepted, "pooling": "steps",
            "tokens_per_step": 1 + all_counts.accepted / all_counts.steps, "lookahead": all_counts.longest, "survival": all_counts.survival or None,
        }  # fmt: skip
    stated = [(stretch.tokens_per_step, stretch.seconds) for stretch in group if stretch.tokens_per_step]
    if stated and base.get("lookahead"):
        return {
            "tokens_per_step": sum(tau * seconds for tau, seconds in stated) / sum(seconds for _, seconds in stated)
        }
    return {}
