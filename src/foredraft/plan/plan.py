"""The plan as one document: what to do, winner, schedule, gains with intervals, losers with reasons, what to run next.

Refuses to know: how candidates are scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.plan.actions import action, not_run
from foredraft.plan.at_hand import DraftAtHand, measured_of, weighed
from foredraft.plan.beside_lookup import with_lookup
from foredraft.plan.best_of_kinds import best_of_kinds, edges, label, reason
from foredraft.plan.best_size import theory, with_best_size
from foredraft.plan.candidate import Candidate
from foredraft.plan.candidates import Basis
from foredraft.plan.cost_sheet import break_even, cost_sheet, with_answers
from foredraft.plan.draft_vocab import with_draft_vocabularies
from foredraft.plan.estimated import SOURCE, estimated
from foredraft.plan.lengths import lengths
from foredraft.plan.matching import Matched, completed, match, without_repeats
from foredraft.plan.next_runs import next_runs
from foredraft.plan.outcome import planned_tree
from foredraft.plan.problem import PlanSettings, Problem
from foredraft.plan.search import Scored, finer, finer_tau, ordered, rank, score
from foredraft.plan.served import calibrated, timed
from foredraft.plan.service_levels import first_token, service_levels
from foredraft.plan.session import Manner, Session
from foredraft.plan.ties import SAME_GAIN, rival
from foredraft.plan.trust import assumptions, extrapolates, trust
from foredraft.records import (
    Estimate,
    Machine,
    Observation,
    Plan,
    Provenance,
    Rival,
    RunnerUp,
    ScheduleStep,
    Workload,
    with_hint,
)
from foredraft.shapes import Shape

Array = NDArray[np.float64]


def plan(
    target: Shape,
    machine: Machine,
    workload: Workload,
    options: PlanSettings | None = None,
    observations: Sequence[Observation] = (),
    draft: DraftAtHand | Shape | None = None,
    beside: Sequence[DraftAtHand] = (),
    manner: Manner | None = None,
) -> Plan:
    """Which draft to train for `target` on `options.devices` × `machine`, how to run it, and what it brings.

    `draft` narrows the choice to one model that exists; those `beside` are weighed with all others; `manner`: one of a session of
    plans, or a sketch. Raises ValueError, one line, where the target does not fit the machine or does not divide over the devices, a size is
    impossible or the output would outrun the context.
    """
    options, manner = options or PlanSettings(), manner or Manner()
    options.layout.check(target)
    _check_context(target, workload, options)
    named = [each for each in (draft, *beside) if isinstance(each, DraftAtHand)]
    whole = completed(
        target,
        (*observations, *(row for each in named for row in measured_of(each, target))),
        draft.shape if isinstance(draft, DraftAtHand) else draft,
        [each.shape for each in beside if each.shape],
    )
    problem, matched = _problem(target, machine, workload, options, whole.rows, manner.heed)
    observations, notes, unrun = whole.rows[: len(observations)], (*whole.notes(), *matched.notes()), not_run(target)
    basis = Basis(
        target,
        problem.train_machine,
        without_repeats(observations),
        workload.temperature,
        workload.task,
        options.engine,
        (workload.input_len, workload.output_len),
    )
    if draft:
        everybody, size, nearest = [weighed(basis, draft)], None, ()
        ranked, not_considered = rank(problem, everybody)
        if not_considered:
            raise ValueError(next(iter(not_considered.values())))
    else:
        session = manner.session or Session()
        if manner.sketch and not session.knows(basis):
            basis = replace(basis, coarse=True)
        everybody, missing = session.candidates(basis)
        everybody = [candidate for candidate in everybody if candidate.choice.kind in options.kinds]
        sized = (
            session.leading(problem, basis, everybody) if manner.sketch else with_draft_vocabularies(problem, everybody)
        )
        everybody = with_answers(problem, sized)
        everybody += [weighed(basis, each) for each in beside]
        ranked, dropped = rank(problem, everybody)
        size, nearest = None, ()
        if not manner.sketch:
            session.learn(basis, everybody, ranked)
            ranked, size, nearest = with_best_size(problem, basis, ranked)
        ranked, behind = with_lookup(problem, basis, ranked)
        everybody = [*everybody, *behind]
        not_considered = missing | dropped
    if reasons := matched.reasons(problem.calibrated is not None):
        not_considered = {"own rows, for the cost law": reasons} | dict(
            not_considered
        )  # first: they are the user's own
    if options.always:
        ranked = _drafted(ranked)
    best = ranked[0]
    shown = finer(problem, best)
    schedule = _schedule(problem, shown)
    choice = best.candidate.choice if best.candidate else None
    planned = Plan(
        objective=options.objective, engine=options.engine, target=target.name, machine=machine.name,
        devices=options.devices, data_parallel=options.data_parallel, expert_parallel=options.expert_parallel,
        dtype=options.dtype or target.weight_format, kv_dtype=options.kv_dtype, workload=workload, draft=choice, schedule=schedule,
        speedup=_headline(problem, shown), rival=_rival(problem, ranked), break_even=break_even(problem, shown),
        costs=cost_sheet(problem, shown), service_levels=service_levels(problem, schedule), trust=trust(problem, best, basis.observations),
        edges=edges(everybody, choice) if choice else {}, continuous_params=size, buildable=nearest,
        theory_params=None if manner.sketch else theory(target),
        runners_up=_runners_up(problem, ranked, everybody), next_runs=() if manner.sketch else next_runs(problem, best),
        not_considered=not_considered,
        extrapolates=extrapolates(problem, best), assumptions=(*target.notes, *unrun, *notes, *assumptions(problem, best, basis)),
        settings=_settings(problem, best, schedule, manner.sketch), lengths=() if manner.sketch else lengths(problem, best),
        provenance=(Provenance(source=SOURCE), Provenance(source=machine.source, trust="paper", note="machine")),
    )  # fmt: skip
    folders = {each.folder for each in beside}
    at_hand = draft is not None or (choice is not None and choice.name.removesuffix(kinds.BEHIND) in folders)
    return msgspec.structs.replace(planned, action=action(planned, at_hand=at_hand, runs_here=not unrun))


def _check_context(target: Shape, workload: Workload, options: PlanSettings) -> None:
    """Raise ValueError where prompt, answer and draft are longer than the target's context."""
    longest = workload.input_len + workload.output_len + options.max_lookahead
    if target.max_position_embeddings and longest > target.max_position_embeddings:
        message = (
            f"--input-len, --output-len and --max-lookahead together ({longest:,.0f}) exceed the context of {target.name} "
            f"({target.max_position_embeddings:,})"
        )
        raise with_hint(ValueError(message), "lower --input-len, --output-len or --max-lookahead")


