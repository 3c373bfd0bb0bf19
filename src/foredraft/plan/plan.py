"""The plan as one document: winner, schedule, gains with intervals, losers with reasons, what to run next.

Refuses to know: how candidates are scored.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.machines import device_time
from foredraft.plan.at_hand import DraftAtHand, weighed
from foredraft.plan.backing import backings
from foredraft.plan.best_size import theory, with_best_size
from foredraft.plan.candidate import TRAINING_MFU
from foredraft.plan.candidates import Basis, candidates
from foredraft.plan.estimated import SOURCE, estimated
from foredraft.plan.heads import REFERENCE_TOKENS
from foredraft.plan.lengths import lengths
from foredraft.plan.matching import Matched, completed, match, without_repeats
from foredraft.plan.next_runs import next_runs
from foredraft.plan.outcome import planned_tree
from foredraft.plan.problem import Mode, PlanSettings, Problem
from foredraft.plan.search import Scored, ordered, rank, score
from foredraft.plan.served import calibrated, timed
from foredraft.plan.ties import SAME_GAIN, identity, rival
from foredraft.records import (
    BreakEven,
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

RUNNERS_UP = 5


def plan(
    target: Shape,
    machine: Machine,
    workload: Workload,
    options: PlanSettings | None = None,
    observations: Sequence[Observation] = (),
    draft: DraftAtHand | Shape | None = None,
) -> Plan:
    """Which draft to train for `target` on `options.devices` × `machine`, how to run it, and what it brings.

    `draft` narrows the choice to one model that exists. Raises ValueError, one line, where the target does not fit
    the machine or does not divide over the devices, a size is impossible or the output would outrun the context.
    """
    options = options or PlanSettings()
    options.layout.check(target)
    longest = workload.input_len + workload.output_len + options.max_lookahead
    if target.max_position_embeddings and longest > target.max_position_embeddings:
        message = (
            f"--input-len, --output-len and --max-lookahead together ({longest:,.0f}) exceed "
            f"the context of {target.name} ({target.max_position_embeddings:,})"
        )
        raise with_hint(ValueError(message), "lower --input-len, --output-len or --max-lookahead")
    whole = completed(target, observations, draft.shape if isinstance(draft, DraftAtHand) else draft)
    problem, matched = _problem(target, machine, workload, options, whole.rows)
    observations, notes = whole.rows, (*whole.notes(), *matched.notes())
    basis = Basis(target, machine, without_repeats(observations), workload.temperature, workload.task, options.engine)
    if draft:
        (ranked, not_considered), size, nearest = rank(problem, [weighed(basis, draft)]), None, ()
        if not_considered:
            raise ValueError(next(iter(not_considered.values())))
    else:
        everybody, missing = candidates(basis)
        ranked, dropped = rank(
            problem, [candidate for candidate in everybody if candidate.choice.kind in options.kinds]
        )
        ranked, size, nearest = with_best_size(problem, basis, ranked)
        not_considered = missing | dropped
    if reasons := matched.reasons(problem.calibrated is not None):
        not_considered = dict(not_considered) | {"own rows, for the cost law": reasons}
    if options.always:
        ranked = _drafted(ranked)
    best = ranked[0]
    schedule = _schedule(problem, best)
    choice = best.candidate.choice if best.candidate else None
    return Plan(
        objective=options.objective, engine=options.engine, target=target.name, machine=machine.name,
        devices=options.devices, data_parallel=options.data_parallel, expert_parallel=options.expert_parallel,
        dtype=options.dtype or target.weight_format, kv_dtype=options.kv_dtype, workload=workload, draft=choice, schedule=schedule,
        speedup=_headline(problem, best), rival=_rival(problem, ranked), break_even=_break_even(problem, best),
        continuous_params=size, buildable=nearest, theory_params=theory(target),
        runners_up=_runners_up(problem, ranked), next_runs=next_runs(problem, best), not_considered=not_considered,
        extrapolates=_extrapolates(problem, best), assumptions=(*target.notes, *notes, *_assumptions(problem, best)),
        settings=_settings(problem, best, schedule), lengths=lengths(problem, best),
        provenance=(Provenance(source=SOURCE), Provenance(source=machine.source, trust="paper", note="machine")),
    )  # fmt: skip


def _problem(
    target: Shape, machine: Machine, workload: Workload, options: PlanSettings, observations: Sequence[Observation]
) -> tuple[Problem, Matched]:
    """With the cost law calibrated where own rows allow it, and which rows those are."""
    problem = Problem(target, machine, workload, options)
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
    objective = problem.settings.objective
    gain = scored.gains if objective == "tokens_per_flop" else problem.weights @ np.log(scored.outcome.speedup)
    return estimated(np.exp(gain), UNITS[objective], scored)


def _schedule(problem: Problem, best: Scored) -> tuple[ScheduleStep, ...]:
    outcome, running = best.outcome, best.running
    unit = UNITS["latency" if problem.settings.objective == "latency" else "throughput"]
    return tuple(
        ScheduleStep(
            concurrency=int(c), running=float(running[i]), lookahead=mode.depth, topk=mode.width,
            tree_nodes=mode.nodes, tree=planned_tree(problem, best.candidate, mode),
            tokens_per_step=estimated(outcome.tau[i], "tokens/step", best),
            speedup=estimated(outcome.speedup[i], unit, best),
            output_tok_s=estimated(outcome.output_tok_s[i], "tokens/s", best),
            tpot_s=estimated(outcome.tpot_s[i], "s", best), ttft_s=estimated(outcome.ttft_s[i], "s", best),
        )
        for i, (c, mode) in enumerate(zip(problem.workload.concurrency, best.modes, strict=True))
    )  # fmt: skip


def _settings(problem: Problem, best: Scored, schedule: tuple[ScheduleStep, ...]) -> dict[str, dict[str, Any]]:
    """What was searched for each engine, in its own words; of those that take settings and speculate."""
    choice = best.candidate.choice if best.candidate else None
    served = kinds.of_choice(choice).engine_names if choice else ()
    by_engine = {
        name: engine.settings(choice, _as_run_by(name, problem, best, schedule), problem.settings.layout.tensor)
        for name, engine in ENGINES.items()
        if engine.plan_file and name in served
    }
    return {name: settings for name, settings in by_engine.items() if settings}


def _as_run_by(
    engine: str, problem: Problem, best: Scored, schedule: tuple[ScheduleStep, ...]
) -> tuple[ScheduleStep, ...]:
    """The winner's schedule as `engine` can run it, searched again where the plan is for another."""
    if problem.settings.engine == engine or best.candidate is None:
        return schedule
    again = Problem(
        problem.target, problem.machine, problem.workload, msgspec.structs.replace(problem.settings, engine=engine)
    )
    return _schedule(again, score(again, best.candidate))


