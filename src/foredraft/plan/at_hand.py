"""A draft that the user names: found by its name, checked against the target, and weighed by what speaks for it.

Promises: a draft that cannot draft for the target, or that the engine does not run, is refused in one line; an acceptance that is stated is
never replaced by a law, nor are the measurements that lie in a draft's folder. Refuses to know: which drafts
are worth weighing (`candidates`), step times.

Shapes: S draws, K positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.kinds import Kind
from foredraft.laws import acceptance
from foredraft.laws.acceptance import CurvePosterior
from foredraft.laws.stated import Accepted, held_to, stated_acceptance
from foredraft.plan import candidates, evidence, from_study
from foredraft.plan.candidate import AcceptanceDraws, Candidate, choice
from foredraft.plan.candidates import Basis
from foredraft.plan.heads import at
from foredraft.plan.levels import level_of
from foredraft.plan.study import own_tail, shape_of
from foredraft.plan.trees import PUBLISHED, Tail
from foredraft.published import heads
from foredraft.records import DraftChoice, DraftLengths, Observation, read, read_json, read_lines, with_hint
from foredraft.shapes import Shape

Array = NDArray[np.float64]

SAME_VOCABULARY = 0.01  # rows that an exporter pads
# α of a draft of another vocabulary over that of a like draft of the target's: overlap to this power, overlap being the share of its
# tokens that the target has. From vLLM#38174's pairs with Qwen2.5-7B: 0.61 at 99.8 %, 0.25 at 79.8 %, 0.15 at 69.6 %, of which the last two
# ask for 3.99 and 3.89; they were measured before a mistake in it was mended, and are of other models.
OVERLAP_POWER = 3.94
MEASURED = "observations.jsonl"  # in a draft's folder: what was measured of this very draft


@dataclass(frozen=True)
class DraftAtHand:
    """A draft that the user names. `shape` None: no model. `hub_id`: where it was found on the Hub; `accepted`: what is stated of its
    acceptance, and `stated` how; `vocab_overlap`: the share of its tokens that the target has, where their vocabularies differ. `folder`:
    where it lies here, and what its folder says was measured of it: `observations`, of all categories together, and `lengths`.
    """

    kind: Kind
    shape: Shape | None
    hub_id: str | None = None
    accepted: Accepted | None = None
    stated: str = ""
    vocab_overlap: float | None = None
    folder: str | None = None
    observations: tuple[Observation, ...] = ()
    lengths: DraftLengths | None = None

    @property
    def name(self) -> str:
        return self.hub_id or self.folder or (self.shape.name if self.shape else self.kind.label)


def draft_at_hand(
    name: str | None,
    target: Shape,
    *,
    target_name: str = "",
    accept: str | None = None,
    vocab_overlap: float | None = None,
) -> DraftAtHand | None:
    """The draft that `name` stands for beside `target`: a folder's, a public head's by its id, a head of a kind by the kind's name (eagle3,
    mtp, dflash …), prompt lookup (ngram), or a public model's; None where none is named. `accept`: what is stated of it, as
    `laws.stated.SPELLING` says. `vocab_overlap` None: as the tokenizers of both folders tell, if they are there.

    Raises ValueError, one line, where there is none of that name, or where a public head was made for another target.
    """
    if name is None:
        if accept is not None:
            raise with_hint(
                ValueError("--accept is of one draft, and none is named"),
                f"name it by --draft, or its kind: --draft {kinds.USUAL_HEAD.name}",
            )
        return None
    accepted = stated_acceptance(accept) if accept is not None else None
    overlap = shared_vocabulary(target_name, name) if vocab_overlap is None and target_name else vocab_overlap
    return replace(_named(name, target), accepted=accepted, stated=accept or "", vocab_overlap=overlap)


def _named(name: str, target: Shape) -> DraftAtHand:
    if Path(name).exists():
        measured = Path(name) / MEASURED
        rows = tuple(read_lines(Observation, measured)) if measured.is_file() else ()
        file = Path(name) / kinds.LENGTHS
        lengths = read(DraftLengths, file) if file.is_file() else None
        return replace(of_shape(kinds.shape_named(name)), folder=name, observations=rows, lengths=lengths)
    if name == kinds.NGRAM.name:
        return DraftAtHand(kinds.NGRAM, None)
    if (kind := kinds.PLANNED.get(name)) and kind.parts:
        if kind.in_target and not target.mtp_blocks:
            raise ValueError(f"--draft {name}: {target.name} has no such layers in its checkpoint")
        return of_shape(kind.shape(target))
    if head := heads.head_named(name):
        if not head.is_for(target):
            raise ValueError(
                f"--draft {name}: {head.id} is a head for {head.target}, and reads no hidden states of {target.name}"
            )
        return DraftAtHand(head.of_kind, head.shape(target), head.id)
    try:
        return of_shape(kinds.shape_named(name))
    except ValueError:
        if near := heads.nearest_heads(name):
            message = f"no shape or public head named {name!r}; nearest heads: {', '.join(near)}"
            raise with_hint(ValueError(message), "give the folder of the draft, or a whole id") from None
        raise


def of_shape(shape: Shape) -> DraftAtHand:
    """A draft of that shape."""
    return DraftAtHand(kinds.of_shape(shape), shape)


def shared_vocabulary(target: str | Path, draft: str | Path) -> float | None:
    """The share of a draft's tokens that its target has, by the tokenizer.json of their folders; None where either has none.

    Raises ValueError on a tokenizer.json that is none.
    """
    vocabularies = [_tokens(Path(folder) / "tokenizer.json") for folder in (target, draft)]
    if None in vocabularies or not vocabularies[1]:
        return None
    known, own = (vocabulary or frozenset() for vocabulary in vocabularies)
    return len(own & known) / len(own)


def _tokens(file: Path) -> frozenset[str] | None:
    if not file.is_file():
        return None
    try:
        vocabulary = read_json(file)["model"]["vocab"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file}: holds no vocabulary under model.vocab; copy the tokenizer again") from None
    return frozenset(vocabulary if isinstance(vocabulary, dict) else (piece[0] for piece in vocabulary))


def weighed(basis: Basis, draft: DraftAtHand | Shape) -> Candidate:
    """The named draft to weigh. Raises ValueError, one line, where it does not fit the target or the engine, or nothing speaks for it."""
    draft = of_shape(draft) if isinstance(draft, Shape) else draft
    return replace(_weighed(basis, draft), lengths=draft.lengths)


def _weighed(basis: Basis, draft: DraftAtHand) -> Candidate:
    _check(basis, draft)
    if draft.accepted is not None:
        return _as_stated(basis, draft)
    if draft.shape is None:
        return candidates.lookup(basis)
    if measured := _measured(basis, draft, draft.shape):
        return measured
    if draft.shape.head:
        return _head(basis, draft, draft.shape)
    if _same_vocabulary(draft.shape, basis.target):
        return candidates.existing(basis, draft.shape)
    return _mapped(basis, draft, draft.shape)


def measured_of(draft: DraftAtHand, target: Shape) -> list[Observation]:
    """The rows in the draft's folder that are of such a target, whatever they call it."""
    sizes = float(target.params), float(target.non_embedding_params)
    return [
        msgspec.structs.replace(row, target=target.name) for row in draft.observations if row.target_params in sizes
    ]


