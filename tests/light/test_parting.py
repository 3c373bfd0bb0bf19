"""Where our best draft size and SDSL's part: each cause by itself."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from foredraft import shapes
from foredraft.plan import parting, sdsl
from foredraft.plan.parting import CAUSES, COSTS, PairAcceptance, PartingCase, shares
from foredraft.records import Fit

GAP = Fit(
    law="accept_gap[hoffmann_rounded]", formula="", output="accept_prob", parameters={"c0": -0.46, "c1": 0.31}, draws=((-0.46, 0.31), (-0.5, 0.33)),
    domain={}, num_observations=9, num_clusters=3, residual_sd=0.1,
)  # fmt: skip
EVERY = frozenset(CAUSES)


@pytest.fixture(scope="module")
def case() -> PartingCase:
    return PartingCase(PairAcceptance(shapes.shape("OPT-13B"), (GAP,)), "A100-SXM-80GB")


@pytest.fixture(scope="module")
def parted(case: PartingCase) -> dict[str, Any]:
    return parting.part(case)


def test_with_no_cause_switched_it_is_sdsl(parted: dict) -> None:
    """Whole lookaheads and models in whole layers: within 5 % of the optimum over real numbers."""
    assert parted["sdsl"] == pytest.approx(
        sdsl.optimal_draft(float(shapes.shape("OPT-13B").params)).draft_params, rel=0.05
    )


def test_shares_multiply_to_the_whole_and_are_of_no_order(parted: dict) -> None:
    assert math.prod(parted["share"].values()) == pytest.approx(parted["ours"] / parted["sdsl"])
    added = {"a": 0.5, "b": -0.2, "c": 0.0}
    value = {
        frozenset(of): sum(added[name] for name in of) for n in range(4) for of in itertools.combinations(added, n)
    }
    assert shares(value, list(added)) == pytest.approx(added)
    only_together = {of: float({"a", "b"} <= of) for of in value}
    assert shares(only_together, list(added)) == pytest.approx({"a": 0.5, "b": 0.5, "c": 0.0})


def test_flops_know_no_batch_and_costs_no_acceptance(case: PartingCase, parted: dict) -> None:
    np.testing.assert_allclose(case.by_cause[frozenset({"batch"})], case.by_cause[frozenset()], rtol=1e-12)
    assert parted["alone"]["batch"] == pytest.approx(1)
    assert not np.allclose(case.by_cause[frozenset({"batch", "bandwidth"})], case.by_cause[frozenset({"bandwidth"})])
    for on in ({"bandwidth"}, set(COSTS)):
        np.testing.assert_allclose(
            case.gains(frozenset(on)) * case.by_cause[frozenset(on)], case.accepted.by_cause[frozenset()]
        )


def test_fixed_costs_favour_smaller_drafts_and_ours_is_best_by_our_laws(parted: dict) -> None:
    assert parted["alone"]["fixed costs"] < 1
    assert parted["gain"] >= parted["gain_at_sdsl"]
    assert parted["low"] <= parted["ours"] <= parted["high"]


def test_a_target_that_fits_nowhere_is_refused() -> None:
    case = PartingCase(PairAcceptance(shapes.shape("Qwen1.5-110B"), (GAP,)), "L4-24GB")
    with pytest.raises(ValueError, match="devices"):
        case.by_cause  # noqa: B018
