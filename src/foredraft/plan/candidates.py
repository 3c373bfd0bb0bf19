"""The drafts that a plan weighs: where an own study of the target holds drafts of a kind, those within its range; else what
published measurements speak for.

Promises: a draft that no measurement speaks for is left out and named. Refuses to know: step times and schedules.

Shapes: S draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds, shapes
from foredraft.laws import forms
from foredraft.laws.fit import choose, fit, predict_draws
from foredraft.plan import evidence, from_study, levels
from foredraft.plan.candidate import Candidate, CurveAcceptance, SizeAcceptance, choice, head_training_flops
from foredraft.plan.levels import any_draft, level_of
from foredraft.plan.study import Study, on_target, shape_of, study_of
from foredraft.records import DraftChoice, Fit, Machine, Observation
from foredraft.shapes import Shape, scaled

Array = NDArray[np.float64]

# Training tokens tried for a head, as far as the law in tokens has been measured.
HEAD_TOKENS = tuple(1e8 * 2.0**i for i in range(12))
# What the heads behind the published curves are taken to have been trained on: EAGLE-3's largest set.
REFERENCE_TOKENS = 8e8
LM_TOKENS = (1e9, 1e10, 1e11, 1e12)
LM_SIZES = tuple(np.geomspace(1e7, 6e9, 10))
FACTORS = {
    "draft": "acceptance of this draft against others like it",
    "data": "the law in draft training tokens",
    "loss law": "which published loss law holds",
    "trees": "how far the draft's further choices cover what its first misses",
}


@dataclass(frozen=True)
class Basis:
    """What speaks for a plan's drafts under a load: own observations, studied once, beside the published ones."""

    target: Shape
    machine: Machine
    observations: Sequence[Observation]
    temperature: float
    task: str | None = None

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
        rows = [row for row in map(_as_alpha, (*evidence.observations(), *self.observations)) if row is not None]
        rows = [row for row in rows if ((row.temperature or 0.0) > 0) == (self.temperature > 0)]
        rows = [msgspec.structs.replace(row, temperature=None) for row in rows]
        return tuple(fit(forms.accept_gap(name), rows, missing="skip") for name in forms.TEXT_LOSS_LAWS[:2])


