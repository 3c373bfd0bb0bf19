"""The drafts that a plan weighs: where an own study of the target holds drafts of a kind, those within its range; else what
published measurements speak for.

Promises: a draft that no measurement speaks for is left out and named. Refuses to know: step times and schedules.

Shapes: S draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds, shapes
from foredraft.engines import USUAL
from foredraft.laws import forms
from foredraft.laws.fit import fit
from foredraft.plan import evidence, from_study
from foredraft.plan.candidate import Candidate, SizeAcceptance, choice
from foredraft.plan.heads import at, heads
from foredraft.plan.levels import Moved, any_draft, from_the_mix, level_of, measured_level
from foredraft.plan.study import Study, on_target, study_of
from foredraft.published.heads import model_id
from foredraft.records import DraftChoice, Fit, Machine, Observation
from foredraft.shapes import Shape, scaled

Array = NDArray[np.float64]

LM_TOKENS = (1e9, 1e10, 1e11, 1e12)
LM_SIZES = tuple(np.geomspace(1e7, 6e9, 10))
COARSE_SIZES, COARSE_TOKENS = LM_SIZES[2:6:2], LM_TOKENS[2:3]  # of a first look
LOOKUP = DraftChoice(kind=kinds.NGRAM.role, name="n-gram look-up", params=0.0, non_embedding_params=0.0)
FACTORS = {
    "draft": "acceptance of this draft against others like it",
    "data": "the law in draft training tokens",
    "loss law": "which published loss law holds",
    "trees": "how far the draft's further choices cover what its first misses",
}


@dataclass(frozen=True)
class Basis:
    """What speaks for a plan's drafts under a load: own observations, studied once, beside the published ones. `coarse`: for a first look, at
    few sizes and budgets of drafts to train.
    """

    target: Shape
    machine: Machine
    observations: Sequence[Observation]
    temperature: float
    task: str | None = None
    engine: str = USUAL.name
    lengths: tuple[float, float] | None = None
    without: frozenset[str] = evidence.NOTHING
    coarse: bool = False

    @cached_property
    def models(self) -> Study | None:
        """The study of independent models on the target, where own runs make one."""
        return study_of(self.target, self.observations, self.temperature, "lm")

    @cached_property
    def heads(self) -> Study | None:
        return study_of(self.target, self.observations, self.temperature, "head")

    @cached_property
    def size_laws(self) -> tuple[Fit, ...]:
        """α of independent models against the loss gap, under Hoffmann's and Besiroglu's laws, on published pairs and own ones."""
        rows = tuple(row for row in map(_as_alpha, self.observations) if row is not None)
        return _size_laws(self.temperature > 0, rows)

    @cached_property
    def model_shift(self) -> tuple[float, float]:
        """From a mix of tasks to the load's, of independent models: `levels.from_the_mix`."""
        return from_the_mix(self, kinds.LM)


@lru_cache(8)
def _size_laws(warm: bool, own: tuple[Observation, ...]) -> tuple[Fit, ...]:
    """On the published pairs above temperature 0 or at it, and on `own` ones."""
    rows = [*(row for row in map(_as_alpha, evidence.observations()) if row is not None), *own]
    rows = [row for row in rows if ((row.temperature or 0.0) > 0) == warm]
    rows = [msgspec.structs.replace(row, temperature=None) for row in rows]
    return tuple(fit(forms.accept_gap(name), rows, missing="skip") for name in forms.TEXT_LOSS_LAWS[:2])


