"""What stands behind a plan: the measurements nearest to it, what leaves their range, and what is assumed.

Refuses to know: how candidates are scored.
"""

from collections.abc import Sequence

import msgspec

from foredraft import kinds, published
from foredraft.engines import ENGINES
from foredraft.laws.speedup import TAIL_ACCEPT
from foredraft.plan import evidence
from foredraft.plan.backing import Backing, backings
from foredraft.plan.best_of_kinds import label_of
from foredraft.plan.candidate import TRAINING_MFU
from foredraft.plan.candidates import Basis
from foredraft.plan.heads import REFERENCE_TOKENS
from foredraft.plan.levels import level_of
from foredraft.plan.problem import Mode, Problem
from foredraft.plan.search import Scored
from foredraft.plan.study import on_target
from foredraft.records import DraftChoice, Observation, Trust
from foredraft.shapes.formats import number_format

WORDS = {
    "machine": "no public speed on {machine}",
    "engine": "no public speed of {engine}",
    "dtype": "none in {dtype}",
    "devices": "none on so many devices, or in such replicas",
    "target_params": "none of a target of this size",
    "concurrency": "loads beyond those measured",
    "draft_params": "a draft of a size that none was measured at",
    "draft_tokens": "more or fewer training tokens than were measured",
}


def trust(problem: Problem, best: Scored, own: Sequence[Observation]) -> Trust:
    """What was measured nearest to the plan of `best`, and what it is taken beyond; `own`: the user's rows."""
    place = problem.place
    facts = {
        "machine": problem.machine.name,
        "engine": ENGINES[problem.settings.engine].label,
        "dtype": place.weight_format,
    }
    beyond = tuple(WORDS.get(name, name).format(**facts) for name in extrapolates(problem, best))
    return Trust(acceptance=_acceptance(problem, best, own), costs=_costs(problem), beyond=beyond)


def _acceptance(problem: Problem, best: Scored, own: Sequence[Observation]) -> str:
    """Own rows of the draft's kind on the target, else public ones; else those of the target's other drafts, and of other targets."""
    target, candidate = problem.target.name, best.candidate
    if candidate is None:
        return "no draft is run"
    if candidate.study_range:
        return candidate.study_range.note
    kind = label_of(msgspec.structs.replace(candidate.choice, lookup_min_match=None))  # rows are of the draft alone
    told = {
        whose: [row for row in rows if _tells(row)]
        for whose, rows in (("own", own), ("public", evidence.observations()))
    }
    here = {whose: [row for row in rows if on_target(row, problem.target)] for whose, rows in told.items()}
    for whose, rows in here.items():
        if alike := [row for row in rows if _is_like(row, candidate.choice)]:
            heats = ", ".join(f"{heat:g}" for heat in sorted({row.temperature or 0.0 for row in alike}))
            documents = len({published.document(row.provenance.source) for row in alike})
            source = f" from {documents} document{'s' * (documents > 1)}" if whose == "public" else ""
            return f"{len(alike)} {whose} rows of {kind} drafts of {target}{source}, at temperature {heats}"
    others = sorted(
        {
            kinds.of_method(row.method).label
            for row in here["public"]
            if kinds.role_of(row.method) == candidate.choice.kind
        }
    )
    elsewhere = [row for row in told["public"] if _is_like(row, candidate.choice)]
    near = [f"{', '.join(others)} of {target}"] if others else []
    near += (
        [f"{len(elsewhere)} public rows of {len({row.target for row in elsewhere})} other targets"] if elsewhere else []
    )
    return f"none of {kind} drafts of {target}; taken from {' and '.join(near) or 'drafts of other kinds'}"


def _tells(row: Observation) -> bool:
    """Whether a row says how much is accepted of a draft."""
    return row.method != "none" and bool(row.tokens_per_step or row.survival or row.accept_prob is not None)


def _is_like(row: Observation, choice: DraftChoice) -> bool:
    kind = kinds.of_method(row.method)
    return kind.role == choice.kind and (choice.method is None or kind.name == choice.method)