def _measured(basis: Basis, draft: DraftAtHand, shape: Shape) -> Candidate | None:
    """By the rows in the draft's folder; trees as own ones were measured."""
    rows = measured_of(draft, basis.target)
    if not rows:
        return None
    level = level_of(
        replace(basis, observations=rows), draft.kind, layers=shape.num_layers, alike=lambda row: True, draft=draft.name,
        context=shape.max_position_embeddings,
    )  # fmt: skip
    tail = _tail(basis, draft.kind.role, [*rows, *basis.observations], {row.draft for row in rows})
    return replace(at(level, _choice(basis, draft), shape), tail=tail)


def _tail(basis: Basis, role: str, rows: Sequence[Observation], names: set[str | None]) -> Tail:
    """Of a draft that `rows` call by one of `names`: as its own trees say, else any of its role on the target, which may differ as published
    ones do, else as a study has it, if there is one.
    """
    if own := own_tail(basis.target, (row for row in rows if row.draft in names), basis.temperature, role):
        return own
    if others := own_tail(basis.target, rows, basis.temperature, role):
        return others._replace(sd=max(others.sd, PUBLISHED.sd))
    study = basis.heads if role == "head" else basis.models
    return study.tail if study else PUBLISHED


def _check(basis: Basis, draft: DraftAtHand) -> None:
    """Raises ValueError on a head for another target, a vocabulary that the engine does not map, or a kind that it does not serve."""
    target, engine, shape = basis.target, ENGINES[basis.engine], draft.shape
    if engine.name not in draft.kind.engine_names:
        able = [other.label for name, other in ENGINES.items() if name in draft.kind.engine_names]
        raise ValueError(
            f"--engine {engine.name}: {engine.label} serves no {draft.kind.label} draft; {' and '.join(able)} would"
        )
    if shape is None:
        return
    if shape.head:
        width = shape.target_hidden_size or shape.hidden_size
        if width != target.hidden_size:
            raise ValueError(
                f"{draft.name} reads hidden states of width {width:,}, those of {target.name} have {target.hidden_size:,}: "
                "it is a head for another target"
            )
        if shape.target_num_layers not in (None, target.num_layers):
            raise ValueError(
                f"{draft.name} was made for a target of {shape.target_num_layers} layers, {target.name} has {target.num_layers}: "
                "it is a head for another target"
            )
    if _same_vocabulary(shape, target) or (engine.maps_vocabularies and not shape.head):
        return
    able = "" if shape.head else "; vLLM maps those that both have"
    raise ValueError(
        f"{draft.name} has a vocabulary of {shape.vocab_size:,} tokens, {target.name} one of {target.vocab_size:,}: {engine.label} "
        f"cannot verify one by the other{able}"
    )