def candidates(basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
    """Every draft worth weighing for the target, and those that no measurement speaks for, with what is missing."""
    heads, missing = _heads(basis)
    models, missing_models = _models(basis)
    rows = basis.observations
    if rows and not any(on_target(row, basis.target) for row in rows):
        targets = ", ".join(dict.fromkeys(row.target for row in rows))
        missing["own observations"] = f"none is of {basis.target.name}, they name {targets}"
    return [*heads, _lookup(basis), *models], missing | missing_models


def _models(basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
    """Independent models to train, and public ones; beside an own study the latter only where they were measured themselves."""
    if basis.models:
        return _studied_models(basis, basis.models)
    models: list[Candidate] = []
    try:
        models += independent(basis, LM_SIZES)
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
        if curve := levels.curve(basis, levels.named(shape)):
            models.append(Candidate(_public_choice(shape, basis.machine), shape, CurveAcceptance(curve)))
        else:
            missing[f"{shape.name} (public)"] = "an own study speaks for models, and it did not measure this one"
    return models, missing


def _heads(basis: Basis) -> tuple[list[Candidate], dict[str, str]]:
    if basis.heads:
        return from_study.heads(basis.heads, basis.machine)
    level, tokens_law = level_of(basis, kinds.USUAL_HEAD), _tokens_law(basis.observations)
    layers, missing = _layer_gains(basis.observations)
    low, high = tokens_law.domain["draft_tokens"]
    missing["heads trained on other amounts"] = (
        f"τ has been measured from {low:.0e} to {high:.0e} training tokens only; train one beyond and give its runs"
    )
    heads = []
    for num_layers, layer_gain in layers.items():
        shape = kinds.USUAL_HEAD.shape(basis.target, num_layers)
        for tokens in (t for t in HEAD_TOKENS if low <= t <= high):
            flops = head_training_flops(basis.target, shape, tokens)
            draft = choice(from_study.head_name(shape), shape, basis.machine, tokens, flops)
            gain = tuple(_gain(tokens_law, tokens) * layer_gain)
            heads.append(Candidate(draft, shape, replace(level.acceptance, gain=gain), level.extrapolates))
    return heads, missing


def _tokens_law(observations: Sequence[Observation]) -> Fit:
    """Law 1.1 or its saturating rival, whichever predicts the largest own run of heads, else the largest of EAGLE-3's figure 1."""
    rivals = (forms.LAW_1_1, forms.TOKENS_SATURATING)
    for rows in (observations, evidence.observations()):
        usable = [
            row for row in rows if kinds.of_method(row.method).unrolled and row.draft_tokens and row.tokens_per_step
        ]
        try:
            return choose(rivals, usable)
        except ValueError:
            continue
    raise ValueError("no observations of τ against draft_tokens ship with the package")


def _gain(law: Fit, tokens: float) -> Array:
    """Draws of (τ-1) at `tokens` over that at the reference."""
    here = predict_draws(law, draft_tokens=tokens) - 1
    there = predict_draws(law, draft_tokens=REFERENCE_TOKENS) - 1
    return np.clip(here, 1e-3, None) / np.clip(there, 1e-3, None)


def _layer_gains(observations: Sequence[Observation]) -> tuple[dict[int, float], dict[str, str]]:
    """How much deeper heads gain, by number of layers, where own runs say; depth 1 always."""
    rows = [
        row for row in observations if kinds.role_of(row.method) == "head" and row.draft_layers and row.tokens_per_step
    ]
    try:
        law = fit(forms.LAW_1_2, rows)
    except ValueError:
        why = "no measured τ at two or more draft_layers; train one head of 2 layers and give its runs"
        return {1: 1.0}, {f"{kinds.USUAL_HEAD.deep_label} head, 2 or more layers": why}
    gains = {
        n: float(predict_draws(law, draft_layers=float(n)).mean() - 1)
        for n in range(1, int(law.domain["draft_layers"][1]) + 1)
    }
    return {n: gain / gains[1] for n, gain in gains.items()}, {}


def independent(basis: Basis, sizes: Sequence[float]) -> list[Candidate]:
    """Buildable models of about `sizes` non-embedding parameters at each token budget."""
    if basis.models:
        return from_study.models(basis.models, basis.machine, sizes)[0]
    limit = 0.3 * basis.target.non_embedding_params
    smaller = [buildable(basis.target, float(size)) for size in sizes if size < limit]
    return [_lm(basis, shape, tokens) for shape in smaller for tokens in LM_TOKENS]


buildable = cache(scaled)


def public(target: Shape) -> list[Shape]:
    """Models that are trained already and share the target's family, or that of its dense kin, and its vocabulary (rows within 1 %, which
    an exporter pads).
    """
    return [
        s
        for s in shapes.trained_models({target.family, shapes.dense_family(target.family)})
        if abs(s.vocab_size / target.vocab_size - 1) < 0.01 and s.params < 0.3 * target.params
    ]


def named(basis: Basis, draft: Shape) -> Candidate:
    """The one draft that the user names. Raises ValueError where nothing speaks for its acceptance."""
    return _head_at_hand(basis, draft) if draft.head else _lm(basis, draft, None)


def _head_at_hand(basis: Basis, shape: Shape) -> Candidate:
    """A trained head, by what was measured of it: own rows of its kind and depth."""

    def is_alike(row: Observation) -> bool:
        measured = shape_of(basis.target, row)
        return bool(measured and (measured.head, measured.num_layers) == (shape.head, shape.num_layers))

    drafts = {row.draft for row in basis.observations if is_alike(row)}
    if len(drafts) > 1:
        raise ValueError(
            f"{shape.name}: {len(drafts)} drafts of its kind and depth were measured ({', '.join(sorted(map(str, drafts))[:3])}, …); "
            "give --observations of this one alone"
        )
    if not (curve := levels.curve(basis, is_alike) if drafts else None):
        raise ValueError(
            f"{shape.name}: nothing says how much is accepted of it; give --observations of foredraft measure"
        )
    draft = choice(from_study.head_name(shape), shape, basis.machine, None, 0.0)
    return Candidate(draft, shape, CurveAcceptance(curve))


def _lm(basis: Basis, shape: Shape, tokens: float | None) -> Candidate:
    """An independent model to train on `tokens`, or (None) an existing one: curves measured on the pair speak before laws in size."""
    target, machine = basis.target, basis.machine
    flops = 3 * shape.flops_per_token(0) * tokens if tokens else 0.0
    training_tokens = tokens or shape.training_tokens
    draft = choice(kinds.LM.label, shape, machine, tokens, flops) if tokens else _public_choice(shape, machine)
    if not tokens and (curve := levels.curve(basis, levels.named(shape))):
        return Candidate(draft, shape, CurveAcceptance(curve))
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
    accept = SizeAcceptance(laws, inputs, any_draft(kinds.LM.prior))
    return Candidate(draft, shape, accept, tuple(sorted(outside)))


def _public_choice(shape: Shape, machine: Machine) -> DraftChoice:
    return choice(f"{shape.name} (public)", shape, machine, shape.training_tokens, 0.0)


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


def _lookup(basis: Basis) -> Candidate:
    """Prompt lookup, without training or model."""
    draft = DraftChoice(kind=kinds.NGRAM.role, name="n-gram look-up", params=0.0, non_embedding_params=0.0)
    level = level_of(basis, kinds.NGRAM)
    return Candidate(draft, None, level.acceptance, level.extrapolates)
