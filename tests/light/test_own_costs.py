"""The law of own rows: follows a straight line in k where rows show one, the cost law where none do, and the rows' own levels."""

import numpy as np
import pytest

from foredraft.laws.calibration import CostRow
from foredraft.laws.cost import ServerCost
from foredraft.laws.deviation import Cells, deviation, slowdown
from foredraft.laws.own_costs import MOST_CELLS, RUN_NOISE, Measured, own_costs
from foredraft.validate.servers import _guessed

PLAIN, DRAFTED = _guessed("head", {1: 100.0, 64: 1600.0}, (100.0, 200.0))
TAU = {1: 1.7, 2: 2.2, 3: 2.5, 4: 2.7, 6: 2.9}
LOADS = (1, 4, 16, 64)


def measured(load: float, k: int, speed: float, *, draft="head", run=None) -> Measured:
    server: ServerCost = DRAFTED if k else PLAIN
    return Measured(server, PLAIN, CostRow(load, k, TAU.get(k, 1.0), speed), draft if k else None, run)


def lined(load: float, k: int) -> float:
    """Tokens/s of a server whose steps are a straight line in k, unlike any modelled: 30 ms at k = 0, then 5 ms more and 3 ms a token."""
    step_s = (0.030 + (0.005 + 0.003 * k if k else 0.0)) * (1 + load / 32)
    return load * TAU.get(k, 1.0) / step_s


KNOWN = [measured(n, k, lined(n, k)) for n in LOADS for k in (0, 1, 2)]


def test_a_straight_line_in_k_is_followed_beyond_the_rows():
    costs = own_costs(KNOWN, prior_width=3.0)
    larger = [(n, k) for n in LOADS for k in (3, 4, 6)]
    speeds, sds = costs.output_tok_s([measured(n, k, 1.0) for n, k in larger])
    truth = np.array([lined(n, k) for n, k in larger])
    assert np.abs(speeds / truth - 1).mean() < 0.05
    assert (np.abs(np.log(speeds / truth)) < 3 * sds).all()
    assert costs.num_rows == 12
    assert costs.loads == (1, 64)


def test_plain_speeds_are_the_rows_own_within_five_percent():
    """Levels that no server has, saturating at 16 clients: SpecForge's mixture of experts on two H100."""
    speeds = {1: 222.5, 4: 566.2, 8: 733.6, 16: 1013.0, 32: 1077.6, 64: 1073.7}
    costs = own_costs([measured(n, 0, speed) for n, speed in speeds.items()], prior_width=3.0)
    fitted, sds = costs.output_tok_s([measured(n, 0, 1.0) for n in speeds])
    assert fitted == pytest.approx(list(speeds.values()), rel=0.05)
    assert (sds < 0.05).all()
    between = costs.output_tok_s([measured(24, 0, 1.0)])[0]
    assert 1013 < between < 1150
    far_sd = costs.output_tok_s([measured(512, 0, 1.0)])[1]
    assert far_sd > 2 * sds.max()


def test_repeats_count_once_and_tell_the_noise():
    rng = np.random.default_rng(0)
    noisy = [
        row._replace(row=row.row._replace(output_tok_s=row.row.output_tok_s * np.exp(0.05 * rng.standard_normal())))
        for row in KNOWN * 40
    ]
    costs = own_costs(noisy, prior_width=3.0)
    assert costs.num_rows == 480
    assert costs.noise == pytest.approx(0.05, rel=0.15)
    assert own_costs(KNOWN, prior_width=3.0).noise == RUN_NOISE
    means = costs.output_tok_s(KNOWN)[0]
    assert means == pytest.approx([row.row.output_tok_s for row in KNOWN], rel=0.08)


def test_without_rows_there_is_no_law():
    with pytest.raises(ValueError, match="at least one"):
        own_costs([])


def test_more_loads_than_cells_are_averaged():
    loads = np.linspace(1, 64, 3 * MOST_CELLS)
    costs = own_costs([measured(n, 0, lined(n, 0)) for n in loads], prior_width=3.0)
    assert len(costs.deviation.load) <= MOST_CELLS
    assert costs.error < 0.02


# The deviation alone: ratios of measured to modelled steps.


def cells(ratio: float, share: float, *, loads=(1.0, 2.0, 4.0), draft: str | None = "a") -> Cells:
    return Cells(np.array(loads), np.full(len(loads), share), np.full(len(loads), ratio), [draft] * len(loads))


def at(found, load: float, share: float, draft: str | None = "a") -> float:
    return float(slowdown(found.mean(np.array([load]), draft), np.array([share]))[0])


def test_a_deviation_is_followed_near_and_forgotten_far_away():
    found = deviation(cells(1.3, 0.7), 0.01)
    assert at(found, 2.0, 0.7) == pytest.approx(1.3, abs=0.02)
    assert 1.0 <= at(found, 2.0**40, 0.7) < 1.01
    assert 1.0 < at(found, 2.0**6, 0.7) < 1.3


def test_another_draft_shares_part_of_it_and_plain_decoding_the_level():
    found = deviation(cells(1.3, 0.7), 0.01)
    assert 1.0 < at(found, 2.0, 0.7, "b") < at(found, 2.0, 0.7, "a")
    assert 1.0 < at(found, 2.0, np.nan, None) < at(found, 2.0, 0.7, "b")


def test_plain_rows_alone_say_nothing_certain_of_drafted_ones():
    found = deviation(cells(1.3, np.nan, draft=None), 0.01)
    sd = [
        float(found.sd(found.covariance(np.array([2.0]), "a"), np.array([0]), np.array([share]))[0])
        for share in (np.nan, 0.7)
    ]
    assert sd[0] < 0.02 < sd[1]


def test_draws_have_the_mean_and_the_spread_of_the_posterior():
    found = deviation(cells(1.3, 0.7), 0.01)
    loads = np.array([2.0, 64.0])
    draws = found.draws(loads, "a", 4000, np.random.default_rng(0))
    assert draws.mean(axis=1) == pytest.approx(found.mean(loads, "a"), abs=0.02)
    spread = np.cov(draws.transpose(1, 0, 2).reshape(4000, 6).T)
    assert spread == pytest.approx(found.covariance(loads, "a"), abs=0.01)


def test_a_table_far_off_widens_the_prior():
    assert deviation(cells(1.02, 0.7), 0.01).prior_sd[0] < deviation(cells(3.0, np.nan), 0.01).prior_sd[0]
