"""The rule of adaptive lengths: lossless by exact enumeration, in batches too, and the best there is where all can be weighed."""

from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from test_verify import Outcomes, ProbsGiven, V, array, by_target, completed, cumulative, regions

from foredraft.decode.lengths import Choice, LengthRule, PassTimes, Regime, features
from foredraft.decode.verify import verify_chain, verify_rows
from foredraft.records import Confidence, DraftLengths, Provenance, StepCosts

K = 2  # positions
Lengths = tuple[int, ...]
Drafts = tuple[tuple[int, ...], ...]  # the tokens of each sequence
Decide = Callable[[Drafts, list[ProbsGiven]], Lengths]


def probs_given(salt: int) -> ProbsGiven:
    """A distribution over V tokens that hangs on every token before; some are sharp, some probabilities are 0."""

    def at(prefix: tuple[int, ...]) -> list[Fraction]:
        weights = [int(w) for w in np.random.default_rng([salt, *prefix]).integers(0, 7, V) ** 2]
        return [Fraction(w, sum(weights)) for w in weights] if sum(weights) else [Fraction(1, V)] * V

    return cache(at)


def confidence(weight: float = 1.0, **changes: Any) -> Confidence:
    fields: dict[str, Any] = {
        "temperature": 0.0, "here": (0.0, weight, 0.0, 0.0), "ahead": (0.0, weight, 0.0, 0.0), "num": 1, "survival": (0.5,), "shared_sd": 0.0,
        "single_sd": 0.0,
    }  # fmt: skip
    return Confidence(**(fields | changes))


def regime(batch: int, rate: float = 1.0, packs: bool = True, token_s: float = 0.1, most: int = K) -> Regime:
    """A token more of a pass costs `token_s` of a token at a rate of 1, and more the more there are; a position drafted next to nothing."""
    passes = {num: 1 + token_s * num + 0.02 * num**2 for num in range(1, 30)}
    return Regime([confidence()] * batch, rate, PassTimes(StepCosts(passes, {1: (0.1, 0.01)}), 99 * packs), most)


def logit(p: Fraction) -> float:
    return float(np.log(float(p)) - np.log1p(-float(p))) if 0 < p < 1 else (40.0 if p else -40.0)


def by_rule(packs: bool) -> Decide:
    """The rule, told of every position how probable the draft's most probable token is, whatever was drawn."""

    def decide(drafts: Drafts, qs: list[ProbsGiven]) -> Lengths:
        choice, place = Choice(regime(len(drafts), packs=packs)), 0
        while choice.tell([logit(max(q(tokens[:place]))) for q, tokens in zip(qs, drafts, strict=True)]):
            place += 1
        return tuple(choice.lengths)

    return decide


def by_own_token(drafts: Drafts, qs: list[ProbsGiven]) -> Lengths:
    """Broken: a token is verified where it is itself a probable one."""
    lengths = []
    for q, tokens in zip(qs, drafts, strict=True):
        good = [q(tokens[:i])[tokens[i]] * 2 > 1 for i in range(K)]
        lengths.append(next((i for i in range(K) if not good[i]), K))
    return tuple(lengths)


def by_deeper_confidence(drafts: Drafts, qs: list[ProbsGiven]) -> Lengths:
    """Broken: all or nothing, by the confidence of the last position, which hangs on the tokens before it."""
    return tuple(K * (max(q(tokens[: K - 1])) * 2 > 1) for q, tokens in zip(qs, drafts, strict=True))


def emitted(p: ProbsGiven, q: ProbsGiven, tokens: tuple[int, ...]) -> Outcomes:
    """P of what verification emits of this drafted chain."""
    length, out = len(tokens), defaultdict[tuple[int, ...], Fraction](Fraction)
    p_rows, q_rows = (
        array([[p(tokens[:i]) for i in range(length + 1)]]),
        array([[q(tokens[:i]) for i in range(length)]]),
    )
    tests = [[p(tokens[:i])[t] / q(tokens[:i])[t]] for i, t in enumerate(tokens)]
    finals = [
        cut for i in range(length + 1) for cut in cumulative(_remainder(p, q, tokens[:i]) if i < length else p(tokens))
    ]
    for picked in product(*(regions(cuts) for cuts in (*tests, finals))):
        uniforms = array([[u for u, _ in picked]])
        verdict = verify_chain(
            p_rows,
            q_rows if length else array(np.empty((1, 0, V))),
            array([tokens]).astype(int).reshape(1, length),
            uniforms,
        )
        weight = Fraction(1)
        for _, measure in picked:
            weight *= measure
        out[(*tokens[: len(verdict.path[0])], int(verdict.bonus[0]))] += weight
    return out


