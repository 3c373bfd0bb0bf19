"""The draft heads to weigh where no own study holds any: public ones to download, layers in the target's own checkpoint, and ones to train.

Promises: each kind that the engine serves is weighed where there is one for the target, or where it is published what such heads were
trained on; an id is one that was read (`published.heads`). Refuses to know: how much is accepted of a head (`levels`), step times.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Protocol

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.kinds import Kind
from foredraft.plan import dials, evidence, from_study
from foredraft.plan.candidate import Candidate, choice, head_training_flops
from foredraft.plan.levels import Level, LevelBasis, level_of
from foredraft.plan.study import on_target
from foredraft.published.heads import PublicHead, heads_for
from foredraft.records import DraftChoice, Machine, Observation
from foredraft.shapes import Shape

# Training tokens tried for a head, as far as the law in tokens has been measured.
HEAD_TOKENS = tuple(1e8 * 2.0**i for i in range(12))
# What the heads behind the published curves are taken to have been trained on: EAGLE-3's largest set.
REFERENCE_TOKENS = 8e8
OTHERS_NAMED = 3  # public heads of one kind that a note names beside the one weighed


class ServedBasis(LevelBasis, Protocol):
    """For what heads are asked: acceptance, and the machine and engine that serve them."""

    @property
    def machine(self) -> Machine: ...
    @property
    def engine(self) -> str: ...
    @property
    def coarse(self) -> bool: ...


def heads(basis: ServedBasis) -> tuple[list[Candidate], dict[str, str]]:
    """Every head worth weighing for the target, and those that are left out, with the reason."""
    engine, weighed = ENGINES[basis.engine], []
    missing: dict[str, str] = {}
    for kind in kinds.PLANNED.values():
        if kind.role != "head":
            continue
        if basis.engine in kind.engine_names:
            trained, lacking = to_train(basis, kind)
            weighed += [*public(basis, kind), *in_target(basis, kind), *trained]
            missing |= lacking
        else:
            missing[f"{kind.label} heads"] = f"{engine.label} serves none"
    return weighed, missing


def public(basis: ServedBasis, kind: Kind) -> list[Candidate]:
    """Heads of a kind that were made for the target: each that was measured, and of those that were not one of each depth, since nothing
    tells them apart.
    """
    made_for_it = [head for head in heads_for(basis.target) if head.of_kind is kind]
    unmeasured: dict[int, list[PublicHead]] = {}
    weighed = []
    for head in made_for_it:
        shape = head.shape(basis.target)
        if name := _measured_as(basis, head):
            level = level_of(basis, kind, layers=shape.num_layers, draft=name, context=shape.max_position_embeddings)
            weighed.append(_public(basis, head, shape, level))
        else:
            unmeasured.setdefault(shape.num_layers, []).append(head)
    for depth, (first, *others) in unmeasured.items():
        shape = first.shape(basis.target)
        level = level_of(basis, kind, layers=depth, context=shape.max_position_embeddings)
        weighed.append(_public(basis, first, shape, level, others))
    return weighed


def _public(
    basis: ServedBasis, head: PublicHead, shape: Shape, level: Level, others: Sequence[PublicHead] = ()
) -> Candidate:
    draft = choice(head.id, shape, basis.machine, None, 0.0, hub_id=head.id)
    notes = [f"{head.id} was made for {head.target}" + (f" ({head.note})" if head.note else "")]
    if others:
        more = ", …" if len(others) > OTHERS_NAMED else ""
        notes.append(f"no row tells it from {', '.join(other.id for other in others[:OTHERS_NAMED])}{more}")
    return at(level, draft, shape, *notes)


def _measured_as(basis: ServedBasis, head: PublicHead) -> str | None:
    """What rows of this head on the target call it; None where none gives τ."""
    names = dict.fromkeys((head.id, head.measured_as or head.id))
    own = (row for row in basis.observations if row.draft in names)
    published = (row for name in names for row in _by_draft().get(name, ()))
    rows = (row for rows in (own, published) for row in rows)
    return next((row.draft for row in rows if row.tokens_per_step and on_target(row, basis.target)), None)


@cache
def _by_draft() -> dict[str, list[Observation]]:
    """Published rows by the draft that they name."""
    rows: dict[str, list[Observation]] = {}
    for row in evidence.observations():
        if row.draft:
            rows.setdefault(row.draft, []).append(row)
    return rows


def in_target(basis: ServedBasis, kind: Kind) -> list[Candidate]:
    """The layers that come in the target's own checkpoint."""
    if not (kind.in_target and basis.target.mtp_blocks):
        return []
    shape = kind.shape(basis.target)
    draft = choice(f"{kind.label} layers of the checkpoint", shape, basis.machine, None, 0.0)
    return [at(level_of(basis, kind), draft, shape)]


def to_train(basis: ServedBasis, kind: Kind) -> tuple[list[Candidate], dict[str, str]]:
    """Heads of a kind to train: the usual one at each budget that its law in tokens reaches, others on what the published ones read."""
    if kind.training is None or kind.training.tokens is None:
        return [], {}
    if kind is kinds.USUAL_HEAD:
        return _at_budgets(basis, kind)
    shape, tokens = kind.shape(basis.target), kind.training.tokens
    flops = head_training_flops(basis.target, shape, tokens)
    draft = choice(from_study.head_name(shape), shape, basis.machine, tokens, flops)
    return [at(level_of(basis, kind, layers=shape.num_layers), draft, shape)], {}


def _at_budgets(basis: ServedBasis, kind: Kind) -> tuple[list[Candidate], dict[str, str]]:
    level, law = level_of(basis, kind), dials.tokens_law(basis.observations)
    low, high = law.domain["draft_tokens"]
    missing = {
        "heads trained on other amounts": f"τ has been measured from {low:.0e} to {high:.0e} training tokens only; train one beyond and give its runs"
    }
    trained = []
    for num_layers, layer_gain in dials.layer_gains(kind, basis.observations, len(law.draws)).items():
        shape = kind.shape(basis.target, num_layers)
        for tokens in [t for t in HEAD_TOKENS if low <= t <= high][-1 if basis.coarse else 0 :]:
            flops = head_training_flops(basis.target, shape, tokens)
            draft = choice(from_study.head_name(shape), shape, basis.machine, tokens, flops)
            gain = tuple(dials.tokens_gain(law, tokens, REFERENCE_TOKENS) * layer_gain)
            notes = dials.notes(law, tokens, REFERENCE_TOKENS, num_layers)
            outside = (*level.extrapolates, *dials.tokens_outside(law, tokens, REFERENCE_TOKENS))
            gained = replace(level.gained(gain), extrapolates=outside)
            trained.append(at(gained, draft, shape, *notes))
    return trained, missing


def at(level: Level, draft: DraftChoice, shape: Shape | None, *notes: str) -> Candidate:
    """The draft as its level has it."""
    return Candidate(draft, shape, level.acceptance, level.extrapolates, notes=(level.source, *level.notes, *notes))
