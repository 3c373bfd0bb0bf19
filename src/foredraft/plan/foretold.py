"""A study held to its own largest and longest trained drafts: their tokens per step, foretold from the others.

Promises: what is held out is chosen by its dials alone; a draft beyond what the planner would weigh (heads of a depth that no other
run has) is left out. Refuses to know: costs.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from foredraft.laws.held_out import LEVEL, without_largest
from foredraft.plan import from_study
from foredraft.plan.candidate import Candidate
from foredraft.plan.study import Study, Tried, pool, study
from foredraft.records import Estimate, Foretold, Machine, Observation
from foredraft.shapes import Shape

DIALS = {"lm": ("draft_params", "draft_tokens"), "head": ("draft_layers", "draft_tokens")}
DRAWS = 2000


def foretold(target: Shape, machine: Machine, own: Sequence[Observation], temperature: float) -> list[Foretold]:
    """Of language models the largest and those of the most tokens, of heads the deepest and those of the most tokens."""
    found = []
    for kind, dials in DIALS.items():
        rows = pool(target, own, temperature, kind)
        kept, held = without_largest(rows, dials)
        whole, rest = (study(target, tuple(some), temperature, kind) for some in (rows, kept))
        if not held or whole is None or rest is None:
            continue
        known = {one.name for one in rest.tried}
        for one, candidate in _weighed(rest, machine, [one for one in whole.tried if one.name not in known]):
            found.append(_foretold(one, candidate, kind))
    return found


def _weighed(rest: Study, machine: Machine, held: Sequence[Tried]) -> Iterator[tuple[Tried, Candidate]]:
    """Those that the rest's laws speak of, as the planner would weigh them."""
    for one in held:
        if one.method == "lm":
            made = from_study.as_tried(rest, machine, [(one.shape, one.tokens)]) if rest.size_law else []
        else:
            made = from_study.heads_at(rest, machine, one)
        yield from ((one, candidate) for candidate in made)


def _foretold(one: Tried, candidate: Candidate, kind: str) -> Foretold:
    lookahead = max(one.curve)
    accept = candidate.acceptance.draws(DRAWS, np.random.default_rng(0), frozenset())[:, :lookahead]
    taus = 1 + np.cumprod(accept, axis=1).sum(axis=1)
    low, middle, high = np.quantile(taus, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]).tolist()
    predicted = Estimate(value=middle, low=low, high=high, level=LEVEL, unit="tokens/step", source="own study")
    return Foretold(
        draft=one.name, kind=kind, lookahead=lookahead, predicted=predicted, measured=float(one.curve[lookahead])
    )
