"""The drafts that a plan weighs: where an own study of the target holds drafts of a kind, those within its range; else what
published measurements speak for.

Promises: a draft that no measurement speaks for is left out and named. Refuses to know: step times and schedules.

Shapes: S draws.
"""

from collections.abc import Callable, Sequence
from functools import cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds, shapes
from foredraft.laws import acceptance, forms
from foredraft.laws.acceptance import CurvePosterior
from foredraft.laws.fit import choose, fit, predict_draws
from foredraft.plan import evidence, from_study
from foredraft.plan.candidate import Candidate, Curve, Sized, choice, head_training_flops
from foredraft.plan.study import mean_curve, on_target, shape_of, study
from foredraft.records import DraftChoice, Fit, Machine, Observation
from foredraft.shapes import Shape, scaled

Array = NDArray[np.float64]

# Training tokens tried for a head, as far as the law in tokens has been measured.
HEAD_TOKENS = tuple(1e8 * 2.0**i for i in range(12))
# What the heads behind the published curves are taken to have been trained on: EAGLE-3's largest set.
REFERENCE_TOKENS = 8e8
LM_TOKENS = (1e9, 1e10, 1e11, 1e12)
LM_SIZES = tuple(np.geomspace(1e7, 6e9, 10))
# sd of log τ between a published draft of the same target and the one to be trained, on another mix of prompts.
ELSEWHERE_NOISE = 0.05
FACTORS = {
    "draft": "acceptance of this draft against others like it",
    "data": "the law in draft training tokens",
    "loss law": "which published loss law holds",
    "trees": "how far the draft's further choices cover what its first misses",
}


def candidates(
    target: Shape, machine: Machine, own: Sequence[Observation], temperature: float
) -> tuple[list[Candidate], dict[str, str]]:
    """Every draft worth weighing for `target`, and those that no measurement speaks for, with what is missing."""
    heads, missing = _heads(target, machine, own, temperature)
    found = [*heads, _lookup(target, own, temperature)]
    models, left_out = _models(target, machine, own, temperature)
    if own and not any(on_target(row, target) for row in own):
        others = ", ".join(dict.fromkeys(row.target for row in own))
        missing["own observations"] = f"none of the {len(own)} is of {target.name}, they name {others}"
    return found + models, missing | left_out


def _models(
    target: Shape, machine: Machine, own: Sequence[Observation], temperature: float
) -> tuple[list[Candidate], dict[str, str]]:
    """Independent models to train, and public ones; beside an own study the latter only where they were measured themselves."""
    found: list[Candidate] = []
    if tried := study(target, tuple(own), temperature, "lm"):
        found, missing = from_study.models(tried, machine)
        for shape in public(target):
            if curve := measured_curve(target, own, _of(shape)):
                found.append(Candidate(_public_choice(shape, machine), shape, Curve(curve)))
            else:
                missing[f"{shape.name} (public)"] = "an own study speaks for models, and it did not measure this one"
        return found, missing
    try:
        found += independent(target, machine, own, temperature, LM_SIZES)
        found += [_lm(target, machine, own, temperature, shape, None) for shape in public(target)]
    except ValueError as error:
        return found, {"independent models": str(error)}
    if not found:
        least = f"{LM_SIZES[0]:.0e} parameters, which is not small beside {target.name}; train some and give their runs"
        return found, {"independent models": f"published laws speak for models from {least}"}
    return found, {}


def _heads(
    target: Shape, machine: Machine, own: Sequence[Observation], temperature: float
) -> tuple[list[Candidate], dict[str, str]]:
    if tried := study(target, tuple(own), temperature, "head"):
        return from_study.heads(tried, machine)
    posterior = head_posterior(target, own)
    tokens_law = _tokens_law(tuple(own))
    layers, missing = _layer_gains(own)
    low, high = tokens_law.domain["draft_tokens"]
    missing["heads trained on other amounts"] = (
        f"τ has been measured from {low:.0e} to {high:.0e} training tokens only; train one beyond and give its runs"
    )
    found = []
    for num_layers, layer_gain in layers.items():
        shape = kinds.EAGLE3.shape(target, num_layers)
        for tokens in (t for t in HEAD_TOKENS if low <= t <= high):
            gain = _gain(tokens_law, tokens) * layer_gain
            flops = head_training_flops(target, shape, tokens)
            made = choice(from_study.head_name(shape), shape, machine, tokens, flops)
            found.append(Candidate(made, shape, Curve(posterior, tuple(gain))))
    return found, missing