def _same_vocabulary(draft: Shape, target: Shape) -> bool:
    """By the number of rows, which an exporter pads; two families that have nearly as many do not share them by that."""
    padded = abs(draft.vocab_size / target.vocab_size - 1) < SAME_VOCABULARY
    kin = draft.head is not None or draft.family == target.family
    return padded and (kin or draft.vocab_size == target.vocab_size)


def _choice(basis: Basis, draft: DraftAtHand) -> DraftChoice:
    if draft.shape is None:
        return candidates.LOOKUP
    name = (
        draft.hub_id
        or draft.folder
        or (from_study.head_name(draft.shape) if draft.shape.head else f"{draft.shape.name} (public)")
    )
    hub_id = draft.hub_id or (None if draft.shape.head else heads.model_id(draft.shape))
    return choice(name, draft.shape, basis.machine, draft.shape.training_tokens, 0.0, hub_id=hub_id)


def _head(basis: Basis, draft: DraftAtHand, shape: Shape) -> Candidate:
    """A trained head: by own rows of its kind and depth, else as such heads are on the target by what is published."""

    def is_alike(row: Observation) -> bool:
        measured = shape_of(basis.target, row)
        if measured is None or measured.head is None or shape.head is None:
            return False
        return (measured.head.kind, measured.num_layers) == (shape.head.kind, shape.num_layers)

    drafts = {row.draft for row in basis.observations if is_alike(row)}
    if len(drafts) > 1:
        raise ValueError(
            f"{shape.name}: {len(drafts)} drafts of its kind and depth were measured ({', '.join(sorted(map(str, drafts))[:3])}, …); "
            "give --observations of this one alone"
        )
    level = level_of(
        basis,
        draft.kind,
        layers=shape.num_layers,
        draft=draft.hub_id,
        context=shape.max_position_embeddings,
        alike=is_alike,
    )
    tail = _tail(basis, draft.kind.role, basis.observations, drafts)
    return replace(at(level, _choice(basis, draft), shape), tail=tail)


@dataclass(frozen=True)
class MappedAcceptance:
    """Acceptance of a draft of another vocabulary: that of a like one of the target's, at every position times `share`."""

    base: AcceptanceDraws
    share: float

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        return self.share * self.base.draws(num, rng, frozen)


def _mapped(basis: Basis, draft: DraftAtHand, shape: Shape) -> Candidate:
    """A model of another vocabulary, of whose tokens the engine drafts those that the target has."""
    overlap = _overlap(basis, draft, shape)
    like = candidates.existing(basis, shape)
    drafted = replace(like, acceptance=MappedAcceptance(like.acceptance, overlap**OVERLAP_POWER))
    note = (
        f"its vocabulary is another, of which {basis.target.name} has {overlap:.0%}: acceptance is {overlap**OVERLAP_POWER:.2f} of a like draft's, "
        f"overlap^{OVERLAP_POWER:g} of vLLM's token-level intersection (vLLM#38174)"
    )
    planned = msgspec.structs.replace(drafted.choice, vocab_overlap=overlap)
    return replace(
        drafted, choice=planned, extrapolates=(*drafted.extrapolates, "vocabulary"), notes=(*drafted.notes, note)
    )


def _overlap(basis: Basis, draft: DraftAtHand, shape: Shape) -> float:
    """The share of its tokens that the target has. Raises ValueError where nobody says."""
    if draft.vocab_overlap is None:
        message = (
            f"{shape.name} has a vocabulary of {shape.vocab_size:,} tokens, {basis.target.name} one of {basis.target.vocab_size:,}: how much "
            "is lost hangs on the share of its tokens that both have"
        )
        raise with_hint(
            ValueError(message), "state it, --vocab-overlap 0.8, or give the folders of both with their tokenizer.json"
        )
    return draft.vocab_overlap


@dataclass(frozen=True)
class StatedAcceptance:
    """An acceptance that is stated; `beyond` it as the position law goes on from there."""

    accepted: Accepted
    beyond: CurvePosterior = field(repr=False)

    def draws(self, num: int, rng: np.random.Generator, frozen: frozenset[str]) -> Array:
        drawn = self.beyond.draws(num, rng)
        if "draft" in frozen:
            drawn = np.tile(self.beyond.median_accept, (num, 1))
        return held_to(drawn, self.accepted)


def _as_stated(basis: Basis, draft: DraftAtHand) -> Candidate:
    """The draft with its stated acceptance; beyond the stated positions the law of its kind goes on, and widens."""
    assert draft.accepted is not None, "asked for only where it is stated"
    beyond = acceptance.posterior(evidence.position_law(), draft.accepted.curve, kind=draft.kind.prior)
    reach = len(draft.accepted.survival)
    note = f"acceptance as stated, {draft.stated}; beyond {reach} drafted tokens by the position law of {draft.kind.label} drafts"
    planned = _choice(basis, draft)
    if draft.shape and not _same_vocabulary(draft.shape, basis.target):
        planned = msgspec.structs.replace(planned, vocab_overlap=_overlap(basis, draft, draft.shape))
    return Candidate(planned, draft.shape, StatedAcceptance(draft.accepted, beyond), notes=(note,))
