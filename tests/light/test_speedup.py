"""The combinatorics of speculative decoding against full enumeration, brute force and published numbers."""

import itertools
from fractions import Fraction

import numpy as np
import pytest
from scipy.special import lambertw

from foredraft.laws import speedup as law


def random_fraction(rng, denominator=12):
    return Fraction(int(rng.integers(0, denominator + 1)), denominator)


def chain(accept):
    return law.tokens_per_step_from_survival(law.survival(accept))


def enumerate_chain(accept, bonus=1):
    """Expected tokens over all accept/reject outcomes of a chain, counting the accepted head plus the bonus token."""
    total = Fraction(0)
    for outcome in itertools.product([True, False], repeat=len(accept)):
        weight = Fraction(1)
        for yes, alpha in zip(outcome, accept, strict=True):
            weight *= alpha if yes else 1 - alpha
        total += weight * (len(list(itertools.takewhile(bool, outcome))) + bonus)
    return total


def tree_outcomes(parents, accept, node=-1):
    """Every outcome below `node` as (probability, tokens): the target picks one child and goes on, or none."""
    children = [child for child, parent in enumerate(parents) if parent == node]
    yield 1 - sum(accept[child] for child in children), 1
    for child in children:
        for weight, tokens in tree_outcomes(parents, accept, child):
            yield accept[child] * weight, 1 + tokens


def tokens_by_rank(parents, table, ranks):
    """τ of a tree whose nodes are accepted as their depth and rank say, over all its outcomes."""
    accept = table[law.node_depths(parents), ranks]
    outcomes = list(tree_outcomes(parents, accept))
    assert sum(weight for weight, _ in outcomes) == pytest.approx(1)
    return sum(weight * tokens for weight, tokens in outcomes)


@pytest.mark.parametrize("lookahead", range(6))
def test_chain_equals_enumeration_exactly(lookahead):
    rng = np.random.default_rng(lookahead)
    for _ in range(5):
        accept = [random_fraction(rng) for _ in range(lookahead)]
        tokens = chain(np.array(accept, dtype=object))
        assert tokens == enumerate_chain(accept)
        assert tokens != enumerate_chain(accept, bonus=0)


def test_chain_batches_and_agrees_with_constant():
    accept = np.array([0.0, 0.3, 0.85, 1.0])
    for lookahead in range(9):
        steps = chain(np.repeat(accept[:, None], lookahead, axis=1))
        np.testing.assert_allclose(law.tokens_per_step_constant(accept, lookahead), steps, rtol=1e-14)


def test_constant_is_stable_near_one():
    exact = float(sum(Fraction(1 - 1e-13) ** i for i in range(8)))
    assert law.tokens_per_step_constant(1 - 1e-13, 7) == pytest.approx(exact, rel=1e-14)
    assert law.tokens_per_step_constant(1, 7) == 8
    assert law.tokens_per_step_constant(0.7, 2.5) == pytest.approx((1 - 0.7**3.5) / 0.3, rel=1e-14)


def all_trees(nodes, depth, topk):
    """Every tree of `nodes` nodes as (parents, ranks), node sets grown one child at a time; small cases only."""
    visited = set()

    def grow(paths):
        if len(paths) == nodes:
            visited.add(frozenset(paths))
            return
        for above in [(), *paths]:
            for rank in range(topk):
                if len(above) < depth and (*above, rank) not in paths:
                    grow(paths | {(*above, rank)})

    grow(frozenset())
    for tree in visited:
        paths = sorted(tree, key=lambda path: (len(path), path))
        yield [paths.index(path[:-1]) if len(path) > 1 else -1 for path in paths], [path[-1] for path in paths]


@pytest.mark.parametrize("seed", range(8))
def test_best_tree_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    table = rng.dirichlet([3, 2, 1, 1], size=3)[:, :3]  # not sorted by rank: a measured table need not be
    table[rng.random(table.shape) < 0.15] = 0
    best = law.best_tree(table, 4)
    for nodes in range(5):
        trees = all_trees(nodes, 3, 3)
        brute = max(tokens_by_rank(parents, table, ranks) for parents, ranks in trees)
        assert best.tokens_per_step[nodes] == pytest.approx(brute, rel=1e-13)
    again = tokens_by_rank(best.parents.tolist(), table, best.ranks.tolist())
    assert again == pytest.approx(best.tokens_per_step[-1], rel=1e-13)


