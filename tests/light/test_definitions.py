"""Definitions of acceptance: worked by hand, there and back, and what cannot be had is refused with the reason."""

import re

import pytest

from foredraft.laws.speedup import accept_prob_from_rate, tokens_per_step_constant
from foredraft.measure.definitions import (
    TOOLS,
    AcceptanceRate,
    AcceptProb,
    ByPosition,
    Counters,
    Requests,
    Speedup,
    TokensPerStep,
    comparable,
    rate_of,
    rate_of_steps,
    read_as,
)


def test_the_bonus_token_is_one_in_every_step():
    tau = TokensPerStep(value=2.62)
    assert tau.with_bonus(False).value == pytest.approx(1.62)
    assert tau.with_bonus(False).with_bonus() == tau
    with pytest.raises(ValueError, match=r"less than the bonus token"):
        TokensPerStep(value=0.8)
    assert TokensPerStep(value=0.8, bonus=False).with_bonus().value == pytest.approx(1.8)


def test_poolings_differ_on_the_same_data_and_only_counts_lead_from_one_to_the_other():
    """A long request that drafts badly and a short one that drafts well: 90 + 20 tokens in 60 + 5 steps."""
    both = Requests(steps=(60, 5), tokens=(90, 20))
    assert both.tokens_per_step().value == pytest.approx(110 / 65)
    assert both.tokens_per_step("requests").value == pytest.approx((1.5 + 4) / 2)
    mean = both.tokens_per_step("requests")
    with pytest.raises(ValueError, match=r"pooled over requests, not over steps.*of each request are needed"):
        mean.pooled("steps")
    with pytest.raises(ValueError, match=r"does not say its pooling"):
        read_as("EAGLE tau", 4.0).pooled("steps")
    assert mean.pooled("requests") is mean


@pytest.mark.parametrize(
    ("conditional", "joint", "tau"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.25, 0.125), 1.875),
        ((0.8, 0.75, 0.5), (0.8, 0.6, 0.3), 2.7),
        ((1.0, 0.0), (1.0, 0.0), 2.0),
    ],
)
def test_joint_and_conditional_by_position(conditional, joint, tau):
    assert ByPosition(values=conditional, joint=False).as_joint().values == pytest.approx(joint)
    assert ByPosition(values=joint, joint=True).as_conditional().values == pytest.approx(conditional)
    assert ByPosition(values=conditional, joint=False).tokens_per_step().value == pytest.approx(tau)


def test_positions_that_say_nothing_or_the_impossible_are_refused():
    with pytest.raises(ValueError, match=r"nothing was accepted at position 1"):
        ByPosition(values=(0.0, 0.0), joint=True).as_conditional()
    with pytest.raises(ValueError, match=r"rise with position"):
        ByPosition(values=(0.5, 0.6), joint=True)


@pytest.mark.parametrize(
    ("alpha", "lookahead", "rate"),
    [(0.5, 1, 0.5), (0.5, 2, 0.375), (0.8, 3, (0.8 + 0.64 + 0.512) / 3), (0.0, 4, 0.0), (1.0, 4, 1.0)],
)
def test_accepted_over_drafted_is_not_alpha(alpha, lookahead, rate):
    """Σ α^i / k by hand, and solved back."""
    assert rate_of(alpha, lookahead).value == pytest.approx(rate)
    assert AcceptanceRate(value=rate, lookahead=lookahead).accept_prob() == pytest.approx(alpha, abs=1e-12)


@pytest.mark.parametrize("rate", [0.05, 0.3, 0.62, 0.97])
@pytest.mark.parametrize("lookahead", [1, 3, 8])
def test_alpha_from_a_rate_is_that_of_the_laws(rate, lookahead):
    """Two solvers, written apart since measuring must not know the laws."""
    given = AcceptanceRate(value=rate, lookahead=lookahead)
    assert given.accept_prob() == pytest.approx(float(accept_prob_from_rate(rate, lookahead)), abs=1e-9)
    assert given.tokens_per_step().value == pytest.approx(
        float(tokens_per_step_constant(given.accept_prob(), lookahead)), abs=1e-9
    )


def test_a_rate_behind_tokens_per_step():
    assert rate_of_steps(TokensPerStep(value=2.5), 3).value == pytest.approx(0.5)
    assert rate_of_steps(TokensPerStep(value=1.5, bonus=False), 3).value == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"exceed lookahead 3"):
        rate_of_steps(TokensPerStep(value=4.5), 3)
    with pytest.raises(ValueError, match=r"not over steps"):
        rate_of_steps(TokensPerStep(value=2.5, pooling="requests"), 3)


def test_running_totals_are_differenced():
    """100 steps at τ = 2 before, 50 at τ = 3 in the load: the totals say 2.33, the load 3."""
    before = Counters(steps=100, drafted=300, accepted=100, by_position=(70, 20, 10))
    after = Counters(steps=150, drafted=450, accepted=200, by_position=(115, 55, 30))
    load = after.since(before)
    assert after.tokens_per_step().value == pytest.approx(7 / 3)
    assert load.tokens_per_step().value == pytest.approx(3.0)
    assert load.rate(3).value == pytest.approx(2 / 3)
    assert load.by_positions().values == pytest.approx((0.9, 0.7, 0.4))
    assert load.by_positions().tokens_per_step().value == pytest.approx(3.0)
    with pytest.raises(ValueError, match=r"steps fell.*started anew"):
        before.since(after)
    with pytest.raises(ValueError, match=r"steps is 0"):
        after.since(after).tokens_per_step()


def test_one_alpha_never_stands_for_another():
    greedy = AcceptProb(value=0.7, kind="greedy")
    assert greedy.of_kind("greedy") is greedy
    with pytest.raises(ValueError, match=r"α is greedy, not sampled"):
        greedy.of_kind("sampled")


FAST = Speedup(value=1.19, of="throughput", mean="ratio of means", prefill=True)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (
            [TokensPerStep(value=2.62), TokensPerStep(value=3.22, pooling="requests")],
            r"pooling differs \(requests, steps\)",
        ),
        ([TokensPerStep(value=2.0, pooling=None)] * 2, r"pooling is not stated"),
        ([AcceptProb(value=0.5, kind="point"), AcceptProb(value=0.5, kind="sampled")], r"kind differs"),
        (
            [FAST, Speedup(value=0.77, of="tpot", mean="ratio of means", prefill=False)],
            r"of differs \(throughput, tpot\)",
        ),
        ([FAST, Speedup(value=1.3, of="throughput", mean="mean of ratios", prefill=True)], r"short answers weigh more"),
        ([FAST, TokensPerStep(value=2.0)], r"Speedup and TokensPerStep are different things"),
    ],
)
def test_what_may_not_be_mixed_is_refused_with_the_reason(values, reason):
    with pytest.raises(ValueError, match=reason):
        comparable(values)


def test_what_converts_may_be_mixed():
    comparable([TokensPerStep(value=2.0), TokensPerStep(value=1.0, bonus=False)])
    comparable([FAST, FAST])
    comparable([])


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tools_figure_has_a_definition(tool):
    """At 2 accepted tokens a step: those that count the bonus say 3."""
    figure = 3.0 if TOOLS[tool][0] else 2.0
    assert read_as(tool, figure).with_bonus().value == 3.0


def test_an_unknown_tool_is_refused():
    with pytest.raises(ValueError, match=re.escape("tool must be one of foredraft tokens per step")):
        read_as("mine", 1.0)
    with pytest.raises(ValueError, match="prefill must be false for tpot"):
        Speedup(value=1.0, of="tpot", mean="ratio of means", prefill=True)
