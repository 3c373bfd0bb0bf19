"""A look-up before a draft, weighed: how much of a mixture of the two is accepted.

In a share s of the steps a match stands, and the look-up is accepted as look-ups behind such matches are; in the rest the draft, chain
or tree, as it is alone. So τ = 1 + Σ L_i + (1 - s)·(τ_draft - 1), where L_i is the share of all steps in which i looked-up tokens
survive. L and s follow from prompt lookup alone under the same load (its survival N, with matches of any length): L_i = r_i·N_i and
s = L_1 / a, where r is how much of N matches of MIN_MATCH tokens or more bring, and a the share of those whose first token is accepted.
r and a were read off one target's answers to 13 categories of prompts (docs/log.md); how they scatter over categories is drawn. Own rows
of the mixture, which count looked-up steps, replace s and the sum of L by what they measured.

Promises: a draft and the same behind a look-up are held to the same draws; both stand in a plan, and where they gain alike the draft alone
is planned. Refuses to know: what a step costs; steps in which the draft need not run are not counted as cheaper.

Shapes: S draws, K positions.
"""

from collections.abc import Sequence
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
from foredraft.plan.candidate import AcceptanceDraws, Candidate, level_shift, moved
from foredraft.plan.candidates import Basis, lookup
from foredraft.plan.problem import Problem
from foredraft.plan.search import Scored, rank
from foredraft.plan.study import on_target
from foredraft.plan.ties import identity
from foredraft.records import Observation, Record, decode

Array = NDArray[np.float64]

MIN_MATCH = kinds.Lookup().min_match
MOST_SHARE = 0.95  # of steps that may be looked up


class LookupMatches(Record, frozen=True):
    """What matches of `min_match` tokens bring, by `source`. `of_all_matches`: looked-up tokens that survive to each position, over those after
    matches of any length, and the sd of its logarithm over categories of prompts; beyond, the last. `first_accepted`: logit of the share of
    matches whose first token is accepted, and its sd. `given_match`: acceptance of each looked-up token given all before it.
    """

    min_match: int
    of_all_matches: tuple[float, ...]
    of_all_matches_sd: float
    first_accepted: float
    first_accepted_sd: float
    given_match: tuple[float, ...]
    source: str


@cache
def lookup_matches() -> LookupMatches:
    """As shipped."""
    text = (files("foredraft") / "published" / "lookup_matches.json").read_text(encoding="utf-8")
    return decode(LookupMatches, text, name="lookup_matches.json")


class OwnShare(NamedTuple):
    """What own rows say: steps, those looked up, tokens accepted in those, and the positions that were looked up in each."""

    steps: int
    lookup_steps: int
    lookup_accepted: int
    lookahead: int


@dataclass(frozen=True)
class LookupShare:
    """What a look-up takes of a step: from `alone`, the acceptance of prompt lookup at every step, or as `own` rows counted it."""

    alone: AcceptanceDraws
    own: OwnShare | None = None

    def before(self, tau: Array, depths: Sequence[int], rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        """Tokens per step [M, S] of the mixture, of the draft's own in modes of `depths` [M]; the look-up is as long as the draft is deep."""
        looked_up, share = self.draws(tau.shape[1], rng, frozen)
        gained = np.concatenate((np.zeros((1, tau.shape[1])), np.cumsum(looked_up.T, axis=0)))
        steps = np.array(depths)
        return np.where(steps[:, None] > 0, 1 + gained[steps] + (1 - share) * (tau - 1), tau)

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> tuple[Array, Array]:
        """Survival of looked-up tokens per step of any kind [S, K], and the share of steps that are looked up [S]."""
        alone = np.cumprod(self.alone.draws(num, rng, frozen), axis=1)
        part, first = normals(num, rng), normals(num, rng)
        if "draft" in frozen:
            part, first = np.zeros(num), np.zeros(num)
        positions = alone.shape[1]
        if self.own:
            return self._as_counted(self.own, positions, part, first)
        matches = lookup_matches()
        brought = np.exp(matches.of_all_matches_sd * part)[:, None] * _as_far_as(matches.of_all_matches, positions)
        looked_up = np.minimum.accumulate(np.minimum(brought, 1.0) * alone, axis=1)
        accepted = expit(matches.first_accepted + matches.first_accepted_sd * first)
        share = looked_up[:, 0] / accepted
        return looked_up, np.minimum(share, np.maximum(MOST_SHARE, looked_up[:, 0]))

    def _as_counted(self, own: OwnShare, positions: int, part: Array, first: Array) -> tuple[Array, Array]:
        """The usual shape by position at the counted level; both counts with their chance (log of a count of n: sd 1/√n)."""
        spread = np.sqrt(1 / (own.lookup_steps + 0.5) + 1 / (own.steps - own.lookup_steps + 0.5))
        share = expit(logit((own.lookup_steps + 0.5) / (own.steps + 1)) + spread * first)
        accepted = own.lookup_accepted / max(own.lookup_steps, 1) * np.exp(part / np.sqrt(own.lookup_accepted + 0.5))
        usual = _as_far_as(lookup_matches().given_match, positions)
        counted = usual[: own.lookahead]
        given = moved(np.tile(usual, (len(part), 1)), level_shift(counted, accepted / np.cumprod(counted).sum()))
        return share[:, None] * np.cumprod(given, axis=1), share


def _as_far_as(by_position: tuple[float, ...], positions: int) -> Array:
    """So many positions; beyond the last it stays."""
    return np.array(by_position + by_position[-1:] * positions)[:positions]


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
    """The same draft, and before it a look-up of matches of MIN_MATCH tokens."""
    alone = lookup(basis)
    own = own_share(basis, candidate)
    source = (
        f"{own.lookup_steps} of {own.steps} own steps behind a look-up were looked up"
        if own
        else f"a look-up before the draft as prompt lookup alone says ({alone.notes[0]})"
    )
    choice = msgspec.structs.replace(
        candidate.choice, name=candidate.choice.name + kinds.BEHIND, lookup_min_match=MIN_MATCH
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
    return OwnShare(steps, looked_up, accepted, max(round(drafted / max(looked_up, 1)), 1))


def _emitted(row: Observation) -> float:
    """The share of accepted tokens that stand in answers: a step at an answer's end may accept beyond it."""
    if not (row.accepted and row.steps and row.tokens_per_step):
        return 1.0
    return min((row.tokens_per_step - 1) * row.steps / row.accepted, 1.0)


def _counts(row: Observation, kind: kinds.Kind) -> bool:
    return (
        kinds.of_method(row.method).name == kind.name + kinds.BESIDE
        and row.lookup_min_match == MIN_MATCH
        and None not in (row.steps, row.lookup_steps, row.lookup_accepted)
    )