def _remainder(p: ProbsGiven, q: ProbsGiven, prefix: tuple[int, ...]) -> list[Fraction]:
    excess = [max(a - b, Fraction(0)) for a, b in zip(p(prefix), q(prefix), strict=True)]
    return [x / sum(excess) for x in excess] if sum(excess) else p(prefix)


def step(ps: list[ProbsGiven], qs: list[ProbsGiven], decide: Decide) -> tuple[dict[tuple, Fraction], set[Lengths]]:
    """P of what a step emits of two sequences, each gone on with by its target to K + 1 tokens; and the lengths that came up."""

    @cache
    def of_row(row: int, tokens: tuple[int, ...]) -> Outcomes:
        return completed(emitted(ps[row], qs[row], tokens), ps[row], K + 1)

    out, seen = defaultdict[tuple, Fraction](Fraction), set()
    for (a, weight), (b, other) in product(by_target(qs[0], K).items(), by_target(qs[1], K).items()):
        lengths = decide((a, b), qs)
        seen.add(lengths)
        for (x, p_x), (y, p_y) in product(of_row(0, a[: lengths[0]]).items(), of_row(1, b[: lengths[1]]).items()):
            out[x, y] += weight * other * p_x * p_y
    return {pair: weight for pair, weight in out.items() if weight}, seen


SALTS = [((2, 1), (3, 10)), ((4, 5), (6, 10))]  # of p and q of either sequence


def laws(
    salts: tuple[tuple[int, int], tuple[int, int]],
) -> tuple[list[ProbsGiven], list[ProbsGiven], dict[tuple, Fraction]]:
    """p and q of either sequence, and what both emit together under their targets alone."""
    ps, qs = ([probs_given(pair[i]) for pair in salts] for i in (0, 1))
    first, second = (by_target(p, K + 1) for p in ps)
    return ps, qs, {(x, y): first[x] * second[y] for x, y in product(first, second)}


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "padded"])
def test_two_sampled_sequences_whose_lengths_hang_on_one_another_are_lossless_and_independent(packs: bool):
    chosen = []
    for salts in SALTS:
        ps, qs, exact = laws(salts)
        joint, seen = step(ps, qs, by_rule(packs))
        assert joint == exact
        chosen.append(seen)
    assert max(map(len, chosen)) > 1  # lengths do hang on what was drawn
    assert packs == any(a != b for seen in chosen for a, b in seen)


@pytest.mark.parametrize("broken", [by_own_token, by_deeper_confidence])
def test_a_rule_that_knows_the_token_it_decides_on_is_caught(broken: Decide):
    ps, qs, exact = laws(SALTS[1])
    assert step(ps, qs, broken)[0] != exact


def test_deterministic_drafts_are_lossless_whatever_the_length_hangs_on():
    """A chain that no chance chose is verified by draws from p: cut anywhere, by anything, it emits the target's distribution."""
    p = probs_given(1)

    def one_hot(prefix: tuple[int, ...]) -> list[Fraction]:
        return [Fraction(v == (*(0, 2), 0)[len(prefix)]) for v in range(V)]

    for length in range(K + 1):
        assert completed(emitted(p, one_hot, (0, 2)[:length]), p, K + 1) == by_target(p, K + 1)


def test_chains_of_several_lengths_in_one_batch_are_verified_as_each_alone():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(5), (4, 4)), rng.dirichlet(np.ones(5), (4, 3))
    tokens, uniforms = rng.integers(0, 5, (4, 3)), rng.random((4, 4))
    lengths = (3, 0, 2, 3)
    parents = [[*range(-1, num - 1), *[-2] * (3 - num)] for num in lengths]
    together = verify_rows(p, q, tokens, parents, [True] * 4, uniforms)
    for b, num in enumerate(lengths):
        alone = verify_chain(
            p[b : b + 1, : num + 1], q[b : b + 1, :num], tokens[b : b + 1, :num], uniforms[b : b + 1, : num + 1]
        )
        assert [x[0] for x in alone] == [x[b] for x in together]


def rate_of(told: np.ndarray, lengths: np.ndarray, times: PassTimes) -> float:
    """Tokens per second of one sequence at a time with these lengths, drafting as far as is verified and one position more."""
    survival = np.cumprod(1 / (1 + np.exp(-told)), axis=1)
    kept = np.arange(told.shape[1]) < lengths[:, None]
    drafted = np.minimum(lengths + 1, told.shape[1])
    whole, each = times.of_drafting(1)
    return (1 + (survival * kept).sum(axis=1)).mean() / (times.of_pass(1 + lengths) + whole + each * drafted).mean()


