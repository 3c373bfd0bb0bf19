"""Candidates from an own study: drafts between the least and the most that was trained and measured on this very target.

Promises: nothing beyond the study's range is tried; a draft that was measured stands by its own curve. Refuses to know:
published measurements, step times.
"""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from scipy.special import ndtri

from foredraft import kinds
from foredraft.laws import acceptance
from foredraft.laws.acceptance import CurvePosterior
from foredraft.laws.fit import far_outside, predict_draws, run_sd
from foredraft.laws.sampling import sampling_sd
from foredraft.plan import evidence
from foredraft.plan.candidate import Candidate, CurveAcceptance, SizeAcceptance, StudyRange, choice, head_training_flops
from foredraft.plan.study import Study, StudyDraft
from foredraft.records import DraftChoice, Fit, Machine
from foredraft.shapes import Shape, scaled

NUM_SIZES = 9  # of independent models, from the smallest to the largest measured
NEAR = 1.1  # sizes and budgets closer than this are one


def heads(study: Study, machine: Machine) -> tuple[list[Candidate], dict[str, str]]:
    """Each kind and depth at budgets of its own, moved along its law in tokens from the nearest measured run."""
    candidates, missing = [], {}
    low, high = study.tokens
    missing["heads trained on other amounts"] = (
        f"τ has been measured from {low:.2g} to {high:.2g} training tokens only; train one beyond and give its runs"
    )
    depths = sorted({layers for *_, layers in study.lines})
    missing["heads of other depths"] = (
        f"own runs are of {', '.join(map(str, depths))} layers; train one of another depth and give its runs"
    )
    for key, line in study.lines.items():
        law = study.token_laws.get(key)
        measured = [draft.tokens for draft in line]
        ends = law.domain["draft_tokens"] if law else (min(measured), max(measured))
        if law is None and len({*measured}) > 1:
            missing[f"{head_name(line[0].shape)} on other amounts"] = (
                "too few own runs for a law in tokens; give those of more budgets"
            )
        for tokens in budgets(*ends, measured) if law else sorted({*measured}):
            candidates.append(_head(study, machine, line[0], tokens, law))
    return candidates, missing


def heads_like(study: Study, machine: Machine, draft: StudyDraft) -> list[Candidate]:
    """A head of one of the study's lines at the tokens of `draft`, as `heads` would weigh it; none where no law reaches there."""
    line, law = study.lines.get(draft.line), study.token_laws.get(draft.line)
    return [_head(study, machine, line[0], draft.tokens, law)] if line and law else []


def head_name(shape: Shape) -> str:
    """What a plan calls a head."""
    kind = kinds.of_shape(shape)
    if shape.num_layers == 1:
        return f"{kinds.LABELS[kind.name]} head"
    return f"{kind.deep_label or kinds.LABELS[kind.name]} head, {shape.num_layers} layers"


def _head(study: Study, machine: Machine, like: StudyDraft, tokens: float, law: Fit | None) -> Candidate:
    near = study.nearest(like, like.shape.params, tokens)
    same = [draft for draft in study.lines[like.line] if draft.tokens == near.tokens]
    name = head_name(like.shape) + (f" ({like.family})" if like.family else "")
    flops = head_training_flops(study.target, like.shape, tokens)
    return Candidate(
        choice(name, like.shape, machine, tokens, flops),
        like.shape,
        _acceptance(same, like.kind.prior, _gain(law, like.shape.num_layers, tokens, near.tokens)),
        _far(law, like.shape.num_layers, tokens),
        study_range=_range(study, f"nearest measured head, moved by {law.law} in tokens" if law else "measured heads"),
        tail=study.tail,
    )


def _acceptance(drafts: Sequence[StudyDraft], kind: kinds.Prior, gain: tuple[float, ...] = (1.0,)) -> CurveAcceptance:
    posterior = _posterior(drafts, kind)
    rows = [row for draft in drafts for row in draft.rows]
    return CurveAcceptance(posterior, gain, sampling_sd(rows, posterior.median_accept))


def _posterior(drafts: Sequence[StudyDraft], kind: kinds.Prior) -> CurvePosterior:
    """Acceptance by position of drafts that differ in nothing but their seed."""
    lookaheads = sorted({k for draft in drafts for k in draft.curve})
    taus = ([draft.curve[k] for draft in drafts if k in draft.curve] for k in lookaheads)
    return _of_curve(tuple((k, float(np.mean(values))) for k, values in zip(lookaheads, taus, strict=True)), kind)


@cache
def _of_curve(curve: tuple[tuple[int, float], ...], kind: kinds.Prior) -> CurvePosterior:
    return acceptance.posterior(evidence.position_law(), dict(curve), kind=kind)


def _gain(law: Fit | None, num_layers: int, tokens: float, measured: float) -> tuple[float, ...]:
    """Draws of (τ-1) at `tokens` over that at the `measured` ones; 1 where they are the same. Both the draft to come and the
    measured one lie off the law by about its residuals.
    """
    if law is None or tokens == measured:
        return (1.0,)
    depth = _depth(law, num_layers)
    here, there = (predict_draws(law, draft_tokens=d, **depth) - 1 for d in (tokens, measured))
    normal = ndtri((np.arange(len(here)) + 0.5) / len(here))
    off = math.hypot(law.residual_sd, run_sd(law, draft_tokens=tokens, **depth))
    here = here + off * np.random.default_rng(0).permutation(normal)
    return tuple((np.clip(here, 1e-3, None) / np.clip(there, 1e-3, None)).tolist())