def _problem(
    target: Shape, machine: Machine, workload: Workload, options: PlanSettings, observations: Sequence[Observation],
    heed: Callable[[], None],
) -> tuple[Problem, Matched]:  # fmt: skip
    """With the cost law calibrated where own rows allow it, and which rows those are."""
    problem = Problem(target, machine, workload, options, heed=heed)
    matched = match(problem.place, observations, workload.temperature, (workload.input_len, workload.output_len))
    rows = timed(problem.place, matched.rows, matched.leave_out)
    return replace(problem, calibrated=calibrated(problem.place, rows)), matched


def _drafted(ranked: Sequence[Scored]) -> list[Scored]:
    """Without no speculation."""
    drafted = [scored for scored in ranked if scored.candidate]
    if not drafted:
        raise with_hint(ValueError("no draft is left to plan"), "allow more --kinds or more --max-gpu-hours")
    return ordered(drafted)


UNITS = {
    "throughput": "× output tokens/s of no speculation",
    "latency": "× as fast per output token (TPOT) as no speculation",
    "tokens_per_flop": "× tokens per FLOP of no speculation",
}


def _headline(problem: Problem, scored: Scored) -> Estimate:
    """The mean gain over the workload's concurrencies, in the objective's own terms and without the draft's training."""
    objective, drawn = problem.settings.objective, scored.outcome
    if objective == "tokens_per_flop":
        return estimated(np.exp(scored.gains), UNITS[objective], scored)
    gain, factor = (problem.weights @ logs for logs in (np.log(drawn.speedup), drawn.scatter - drawn.plain_scatter))
    return estimated(np.exp(gain), UNITS[objective], scored, factor=factor)