def _break_even(problem: Problem, best: Scored, level: float = 0.9) -> BreakEven | None:
    """None without training, and where the middle draw never pays it back."""
    hours = best.candidate.choice.training_gpu_hours if best.candidate else 0.0
    outcome = best.outcome
    saved_s = problem.settings.devices * (problem.weights @ (1 / outcome.plain_tok_s - 1 / outcome.output_tok_s))
    if hours <= 0 or np.median(saved_s) <= 0:
        return None
    least, middle, most = np.quantile(saved_s, ((1 - level) / 2, 0.5, (1 + level) / 2)).tolist()
    spent_s = hours * 3600
    return BreakEven(
        tokens=spent_s / middle, low=spent_s / most, high=spent_s / least if least > 0 else None, level=level
    )


def _runners_up(problem: Problem, ranked: Sequence[Scored]) -> tuple[RunnerUp, ...]:
    """The best of each other draft (name and size), and why each lost to the winner."""
    best, drafts, out = ranked[0], {identity(ranked[0])}, []
    for scored in ranked[1:]:
        if scored.candidate is not None and identity(scored) not in drafts and len(out) < RUNNERS_UP:
            drafts.add(identity(scored))
            out.append(
                RunnerUp(
                    draft=scored.candidate.choice,
                    speedup=_headline(problem, scored),
                    reason=_reason(problem, best, scored),
                )
            )
    return tuple(out)


def _rival(problem: Problem, ranked: Sequence[Scored]) -> Rival | None:
    """The draft that the draws do not tell from the planned one, if any."""
    if (close := rival(ranked)) is None:
        return None
    scored, ahead, behind = close
    return Rival(
        draft=scored.candidate.choice if scored.candidate else None, speedup=_headline(problem, scored),
        lookaheads=tuple(mode.depth for mode in scored.modes), ahead=ahead, behind=behind, margin=SAME_GAIN,
    )  # fmt: skip


