"""From a server's rows to what to do: the record that `foredraft calibrate` writes, its plan where the draft is known, the next command.

Promises: what was not measured is named. Refuses to know: how rows came about, how files look.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from foredraft import __version__, kinds
from foredraft.calibrate.law import ServedLaw, is_whole, served_law
from foredraft.calibrate.schedule import SOURCE, Scheduled, ranges_of, scheduled
from foredraft.engines import named_in
from foredraft.engines.engine import ServingEngine
from foredraft.kinds import Kind
from foredraft.records import (
    CalibratedLoad,
    DraftChoice,
    Estimate,
    Observation,
    Plan,
    Provenance,
    ScheduleStep,
    ServerCalibration,
    Workload,
)
from foredraft.shapes import Shape

DRAFT_WORD, METHOD_WORD = "DRAFT", "METHOD"  # what only the user knows
BEYOND = 0.5  # of the longest lookahead's last position: where so many steps still accept it, a longer one may pay
MOST_LOOKAHEAD = 8


@dataclass(frozen=True)
class KnownServer:
    """What is known of a server beside its rows: its address, the path or id that it serves, and what the user says: how the draft is called or
    where it lies, its method, machine and devices.
    """

    server: str
    path: str
    draft: str | None = None
    method: str | None = None
    machine: str | None = None
    devices: int = 1
    command: str | None = None


def conclude(
    rows: Sequence[Observation], known: KnownServer, weights: Mapping[int, float] | None = None
) -> ServerCalibration:
    """The schedule that rows ask for. Raises ValueError where none of them tells how fast the server is."""
    whole = [row for row in rows if is_whole(row)]
    law = served_law(whole)
    engine = named_in(whole[-1].engine)
    plan = scheduled(law, whole, weights, one_mode=engine.one_mode)
    drafted = [row for row in whole if row.lookahead]
    method = known.method or next((row.method for row in drafted if row.method != "unknown"), None)
    draft = known.draft or next((row.draft for row in drafted if row.draft), None)
    versions = whole[-1].provenance.versions
    return ServerCalibration(
        server=known.server, engine=engine.name, version=versions.get(engine.name), target=whole[-1].target, path=known.path,
        draft=draft, method=method,
        lookaheads=law.lookaheads, rows=len(whole), error=law.costs.error, loads=plan.loads, gain=plan.gain, best_fixed=plan.best_fixed,
        fixed_gain=plan.fixed_gain, survival=tuple(law.accepted.survival.tolist()) if law.accepted else (), off_above=plan.off_above,
        break_even=plan.break_even, usual_load=plan.usual_load, settings=settings_of(engine, plan, method, draft), missing=_missing(law),
        provenance=Provenance(
            source=SOURCE, command=known.command, created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions={"foredraft": __version__} | versions,
        ),
    )  # fmt: skip


def settings_of(engine: ServingEngine, plan: Scheduled, method: str | None, draft: str | None) -> dict[str, Any]:
    """The schedule in the engine's words; {} where no draft pays."""
    settings = engine.by_batch(ranges_of(plan.loads))
    return drafting(engine, settings, method, draft) if settings else {}


def drafting(
    engine: ServingEngine, settings: Mapping[str, Any], method: str | None, draft: str | None
) -> dict[str, Any]:
    """`settings` with the draft that they are of, as far as it is known."""
    kind = kind_of(method)
    return engine.drafting(
        settings,
        kind if kind and engine.name in kind.engine_names else None,
        method or METHOD_WORD,
        draft or DRAFT_WORD,
    )


def kind_of(method: str | None) -> Kind | None:
    """The kind that a method's name stands for; None of one that is not known."""
    try:
        return kinds.of_method(method) if method and method != "unknown" else None
    except ValueError:
        return None