def _far(law: Fit | None, num_layers: int, tokens: float) -> tuple[str, ...]:
    """What lies more than an octave beyond the law's data."""
    return far_outside(law, draft_tokens=tokens, **_depth(law, num_layers)) if law else ()


def _depth(law: Fit, num_layers: int) -> dict[str, float]:
    return {"draft_layers": float(num_layers)} if "draft_layers" in law.domain else {}


def budgets(low: float, high: float, measured: Sequence[float] = ()) -> list[float]:
    """Doublings from `low`, and `high`; measured ones in place of those near them."""
    doubled = [low * 2.0**i for i in range(int(np.log2(high / low)) + 1)] + [high]
    return _thinned(measured, doubled)


def _thinned(first: Sequence[float], more: Sequence[float]) -> list[float]:
    """All of `first`, and those of `more` that lie near none taken before, in order; the ends of `more` always."""
    values = list(dict.fromkeys([*first, more[0], more[-1]]))
    for candidate in more:
        if all(abs(np.log(candidate / value)) > np.log(NEAR) for value in values):
            values.append(candidate)
    return sorted(values)


def models(
    study: Study, machine: Machine, sizes: Sequence[float] | None = None
) -> tuple[list[Candidate], dict[str, str]]:
    """Independent models of `sizes` non-embedding parameters, or of all sizes between the ends of the study, at each budget.

    Without a law in size, the measured drafts alone, by their own curves; none then where `sizes` are asked for.
    """
    by_size = {draft.shape.params: draft.shape for draft in study.drafts}
    low, high = study.tokens
    missing = {
        "independent models beyond the own study": f"α has been measured from {min(by_size):.3g} to {max(by_size):.3g} parameters "
        f"and from {low:.2g} to {high:.2g} training tokens only; train one beyond and give its runs"
    }
    law = study.size_law
    if law is None:
        missing["independent models between those measured"] = (
            "too few own runs for a law in size and tokens; give more"
        )
        return [] if sizes is not None else [_as_measured(study, machine, draft) for draft in study.drafts], missing
    if sizes is None:
        bodies = [draft.shape.non_embedding_params for draft in study.drafts]
        more = _thinned(bodies, np.geomspace(min(bodies), max(bodies), NUM_SIZES).tolist())
        by_size |= {
            shape.params: shape for shape in (scaled(study.target, body) for body in more if body not in bodies)
        }
        shapes = list(by_size.values())
    else:
        shapes = [scaled(study.target, body) for body in sizes]
    return [_model(study, machine, shape, tokens, law) for shape in shapes for tokens in budgets(low, high)], missing


def models_like(study: Study, machine: Machine, drafts: Sequence[tuple[Shape, float]]) -> list[Candidate]:
    """Drafts of the study (shape and tokens) as `models` would weigh them."""
    law = study.size_law
    if law:
        return [_model(study, machine, shape, tokens, law) for shape, tokens in drafts]
    return [_as_measured(study, machine, draft) for draft in study.drafts if (draft.shape, draft.tokens) in drafts]


def _model(study: Study, machine: Machine, shape: Shape, tokens: float, law: Fit) -> Candidate:
    inputs = {
        "draft_params": float(shape.params), "draft_tokens": tokens, "target_params": float(study.target.params),
    }  # fmt: skip
    outside = tuple(sorted(name for name, (low, high) in law.domain.items() if not low <= inputs[name] <= high))
    spread = _posterior([study.nearest(None, shape.params, tokens)], kinds.LM.prior)
    middle = np.log(spread.median_accept) - np.log1p(-spread.median_accept)
    accept = SizeAcceptance(
        (law,), {name: inputs[name] for name in law.domain}, spread, tuple((middle - middle[0]).tolist())
    )
    choice, study_range = _choice(shape, machine, tokens), _range(study, f"{law.law} in size and tokens")
    return Candidate(choice, shape, accept, outside, study_range, study.tail)


def _as_measured(study: Study, machine: Machine, draft: StudyDraft) -> Candidate:
    accept = _acceptance([draft], kinds.LM.prior)
    choice, study_range = _choice(draft.shape, machine, draft.tokens), _range(study, "measured drafts")
    return Candidate(choice, draft.shape, accept, study_range=study_range, tail=study.tail)


def _choice(shape: Shape, machine: Machine, tokens: float) -> DraftChoice:
    return choice(kinds.LM.label, shape, machine, tokens, 3 * shape.flops_per_token(0) * tokens)


def _range(study: Study, how: str) -> StudyRange:
    where = f" on {study.dataset}" if study.dataset else ""
    note = f"acceptance from {len(study.drafts)} own drafts{where} at temperature {study.temperature:g}: {how}"
    return StudyRange(*study.tokens, note)
