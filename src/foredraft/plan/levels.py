"""How much of a draft is accepted on a target, by kind of draft, and what speaks for it.

Promises: one rule for every kind and every caller; own rows stand before published ones; what speaks is named. Refuses to know: costs,
training, which drafts are worth weighing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from foredraft import kinds
from foredraft.kinds import Kind
from foredraft.laws import acceptance
from foredraft.laws.acceptance import CurvePosterior
from foredraft.plan import evidence, from_study
from foredraft.plan.candidate import CurveAcceptance
from foredraft.plan.study import mean_curve, on_target
from foredraft.records import Observation
from foredraft.shapes import Shape

# sd of log τ between a published draft of the same target and the one to be trained, on another mix of prompts.
ELSEWHERE_NOISE = 0.05


class Asked(Protocol):
    """For what acceptance is asked: a target under a load, with own observations (may be none)."""

    @property
    def target(self) -> Shape: ...
    @property
    def observations(self) -> Sequence[Observation]: ...
    @property
    def temperature(self) -> float: ...
    @property
    def task(self) -> str | None: ...


@dataclass(frozen=True)
class Level:
    """Acceptance of a draft, in a few words what speaks for it, and which inputs left what was measured."""

    acceptance: CurveAcceptance
    source: str
    extrapolates: tuple[str, ...] = ()


def level_of(basis: Asked, kind: Kind, *, layers: int = 1, draft: str | None = None) -> Level:
    """Acceptance of a draft of `kind`: of the one named `draft`, or of one of so many `layers` as such drafts are on the target."""
    if kind.role == "lookup":
        return Level(CurveAcceptance(_lookup(basis)), "prompt lookup, as measured")
    is_alike = named(draft) if draft else _of_role(kind, layers)
    measured = curve(basis, is_alike)
    source = f"{kind.label} curves on {basis.target.name}" if measured else f"{kind.label} curves on other targets"
    return Level(CurveAcceptance(measured or any_draft(kind.prior)), source)


def curve(basis: Asked, is_alike: Callable[[Observation], bool]) -> CurvePosterior | None:
    """Acceptance by position of drafts alike on the target: from own runs, else from published ones with room for other prompts."""
    for rows, noise in ((basis.observations, 0.0), (evidence.observations(), ELSEWHERE_NOISE)):
        alike = [row for row in rows if row.method != "none" and on_target(row, basis.target) and is_alike(row)]
        if mean := mean_curve(alike):
            kind = kinds.of_method(alike[0].method).prior
            return acceptance.posterior(evidence.position_law(), mean, kind=kind, extra_noise=noise)
    return None


@cache
def any_draft(kind: kinds.Prior) -> CurvePosterior:
    """Acceptance by position where nothing is known of a draft but its kind: the prior."""
    return acceptance.posterior(evidence.position_law(), {}, kind=kind)


def named(draft: str | Shape) -> Callable[[Observation], bool]:
    """Whether a row was measured with the draft of this name, or (of a shape) of its public size."""
    if isinstance(draft, str):
        return lambda row: row.draft == draft
    return lambda row: row.draft is not None and evidence.names(row.draft, draft)


def _of_role(kind: Kind, layers: int) -> Callable[[Observation], bool]:
    """Whether a row is of a draft of the kind's role and depth."""
    return lambda row: kinds.role_of(row.method) == kind.role and (row.draft_layers or 1) == layers


def _lookup(basis: Asked) -> CurvePosterior:
    """Prompt lookup hangs on the prompts, so without own runs every published curve is a draw."""
    if measured := from_study.lookup(basis.target, basis.observations, basis.temperature):
        return measured
    law = evidence.position_law()
    curves = [
        lookup for key, lookup in acceptance.chain_curves(evidence.observations()).items() if key[1] == kinds.NGRAM.name
    ]
    parts = [
        acceptance.posterior(law, lookup, kind=kinds.NGRAM.prior, extra_noise=ELSEWHERE_NOISE) for lookup in curves
    ]
    return CurvePosterior(
        np.concatenate([part.weights for part in parts]) / len(parts),
        np.concatenate([part.accept_given_prefix for part in parts]),
    )
