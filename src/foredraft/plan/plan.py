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
from foredraft.plan import sdsl
from foredraft.plan.backing import backings
from foredraft.plan.candidate import TRAINING_MFU
from foredraft.plan.candidates import REFERENCE_TOKENS, Basis, buildable, candidates, independent, named
from foredraft.plan.matching import Matched, completed, match, without_repeats
from foredraft.plan.next_runs import next_runs
from foredraft.plan.search import (
    Mode,
    PlanSettings,
    Problem,
    Scored,
    SimulatedOutcome,
    rank,
    score,
    simulate,
    static_tree,
)
from foredraft.plan.served import calibrated, timed
from foredraft.records import (
    BreakEven,
    DraftChoice,
    Estimate,
    Machine,
    Observation,
    Plan,
    Provenance,
    RunnerUp,
    ScheduleStep,
    Workload,
    with_hint,
)
from foredraft.shapes import LEAST_BODY, Shape

RUNNERS_UP = 5
SOURCE = "foredraft plan: position law × loss laws × cost law over published and own observations"


def plan(
    target: Shape,
    machine: Machine,
    workload: Workload,
    options: PlanSettings | None = None,
    observations: Sequence[Observation] = (),
    draft: Shape | None = None,
) -> Plan:
    """Which draft to train for `target` on `options.devices` × `machine`, how to run it, and what it brings.

    `draft` narrows the choice to one model that exists. Raises ValueError, one line, where the target does not fit
    the machine or does not divide over the devices, a size is impossible or the output would outrun the context.
    """
    options = options or PlanSettings()
    options.layout.check(target)
    if (
        target.max_position_embeddings
        and workload.input_len + workload.output_len + options.max_lookahead > target.max_position_embeddings
    ):
        message = (
            f"input_len + output_len + max_lookahead ({workload.input_len + workload.output_len + options.max_lookahead:,.0f}) exceeds "
            f"the context of {target.name} ({target.max_position_embeddings:,})"
        )
        raise with_hint(ValueError(message), "lower --input-len, --output-len or --max-lookahead")
    whole = completed(target, observations, draft)
    problem, matched = _problem(target, machine, workload, options, whole.rows)
    observations, notes = whole.rows, (*whole.notes(), *matched.notes())
    basis = Basis(target, machine, without_repeats(observations), workload.temperature, workload.task)
    if draft:
        (ranked, not_considered), size, nearest = rank(problem, [named(basis, draft)]), None, ()
        if not_considered:
            raise ValueError(next(iter(not_considered.values())))
    else:
        weighed, missing = candidates(basis)
        ranked, dropped = rank(problem, [candidate for candidate in weighed if candidate.choice.kind in options.kinds])
        ranked, size, nearest = _with_best_size(problem, basis, ranked)
        not_considered = missing | dropped
    if reasons := matched.reasons(problem.calibrated is not None):
        not_considered = dict(not_considered) | {"own rows, for the cost law": reasons}
    if options.always:
        ranked = _drafted(ranked)
    best = ranked[0]
    outcome = simulate(problem, best)
    schedule = _schedule(problem, best, outcome)
    choice = best.candidate.choice if best.candidate else None
    return Plan(
        objective=options.objective, engine=options.engine, target=target.name, machine=machine.name,
        devices=options.devices, data_parallel=options.data_parallel, expert_parallel=options.expert_parallel,
        dtype=options.dtype or target.weight_format, kv_dtype=options.kv_dtype, workload=workload, draft=choice, schedule=schedule,
        speedup=_headline(problem, best, outcome), break_even=_break_even(problem, best, outcome),
        continuous_params=size, buildable=nearest, theory_params=_theory(target),
        runners_up=_runners_up(problem, ranked), next_runs=next_runs(problem, best), not_considered=not_considered,
        extrapolates=_extrapolates(problem, best), assumptions=(*target.notes, *notes, *_assumptions(problem, best)),
        settings=_settings(problem, best, schedule),
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
        raise ValueError("no draft is left to plan: allow more kinds or more max_gpu_hours")
    return drafted


def _estimate(draws: np.ndarray, unit: str, best: Scored, level: float = 0.9) -> Estimate:
    low, value, high = np.quantile(draws, ((1 - level) / 2, 0.5, (1 + level) / 2)).tolist()
    return Estimate(
        value=value, low=low, high=high, unit=unit, source=SOURCE, level=level,
        extrapolates=best.candidate.extrapolates if best.candidate else (),
    )  # fmt: skip


UNITS = {
    "throughput": "× output tokens/s of no speculation",
    "latency": "× as fast per output token (TPOT) as no speculation",
    "tokens_per_flop": "× tokens per FLOP of no speculation",
}


def _headline(problem: Problem, scored: Scored, outcome: SimulatedOutcome) -> Estimate:
    """The mean gain over the workload's concurrencies, in the objective's own terms and without the draft's training."""
    objective = problem.settings.objective
    gain = outcome.gain if objective == "tokens_per_flop" else problem.weights @ np.log(outcome.speedup)
    return _estimate(np.exp(gain), UNITS[objective], scored)


def _schedule(problem: Problem, best: Scored, outcome: SimulatedOutcome) -> tuple[ScheduleStep, ...]:
    unit = UNITS["latency" if problem.settings.objective == "latency" else "throughput"]
    return tuple(
        ScheduleStep(
            concurrency=int(c), running=float(best.running[i]), lookahead=mode.depth, topk=mode.width,
            tree_nodes=mode.nodes, tree=static_tree(best.candidate, mode, problem.settings) if best.candidate else (),
            tokens_per_step=_estimate(outcome.tau[i], "tokens/step", best),
            speedup=_estimate(outcome.speedup[i], unit, best),
            output_tok_s=_estimate(outcome.output_tok_s[i], "tokens/s", best),
            tpot_s=_estimate(outcome.tpot_s[i], "s", best), ttft_s=_estimate(outcome.ttft_s[i], "s", best),
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
    scored = score(again, best.candidate, again.server(None, speculate=False))
    return _schedule(again, scored, simulate(again, scored))


def _break_even(problem: Problem, best: Scored, outcome: SimulatedOutcome, level: float = 0.9) -> BreakEven | None:
    """None without training, and where the middle draw never pays it back."""
    hours = best.candidate.choice.training_gpu_hours if best.candidate else 0.0
    saved_s = problem.settings.devices * (problem.weights @ (1 / outcome.plain_tok_s - 1 / outcome.output_tok_s))
    if hours <= 0 or np.median(saved_s) <= 0:
        return None
    least, middle, most = np.quantile(saved_s, ((1 - level) / 2, 0.5, (1 + level) / 2)).tolist()
    spent_s = hours * 3600
    return BreakEven(
        tokens=spent_s / middle, low=spent_s / most, high=spent_s / least if least > 0 else None, level=level
    )


def _with_best_size(
    problem: Problem, basis: Basis, ranked: list[Scored]
) -> tuple[list[Scored], Estimate | None, tuple[DraftChoice, ...]]:
    """The ranking joined by models built at N*, N* itself, and the nearest shapes: built for it, and trained already."""
    size = _continuous(problem, ranked)
    if size is None:
        return ranked, size, ()
    log_size = np.log(size.value)
    shares = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # the rest is embedding
    bodies = [max(size.value * share, LEAST_BODY) for share in shares]
    body = min(bodies, key=lambda body: abs(np.log(buildable(problem.target, body).params) - log_size))
    built = independent(basis, (body,))
    near = [s.candidate.choice for s in ranked if s.candidate and _is_model(s.candidate.choice, trained_here=False)]
    nearest = sorted(near, key=lambda choice: abs(np.log(choice.params) - log_size))[:2]
    scored = rank(problem, built)[0]
    studied = [s.candidate for s in scored if s.candidate and s.candidate.study_range]
    return (
        sorted([*ranked, *scored], key=lambda s: -s.gain),
        size,
        (*(c.choice for c in (studied or built)[:1]), *nearest),
    )


def _continuous(problem: Problem, ranked: Sequence[Scored]) -> Estimate | None:
    """N*, the best size of an independent model as a real number: the peak of the gain over log size, under each draw."""
    by_size: dict[float, Scored] = {}
    for scored in ranked:  # best first, so the first of a size is its best token budget
        if scored.candidate and _is_model(scored.candidate.choice, trained_here=True):
            by_size.setdefault(scored.candidate.choice.params, scored)
    if len(by_size) < 4:
        return None
    sizes = np.log(sorted(by_size))
    draws = np.stack([simulate(problem, by_size[size]).gain for size in sorted(by_size)])
    peaks = [
        _peak(sizes, draws.mean(axis=1)),
        *(_peak(sizes, column) for column in draws.T[:: max(1, len(draws.T) // 32)]),
    ]
    low, high = np.quantile(peaks[1:], (0.05, 0.95)).tolist()
    edge = () if sizes[0] + 0.01 < peaks[0] < sizes[-1] - 0.01 else ("draft_params",)
    return Estimate(
        value=float(np.exp(peaks[0])), low=float(np.exp(min(low, peaks[0]))), high=float(np.exp(max(high, peaks[0]))),
        unit="parameters, embedding included", source=SOURCE, extrapolates=edge,
    )  # fmt: skip


def _is_model(choice: DraftChoice, *, trained_here: bool) -> bool:
    """Whether it is an independent model, to be trained or one that is."""
    return choice.kind == "lm" and (choice.training_flops > 0) == trained_here


def _peak(sizes: np.ndarray, gains: np.ndarray) -> float:
    """Where a parabola through the best point and its neighbours peaks; the end itself where the best is at an end."""
    i = int(np.argmax(gains))
    if i in (0, len(sizes) - 1):
        return float(sizes[i])
    a, b, _ = np.polyfit(sizes[i - 1 : i + 2] - sizes[i], gains[i - 1 : i + 2], 2)
    return float(sizes[i] - b / (2 * a))


def _theory(target: Shape) -> float | None:
    """SDSL's N* in tokens per FLOP, from counts alone; None where it finds no draft worth its cost."""
    try:
        return sdsl.optimal_draft(
            float(target.active_params), target_tokens=target.training_tokens or 1e11
        ).draft_params
    except ValueError:
        return None


def _runners_up(problem: Problem, ranked: Sequence[Scored]) -> tuple[RunnerUp, ...]:
    """The best of each other draft (name and size), and why each lost to the winner."""
    best, drafts, out = ranked[0], {_identity(ranked[0])}, []
    for scored in ranked[1:]:
        if scored.candidate is not None and _identity(scored) not in drafts and len(out) < RUNNERS_UP:
            drafts.add(_identity(scored))
            out.append(
                RunnerUp(
                    draft=scored.candidate.choice,
                    speedup=_headline(problem, scored, simulate(problem, scored)),
                    reason=_reason(problem, best, scored),
                )
            )
    return tuple(out)


def _identity(scored: Scored) -> tuple:
    return (scored.candidate.choice.name, scored.candidate.choice.num_layers) if scored.candidate else ()


def _reason(problem: Problem, best: Scored, lost: Scored) -> str:
    """That it is best left off; else the largest of: fewer tokens a step, a longer step, fewer sequences in memory, dearer training."""
    if not any(mode.depth for mode in lost.modes):
        return "no lookahead that pays: at these loads even one draft token costs more than it saves; try fewer clients or a smaller draft"
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
        spent, instead = (
            device_time(scored.candidate.choice.training_gpu_hours if scored.candidate else 0)
            for scored in (lost, best)
        )
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
    elif best.candidate and best.candidate.choice.kind == "head":
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
    if note := ENGINES[problem.settings.engine].note:
        notes.append(note)
    return tuple(notes)