def test_best_tree_curve_is_nested_concave_and_within_limits():
    table = law.rank_acceptance(np.full(8, 0.7), 10, 0.6)
    best = law.best_tree(table, 60)
    gains = np.diff(best.tokens_per_step)
    assert best.tokens_per_step.shape == (61,)
    assert np.all(gains > 0)
    assert np.all(np.diff(gains) <= 1e-13)
    smaller = law.best_tree(table, 20)
    np.testing.assert_array_equal(best.parents[:20], smaller.parents)
    chain = law.best_tree(table, 6, topk=1)
    assert chain.tokens_per_step[-1] == pytest.approx(law.tokens_per_step_constant(0.7, 6), rel=1e-13)
    flat = law.best_tree(table, 60, max_depth=1, topk=4)
    assert len(flat.parents) == 4
    assert flat.tokens_per_step[-1] == pytest.approx(1 + table[0, :4].sum(), rel=1e-13)
    assert law.best_tree([[0.0, 0.0]], 3).tokens_per_step.tolist() == [1, 1, 1, 1]


def test_rank_acceptance_covers_by_a_power_law_at_its_reference_and_by_as_many_tries_elsewhere():
    usual = law.TAIL_ACCEPT
    table = law.rank_acceptance(np.array([0.05, usual]), 6, 0.7)
    assert table.shape == (2, 6)
    np.testing.assert_allclose(table[:, 0], [0.05, usual])
    covered = table.cumsum(axis=1)
    np.testing.assert_allclose(covered[1], 1 - (1 - usual) * np.arange(1, 7) ** -0.7, rtol=1e-13)
    tries = np.log(1 - covered[1]) / np.log(1 - usual)
    np.testing.assert_allclose(covered[0], 1 - 0.95**tries, rtol=1e-13)
    assert covered[0, -1] < 3 * 0.05  # no draft that accepts next to nothing is saved by a tree
    assert law.rank_acceptance(0.6, 1, 0.7).tolist() == [0.6]
    np.testing.assert_allclose(law.rank_acceptance(0.6, 3, 0.0), [0.6, 0, 0], atol=1e-16)


def test_accept_prob_inverts_rate_and_tokens():
    rng = np.random.default_rng(3)
    alpha, lookahead = rng.random(50), rng.integers(1, 12, 50)
    rate = np.array([np.mean([a**i for i in range(1, g + 1)]) for a, g in zip(alpha, lookahead, strict=True)])
    np.testing.assert_allclose(law.accept_prob_from_rate(rate, lookahead), alpha, atol=1e-9)
    tokens = law.tokens_per_step_constant(alpha, lookahead)
    rates = law.rate_from_tokens_per_step(tokens, lookahead)
    np.testing.assert_allclose(law.accept_prob_from_rate(rates, lookahead), alpha, atol=1e-9)
    assert law.accept_prob_from_rate(0, 5) == 0
    assert law.accept_prob_from_rate(1, 5) == 1
    assert isinstance(law.accept_prob_from_rate(0.5, 5), float)


def test_converters_round_trip():
    accept = np.array([[0.9, 0.8, 0.5], [0.3, 0.2, 0.1]])
    joint = law.survival(accept)
    np.testing.assert_allclose(law.accept_given_prefix_from_survival(joint), accept, rtol=1e-14)
    tokens = law.tokens_per_step_from_survival(joint)
    np.testing.assert_allclose(tokens, chain(accept))
    np.testing.assert_allclose(law.tokens_per_step_from_rate(law.rate_from_tokens_per_step(tokens, 3), 3), tokens)
    unseen = law.accept_given_prefix_from_survival([0.5, 0.0, 0.0])
    assert unseen[:2].tolist() == [0.5, 0.0]
    assert np.isnan(unseen[2])


@pytest.mark.parametrize(
    ("conditional", "joint", "tau"),
    [
        ((0.5, 0.5, 0.5), (0.5, 0.25, 0.125), 1.875),
        ((0.8, 0.75, 0.5), (0.8, 0.6, 0.3), 2.7),
        ((1.0, 0.0), (1.0, 0.0), 2.0),
    ],
)
def test_joint_and_conditional_by_position(conditional, joint, tau):
    assert law.survival(conditional) == pytest.approx(joint)
    assert law.accept_given_prefix_from_survival(joint) == pytest.approx(conditional)
    assert law.tokens_per_step_from_survival(joint) == pytest.approx(tau)


