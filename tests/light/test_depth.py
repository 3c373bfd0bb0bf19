"""The law in layers: what more of them bring, by how a draft drafts."""

from typing import Any

import numpy as np
import pytest

from foredraft import kinds
from foredraft.laws import depth
from foredraft.laws.depth import DepthSeries, depth_gain, gain_draws, rise
from foredraft.laws.series import dial_series
from foredraft.records import Observation, Provenance

SOURCE = Provenance(source="test")


def width(draws: np.ndarray) -> float:
    low, high = np.log(np.quantile(draws, (0.05, 0.95)))
    return float(high - low)


def own(layers: int, tau: float, **fields: Any) -> Observation:
    base: dict[str, Any] = {
        "run": f"l{layers}",
        "target": "T",
        "method": "eagle3",
        "lookahead": 5,
        "provenance": SOURCE,
    }
    return Observation(**base | {"draft_layers": layers, "tokens_per_step": tau} | fields)


def test_rise_is_one_at_the_first_doubling_and_log2_where_nothing_saturates() -> None:
    for saturation in depth.SATURATIONS:
        np.testing.assert_allclose(rise([1, 2], saturation), [0, 1], atol=1e-12)
    np.testing.assert_allclose(rise([4, 8], 0.0), [2, 3])
    np.testing.assert_allclose(rise([4, 8], 1e-9), [2, 3], rtol=1e-6)
    assert rise(8, 2.0) < 4 / 3


def test_the_reference_depth_gains_nothing_and_draws_are_the_same_each_time() -> None:
    assert (depth_gain(kinds.EAGLE3, 2, reference=2) == 1).all()
    assert (depth_gain(kinds.EAGLE3, 4) == depth_gain(kinds.EAGLE3, 4)).all()
    with pytest.raises(ValueError, match="layers must be at least 1, got 0: give a depth"):
        depth_gain(kinds.EAGLE3, 0)


def test_a_seed_orders_the_draws_and_nothing_else() -> None:
    first, second = depth_gain(kinds.EAGLE3, 2, seed=0), depth_gain(kinds.EAGLE3, 2, seed=1)
    assert (first != second).any()
    np.testing.assert_array_equal(np.sort(first), np.sort(second))


def test_ways_of_drafting_differ_and_an_unseen_architecture_is_least_certain() -> None:
    token, block, unseen = (
        depth_gain(kind, 2)
        for kind in (kinds.EAGLE3, kinds.of_method("dflash"), kinds.Kind("new", "new", "head", {"new": "new"}))
    )
    assert 1.02 < np.median(token) < np.median(block)
    assert width(unseen) > width(token)


def test_own_runs_take_the_law_to_themselves() -> None:
    """Planted a = 0.3, b = 0: three depths of one's own pull the fourth there, and narrow it; without them it is the published series'."""
    taus = {layers: 1 + 2.0 * np.exp(0.3 * np.log2(layers)) for layers in (1, 2, 4)}
    rows = [own(layers, tau) for layers, tau in taus.items()]
    before, after = depth_gain(kinds.EAGLE3, 8), depth_gain(kinds.EAGLE3, 8, rows)
    assert np.quantile(after, 0.05) < np.exp(0.9) < np.quantile(after, 0.95)
    assert np.median(before) < np.median(after)
    assert width(after) < width(before)


def test_own_rows_of_other_settings_are_no_series() -> None:
    rows = [own(1, 3.0), own(2, 3.5, dataset="other"), own(2, 3.5, method="draft_model")]
    assert not depth.own_series(kinds.EAGLE3, rows)
    (series,) = depth.own_series(kinds.EAGLE3, [*rows, own(2, 3.2), own(2, 3.4)])
    assert series.layers == (1.0, 2.0)
    assert series.tokens_per_step == pytest.approx((3.0, 3.3))


def test_planted_series_teach_their_mean_and_spread() -> None:
    """Of 40 series with slopes of mean 0.2 and sd 0.1 the interval of a further one covers 80 to 97 % (200 drawn, seed 3; false alarm < 0.1 %)."""
    rng = np.random.default_rng(3)
    layers = (1.0, 2.0, 4.0)

    def series(slope: float) -> DepthSeries:
        log = slope * np.log2(layers) + rng.normal(0, depth.NOISE, 3)
        return DepthSeries(layers, tuple((1 + 2 * np.exp(log)).tolist()))

    taught = [series(slope) for slope in rng.normal(0.2, 0.1, 40)]
    draws = gain_draws([taught], 2, 1)
    low, high = np.quantile(draws, (0.05, 0.95))
    covered = np.mean([low <= np.exp(slope) <= high for slope in rng.normal(0.2, 0.1, 200)])
    assert 0.8 < covered < 0.97
    narrow = gain_draws([[series(0.2) for _ in range(40)]], 2, 1)
    assert width(narrow) < 0.5 * width(draws)


def test_published_documents_left_out_are_covered() -> None:
    """Six documents, each predicted from the others of its way of drafting: at most one of their gains outside 90 %."""
    missed = []
    for series in dial_series("draft_layers"):
        draws = gain_draws([depth.published_series(series.passes, series.source)], series.at[-1], series.at[0])
        gain = (series.tokens_per_step[-1] - 1) / (series.tokens_per_step[0] - 1)
        low, high = np.quantile(draws, (0.05, 0.95))
        missed += [series.name] * (not low <= gain <= high)
    assert len(missed) <= 1