def _schedule(problem: Problem, best: Scored) -> tuple[ScheduleStep, ...]:
    outcome, running = best.outcome, best.running
    scatter, taus = outcome.scatter, finer_tau(problem, best)
    unit = UNITS["latency" if problem.settings.objective == "latency" else "throughput"]
    return tuple(
        ScheduleStep(
            concurrency=int(c), running=float(running[i]), lookahead=mode.depth, topk=mode.width,
            tree_nodes=mode.nodes, tree=planned_tree(problem, best.candidate, mode),
            tokens_per_step=estimated(taus[i], "tokens/step", best),
            speedup=estimated(outcome.speedup[i], unit, best, factor=scatter[i] - outcome.plain_scatter[i]),
            output_tok_s=estimated(outcome.output_tok_s[i], "tokens/s", best, factor=scatter[i]),
            tpot_s=estimated(outcome.tpot_s[i], "s", best, factor=-scatter[i]),
            ttft_s=first_token(outcome.ttft_s[i], best, factor=-scatter[i]),
            plain_output_tok_s=_middle(outcome.plain_tok_s[i]), plain_tpot_s=_middle(outcome.plain_tpot_s[i]),
        )
        for i, (c, mode) in enumerate(zip(problem.workload.concurrency, best.modes, strict=True))
    )  # fmt: skip


def _middle(draws: Array) -> float:
    """The geometric mean of draws [S]."""
    return float(np.exp(np.log(draws).mean()))


def _settings(
    problem: Problem, best: Scored, schedule: tuple[ScheduleStep, ...], alone: bool
) -> dict[str, dict[str, Any]]:
    """What was searched for each engine, or for the planned one `alone`, in its own words; of those that take settings and speculate."""
    choice = best.candidate.choice if best.candidate else None
    served = kinds.of_choice(choice).engine_names if choice else ()
    by_engine = {
        name: engine.settings(choice, _as_run_by(name, problem, best, schedule), problem.settings.layout.tensor)
        for name, engine in ENGINES.items()
        if engine.plan_file and name in served and (engine.looks_up or not choice or not choice.lookup_min_match)
        if not alone or name == problem.settings.engine
    }
    return {name: settings for name, settings in by_engine.items() if settings}


def _as_run_by(
    engine: str, problem: Problem, best: Scored, schedule: tuple[ScheduleStep, ...]
) -> tuple[ScheduleStep, ...]:
    """The winner's schedule as `engine` can run it, searched again where the plan is for another: its modes, beside the plan's own estimates,
    which no settings read.
    """
    if problem.settings.engine == engine or best.candidate is None:
        return schedule
    again = Problem(
        problem.target, problem.machine, problem.workload, msgspec.structs.replace(problem.settings, engine=engine)
    )
    scored = score(again, best.candidate)
    return tuple(
        msgspec.structs.replace(
            step, running=running, lookahead=mode.depth, topk=mode.width, tree_nodes=mode.nodes,
            tree=planned_tree(again, best.candidate, mode),
        )
        for step, running, mode in zip(schedule, scored.running.tolist(), scored.modes, strict=True)
    )  # fmt: skip


def _runners_up(problem: Problem, ranked: Sequence[Scored], everybody: Sequence[Candidate]) -> tuple[RunnerUp, ...]:
    """The best of each kind but the winner's, and why it lost."""
    return tuple(
        RunnerUp(
            draft=lost.candidate.choice, speedup=_headline(problem, lost), label=label(lost), reason=reason(problem, ranked[0], lost),
            edges=edges(everybody, lost.candidate.choice),
        )
        for lost in best_of_kinds(ranked) if lost.candidate
    )  # fmt: skip


def _rival(problem: Problem, ranked: Sequence[Scored]) -> Rival | None:
    """The draft that the draws do not tell from the planned one, if any."""
    if (close := rival(ranked)) is None:
        return None
    scored, ahead, behind = close
    return Rival(
        draft=scored.candidate.choice if scored.candidate else None, speedup=_headline(problem, scored),
        lookaheads=tuple(mode.depth for mode in scored.modes), ahead=ahead, behind=behind, margin=SAME_GAIN,
    )  # fmt: skip
