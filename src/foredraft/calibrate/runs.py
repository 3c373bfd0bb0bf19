"""Loads asked of one or several servers, into a folder that further runs add to.

A server's lookahead cannot be changed while it runs: each run is labelled by what the server itself says, so that the same folder takes one
without a draft and others after a restart. Promises: a row is on disk before the next load begins; what was measured already is not measured
again; rows under other conditions are never mixed. Refuses to know: the law.
"""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from foredraft import records
from foredraft.calibrate.law import is_whole
from foredraft.data.prompts import Question
from foredraft.records import Observation, Record, with_hint
from foredraft.serving.endpoint import LoadSettings, OfferedLoad, Running, one_round, started
from foredraft.serving.endpoint_http import Address
from foredraft.serving.endpoint_rows import base_of, rows_of
from foredraft.serving.endpoint_wire import read_totals

OBSERVATIONS, CONDITIONS = "observations.jsonl", "conditions.json"
LEAST_REQUESTS, WARM_TOKENS = 8, 8
SOURCE = "foredraft calibrate"
OnRow = Callable[[Observation, Sequence[str]], object]


class RunConditions(Record, frozen=True):
    """What all rows of a folder have in common, the server's settings of speculation apart. `watched`: of traffic that was not ours, whose
    prompts nobody knows.
    """

    target: str
    engine: str
    prompts_sha256: str = ""
    max_tokens: int = 0
    temperature: float = 0.0
    stop: bool = True
    requests_per_client: int = 0
    watched: bool = False


class CalibrationSettings(Record, frozen=True):
    """`loads`: clients; `rounds` of each; `again`: measure what is there already, and forget it."""

    loads: tuple[int, ...] = (1, 8, 32)
    rounds: int = 1
    requests_per_client: int = 4
    max_tokens: int = 128
    temperature: float = 0.0
    stop: bool = True
    chat: str = "auto"
    seed: int = 0
    again: bool = False

    def num_requests(self, clients: int) -> int:
        return max(LEAST_REQUESTS, self.requests_per_client * clients)


class _LabelledServer(NamedTuple):
    """A server that answered a trial, and the lookahead that it drafts by."""

    running: Running
    facts: Mapping[str, Any]
    lookahead: int | None


def label(lookahead: int | None) -> str:
    """Of a run, for people."""
    return "no draft" if lookahead == 0 else "a draft of unknown length" if lookahead is None else f"k = {lookahead}"


def measured_rows(folder: Path) -> list[Observation]:
    """Those on disk."""
    file = folder / OBSERVATIONS
    return records.read_lines(Observation, file) if file.is_file() else []


def measure_runs(
    addresses: Sequence[Address], questions: Sequence[Question], settings: CalibrationSettings, folder: Path, facts: Mapping[str, Any],
    on_row: OnRow = lambda *_: None, say: Callable[[str], object] = lambda _: None,
) -> list[Observation]:  # fmt: skip
    """Every load on each server in turn, and all rows of the folder. Raises ValueError where a server fails, or was not asked so before."""
    return asyncio.run(_runs(addresses, questions, settings, folder, facts, on_row, say))


