"""What is planned where gains are nearly equal: the cheaper, and the rival named; the search's sifts leave out nothing that could win."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
import pytest

from foredraft.machines import machine
from foredraft.plan import search
from foredraft.plan.candidates import Basis, candidates
from foredraft.plan.outcome import Pairs, SimulatedOutcome, tokens_per_step
from foredraft.plan.problem import Mode, PlanSettings, Problem
from foredraft.plan.search import Scored, finer, ordered, rank, score
from foredraft.plan.ties import AHEAD, SAME_GAIN, cheapest, rival
from foredraft.plan.trees import grown, static, tokens_per_step_in
from foredraft.records import Workload
from foredraft.shapes import shape

SMALL, H100 = shape("Llama-3.1-8B"), machine("H100")
WORKLOAD = Workload(input_len=512, output_len=256, concurrency=(1, 16, 64))
PROBLEM = Problem(SMALL, H100, WORKLOAD, PlanSettings(draws=1024))
WEIGHED, _ = candidates(Basis(SMALL, H100, (), 0.0))
HEAD = next(each for each in WEIGHED if each.choice.kind == "head" and each.choice.training_flops > 0)
LOOKUP = next(each for each in WEIGHED if each.choice.kind == "lookup")


def scored(candidate, gains, **choice: Any) -> Scored:
    """A candidate of these draws of its gain; the rest does not matter here."""
    if choice:
        candidate = replace(candidate, choice=msgspec.structs.replace(candidate.choice, **choice))
    gains = np.asarray(gains, dtype=float)
    blank = SimulatedOutcome(*([np.ones((1, len(gains)))] * len(SimulatedOutcome._fields)))
    near = Pairs.each([Mode(1, 1, 1)])
    return Scored(candidate, float(gains.mean()), (Mode(1, 1, 1),), 0.0, blank, gains, near, gains)


# Ties.


def test_the_cheaper_wins_within_the_scatter_of_a_run_and_not_beyond():
    dear, cheap = scored(HEAD, [0.5]), scored(LOOKUP, [0.5 - 0.9 * SAME_GAIN])
    assert cheapest([dear, cheap]) is cheap
    assert ordered([dear, cheap]) == [cheap, dear]
    behind = scored(LOOKUP, [0.5 - 1.1 * SAME_GAIN])
    assert cheapest([dear, behind]) is dear


def test_nothing_is_cheaper_than_lookup_and_less_training_than_more():
    nothing, lookup = scored(None, [0.0]), scored(LOOKUP, [0.5 * SAME_GAIN])
    assert cheapest([lookup, nothing]) is nothing
    little = scored(HEAD, [0.5], training_gpu_hours=1.0)
    much = scored(HEAD, [0.5 + 0.5 * SAME_GAIN], training_gpu_hours=2.0)
    assert cheapest([much, little]) is little


def test_a_draft_alone_is_cheaper_than_the_same_behind_a_look_up():
    alone, behind = scored(HEAD, [0.5]), scored(HEAD, [0.5 + 0.9 * SAME_GAIN], lookup_min_match=3)
    assert cheapest([behind, alone]) is alone
    ahead = scored(HEAD, [0.5 + 1.1 * SAME_GAIN], lookup_min_match=3)
    assert cheapest([alone, ahead]) is ahead


def test_a_rival_is_ahead_in_more_than_one_draw_of_five():
    best = scored(HEAD, np.full(10, 0.5))
    sometimes, seldom = (scored(LOOKUP, np.where(np.arange(10) < wins, 0.6, 0.2)) for wins in (3, round(10 * AHEAD)))
    close = rival([best, sometimes])
    assert close is not None
    assert close[0] is sometimes
    assert close[1:] == pytest.approx((0.3, 0.7))
    assert rival([best, seldom]) is None


def test_level_drafts_and_other_budgets_of_the_same_are_no_rivals():
    best = scored(HEAD, np.full(10, 0.5))
    assert rival([best, scored(LOOKUP, np.full(10, 0.5))]) is None
    assert rival([best, scored(HEAD, np.full(10, 0.9), training_gpu_hours=1e4)]) is None


# The search.


def test_what_is_planned_and_shown_is_the_mean_of_the_draws():
    ranked, _ = rank(PROBLEM, WEIGHED)
    for each in ranked:
        assert each.gain == pytest.approx(float((PROBLEM.weights @ each.outcome.lift).mean()))
        assert each.gain <= ranked[0].gain + SAME_GAIN
    gains = [each.gain for each in ranked[1:] if len(each.gains) == len(ranked[0].gains)]
    assert gains == sorted(gains, reverse=True)


def test_sifting_leaves_out_nothing_that_could_win():
    """Every candidate in every mode under all draws: the best of them is the one that sifting finds, within what it may cost."""
    ranked, _ = rank(PROBLEM, WEIGHED)
    everything = [search.weigh(PROBLEM, candidate, None) for candidate in WEIGHED]
    assert cheapest([*everything, score(PROBLEM, None)]).candidate is ranked[0].candidate
    best = max(everything, key=lambda each: each.gain)
    assert max(each.gain for each in ranked) == pytest.approx(best.gain, abs=1e-9)
    assert next(each.modes for each in ranked if each.candidate is best.candidate) == best.modes


def test_finer_draws_keep_the_mean():
    best = score(PROBLEM, HEAD)
    many = finer(PROBLEM, best, 4)
    assert many.gains.size == 4 * best.gains.size
    assert many.gain == pytest.approx(best.gain, abs=2e-3)
    assert many.gains[::4] == pytest.approx(best.gains)


def test_no_speculation_gains_nothing_in_any_draw():
    assert score(PROBLEM, None).gains == pytest.approx(np.zeros(1024))


# Trees.


def test_a_static_tree_under_its_own_acceptance_is_the_grown_one():
    accept = np.array([0.6, 0.5, 0.45])
    tree = static(accept, 4, 1.5, 12)
    shallow = static(accept[:2], 2, 1.5, 4)
    taus, of_shallow = tokens_per_step_in([tree, shallow], np.tile(accept, (2, 1)), np.full(2, 1.5))
    assert of_shallow[:, 1] == pytest.approx(shallow.tokens_per_step)
    assert taus[[3, 7, 12], 0] == pytest.approx(grown(accept, 4, 1.5, [3, 7, 12]))
    assert taus[0] == pytest.approx(1.0)


def test_a_tree_chosen_at_the_mean_gains_no_more_than_one_chosen_for_each_draw():
    rng = np.random.default_rng(0)
    accept, tails = rng.uniform(0.3, 0.9, (16, 3)), np.full(16, 1.5)
    mode = Mode(3, 4, 15)
    (taus,) = tokens_per_step(accept, tails, 1.5, [mode])
    best = np.array([grown(row, 4, 1.5, [15])[0] for row in accept])
    assert (taus <= best + 1e-9).all()
    assert taus.mean() > 0.95 * best.mean()
    chains = tokens_per_step(accept, tails, 1.5, [Mode(0, 1, 0), Mode(2, 1, 2)])
    assert chains[0] == pytest.approx(1.0)
    assert chains[1] == pytest.approx(1 + accept[:, 0] + accept[:, 0] * accept[:, 1])
