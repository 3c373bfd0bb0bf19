"""Losslessness by exact enumeration: every draft, every outcome of chance, in fractions; and broken rules that must fail.

A region of uniforms that leads to one outcome has an exact measure, so the distribution of what a step emits is a finite sum. It is compared, by
equality, with the target's own distribution over sequences.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache
from itertools import pairwise, product

import numpy as np
import pytest

from foredraft.decode import verify
from foredraft.decode.verify import (
    Verdict,
    draw,
    residual,
    verify_by_level,
    verify_chain,
    verify_greedy,
    verify_rows,
    verify_tree,
)

V = 3
EASED = Fraction(11, 10)
ProbsGiven = Callable[[tuple[int, ...]], list[Fraction]]
Outcomes = dict[tuple[int, ...], Fraction]


def probs_given(salt: int) -> ProbsGiven:
    """A distribution over V tokens that depends on the whole prefix; some probabilities are 0."""

    @cache
    def at(prefix: tuple[int, ...]) -> list[Fraction]:
        weights = np.random.default_rng([salt, *(token + 1 for token in prefix)]).integers(0, 6, V).tolist()
        return [Fraction(w, sum(weights)) for w in weights] if sum(weights) else [Fraction(1, V)] * V

    return at


@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_enumerated_depends_on_every_token_of_its_prefix(place: int) -> None:
    for salt, rest in product(range(6), product(range(V), repeat=2)):
        given = probs_given(salt)
        laws = {tuple(given((*rest[:place], token, *rest[place:]))) for token in range(V)}
        assert len(laws) > 1


def array(rows: object) -> np.ndarray:
    return np.array(rows, dtype=object)


def regions(p: list[Fraction]) -> Iterator[tuple[Fraction, Fraction]]:
    """(a uniform inside, measure) of each stretch of [0, 1) between the values in `p`, taken as cut points."""
    cuts = sorted({Fraction(0), Fraction(1), *(c for c in p if 0 < c < 1)})
    for low, high in pairwise(cuts):
        yield (low + high) / 2, high - low


def cumulative(p: list[Fraction]) -> list[Fraction]:
    return [sum(p[: i + 1], Fraction(0)) for i in range(len(p))]


def by_target(p: ProbsGiven, length: int) -> Outcomes:
    """P of every sequence of `length` tokens under the target alone."""
    out: Outcomes = {}
    for tokens in product(range(V), repeat=length):
        weight = Fraction(1)
        for i, token in enumerate(tokens):
            weight *= p(tokens[:i])[token]
        if weight:
            out[tokens] = weight
    return out


def completed(emitted: Outcomes, p: ProbsGiven, length: int) -> Outcomes:
    """Sequences of `length` tokens when decoding goes on by the target after what a step emitted."""
    out: Outcomes = defaultdict(Fraction)
    for tokens, weight in emitted.items():
        for completion, more in by_target(
            lambda tail, head=tokens: p(head + tail), max(length - len(tokens), 0)
        ).items():
            out[(tokens + completion)[:length]] += weight * more
    return {tokens: weight for tokens, weight in out.items() if weight}


def chain_step(p: ProbsGiven, q: ProbsGiven, length: int, rule: Callable[..., Verdict] = verify_chain) -> Outcomes:
    """P of what one step with a chain sampled from q emits."""
    out: Outcomes = defaultdict(Fraction)
    for tokens, drafted in by_target(q, length).items():
        p_rows = array([[p(tokens[:i]) for i in range(length + 1)]])
        q_rows = array([[q(tokens[:i]) for i in range(length)]]) if length else array(np.empty((1, 0, V)))
        ratios = [p(tokens[:i])[t] / q(tokens[:i])[t] for i, t in enumerate(tokens)]
        tests = [[ratio, ratio * EASED] for ratio in ratios]  # the second cut is where the eased rule changes its mind
        every_probs = [
            probs
            for i in range(length + 1)
            for probs in (_final(p(tokens[:i]), q(tokens[:i]), i < length), p(tokens[:i]))
        ]
        finals = [cut for probs in every_probs for cut in cumulative(probs)]
        for picked in product(*(regions(cuts) for cuts in (*tests, finals))):
            uniforms = array([[u for u, _ in picked]])
            verdict = rule(p_rows, q_rows, array([tokens]).astype(int).reshape(1, length), uniforms)
            num_accepted = len(verdict.path[0])
            weight = drafted
            for _, measure in picked:
                weight *= measure
            out[(*tokens[:num_accepted], int(verdict.bonus[0]))] += weight
    return out


def _final(p: list[Fraction], q: list[Fraction], refused: bool) -> list[Fraction]:
    residual = [max(a - b, Fraction(0)) for a, b in zip(p, q, strict=True)]
    return [r / sum(residual) for r in residual] if refused and sum(residual) else p


@pytest.mark.parametrize("salts", [(1, 2), (2, 1), (3, 3), (4, 0), (0, 5)])
@pytest.mark.parametrize("length", [0, 1, 2])
def test_sampled_chain_is_lossless(salts: tuple[int, int], length: int) -> None:
    p, q = probs_given(salts[0]), probs_given(salts[1])
    emitted = chain_step(p, q, length)
    assert sum(emitted.values()) == 1
    assert completed(emitted, p, length + 1) == by_target(p, length + 1)


@pytest.mark.parametrize("salts", [(1, 2), (2, 1), (4, 0)])
def test_a_chain_drawn_from_a_draft_vocabulary_is_lossless(salts: tuple[int, int]) -> None:
    """q is nothing at the tokens that the draft lacks, which the target emits all the same."""
    p, whole = probs_given(salts[0]), probs_given(salts[1])

    def q(prefix: tuple[int, ...]) -> list[Fraction]:
        weights = [Fraction(0), *whole(prefix)[1:]]
        return (
            [w / sum(weights) for w in weights]
            if sum(weights)
            else [Fraction(0), Fraction(1), *[Fraction(0)] * (V - 2)]
        )

    emitted = chain_step(p, q, 2)
    assert completed(emitted, p, 3) == by_target(p, 3)
    assert any(0 in tokens for tokens in emitted)


def never_verify(p: np.ndarray, q: np.ndarray, tokens: np.ndarray, uniforms: np.ndarray) -> Verdict:
    """Broken: every drafted token is kept."""
    return verify_chain(q if q.shape[1] == p.shape[1] else np.concatenate([q, p[:, -1:]], 1), q, tokens, uniforms * 0)


def resample_from_p(p: np.ndarray, q: np.ndarray, tokens: np.ndarray, uniforms: np.ndarray) -> Verdict:
    """Broken: after a refusal the token comes from p, not from the residual."""
    verdict = verify_chain(p, q, tokens, uniforms)
    num_accepted = [len(path) for path in verdict.path]
    return verdict._replace(bonus=draw(p[np.arange(len(tokens)), num_accepted], uniforms[:, -1]).tolist())


def accept_more(p: np.ndarray, q: np.ndarray, tokens: np.ndarray, uniforms: np.ndarray) -> Verdict:
    """Broken: tokens are accepted 1.1 times as readily."""
    eased = uniforms.copy()
    eased[:, :-1] = eased[:, :-1] / EASED
    return verify_chain(p, q, tokens, eased)


@pytest.mark.parametrize("broken", [never_verify, resample_from_p, accept_more])
def test_a_broken_rule_is_caught(broken: Callable[..., Verdict]) -> None:
    p, q = probs_given(1), probs_given(2)
    assert completed(chain_step(p, q, 2, broken), p, 3) != by_target(p, 3)


# A tree: root -> 0, 2; 0 -> 1, 2; 2 -> 0. Padded by a node that nothing may accept.
TREE_TOKENS, TREE_PARENTS = (0, 2, 1, 2, 0, 1), (-1, -1, 0, 0, 1, -2)


def paths() -> list[tuple[int, ...]]:
    """The tokens from the root to each node, root first."""
    tree_paths: list[tuple[int, ...]] = [()]
    for token, parent in zip(TREE_TOKENS, TREE_PARENTS, strict=True):
        tree_paths.append((*tree_paths[parent + 1], token) if parent > -2 else ())
    return tree_paths


def tree_step(p: ProbsGiven, rule: Callable[..., Verdict] = verify_tree) -> Outcomes:
    """P of what one step with the fixed tree emits."""
    rows = array([[p(path) for path in paths()]])
    tokens, parents = np.array([TREE_TOKENS]), [TREE_PARENTS]
    cuts = [c for path in paths() for c in cumulative(p(path))]
    out: Outcomes = defaultdict(Fraction)
    for picked in product(*(regions(cuts) for _ in range(3))):
        verdict = rule(rows, tokens, parents, array([[u for u, _ in picked]]))
        accepted_tokens = [TREE_TOKENS[w] for w in verdict.path[0]]
        weight = Fraction(1)
        for _, measure in picked:
            weight *= measure
        out[(*accepted_tokens, int(verdict.bonus[0]))] += weight
    return out


def by_level(p: np.ndarray, tokens: np.ndarray, parents: list[tuple[int, ...]], uniforms: np.ndarray) -> Verdict:
    """The same tree, p being asked for where the walk comes to."""
    return verify_by_level(lambda rows, nodes: p[rows, nodes], tokens, parents, uniforms)


@pytest.mark.parametrize("rule", [verify_tree, by_level])
@pytest.mark.parametrize("salt", range(6))
def test_tree_of_determined_proposals_is_lossless(salt: int, rule: Callable[..., Verdict]) -> None:
    p = probs_given(salt)
    emitted = tree_step(p, rule)
    assert sum(emitted.values()) == 1
    assert completed(emitted, p, 3) == by_target(p, 3)


# A look-up is a chain that no chance chose, beside chains that were drawn from q.

LOOKED_UP = (1, 2)
Rows = Callable[[np.ndarray, np.ndarray, np.ndarray, list[tuple[int, ...]], list[bool], np.ndarray], Verdict]


def lookup_regions(p: ProbsGiven) -> Iterator[tuple[list[Fraction], Fraction]]:
    """Uniforms of a walk along LOOKED_UP, one for each node and the root, and the measure of their region."""
    levels = (regions(cumulative(p(LOOKED_UP[:i]))) for i in range(len(LOOKED_UP) + 1))
    for picked in product(*levels):
        weight = Fraction(1)
        for _, measure in picked:
            weight *= measure
        yield [u for u, _ in picked], weight


def lookup_step(p: ProbsGiven) -> Outcomes:
    """P of what one step with the look-up emits, verified as a tree."""
    rows, out = array([[p(LOOKED_UP[:i]) for i in range(3)]]), defaultdict[tuple[int, ...], Fraction](Fraction)
    for uniforms, weight in lookup_regions(p):
        verdict = verify_tree(rows, np.array([LOOKED_UP]), [(-1, 0)], array([uniforms]))
        out[(*LOOKED_UP[: len(verdict.path[0])], int(verdict.bonus[0]))] += weight
    return out


@pytest.mark.parametrize("salt", range(6))
def test_a_look_up_is_a_chain_drawn_from_a_one_hot_q(salt: int) -> None:
    def one_hot(prefix: tuple[int, ...]) -> list[Fraction]:
        return [Fraction(v == (*LOOKED_UP, 0)[len(prefix)]) for v in range(V)]

    p = probs_given(salt)
    assert lookup_step(p) == {tokens: weight for tokens, weight in chain_step(p, one_hot, 2).items() if weight}


def side_by_side(
    p: ProbsGiven, q: ProbsGiven, rule: Rows = verify_rows
) -> dict[tuple[tuple[int, ...], tuple[int, ...]], Fraction]:
    """P of what one step emits in a batch of two: a chain of one token drawn from q, and the look-up of two."""
    out: dict[tuple[tuple[int, ...], tuple[int, ...]], Fraction] = defaultdict(Fraction)
    for (token,), drafted in by_target(q, 1).items():
        p_rows = array([[p(()), p((token,)), p(())], [p(LOOKED_UP[:i]) for i in range(3)]])
        finals = [
            cut
            for refused in (True, False)
            for cut in cumulative(_final(p(()) if refused else p((token,)), q(()), refused))
        ]
        chance = product(regions([p(())[token] / q(())[token]]), regions(finals))
        for ((test, share), (final, measure)), (others, weight) in product(chance, list(lookup_regions(p))):
            verdict = rule(
                p_rows, array([[q(())], [q(())]]), np.array([[token, 0], LOOKED_UP]), [(-1, -2), (-1, 0)], [True, False],
                array([[test, final, Fraction(0)], others]),
            )  # fmt: skip
            emitted = [
                (*tokens[: len(path)], int(bonus))
                for tokens, path, bonus in zip(((token,), LOOKED_UP), verdict.path, verdict.bonus, strict=True)
            ]
            out[emitted[0], emitted[1]] += drafted * share * measure * weight
    return out


@pytest.mark.parametrize("salts", [(1, 2), (2, 1), (4, 0)])
def test_sampled_chains_and_look_ups_in_one_batch_are_lossless_and_independent(salts: tuple[int, int]) -> None:
    p, q = probs_given(salts[0]), probs_given(salts[1])
    chain, looked_up = chain_step(p, q, 1), lookup_step(p)
    assert completed(chain, p, 3) == completed(looked_up, p, 3) == by_target(p, 3)
    expected = {(a, b): chain[a] * looked_up[b] for a, b in product(chain, looked_up) if chain[a] * looked_up[b]}
    assert {pair: weight for pair, weight in side_by_side(p, q).items() if weight} == expected


def test_a_look_up_that_is_taken_for_a_draw_from_q_is_caught() -> None:
    def drawn(
        p: np.ndarray, q: np.ndarray, tokens: np.ndarray, parents: object, sampled: object, u: np.ndarray
    ) -> Verdict:
        return verify_chain(p[:, :2], q, tokens[:, :1], u[:, :2])

    p, q = probs_given(1), probs_given(2)
    emitted: Outcomes = defaultdict(Fraction)
    for (_, tokens), weight in side_by_side(p, q, drawn).items():
        emitted[tokens] += weight
    assert completed(emitted, p, 3) != by_target(p, 3)


def test_a_tree_that_emits_the_refused_token_of_its_parent_is_caught() -> None:
    def stale(p: np.ndarray, tokens: np.ndarray, parents: list[tuple[int, ...]], uniforms: np.ndarray) -> Verdict:
        """Broken: the emitted token is drawn at the root whatever was accepted."""
        verdict = verify_tree(p, tokens, parents, uniforms)
        return verdict._replace(bonus=draw(p[:, 0], uniforms[:, -1]).tolist())

    assert completed(tree_step(probs_given(1), stale), probs_given(1), 3) != by_target(probs_given(1), 3)


def test_siblings_in_turn_with_renormalisation_gives_the_same_distribution() -> None:
    """EAGLE's way of verifying a top-k tree (accept x with p(x); on refusal p(x) = 0, renormalise) accepts and emits as one draw from p does."""
    p, children = [Fraction(1, 6), Fraction(3, 6), Fraction(2, 6)], (2, 0)
    remaining_mass, outcome, residual = Fraction(1), {}, list(p)
    for child in children:
        outcome[child] = remaining_mass * residual[child]
        remaining_mass *= 1 - residual[child]
        mass = 1 - residual[child]
        residual = [Fraction(0) if t == child else r / mass for t, r in enumerate(residual)]
    emitted = {t: remaining_mass * r for t, r in enumerate(residual) if r}
    assert outcome == {2: p[2], 0: p[0]}
    assert emitted == {1: p[1]}