@pytest.mark.parametrize(
    ("alpha", "lookahead", "rate"),
    [(0.5, 1, 0.5), (0.5, 2, 0.375), (0.8, 3, (0.8 + 0.64 + 0.512) / 3), (0.0, 4, 0.0), (1.0, 4, 1.0)],
)
def test_accepted_over_drafted_is_not_alpha(alpha, lookahead, rate):
    """Σ α^i / k by hand, and solved back."""
    assert law.rate_from_tokens_per_step(law.tokens_per_step_constant(alpha, lookahead), lookahead) == pytest.approx(
        rate
    )
    assert law.accept_prob_from_rate(rate, lookahead) == pytest.approx(alpha, abs=1e-9)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: chain([0.5, 1.2]), "accept_given_prefix must lie in"),
        (lambda: chain([0.5, np.nan]), "accept_given_prefix must lie in"),
        (lambda: law.tokens_per_step_constant(0.5, -1), "lookahead must lie in"),
        (lambda: law.best_tree([[0.9, 0.9]], 3), "adds to more than 1"),
        (lambda: law.best_tree([[0.9]], -1), "tree_nodes must not be negative"),
        (lambda: law.rank_acceptance(0.5, 0, 1), "topk must be at least 1"),
        (lambda: law.accept_prob_from_rate(1.1, 5), "rate must lie in"),
        (lambda: law.accept_prob_from_rate(0.5, 0), "lookahead must be positive"),
        (lambda: law.rate_from_tokens_per_step(7.0, 5), "must not exceed lookahead"),
        (lambda: law.rate_from_tokens_per_step(0.5, 5), "add 1 if the bonus token was left out"),
        (lambda: law.accept_given_prefix_from_survival([0.5, 0.6]), "survival must not rise"),
        (lambda: law.speedup_leviathan(0.5, 3, -0.1), "cost_ratio must lie in"),
        (lambda: law.tokens_per_flop(0.5, 3, 0, 1e9), "draft_params must be positive"),
    ],
)
def test_impossible_values_are_refused_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


# arXiv 2211.17192 Tables 2-4: alpha, gamma, c and the speedup the formula gives.
LEVIATHAN = [
    (0.75, 7, 0.02, 3.157), (0.80, 7, 0.04, 3.251), (0.82, 7, 0.11, 2.497), (0.62, 7, 0.02, 2.258),
    (0.68, 5, 0.04, 2.347), (0.71, 3, 0.11, 1.934), (0.65, 5, 0.02, 2.402), (0.73, 5, 0.04, 2.619),
    (0.74, 3, 0.11, 2.025), (0.53, 5, 0.02, 1.891), (0.55, 3, 0.04, 1.803), (0.56, 3, 0.11, 1.541),
]  # fmt: skip


def test_leviathan_tables():
    alpha, lookahead, cost, expected = np.array(LEVIATHAN).T
    np.testing.assert_allclose(law.speedup_leviathan(alpha, lookahead, cost), expected, atol=5.1e-4)
    forgot_bonus = law.speedup_leviathan(alpha, lookahead, cost) - 1 / (lookahead * cost + 1)
    assert np.all(np.abs(forgot_bonus - expected) > 0.1)


def test_tokens_per_flop_is_leviathan_speedup_over_plain_decoding():
    speed = law.tokens_per_flop(0.7, 5, 1e8, 1e10) * 2e10
    assert speed == pytest.approx(law.speedup_leviathan(0.7, 5, 0.01), rel=1e-14)


def test_optimal_lookahead_equals_brute_force():
    """Property over random α and r, from drafts that never pay to targets a million times the draft."""
    rng = np.random.default_rng(11)
    alpha, ratio = rng.uniform(0.02, 0.97, 400), 10 ** rng.uniform(-0.5, 6, 400)
    best = law.optimal_lookahead(alpha, ratio)
    grid = np.linspace(0, 1, 20001)[None, :] * (2 * best[:, None] + 2)
    best_lookahead = law.tokens_per_flop(alpha[:, None], grid, 1.0, ratio[:, None])
    brute = np.take_along_axis(grid, best_lookahead.argmax(axis=1)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(best, brute, atol=1.01 * grid[:, 1].max())
    assert np.all(law.tokens_per_flop(alpha, best, 1.0, ratio) >= best_lookahead.max(axis=1) * (1 - 1e-12))
    assert np.all(best[ratio <= 1] == 0)


def test_optimal_lookahead_equals_the_lambert_form_where_that_does_not_underflow():
    alpha, ratio = np.meshgrid(np.linspace(0.3, 0.99, 40), [20.0, 60.0, 250.0])
    branch = lambertw(-(alpha ** (ratio - 1)) / np.e, k=-1).real
    closed = np.maximum((1 + branch) / np.log(alpha) - ratio, 0)
    np.testing.assert_allclose(law.optimal_lookahead(alpha, ratio), closed, rtol=1e-8, atol=1e-8)


def test_optimal_lookahead_at_the_ends():
    assert law.optimal_lookahead(0.0, 100) == 0
    assert law.optimal_lookahead(1.0, 100) == np.inf
    assert law.optimal_lookahead(1.0, 1) == 0
    assert law.optimal_lookahead(0.9, 1) == 0
    huge = law.optimal_lookahead(0.5, 1e9)  # α^{r−1} underflows here
    slope = [law.tokens_per_flop(0.5, huge + step, 1.0, 1e9) for step in (-0.01, 0, 0.01)]
    assert slope[1] > max(slope[0], slope[2])