async def _runs(
    addresses: Sequence[Address], questions: Sequence[Question], settings: CalibrationSettings, folder: Path, facts: Mapping[str, Any],
    on_row: OnRow, say: Callable[[str], object],
) -> list[Observation]:  # fmt: skip
    loads = LoadSettings(
        concurrency=settings.loads, max_tokens=settings.max_tokens, temperatures=(settings.temperature,), chat=settings.chat, stop=settings.stop,
        seed=settings.seed,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        targets = []
        for address in addresses:
            running = await stack.enter_async_context(
                started(address, list(questions), loads, facts.get("model"), facts.get("engine") or "auto")
            )
            _check_conditions(folder, conditions_of(running, questions, settings))
            targets.append(_LabelledServer(running, facts, await _warmed(running, loads, max(settings.loads))))
            say(
                f"{address}: {running.server.engine.label} {running.server.version or ''}, {label(targets[-1].lookahead)}"
            )
        rows = measured_rows(folder)
        if settings.again:
            rows = [row for row in rows if row.lookahead not in {target.lookahead for target in targets}]
        for number in range(settings.rounds):
            for clients in settings.loads:
                for target in targets[:: -1 if number % 2 else 1]:
                    if (
                        len([row for row in rows if (row.lookahead, row.concurrency) == (target.lookahead, clients)])
                        > number
                    ):
                        say(f"{label(target.lookahead)}, {clients} at once: measured already")
                        continue
                    row, warnings = await _row(target, loads, clients, settings.num_requests(clients))
                    rows.append(row)
                    records.write_lines(folder / OBSERVATIONS, rows)
                    on_row(row, warnings)
        return rows


async def _warmed(running: Running, loads: LoadSettings, clients: int) -> int | None:
    """Warm a server up at its largest load, and give the lookahead that it drafts by; None where it cannot be told."""
    before = await read_totals(running.server)
    brief = msgspec.structs.replace(loads, max_tokens=min(WARM_TOKENS, loads.max_tokens))
    some = running._replace(ways=running.ways[:clients], questions=running.questions[:clients])
    load = await one_round(some, brief, OfferedLoad(0.0, concurrency=clients))
    base = base_of(running.server, load, {})
    if base["lookahead"] is not None:
        return base["lookahead"]
    after = load.after
    if after is None or after.spec is None or before is None:
        return None
    try:
        spec = after.spec.since(before.spec) if before.spec else after.spec
    except ValueError:
        return None
    return spec.longest if spec.steps else None


async def _row(target: _LabelledServer, loads: LoadSettings, clients: int, num: int) -> tuple[Observation, list[str]]:
    """One load's row under the run's label, and what to mind about it."""
    running = target.running
    some = running._replace(ways=running.ways[:num], questions=running.questions[:num])
    load = await one_round(some, loads, OfferedLoad(loads.temperatures[0], concurrency=clients))
    result = rows_of(load, base_of(running.server, load, target.facts), loads.width)
    row, warnings = result.rows[0].observation, list(result.warnings)
    if target.lookahead == 0:
        row = msgspec.structs.replace(row, method="none", draft=None, lookahead=0)
    elif row.lookahead is None:
        spec = load.after.spec if load.after else None
        row = msgspec.structs.replace(row, lookahead=target.lookahead if row.tokens_per_step else None)
        if spec and row.tokens_per_step:
            warnings.append(f"steps draft different numbers of tokens: taken for {target.lookahead}")
    if not is_whole(row):
        warnings.append("this load tells no tokens/s at a known k, and is not fitted")
    return row, warnings


def conditions_of(running: Running, questions: Sequence[Question], settings: CalibrationSettings) -> RunConditions:
    server = running.server
    words = "\0".join(question.words for question in questions[: settings.num_requests(1)])
    return RunConditions(
        target=server.root or server.model, engine=server.engine.name, prompts_sha256=hashlib.sha256(words.encode()).hexdigest(),
        max_tokens=settings.max_tokens, temperature=settings.temperature, stop=settings.stop, requests_per_client=settings.requests_per_client,
    )  # fmt: skip


def _check_conditions(folder: Path, conditions: RunConditions) -> None:
    """Write them into a new folder. Raises ValueError where the folder's rows were measured under others."""
    file = folder / CONDITIONS
    if not file.is_file():
        records.write(file, conditions)
        return
    there = records.read(RunConditions, file)
    fields = [name for name in RunConditions.__struct_fields__ if getattr(there, name) != getattr(conditions, name)]
    if fields:
        differ = ", ".join(
            f"{name} {getattr(there, name)}, now {getattr(conditions, name)}"
            for name in fields
            if name != "prompts_sha256"
        )
        what = differ or "other prompts"
        raise with_hint(
            ValueError(f"{folder}: holds rows measured otherwise ({what})"),
            "measure as before, or choose another --out",
        )


def served_path(folder: Path) -> str:
    """What the servers of a folder's rows serve, as it was given to them."""
    return records.read(RunConditions, folder / CONDITIONS).target


def add_watched(folder: Path, conditions: RunConditions, rows: Sequence[Observation]) -> list[Observation]:
    """Add rows of traffic that was watched to a folder of such, in the place of those at the same lookahead; all of them."""
    _check_conditions(folder, conditions)
    fresh = {row.lookahead for row in rows}
    every = [row for row in measured_rows(folder) if row.lookahead not in fresh] + list(rows)
    records.write_lines(folder / OBSERVATIONS, every)
    return every