@cache
def any_draft(*, drifts: bool) -> CurvePosterior:
    """Acceptance by position where nothing is known of a draft but whether it drifts: the prior."""
    return acceptance.posterior(evidence.position_law(), {}, drifts=drifts)


def head_posterior(target: Shape, own: Sequence[Observation]) -> CurvePosterior:
    """Acceptance of an EAGLE-3-like head on `target`: measured there if it was, else as heads have it in general. Of one
    layer: what more of them gain is counted apart.
    """
    measured = measured_curve(
        target, own, lambda row: kinds.role_of(row.method) == "head" and (row.draft_layers or 1) == 1
    )
    return measured or any_draft(drifts=True)


@cache
def _tokens_law(own: tuple[Observation, ...]) -> Fit:
    """Law 1.1 or its saturating rival, whichever foretells the largest run, on own runs of heads if they allow it,
    else on EAGLE-3's figure 1.
    """
    rivals = (forms.LAW_1_1, forms.TOKENS_SATURATING)
    for rows in (own, evidence.observations()):
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


def _layer_gains(own: Sequence[Observation]) -> tuple[dict[int, float], dict[str, str]]:
    """How much deeper heads gain, by number of layers, where own runs say; depth 1 always."""
    rows = [row for row in own if kinds.role_of(row.method) == "head" and row.draft_layers and row.tokens_per_step]
    try:
        law = fit(forms.LAW_1_2, rows)
    except ValueError:
        why = "no measured τ at two or more draft_layers; train one head of 2 layers and give its runs"
        return {1: 1.0}, {f"{kinds.EAGLE3.deep_label} head, 2 or more layers": why}
    gains = {
        n: float(predict_draws(law, draft_layers=float(n)).mean() - 1)
        for n in range(1, int(law.domain["draft_layers"][1]) + 1)
    }
    return {n: gain / gains[1] for n, gain in gains.items()}, {}


def independent(
    target: Shape, machine: Machine, own: Sequence[Observation], temperature: float, sizes: Sequence[float]
) -> list[Candidate]:
    """Buildable models of about `sizes` non-embedding parameters at each token budget."""
    if tried := study(target, tuple(own), temperature, "lm"):
        return from_study.models(tried, machine, sizes)[0]
    smaller = [buildable(target, float(size)) for size in sizes if size < 0.3 * target.non_embedding_params]
    return [_lm(target, machine, own, temperature, shape, tokens) for shape in smaller for tokens in LM_TOKENS]


buildable = cache(scaled)


def public(target: Shape) -> list[Shape]:
    """Models that are trained already and share the target's family and vocabulary (rows within 1 %, which an
    exporter pads).
    """
    known = map(shapes.shape, shapes.known_shapes())
    return [
        s
        for s in known
        if s.family == target.family
        and abs(s.vocab_size / target.vocab_size - 1) < 0.01
        and s.training_tokens
        and s.params < 0.3 * target.params
    ]


def named(target: Shape, machine: Machine, own: Sequence[Observation], temperature: float, draft: Shape) -> Candidate:
    """The one draft that the user names. Raises ValueError where nothing speaks for its acceptance."""
    if draft.head:
        return _head_at_hand(target, machine, own, draft)
    return _lm(target, machine, own, temperature, draft, None)


def _head_at_hand(target: Shape, machine: Machine, own: Sequence[Observation], shape: Shape) -> Candidate:
    """A trained head, by what was measured of it: own rows of its kind and depth."""

    def alike(row: Observation) -> bool:
        made = shape_of(target, row)
        return bool(made and (made.head, made.num_layers) == (shape.head, shape.num_layers))

    found = {row.draft for row in own if alike(row)}
    if len(found) > 1:
        raise ValueError(
            f"{shape.name}: {len(found)} drafts of its kind and depth were measured ({', '.join(sorted(map(str, found))[:3])}, …); "
            "give --observations of this one alone"
        )
    if not (curve := measured_curve(target, own, alike) if found else None):
        raise ValueError(
            f"{shape.name}: nothing says how much is accepted of it; give --observations of foredraft measure"
        )
    made = choice(from_study.head_name(shape), shape, machine, None, 0.0)
    return Candidate(made, shape, Curve(curve))