def candidates(basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
    """Every draft worth weighing for the target, and those that no measurement speaks for, with what is missing."""
    drafted, missing = _heads(basis)
    models, missing_models = _models(basis)
    rows = basis.observations
    if rows and not any(on_target(row, basis.target) for row in rows):
        targets = ", ".join(dict.fromkeys(row.target for row in rows))
        missing["own observations"] = f"none is of {basis.target.name}, they name {targets}"
    return [*drafted, lookup(basis), *models], missing | missing_models


def _models(basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
    """Independent models to train, and public ones; beside an own study the latter only where they were measured themselves."""
    if basis.models:
        return _studied_models(basis, basis.models)
    models: list[Candidate] = []
    try:
        models += independent(basis, COARSE_SIZES if basis.coarse else LM_SIZES)
        models += [_lm(basis, shape, None) for shape in public(basis.target)]
    except ValueError as error:
        return models, {"independent models": str(error)}
    if not models:
        least = f"{LM_SIZES[0]:.0e} parameters, which is not small beside {basis.target.name}; train some and give their runs"
        return models, {"independent models": f"published laws speak for models from {least}"}
    return models, {}


def _studied_models(basis: Basis, study: Study) -> tuple[list[Candidate], dict[str, str]]:
    models, missing = from_study.models(study, basis.machine)
    for shape in public(basis.target):
        if level := measured_level(basis, kinds.LM, shape):
            models.append(at(level, _public_choice(shape, basis.machine), shape))
        else:
            missing[f"{shape.name} (public)"] = "an own study speaks for models, and it did not measure this one"
    return models, missing


def _heads(basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
    return from_study.heads(basis.heads, basis.machine) if basis.heads else heads(basis)


def independent(basis: Basis, sizes: Sequence[float]) -> list[Candidate]:
    """Buildable models of about `sizes` non-embedding parameters at each token budget."""
    if basis.models:
        return from_study.models(basis.models, basis.machine, sizes)[0]
    limit = 0.3 * basis.target.non_embedding_params
    smaller = [buildable(basis.target, float(size)) for size in sizes if size < limit]
    return [_lm(basis, shape, tokens) for shape in smaller for tokens in (COARSE_TOKENS if basis.coarse else LM_TOKENS)]


buildable = cache(scaled)


def public(target: Shape) -> list[Shape]:
    """Models that are trained already and share the target's family, or that of its dense kin, and its vocabulary: in its own family rows
    within 1 %, which an exporter pads, in another as many.
    """
    return [
        s
        for s in shapes.trained_models({target.family, shapes.dense_family(target.family)})
        if abs(s.vocab_size / target.vocab_size - 1) < (0.01 if s.family == target.family else 1e-9)
        and s.params < 0.3 * target.params
    ]


def existing(basis: Basis, shape: Shape) -> Candidate:
    """An independent model that is trained already. Raises ValueError where nothing speaks for its acceptance."""
    return _lm(basis, shape, None)


def _lm(basis: Basis, shape: Shape, tokens: float | None) -> Candidate:
    """An independent model to train on `tokens`, or (None) an existing one: curves measured on the pair speak before laws in size."""
    target, machine = basis.target, basis.machine
    flops = 3 * shape.flops_per_token(0) * tokens if tokens else 0.0
    training_tokens = tokens or shape.training_tokens
    draft = choice(kinds.LM.label, shape, machine, tokens, flops) if tokens else _public_choice(shape, machine)
    if not tokens and (level := measured_level(basis, kinds.LM, shape)):
        return at(level, draft, shape)
    if not (target.training_tokens and training_tokens):
        unknown = target.name if not target.training_tokens else shape.name
        raise ValueError(
            f"training tokens of {unknown} are not published; give --observations of τ(k) for {shape.name} on {target.name}"
        )
    laws = basis.size_laws
    inputs = {
        "draft_params": float(shape.params),
        "draft_tokens": training_tokens,
        "target_params": float(target.params),
        "target_tokens": target.training_tokens,
    }
    outside = {field for law in laws for field, (low, high) in law.domain.items() if not low <= inputs[field] <= high}
    accept = Moved(SizeAcceptance(laws, inputs, any_draft(kinds.LM.prior)), basis.model_shift)
    return Candidate(draft, shape, accept, tuple(sorted(outside)))


def _public_choice(shape: Shape, machine: Machine) -> DraftChoice:
    return choice(f"{shape.name} (public)", shape, machine, shape.training_tokens, 0.0, hub_id=model_id(shape))


def _as_alpha(row: Observation) -> Observation | None:
    """An independent draft's α per token: stated, or τ - 1 at lookahead 1. One pool; the run is the target, the unit
    that other drafts share.

    At temperature 0 (which a row that states none is taken to be) all kinds of α are one; above it only `sampled` counts.
    """
    stated = row.accept_prob if row.cost_ratio is None else None
    alpha = (
        stated
        if stated is not None
        else (row.tokens_per_step - 1 if row.lookahead == 1 and row.tokens_per_step else None)
    )
    mixed = (row.temperature or 0.0) > 0 and row.accept_kind != "sampled"
    if kinds.role_of(row.method) != "lm" or alpha is None or not row.draft_tokens or mixed:
        return None
    return msgspec.structs.replace(
        row, accept_prob=alpha, run=row.target, method=kinds.LM.name, dataset=None, temperature=row.temperature or 0.0,
        accept_kind=None, lookahead=None, survival=None, accepted=None, drafted=None,
    )  # fmt: skip


def lookup(basis: Basis) -> Candidate:
    """Prompt lookup, without training or model."""
    return at(level_of(basis, kinds.NGRAM), LOOKUP, None)