def _reason(problem: Problem, best: Scored, lost: Scored) -> str:
    """That it is best left off, or better by too little; else the largest of: fewer tokens a step, a longer step, fewer sequences in
    memory, dearer training.
    """
    if not any(mode.depth for mode in lost.modes):
        return "no lookahead that pays: at these loads even one draft token costs more than it saves; try fewer clients or a smaller draft"
    spent, instead = (
        device_time(scored.candidate.choice.training_gpu_hours if scored.candidate else 0) for scored in (lost, best)
    )
    if lost.gain > best.gain:
        dearer = f"dearer to train ({spent} against {instead})" if spent != instead else "larger"
        return f"ahead by less than two runs differ by ({SAME_GAIN:.1%}), and {dearer}"
    weights, room = problem.weights, (lost.running.max(), best.running.max())
    tau, step_ms = (weights @ lost.tau, weights @ best.tau), (1e3 * weights @ lost.step_s, 1e3 * weights @ best.step_s)
    parts: dict[str, float] = {
        f"fewer tokens per step ({tau[0]:.2f} against {tau[1]:.2f})": float(weights @ np.log(best.tau / lost.tau)),
        f"a longer step ({step_ms[0]:.1f} ms against {step_ms[1]:.1f} ms)": float(
            weights @ np.log(lost.step_s / best.step_s)
        ),
        f"room for {room[0]:.0f} sequences beside its weights and cache (against {room[1]:.0f})": float(
            weights @ np.log(best.running / lost.running)
        ),
    }
    if problem.settings.objective == "throughput":
        dearer = f"training that {problem.settings.horizon_tokens:.1g} served tokens do not pay back ({spent} against {instead})"
        parts[dearer] = lost.training_share - best.training_share
    return max(parts, key=lambda why: parts[why])


def _extrapolates(problem: Problem, best: Scored) -> tuple[str, ...]:
    """Inputs outside the draft's data and the cost law's: own rows' loads, or without them what published speeds were measured on."""
    outside = set(best.candidate.extrapolates if best.candidate else ())
    if calibration := problem.calibrated:
        least, most = calibration.loads
        loads = problem.workload.concurrency
        return tuple(sorted(outside | ({"concurrency"} if min(loads) < least or max(loads) > most else set())))
    crowded = max(problem.workload.concurrency) > max(row.most_clients for row in backings())
    return tuple(sorted(outside | set(problem.place.unbacked) | ({"concurrency"} if crowded else set())))


def _assumptions(problem: Problem, best: Scored) -> tuple[str, ...]:
    trained = best.candidate is not None and best.candidate.choice.training_flops > 0
    notes = (
        [
            f"training runs at {TRAINING_MFU:.0%} of the machine's peak and is paid back over {problem.settings.horizon_tokens:.0e} served tokens"
        ]
        if trained
        else []
    )
    if calibration := problem.calibrated:
        notes.append(f"cost law calibrated on {calibration.num_rows} own rows, mean error {calibration.error:.1%}")
    elif ENGINES[problem.settings.engine].own_rates(problem.machine):
        notes.append("costs from the machine's probe alone: measure a few speeds here and give them to --observations")
    if best.candidate and best.candidate.study_range:
        notes.append(best.candidate.study_range.note)
    elif trained and best.candidate and kinds.of_choice(best.candidate.choice) is kinds.USUAL_HEAD:
        notes.append(
            f"published {kinds.USUAL_HEAD.label} curves stand for heads trained on {REFERENCE_TOKENS:.0e} tokens"
        )
    if best.candidate and any(mode != Mode(mode.depth, 1, mode.depth) for mode in best.modes):
        tail = best.candidate.tail
        notes.append(
            f"the draft's further choices cover what the first misses as rank^-{tail.middle:.2g}, read off {tail.source}"
        )
    if problem.settings.objective == "tokens_per_flop":
        notes.append("tokens per FLOP sees neither memory nor batch: the schedule's gains are those of throughput")
    notes += best.candidate.notes if best.candidate else ()
    if note := ENGINES[problem.settings.engine].note:
        notes.append(note)
    return tuple(notes)