def test_greedy_is_a_special_case() -> None:
    best, tokens, parents = np.array([[1, 2, 0, 0]]), np.array([[1, 2, 1]]), [(-1, 0, 1)]
    assert verify_greedy(best, tokens, parents) == verify_tree(np.eye(V)[best], tokens, parents, np.full((1, 4), 0.9))
    assert verify_greedy(best, tokens, parents) == Verdict([[0, 1]], [0])


def test_draw_never_takes_an_impossible_token() -> None:
    p = np.array([[0.0, 0.5, 0.0, 0.5 - 1e-9, 0.0]])
    assert [int(draw(p, np.array([u]))[0]) for u in (0.0, 0.49, 0.5, 1 - 1e-16)] == [1, 1, 3, 3]


def test_residual_of_equal_laws_is_the_law_itself() -> None:
    p = np.array([[0.25, 0.75]])
    assert residual(p, p).tolist() == p.tolist()


def test_rows_of_a_batch_do_not_mix() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), (4, 4)), rng.dirichlet(np.ones(5), (4, 3))
    tokens, uniforms = rng.integers(0, 5, (4, 3)), rng.random((4, 4))
    together = verify.verify_chain(p, q, tokens, uniforms)
    for b in range(4):
        alone = verify.verify_chain(p[b : b + 1], q[b : b + 1], tokens[b : b + 1], uniforms[b : b + 1])
        assert [x[0] for x in alone] == [x[b] for x in together]
