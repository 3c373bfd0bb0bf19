"""A look-up before a draft, weighed: how much of a mixture of the two is accepted, and how seldom the draft is needed.

In a share s of the steps a match stands, and A of the D tokens that are looked up there are accepted; in the rest the draft, chain or tree, is as
it is alone. So τ = (1 - s)·τ_draft + s·(1 + A). Beside plain decoding s and A follow from prompt lookup alone under the same load (its
survival N, at every step and with matches of any length): s in proportion to N_1, A to the mean of what it accepts where it does, N_1 to N_4 over
N_1. A draft passes over the tokens between matches in fewer steps: the odds of s rise as a power of τ_draft, and so, less, does A. D is as long as
the match, a line in A. All of that was counted on one target's answers (recipes/smollm2/lookup_matches.py); how it scatters over categories of
prompts is drawn. Own rows of the mixture, which count looked-up steps, replace s, A and D by what they measured.

Promises: a draft and the same behind a look-up are held to the same draws; both stand in a plan, and where they gain alike the draft alone
is planned. Refuses to know: what a step costs.

Shapes: M modes, S draws, K positions.
"""

from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.laws.draws import normals
from foredraft.plan.candidate import AcceptanceDraws, Candidate, LookedUp
from foredraft.plan.candidates import Basis, lookup
from foredraft.plan.problem import Problem
from foredraft.plan.search import Scored, rank
from foredraft.plan.study import on_target
from foredraft.plan.ties import identity
from foredraft.records import Observation, Record, decode

Array = NDArray[np.float64]

PLANNED = kinds.Lookup()
MOST_SHARE = 0.95  # of steps that may be looked up
SUMMED = 4  # positions of prompt lookup's survival that say how far it goes


class LookupMatches(Record, frozen=True):
    """What a look-up before a draft brings, matches of `min_match` tokens and `lookahead` tokens at most, by `source`. `share_of_first`: looked-up
    steps over those in which prompt lookup's first token is accepted; `accepted_of_alone`: tokens accepted in one over N_1 + … + N_4 of
    N_1; each with the sd of its logarithm over categories of prompts. `share_by_tau`, `accepted_by_tau`: powers of the draft's tokens per
    step by which the odds of the share, and the accepted tokens, rise. `drafted`: tokens looked up, a constant and what each accepted one adds.
    """

    min_match: int
    lookahead: int
    share_of_first: float
    share_of_first_sd: float
    accepted_of_alone: float
    accepted_of_alone_sd: float
    share_by_tau: float
    accepted_by_tau: float
    drafted: tuple[float, float]
    source: str


@cache
def lookup_matches() -> LookupMatches:
    """As shipped."""
    text = (files("foredraft") / "published" / "lookup_matches.json").read_text(encoding="utf-8")
    return decode(LookupMatches, text, name="lookup_matches.json")


class OwnShare(NamedTuple):
    """What own rows say: steps, those looked up, tokens drafted and accepted in those, and the draft's tokens per step in the others."""

    steps: int
    lookup_steps: int
    lookup_drafted: int
    lookup_accepted: int
    draft_tau: float

    @property
    def drafted(self) -> float:
        """Tokens looked up in a step that was."""
        return self.lookup_drafted / max(self.lookup_steps, 1)


@dataclass(frozen=True)
class LookupShare:
    """What a look-up takes of a step: from `alone`, the acceptance of prompt lookup at every step, or as `own` rows counted it."""

    alone: AcceptanceDraws
    own: OwnShare | None = None

    def draws(self, tau: Array, rng: np.random.Generator, frozen: frozenset[str]) -> LookedUp:
        """Of the steps of a draft whose own tokens per step are `tau` [M, S]."""
        num, matches = tau.shape[1], lookup_matches()
        alone = np.cumprod(self.alone.draws(num, rng, frozen), axis=1, dtype=np.float64)
        stands, goes_on = normals(num, rng), normals(num, rng)
        if "draft" in frozen:
            stands, goes_on = np.zeros(num), np.zeros(num)
        if self.own:
            (share, accepted), beside = _as_counted(self.own, stands, goes_on), tau / self.own.draft_tau
        else:
            (share, accepted), beside = _as_alone(alone, stands, goes_on), tau
        share = expit(logit(np.minimum(share, MOST_SHARE)) + matches.share_by_tau * np.log(beside))
        accepted = np.minimum(accepted * beside**matches.accepted_by_tau, matches.lookahead)
        constant, each = matches.drafted
        drafted = self.own.drafted if self.own else np.minimum(constant + each * accepted, matches.lookahead)
        return LookedUp(share, accepted, np.maximum(drafted, accepted))