def test_lengths_are_the_best_of_all_assignments():
    """Four equally likely steps of one sequence, all 4^4 assignments of lengths enumerated; positions that cost nothing to draft, so that the
    rule sees all of them.
    """
    told = np.array([[3.0, 2.0, 2.0], [1.0, 0.0, -1.0], [-2.0, 1.0, 1.0], [4.0, -3.0, 1.0]])
    times = PassTimes(StepCosts({num: 1 + 0.3 * num for num in range(1, 5)}, {1: (0.1, 0.0)}), packed=99)
    best = max(rate_of(told, np.array(each), times) for each in product(range(4), repeat=4))
    rate = 0.5
    for _ in range(8):
        lengths = []
        for row in told:
            choice, place = Choice(Regime([confidence(ahead=(20.0, 0.0, 0.0, 0.0))], rate, times, 3)), 0
            while choice.tell(row[place : place + 1]):
                place += 1
            lengths.append(choice.lengths[0])
        rate = rate_of(told, np.array(lengths), times)
    assert rate == pytest.approx(best, rel=1e-12)


def test_drafting_stops_where_another_position_costs_more_than_it_promises():
    def positions(each_s: float) -> int:
        times = PassTimes(StepCosts({1: 1.0, 9: 1.08}, {1: (0.0, each_s)}), packed=99)
        choice, num = Choice(Regime([confidence()], 1.0, times, 8)), 1
        while choice.tell([1.0]):
            num += 1
        return num

    counts = [positions(each) for each in (0.0, 0.05, 0.2, 0.6)]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[2] > counts[3] == 1


def test_a_batch_takes_its_surest_tokens_first_and_padding_takes_all_or_none():
    told = [3.0, -3.0, 0.5, -0.2]
    packed, padded = (Choice(regime(4, packs=packs, token_s=0.15)) for packs in (True, False))
    packed.tell(told)
    padded.tell(told)
    assert packed.lengths == [1, 0, 1, 1]
    assert padded.lengths == [1, 1, 1, 1]


def test_a_step_in_the_times_is_passed_by_several_tokens_together():
    """Passes of up to 4 tokens cost the same, of 5 to 8 twice as much: each of the four behind the step bears a share of it."""
    times = PassTimes(StepCosts({1: 1.0, 4: 1.0, 5: 2.0, 8: 2.0}, {1: (0.0, 0.0)}), packed=99)
    added = times.added(1, 7)
    assert added[:3].tolist() == [0, 0, 0]
    assert added[3:] == pytest.approx([0.25] * 4)
    assert (np.diff(added) >= -1e-12).all()
    noisy = PassTimes(StepCosts({1: 1.2, 2: 1.0, 3: 1.5}, {1: (0.0, 0.0)}), packed=99)
    assert noisy.of_pass([1, 2, 3, 4]).tolist() == pytest.approx([1.0, 1.0, 1.5, 2.0])


def measured(rates: dict[int, float], fixed: dict[int, tuple[float, ...]]) -> DraftLengths:
    return DraftLengths(
        draft="d", method="eagle3", target="t", lookahead=3, machine="m", dtype="float32", threads=1,
        confidences=(confidence(rates=rates, fixed=fixed), confidence(temperature=1.0, rates={1: 0.1}, fixed={1: (1.0, 0.5, 0.2, 0.1)})),
        costs=StepCosts({1: 1.0, 8: 2.0}, {1: (0.1, 0.1)}), provenance=Provenance(source="test"),
    )  # fmt: skip


def test_where_a_fixed_length_was_faster_that_is_taken_and_where_none_pays_nothing_is_drafted():
    rule = LengthRule(measured({1: 2.0, 8: 8.0}, {1: (1.0, 1.5, 1.8, 1.7), 8: (9.0, 6.0, 4.0, 3.0)}), packed=99)
    assert isinstance(rule.begin([0.0], 3), Choice)
    assert rule.begin([0.0] * 8, 3) == 0
    assert rule.begin([1.0], 3) == 0  # by what was measured at that temperature
    shorter = LengthRule(measured({1: 1.0}, {1: (1.0, 1.5, 1.8, 1.7)}), packed=99)
    assert shorter.begin([0.0], 3) == 2
    assert shorter.begin([0.0], 1) == 1
    with pytest.raises(ValueError, match="lookahead 4 is more than the 3 positions"):
        rule.begin([0.0], 4)


def test_features_know_nothing_of_later_positions():
    told = [1.0, 2.0, 5.0]
    assert features(told[:1]) == (1, 1, 0, 0)
    assert features(told[:2]) == (1, 2, 1, np.log(2))
