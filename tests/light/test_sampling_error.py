"""What few prompts leave open: the stated sd is that of planted requests, and rows that say nothing of their size add nothing."""

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from given import given
from scipy.special import expit, logit

from foredraft import kinds
from foredraft.laws.sampling import ALIKE, sampling_sd
from foredraft.plan.levels import own_level
from foredraft.records import Observation, Provenance
from foredraft.shapes import shape

ACCEPT = np.array([0.5, 0.45, 0.4])
NUM_STEPS = 40
SCATTER = 0.53  # sd of requests' levels
TARGET = shape("Qwen3-8B")


def measured(rng: np.random.Generator, requests: int, **facts: Any) -> Observation:
    """A row as an engine counts it: requests differ in their level, so that steps of one correlate by about ALIKE."""
    levels = logit(ACCEPT) + rng.normal(0, SCATTER, (requests, 1, 1))
    taken = np.cumprod(rng.random((requests, NUM_STEPS, len(ACCEPT))) < expit(levels), axis=2)
    survival = tuple(taken.mean(axis=(0, 1)).tolist())
    return row(
        **{
            "survival": survival,
            "tokens_per_step": 1 + sum(survival),
            "num_requests": requests,
            "steps": requests * NUM_STEPS,
        }
        | facts
    )


def row(**facts: Any) -> Observation:
    return Observation(
        run="mine", target=TARGET.name, method="eagle3", provenance=Provenance(source="here"), draft="head", dataset="ours", temperature=0.0,
        lookahead=len(ACCEPT), **facts,
    )  # fmt: skip


def test_the_planted_steps_are_as_much_alike_as_is_taken():
    rng = np.random.default_rng(0)
    levels = logit(ACCEPT) + rng.normal(0, SCATTER, (4000, 1, 1))
    sums = np.cumprod(rng.random((4000, NUM_STEPS, 3)) < expit(levels), axis=2).sum(axis=2)
    between = sums.mean(axis=1).var() - sums.var(axis=1).mean() / NUM_STEPS
    assert between / sums.var() == pytest.approx(ALIKE, rel=0.25)


@pytest.mark.parametrize("requests", [4, 28])
def test_the_interval_of_a_draft_from_few_prompts_holds_what_many_measure(requests: int):
    """40 drafts from rows of so many requests: 9 in 10 of their 90 % intervals hold the true τ. Fewer than 30 of 40: 1.5 in 1,000, were each
    90 %; the seed is fixed. Without the sampling about a tenth hold it.
    """
    rng, holds = np.random.default_rng(1), 0
    many = measured(rng, 4000)
    for _ in range(40):
        few = measured(rng, requests)
        basis: Any = SimpleNamespace(
            target=TARGET, observations=(few,), temperature=0.0, task=None, lengths=None, without=frozenset()
        )
        level = given(own_level(basis, kinds.EAGLE3, lambda row: True))
        tau = 1 + np.cumprod(level.acceptance.draws(400, rng, frozenset()), axis=1)[:, :3].sum(axis=1)
        low, high = np.quantile(tau, [0.05, 0.95])
        holds += bool(low <= given(many.tokens_per_step) <= high)
    assert holds >= 30


def test_rows_of_one_data_set_are_of_the_same_prompts_and_those_of_two_are_not():
    one_set = [row(num_requests=10, steps=400), row(num_requests=10, steps=380), row(num_requests=5, steps=100)]
    other = msgspec.structs.replace(one_set[0], dataset="theirs")
    alone = sampling_sd(one_set[:1], ACCEPT)
    assert sampling_sd(one_set, ACCEPT) == alone
    assert sampling_sd([*one_set, other], ACCEPT) == pytest.approx(alone / 2**0.5)


def test_what_is_not_said_is_taken_as_usual_or_not_at_all():
    assert sampling_sd([row()], ACCEPT) == 0.0
    counted = sampling_sd([row(num_requests=10, steps=400)], ACCEPT)
    assert sampling_sd([row(num_requests=10)], ACCEPT) == pytest.approx(counted)  # 40 steps a request
    assert sampling_sd([row(steps=400)], ACCEPT) == pytest.approx(counted)
    assert sampling_sd([row(num_requests=1000)], ACCEPT) < counted / 5
