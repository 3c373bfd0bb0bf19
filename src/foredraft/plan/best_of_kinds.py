"""The best draft of each kind, why each lost to the winner, and which of its dials end where the search did.

Refuses to know: how a candidate is scored.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from foredraft import kinds
from foredraft.machines import device_time
from foredraft.plan.candidate import Candidate
from foredraft.plan.problem import Problem
from foredraft.plan.search import Scored
from foredraft.plan.ties import SAME_GAIN, identity
from foredraft.records import DraftChoice

DIALS = ("params", "draft_tokens")


def best_of_kinds(ranked: Sequence[Scored]) -> list[Scored]:
    """The best of each kind of draft, those to train apart from those that there are, but the first's; the best first."""
    kinds_of, bests = {identity(ranked[0])}, []
    for scored in ranked[1:]:
        if scored.candidate and identity(scored) not in kinds_of:
            kinds_of.add(identity(scored))
            bests.append(scored)
    return sorted(bests, key=lambda each: -each.merit)


def label(scored: Scored) -> str:
    """The kind of a draft, for people; "" of no speculation."""
    return label_of(scored.candidate.choice) if scored.candidate else ""


def label_of(choice: DraftChoice) -> str:
    """The kind of a draft as people call it: heads of several layers apart from those of one, and drafts behind a look-up from others."""
    if choice.lookup_min_match:
        return f"{label_of(msgspec.structs.replace(choice, lookup_min_match=None))} + {kinds.NGRAM.label}"
    if choice.kind == "head":
        return kinds.of_name(choice.method or kinds.USUAL_HEAD.name).label_at(choice.num_layers)
    return (kinds.NGRAM if choice.kind == kinds.NGRAM.role else kinds.LM).label


def edges(weighed: Sequence[Candidate], choice: DraftChoice) -> dict[str, str]:
    """Of the size and the training tokens of a draft to be trained, those that are the most or the least of all that were searched of its
    kind; heads have no sizes to search.
    """
    if not choice.training_flops:
        return {}
    peers = [candidate.choice for candidate in weighed if label_of(candidate.choice) == label_of(choice)]
    ends: dict[str, str] = {}
    for dial in DIALS if choice.kind == kinds.LM.role else DIALS[1:]:
        values = sorted({value for peer in peers if peer.training_flops and (value := getattr(peer, dial)) is not None})
        if len(values) > 1 and getattr(choice, dial) in (values[0], values[-1]):
            ends[dial] = "most" if getattr(choice, dial) == values[-1] else "least"
    return ends


def reason(problem: Problem, best: Scored, lost: Scored) -> str:
    """That it is best left off, misses a level, or is better by too little; else the largest of: fewer tokens a step, a longer step, fewer
    sequences in memory, dearer training.
    """
    if lost.missed > best.missed:
        return "it misses the levels of service further"
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
        f"fewer tokens per step ({tau[0]:.2f}, not {tau[1]:.2f})": float(weights @ np.log(best.tau / lost.tau)),
        f"a longer step ({step_ms[0]:.1f}, not {step_ms[1]:.1f} ms)": float(
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