def _lm(
    target: Shape, machine: Machine, own: Sequence[Observation], temperature: float, shape: Shape, tokens: float | None
) -> Candidate:
    """An independent model to train on `tokens`, or (None) one that exists: measured curves of the pair speak before
    the laws in size do.
    """
    flops = 3 * shape.flops_per_token(0) * tokens if tokens else 0.0
    trained = tokens or shape.training_tokens
    draft = choice(kinds.LM.label, shape, machine, trained, flops) if tokens else _public_choice(shape, machine)
    if not tokens and (curve := measured_curve(target, own, _of(shape))):
        return Candidate(draft, shape, Curve(curve))
    if not (target.training_tokens and trained):
        unknown = target.name if not target.training_tokens else shape.name
        raise ValueError(
            f"training tokens of {unknown} are not published; give --observations of τ(k) for {shape.name} on {target.name}"
        )
    fits = size_laws(tuple(own), temperature > 0)
    inputs = {
        "draft_params": float(shape.params),
        "draft_tokens": trained,
        "target_params": float(target.params),
        "target_tokens": target.training_tokens,
    }
    outside = {field for law in fits for field, (low, high) in law.domain.items() if not low <= inputs[field] <= high}
    return Candidate(
        draft,
        shape,
        Sized(fits, inputs, any_draft(drifts=False)),
        tuple(sorted(outside)),
    )


def _public_choice(shape: Shape, machine: Machine) -> DraftChoice:
    return choice(f"{shape.name} (public)", shape, machine, shape.training_tokens, 0.0)


def _of(shape: Shape) -> Callable[[Observation], bool]:
    """Whether a row was measured with the draft of this name or public size."""
    return lambda row: row.draft is not None and evidence.names(row.draft, shape)


def measured_curve(
    target: Shape, own: Sequence[Observation], wanted: Callable[[Observation], bool]
) -> CurvePosterior | None:
    """Acceptance by position of drafts on `target` that `wanted` picks: from own runs, else from published ones with
    room for other prompts.
    """
    for rows, noise in ((own, 0.0), (evidence.observations(), ELSEWHERE_NOISE)):
        picked = [row for row in rows if row.method != "none" and on_target(row, target) and wanted(row)]
        if mean := mean_curve(picked):
            drifts = kinds.of_method(picked[0].method).drifts
            return acceptance.posterior(evidence.position_law(), mean, drifts=drifts, extra_noise=noise)
    return None


@cache
def size_laws(own: tuple[Observation, ...], sampled: bool) -> tuple[Fit, ...]:
    """α of independent models against the loss gap, under Hoffmann's and Besiroglu's laws, on published pairs and own
    ones.
    """
    rows = [row for row in map(_as_alpha, (*evidence.observations(), *own)) if row is not None]
    rows = [msgspec.structs.replace(row, temperature=None) for row in rows if ((row.temperature or 0.0) > 0) == sampled]
    return tuple(fit(forms.accept_gap(name), rows, missing="skip") for name in forms.TEXT_LOSS_LAWS[:2])


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
        row,
        accept_prob=alpha,
        run=row.target,
        method=kinds.LM.name,
        dataset=None,
        temperature=row.temperature or 0.0,
        accept_kind=None,
        lookahead=None,
        survival=None,
        accepted=None,
        drafted=None,
    )


def _lookup(target: Shape, own: Sequence[Observation], temperature: float) -> Candidate:
    """Prompt look-up: nothing to train, no model; its acceptance hangs on the prompts, so without own runs every published
    curve is a draw.
    """
    draft = DraftChoice(kind=kinds.NGRAM.role, name="n-gram look-up", params=0.0, non_embedding_params=0.0)
    if measured := from_study.lookup(target, own, temperature):
        return Candidate(draft, None, Curve(measured))
    law = evidence.position_law()
    curves = [c for key, c in acceptance.chain_curves(evidence.observations()).items() if key[1] == kinds.NGRAM.name]
    parts = [acceptance.posterior(law, curve, drifts=False, extra_noise=ELSEWHERE_NOISE) for curve in curves]
    mixed = CurvePosterior(
        np.concatenate([part.weights for part in parts]) / len(parts),
        np.concatenate([part.accept_given_prefix for part in parts]),
    )
    return Candidate(draft, None, Curve(mixed))
