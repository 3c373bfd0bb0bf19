"""A study held to its own largest and longest trained drafts: their tokens per step, predicted from the others.

Promises: what is held out is chosen by its dials alone; a draft beyond what the planner would weigh (heads of a depth that no other
run has) is left out. Refuses to know: costs.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from foredraft.laws.held_out import LEVEL, without_largest
from foredraft.plan import from_study
from foredraft.plan.candidate import Candidate
from foredraft.plan.study import Study, StudyDraft, pool, study_of
from foredraft.records import Estimate, HeldOutPrediction, Machine, Observation

DIALS = {"lm": ("draft_params", "draft_tokens"), "head": ("draft_layers", "draft_tokens")}
DRAWS = 2000


def predicted(
    studies: Mapping[str, Study | None], machine: Machine, observations: Sequence[Observation], temperature: float
) -> list[HeldOutPrediction]:
    """Of language models the largest and those of the most tokens, of heads the deepest and those of the most tokens.

    `studies`: of `observations` at `temperature`, by role.
    """
    predictions = []
    for role, study in studies.items():
        if study is not None:
            rows, held_out = without_largest(pool(study.target, observations, temperature, role), DIALS[role])
            predictions += predicted_from(rows, study, machine, role) if held_out else []
    return predictions


def predicted_from(rows: Sequence[Observation], study: Study, machine: Machine, role: str) -> list[HeldOutPrediction]:
    """The drafts of `study` that `rows`, a part of its own, know nothing of, as far as the laws on `rows` speak of them."""
    smaller = study_of(study.target, rows, study.temperature, role)
    if smaller is None:
        return []
    names = {draft.name for draft in smaller.drafts}
    unseen = [draft for draft in study.drafts if draft.name not in names]
    return [_prediction(draft, candidate, role) for draft, candidate in _weighed(smaller, machine, unseen)]


def _weighed(study: Study, machine: Machine, drafts: Sequence[StudyDraft]) -> Iterator[tuple[StudyDraft, Candidate]]:
    """Those that the study's laws speak of, as the planner would weigh them."""
    for draft in drafts:
        if draft.kind.role == "head":
            weighed = from_study.heads_like(study, machine, draft)
        else:
            weighed = from_study.models_like(study, machine, [(draft.shape, draft.tokens)]) if study.size_law else []
        yield from ((draft, candidate) for candidate in weighed)


def _prediction(draft: StudyDraft, candidate: Candidate, role: str) -> HeldOutPrediction:
    lookahead = max(draft.curve)
    accept = candidate.acceptance.draws(DRAWS, np.random.default_rng(0), frozenset())[:, :lookahead]
    taus = 1 + np.cumprod(accept, axis=1).sum(axis=1)
    low, middle, high = np.quantile(taus, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2]).tolist()
    estimate = Estimate(value=middle, low=low, high=high, level=LEVEL, unit="tokens/step", source="own study")
    return HeldOutPrediction(
        draft=draft.name, kind=role, lookahead=lookahead, predicted=estimate, measured=float(draft.curve[lookahead])
    )
