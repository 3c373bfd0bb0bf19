"""A running server on prompts, load by load: every figure of `foredraft measure --endpoint`.

Promises: what is measured is handed on before the next load begins. Refuses to know: how a server is asked, how rows are made.
"""

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foredraft.data.prompts import Question, read_questions
from foredraft.data.sources import Skips
from foredraft.kinds import shape_named
from foredraft.records import Measurement
from foredraft.runs import name_of, trained_tokens
from foredraft.serving.endpoint import LoadSettings, rounds, started
from foredraft.serving.endpoint_http import Address
from foredraft.serving.endpoint_rows import base_of, rows_of

OnLoad = Callable[[list[Measurement], list[str]], object]  # takes all rows so far, and warnings about the last load


class ServerSubject(NamedTuple):
    """A server, what it is asked, and what it does not say of itself, by the field of a row."""

    address: Address
    questions: list[Question]
    facts: dict[str, Any]


def server_subject_of(
    address: Address,
    prompts: str | Path,
    settings: LoadSettings,
    skips: Skips,
    facts: Mapping[str, Any],
    num: int | None = None,
) -> ServerSubject:
    """The server at `address` and the file `prompts`, the first `num` of each category.

    `facts`: run, model, engine, method, machine, draft (its name or its folder), draft_tokens, draft_params, family and command, as
    far as they are known. Raises ValueError where no prompt can be asked.
    """
    questions = read_questions(prompts, skips, num)
    note = (
        f"{Path(prompts).name}: {len(questions)} prompts, {skips.count} lines skipped; "
        f"answers of at most {settings.max_tokens} tokens"
    )
    return ServerSubject(
        address, questions, {**facts, **_of_folder(facts), "note": note, "dataset": Path(prompts).stem}
    )


def measure_server(subject: ServerSubject, settings: LoadSettings, on_load: OnLoad) -> list[Measurement]:
    """Return the rows of every load in turn. Raises ValueError where the server is not fit for one."""
    return asyncio.run(_each_load(subject, settings, on_load))


def _of_folder(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the folder of a server's draft says of it, where it is one that is here; the server says nothing of that."""
    folder = facts.get("draft")
    if not folder or not (Path(folder) / "config.json").is_file():
        return {}
    tokens = facts.get("draft_tokens") or trained_tokens(folder)
    return {"draft": name_of(folder), "draft_layers": shape_named(str(folder)).num_layers, "draft_tokens": tokens}


async def _each_load(subject: ServerSubject, settings: LoadSettings, on_load: OnLoad) -> list[Measurement]:
    address, questions, facts = subject
    measurements: list[Measurement] = []
    async with started(address, questions, settings, facts.get("model"), facts.get("engine") or "auto") as running:
        if later := len(running.questions) - len(questions):
            facts = {
                **facts,
                "note": f"{facts['note']}; {later} more are later turns of chats, behind the server's own answers",
            }
        async for load in rounds(running, settings):
            rows, warnings = rows_of(load, base_of(running.server, load, facts), settings.width)
            measurements += rows
            on_load(measurements, [f"{load.load}: {warning}" for warning in warnings])
    return measurements