def _missing(law: ServedLaw) -> tuple[str, ...]:
    """What was not measured."""
    missing, accepted = [], law.accepted
    drafted = [k for k in law.lookaheads if k]
    if 0 not in law.lookaheads:
        missing.append("no run without a draft: what it gains rests on usual shares of a step, not on this server")
    if not drafted:
        missing.append("no run with a draft: nothing can be said of one")
    elif len(drafted) == 1 and drafted[0] > 1:
        missing.append(f"one lookahead ({drafted[0]}): what a shorter one takes is drawn between it and none")
    if law.loads[0] == law.loads[1]:
        missing.append(f"one load ({law.loads[0]} at once): others rest on usual shares of a step")
    if (
        accepted is not None
        and len(accepted.survival) == law.longest < MOST_LOOKAHEAD
        and accepted.survival[-1] > BEYOND
    ):
        missing.append(
            f"{accepted.survival[-1]:.0%} of the steps still accept token {law.longest}: a longer lookahead may gain more"
        )
    return tuple(missing)


def next_lookahead(calibration: ServerCalibration) -> int | None:
    """The run to measure next, by its lookahead: none, then a short and a long one; None where all are there."""
    measured = set(calibration.lookaheads)
    if 0 not in measured:
        return 0
    if not measured - {0}:
        return 3
    longest = max(measured)
    if len(measured) == 2:
        return 1 if longest > 1 else 3
    if calibration.survival and calibration.survival[-1] > BEYOND and longest < MOST_LOOKAHEAD:
        return min(longest + 2, MOST_LOOKAHEAD)
    return None


def plan_of(
    calibration: ServerCalibration, rows: Sequence[Observation], known: KnownServer, target: Shape, draft: Shape
) -> Plan:
    """The schedule as a Plan that `foredraft deploy --plan` and the report read."""
    whole = [row for row in rows if is_whole(row)]
    lengths = {
        name: float(np.mean([value for row in whole if (value := getattr(row, name))] or [1.0]))
        for name in ("input_len", "output_len")
    }
    weights = [each.weight for each in calibration.loads]
    workload = Workload(
        input_len=lengths["input_len"], output_len=lengths["output_len"], concurrency=tuple(each.concurrency for each in calibration.loads),
        weights=tuple(weight or 0.0 for weight in weights) if all(weight is not None for weight in weights) else None,
        temperature=whole[-1].temperature or 0.0,
    )  # fmt: skip
    drafts = any(each.scheduled for each in calibration.loads)
    return Plan(
        objective="throughput", engine=calibration.engine, target=target.name, machine=known.machine or "as measured", devices=known.devices,
        dtype=whole[-1].dtype or target.weight_format, workload=workload, speedup=calibration.gain,
        draft=_choice(calibration.draft or draft.name, draft) if drafts else None,
        schedule=tuple(_step(each, calibration) for each in calibration.loads), settings={calibration.engine: dict(calibration.settings)},
        assumptions=calibration.missing, provenance=(calibration.provenance,),
    )  # fmt: skip


def _choice(name: str, shape: Shape) -> DraftChoice:
    """A draft that exists."""
    kind = kinds.of_shape(shape)
    return DraftChoice(
        kind=kind.role, name=name, method=kind.name if kind.role == "head" else None, params=float(shape.params),
        non_embedding_params=float(shape.non_embedding_params), num_layers=shape.num_layers, hidden_size=shape.hidden_size,
        draft_vocab=shape.draft_vocab_size, draft_tokens=shape.training_tokens,
    )  # fmt: skip


def _step(load: CalibratedLoad, calibration: ServerCalibration) -> ScheduleStep:
    k, speed = load.scheduled, load.predicted[load.scheduled]
    tau = calibration.tokens_per_step.get(k, 1.0)
    tpot = [load.concurrency / value for value in (speed.value, speed.high, speed.low)]
    return ScheduleStep(
        concurrency=load.concurrency, running=float(load.concurrency), lookahead=k, topk=1, tree_nodes=k,
        tokens_per_step=Estimate(value=tau, low=tau, high=tau, unit="tokens/step", source=SOURCE), speedup=load.gain, output_tok_s=speed,
        tpot_s=Estimate(value=tpot[0], low=tpot[1], high=tpot[2], unit="s", source=SOURCE),
    )  # fmt: skip