def _costs(problem: Problem) -> str:
    """Own rows, the machine's probe, or the public servers nearest to the planned one."""
    if calibration := problem.calibrated:
        least, most = calibration.loads
        loads = f"{least} to {most} clients" if least < most else f"{least} client{'s' * (least > 1)}"
        return f"{calibration.num_rows} own rows on this machine, at {loads}, met within {calibration.error:.1%} on average"
    engine = ENGINES[problem.settings.engine]
    if engine.own_rates(problem.machine):
        return "the machine's probe alone"
    place = problem.place
    experts, bits = bool(problem.target.num_experts), number_format(place.weight_format).bits

    def likeness(row: Backing) -> int:
        """Machine before class, format and engine."""
        return (
            8 * (row.machine == problem.machine.name)
            + 4 * (row.experts == experts)
            + 2 * (row.bits == bits)
            + (row.engine == engine.name)
        )

    closest = max(map(likeness, backings()))
    near = [row for row in backings() if likeness(row) == closest]
    sizes = [size for row in near for size in (row.least_params, row.most_params)]
    least, most = (f"{size / 1e9:.2g}" for size in (min(sizes), max(sizes)))
    names = ", ".join(sorted({ENGINES[row.engine].label for row in near}))
    machines = sorted({row.machine for row in near})
    where = ", ".join(machines[:3]) + (", …" if len(machines) > 3 else "")
    formats = "/".join(f"{bits:g}" for bits in sorted({row.bits for row in near}))
    kind = "/".join(sorted({"mixtures" if row.experts else "dense targets" for row in near}))
    devices, clients = max(row.devices for row in near), max(row.most_clients for row in near)
    return (
        f"public speeds of {names} on {where}: {kind} of {least if least == most else f'{least} to {most}'} B in {formats} bits, "
        f"at up to {clients:.0f} clients" + (f", on up to {devices} devices" if devices > 1 else "")
    )


def extrapolates(problem: Problem, best: Scored) -> tuple[str, ...]:
    """Inputs outside the draft's data and the cost law's: own rows' loads, or without them what published speeds were measured on."""
    outside = set(best.candidate.extrapolates if best.candidate else ())
    if calibration := problem.calibrated:
        least, most = calibration.loads
        loads = problem.workload.concurrency
        return tuple(sorted(outside | ({"concurrency"} if min(loads) < least or max(loads) > most else set())))
    crowded = max(problem.workload.concurrency) > max(row.most_clients for row in backings())
    return tuple(sorted(outside | set(problem.place.unbacked) | ({"concurrency"} if crowded else set())))


def assumptions(problem: Problem, best: Scored, basis: Basis) -> tuple[str, ...]:
    """What a plan takes for given, a clause each."""
    settings, notes = problem.settings, []
    choice = best.candidate.choice if best.candidate else None
    if choice and choice.training_flops:
        notes.append(
            f"training runs at {TRAINING_MFU:.0%} of the machine's peak and is paid back over {settings.horizon_tokens:.0e} served tokens"
        )
        if problem.workload.weights is None and len(problem.workload.concurrency) > 1:
            notes.append(
                "the server spends as much time at each of these loads; --load 1:0.2,8:0.5,64:0.3 says otherwise"
            )
    if calibration := problem.calibrated:
        notes.append(f"cost law calibrated on {calibration.num_rows} own rows, mean error {calibration.error:.1%}")
    elif ENGINES[settings.engine].own_rates(problem.machine):
        notes.append("costs from the machine's probe alone: measure a few speeds here and give them to --observations")
    if best.candidate and best.candidate.study_range:
        notes.append(best.candidate.study_range.note)
    elif choice and choice.training_flops and kinds.of_choice(choice) is kinds.USUAL_HEAD:
        notes.append(
            f"published {kinds.USUAL_HEAD.label} curves stand for heads trained on {REFERENCE_TOKENS:.0e} tokens"
        )
    if best.candidate and any(mode != Mode(mode.depth, 1, mode.depth) for mode in best.modes):
        tail = best.candidate.tail
        notes.append(
            f"the draft's further choices cover what the first misses as rank^-{tail.middle:.2g} at α = {TAIL_ACCEPT}, by less at a lower one, "
            f"read off {tail.source}"
        )
    if kinds.NGRAM.role in settings.kinds:
        notes.append(level_of(basis, kinds.NGRAM).source)
    if settings.objective == "tokens_per_flop":
        notes.append("tokens per FLOP sees neither memory nor batch: the schedule's gains are those of throughput")
    notes += best.candidate.notes if best.candidate else ()
    if note := ENGINES[settings.engine].note:
        notes.append(note)
    return tuple(dict.fromkeys(notes))