def _as_alone(survival: Array, stands: Array, goes_on: Array) -> tuple[Array, Array]:
    """The share of looked-up steps and what is accepted in one, beside plain decoding, from prompt lookup's own `survival` [S, K]."""
    matches, first = lookup_matches(), survival[:, 0]
    share = matches.share_of_first * np.exp(matches.share_of_first_sd * stands) * first
    given_first = survival[:, :SUMMED].sum(axis=1) / np.maximum(first, np.finfo(float).tiny)
    return share, matches.accepted_of_alone * np.exp(matches.accepted_of_alone_sd * goes_on) * given_first


def _as_counted(own: OwnShare, stands: Array, goes_on: Array) -> tuple[Array, Array]:
    """The same as own rows counted it, both with their chance (log of a count of n: sd 1/√n)."""
    spread = np.sqrt(1 / (own.lookup_steps + 0.5) + 1 / (own.steps - own.lookup_steps + 0.5))
    share = expit(logit((own.lookup_steps + 0.5) / (own.steps + 1)) + spread * stands)
    return share, own.lookup_accepted / max(own.lookup_steps, 1) * np.exp(goes_on / np.sqrt(own.lookup_accepted + 0.5))


def with_lookup(problem: Problem, basis: Basis, ranked: list[Scored]) -> tuple[list[Scored], list[Candidate]]:
    """The ranked, and beside the best of each kind the same behind a look-up, where the engine has that and look-ups are to be weighed."""
    settings = problem.settings
    if not ENGINES[settings.engine].looks_up or kinds.NGRAM.role not in settings.kinds:
        return ranked, []
    bests: dict[object, Candidate] = {}
    for scored in ranked:
        if scored.candidate and scored.candidate.choice.kind != kinds.NGRAM.role:
            bests.setdefault(identity(scored), scored.candidate)
    behind = [behind_lookup(basis, candidate) for candidate in bests.values()]
    return (rank(problem, behind, ranked)[0], behind) if behind else (ranked, [])


def behind_lookup(basis: Basis, candidate: Candidate) -> Candidate:
    """The same draft, and before it a look-up as it is by default."""
    alone = lookup(basis)
    own = own_share(basis, candidate)
    source = (
        f"{own.lookup_steps} of {own.steps} own steps behind a look-up were looked up"
        if own
        else f"a look-up before the draft as prompt lookup alone says ({alone.notes[0]})"
    )
    choice = msgspec.structs.replace(
        candidate.choice, name=candidate.choice.name + kinds.BEHIND, lookup_min_match=PLANNED.min_match
    )
    return replace(
        candidate, choice=choice, lookup=LookupShare(alone.acceptance, own), notes=(*candidate.notes, source),
        extrapolates=tuple(sorted({*candidate.extrapolates, *alone.extrapolates})),
    )  # fmt: skip


def own_share(basis: Basis, candidate: Candidate) -> OwnShare | None:
    """What own rows of such a draft behind such a look-up counted on the target at the load's temperature; None without any."""
    kind = kinds.of_choice(candidate.choice)
    rows = [row for row in basis.observations if _counts(row, kind) and on_target(row, basis.target)]
    rows = [row for row in rows if (row.temperature or 0.0) == basis.temperature]
    if not rows:
        return None
    steps, looked_up, drafted = (
        sum(int(getattr(row, name) or 0) for row in rows) for name in ("steps", "lookup_steps", "lookup_drafted")
    )
    accepted = round(sum((row.lookup_accepted or 0) * _emitted(row) for row in rows))
    tokens = sum((row.tokens_per_step or 1.0) * (row.steps or 0) for row in rows)
    draft_tau = (tokens - looked_up - accepted) / max(steps - looked_up, 1)
    return OwnShare(steps, looked_up, drafted, accepted, max(draft_tau, 1.0))


def _emitted(row: Observation) -> float:
    """The share of accepted tokens that stand in answers: a step at an answer's end may accept beyond it."""
    if not (row.accepted and row.steps and row.tokens_per_step):
        return 1.0
    return min((row.tokens_per_step - 1) * row.steps / row.accepted, 1.0)


def _counts(row: Observation, kind: kinds.Kind) -> bool:
    return (
        kinds.of_method(row.method).name == kind.name + kinds.BESIDE
        and (row.lookup_min_match, row.lookup_lookahead) == PLANNED
        and None not in (row.steps, row.lookup_steps, row.lookup_drafted, row.lookup_accepted)
    )
