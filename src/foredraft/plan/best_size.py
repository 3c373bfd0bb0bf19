"""The best size of an independent model: N* as a real number under every draw, and the models that can be built near it.

Refuses to know: how candidates are scored.

Shapes: N sizes, S draws.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foredraft.laws.draws import ends
from foredraft.plan import sdsl
from foredraft.plan.candidates import Basis, buildable, independent
from foredraft.plan.draft_vocab import with_draft_vocabularies
from foredraft.plan.estimated import SOURCE
from foredraft.plan.problem import Problem
from foredraft.plan.search import Scored, rank
from foredraft.records import DraftChoice, Estimate
from foredraft.shapes import LEAST_BODY, Shape

Array = NDArray[np.float64]
BODY_SHARES = (0.1, 0.2, 0.35, 0.5, 0.7, 0.9)  # of N* that a body may take; the rest is embedding
STEPS = 4  # in each doubling of size: what is built for N* moves by whole steps, so that it is the same for every seed


def with_best_size(
    problem: Problem, basis: Basis, ranked: list[Scored]
) -> tuple[list[Scored], Estimate | None, tuple[DraftChoice, ...]]:
    """The ranking joined by models built at N*, N* itself, and the nearest shapes: built for it, and trained already."""
    size = _best_size(ranked)
    if size is None:
        return ranked, size, ()
    log_size = round(np.log2(size.value) * STEPS) / STEPS * np.log(2)
    bodies = [max(float(np.exp(log_size)) * share, LEAST_BODY) for share in BODY_SHARES]
    body = min(bodies, key=lambda body: abs(np.log(buildable(problem.target, body).params) - log_size))
    built = with_draft_vocabularies(problem, independent(basis, (body,)))
    near = [s.candidate.choice for s in ranked if s.candidate and _is_model(s.candidate.choice, trained_here=False)]
    nearest = sorted(near, key=lambda choice: abs(np.log(choice.params) - log_size))[:2]
    joined, _ = rank(problem, built, ranked)
    studied = [s.candidate for s in joined if s not in ranked and s.candidate and s.candidate.study_range]
    return joined, size, (*(c.choice for c in (studied or built)[:1]), *nearest)


def _best_size(ranked: Sequence[Scored]) -> Estimate | None:
    """N*: the peak of the gain over log size, of the mean and under each draw; None with fewer than 4 sizes."""
    by_size: dict[float, Scored] = {}
    for scored in sorted(ranked, key=lambda each: -each.gain):  # so that the first of a size is its best token budget
        if scored.candidate and _is_model(scored.candidate.choice, trained_here=True):
            by_size.setdefault(scored.candidate.choice.params, scored)
    if len(by_size) < 4:
        return None
    sizes = np.log(sorted(by_size))
    draws = np.stack([by_size[size].sifted for size in sorted(by_size)])
    (peak,) = _peaks(sizes, draws.mean(axis=1, keepdims=True))
    low, high = ends(_peaks(sizes, draws))
    edge = () if sizes[0] + 0.01 < peak < sizes[-1] - 0.01 else ("draft_params",)
    return Estimate(
        value=float(np.exp(peak)), low=float(np.exp(min(low, peak))), high=float(np.exp(max(high, peak))),
        unit="parameters, embedding included", source=SOURCE, extrapolates=edge,
    )  # fmt: skip


def _is_model(choice: DraftChoice, *, trained_here: bool) -> bool:
    """Whether it is an independent model, to be trained or one that is."""
    return choice.kind == "lm" and (choice.training_flops > 0) == trained_here


def _peaks(sizes: Array, gains: Array) -> Array:
    """Where the parabola through the best of `sizes` [N] and its neighbours peaks, of each column of `gains` [N, S]; the end itself where
    the best is at an end.
    """
    best = np.argmax(gains, axis=0)
    middle = np.clip(best, 1, len(sizes) - 2)
    x, y = (
        [np.take_along_axis(values, middle[None] + step, axis=0)[0] for step in (-1, 0, 1)]
        for values in (np.broadcast_to(sizes[:, None], gains.shape), gains)
    )
    rise, fall = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    bend = (fall - rise) / (x[2] - x[0])
    inside = best == middle
    peak = (x[0] + x[1]) / 2 - rise / (2 * np.where(inside, bend, -1.0))
    return np.where(inside, peak, sizes[best])


def theory(target: Shape) -> float | None:
    """SDSL's N* in tokens per FLOP, from counts alone; None where it finds no draft worth its cost."""
    try:
        return sdsl.optimal_draft(
            float(target.active_params), target_tokens=target.training_tokens or 1e11
        ).draft_params
    except ValueError:
        return None
