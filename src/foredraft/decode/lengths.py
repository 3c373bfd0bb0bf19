"""How many drafted tokens a step verifies, by sequence: chosen as they are drafted, by the draft's confidence and what passes cost.

The rule. Let ρ be the tokens per second that decoding reaches with this rule, S the probability that a drafted token and all before it
are accepted. A token is worth verifying if S > ρ · (what one more token adds to the target's pass), and another position is worth
drafting if what is expected to be gained by it is more than ρ · (what drafting it takes). At the right ρ no other choice of lengths has
more tokens per second (Dinkelbach 1967); taking tokens by descending survival over a batch is DSpark's scheduling (arXiv 2607.05147).

Promises: losslessness. Of every position, the rule decides which sequences verify a token there before any of these tokens is told to
it, by confidences that are functions of the tokens before. So whether x_i is verified does not depend on x_i: given that it is, x_i is
distributed as q_i, which is all that `verify`'s proof asks, and a chain that stops at length L is verified as a chain of length L. (A rule
that looks at deeper confidences first, which hang on x_i, or that drops x_i after seeing it, is not lossless.) Deterministic drafts are
lossless whatever the length. Refuses to know: models, how confidences come about, files.

Shapes: B running sequences, k positions.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foredraft.records import LEAST_PROMISE, Confidence, DraftLengths, StepCosts

Array = NDArray[np.float64]

MOST_LOGIT = 15.0  # a confidence beyond is as good as sure, and would weigh for too much in a fit
SURE = 700.0  # of a logit, since e to more is no number
DECISIONS = 1024  # that a rule remembers, by running sequences and their temperatures


class StepLengths(Protocol):
    """The choice of one step, position by position."""

    lengths: list[int]

    def tell(self, confidence_B: Sequence[float]) -> bool:
        """Take each sequence's confidence at the next position, a logit, before its token is told to anyone; give whether another
        position is to be drafted.
        """
        ...


class Lengths(Protocol):
    """What the engine asks for each step: a choice to be made as drafting goes on, or a length for all sequences."""

    def begin(self, temperatures: Sequence[float], most: int) -> StepLengths | int: ...


class PassTimes:
    """Seconds of parts of a step. `packed`: of how many tokens at most a pass computes those that are verified alone; a larger one computes
    as many for each sequence as the longest has.
    """

    def __init__(self, costs: StepCosts, packed: int = 0) -> None:
        tokens = sorted(costs.pass_s)
        self.tokens, self.packed = np.array(tokens, dtype=float), packed
        lowest_behind = np.minimum.accumulate([costs.pass_s[num] for num in reversed(tokens)])[::-1]
        self.seconds = np.asarray(lowest_behind, dtype=float)  # no pass takes longer than one of more tokens
        self.batches = np.array(sorted(costs.draft_s), dtype=float)
        self.drafting = np.array([costs.draft_s[num] for num in sorted(costs.draft_s)])
        self._added: dict[tuple[int, int], Array] = {}
        self._drafting: dict[int, tuple[float, float]] = {}

    def packs(self, batch: int, most: int) -> bool:
        """Whether passes of so many sequences of up to `most` drafted tokens compute what is verified alone."""
        return batch * (1 + most) <= self.packed

    def of_pass(self, tokens: ArrayLike) -> Array:
        """Of a target's pass over so many tokens; on a straight line beyond what was measured."""
        tokens = np.asarray(tokens, dtype=float)
        inside = np.interp(tokens, self.tokens, self.seconds)
        if len(self.tokens) < 2:
            return inside
        slope = (self.seconds[-1] - self.seconds[-2]) / (self.tokens[-1] - self.tokens[-2])
        return inside + slope * np.maximum(tokens - self.tokens[-1], 0)

    def of_drafting(self, batch: int) -> tuple[float, float]:
        """What drafting takes whatever is drafted, and for each position."""
        if batch not in self._drafting:
            whole, each = (float(np.interp(batch, self.batches, column)) for column in self.drafting.T)
            self._drafting[batch] = whole, each
        return self._drafting[batch]

    def added(self, batch: int, most: int) -> Array:
        """What each further token adds to a pass of `batch` roots, up to `most` for each: the slopes of the times' lower convex hull,
        since a step in them (a tile more) is passed by several tokens together.
        """
        if (batch, most) not in self._added:
            tokens = np.arange(batch, batch * (1 + most) + 1)
            self._added[batch, most] = np.diff(_hull(tokens, self.of_pass(tokens)))
        return self._added[batch, most]


def _hull(x: NDArray[np.int64], y: Array) -> Array:
    """The greatest convex function below the points, at each of them."""
    corners: list[int] = []
    for c in range(len(x)):
        while len(corners) > 1 and _lies_above(x, y, corners[-2], corners[-1], c):
            corners.pop()
        corners.append(c)
    return np.interp(x, x[corners], y[corners])


def _lies_above(x: NDArray[np.int64], y: Array, a: int, b: int, c: int) -> bool:
    """Whether the point b lies on or above the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) >= (y[c] - y[a]) * (x[b] - x[a]))


class Regime:
    """What a step is decided by: each sequence's confidence, ρ in tokens per second of the whole batch, and the times. `prices`, of each further
    token verified, and `position`, of drafting one more, are in tokens.
    """

    def __init__(self, confidences: Sequence[Confidence], rate: float, times: PassTimes, most: int) -> None:
        batch = len(confidences)
        self.here, self.ahead = ([getattr(each, name) for each in confidences] for name in ("here", "ahead"))
        self.most, self.packs = most, times.packs(batch, most)
        self.prices: list[float] = (rate * times.added(batch, most)).tolist()
        self.position = rate * times.of_drafting(batch)[1]


class LengthRule:
    """The rule with what was measured of a draft: adaptive lengths where they promise LEAST_PROMISE or more, else the best fixed one, or none."""

    def __init__(self, measured: DraftLengths, packed: int = 0) -> None:
        self.measured, self.times = measured, PassTimes(measured.costs, packed)
        self._decided = lru_cache(DECISIONS)(self._decision)  # a step should not take longer to decide than to draft

    def begin(self, temperatures: Sequence[float], most: int) -> StepLengths | int:
        decided = self._decided(tuple(temperatures), most)
        return Choice(decided) if isinstance(decided, Regime) else decided

    def _decision(self, temperatures: tuple[float, ...], most: int) -> "Regime | int":
        if most > self.measured.lookahead:
            raise ValueError(
                f"lookahead {most} is more than the {self.measured.lookahead} positions that lengths.json was measured at; ask for fewer"
            )
        confidences, batch = [self.nearest(temperature) for temperature in temperatures], len(temperatures)
        fixed = np.mean([fixed_rates(each, batch)[: most + 1] for each in confidences], axis=0)
        adaptive = float(np.mean([rule_rate(each, batch) for each in confidences]))
        worth = keeps(adaptive, fixed)
        return Regime(confidences, adaptive, self.times, most) if worth else int(fixed.argmax())

    def nearest(self, temperature: float) -> Confidence:
        """What was measured at the nearest temperature."""
        return min(self.measured.confidences, key=lambda each: abs(each.temperature - temperature))


def keeps(adaptive: float, fixed: Array) -> bool:
    """Whether the rule promises enough, in tokens/s, over the best of chains of fixed lengths."""
    return bool(adaptive > (1 + LEAST_PROMISE) * fixed.max())


def rule_rate(confidence: Confidence, batch: int) -> float:
    """Tokens/s of the rule with so many sequences, between those that were replayed."""
    batches = sorted(confidence.rates)
    return float(np.interp(batch, batches, [confidence.rates[each] for each in batches]))


def fixed_rates(confidence: Confidence, batch: int) -> Array:
    """Tokens/s of chains of 0, 1, … tokens, likewise."""
    batches = sorted(confidence.fixed)
    return np.array(
        [
            np.interp(batch, batches, column)
            for column in zip(*(confidence.fixed[each] for each in batches), strict=True)
        ]
    )


class Choice:
    """One step's lengths by the rule. In Python's own numbers: of the few that a step has, an array's functions take longer than a draft's layer."""

    def __init__(self, regime: Regime) -> None:
        batch = len(regime.here)
        self.regime, self.lengths = regime, [0] * batch
        self.told: list[list[float]] = [[] for _ in range(batch)]
        self.survival = [1.0] * batch  # of what is verified so far; 0 of those that have stopped

    def tell(self, confidence_B: Sequence[float]) -> bool:
        for told, confidence in zip(self.told, confidence_B, strict=True):
            told.append(0.0 if math.isnan(confidence) else min(max(confidence, -MOST_LOGIT), MOST_LOGIT))
        survival = self._with(self.regime.here)
        taken = self._worth(survival)
        self.lengths = [num + more for num, more in zip(self.lengths, taken, strict=True)]
        self.survival = [share * more for share, more in zip(survival, taken, strict=True)]
        if len(self.told[0]) == self.regime.most or not any(taken):
            return False
        ahead = self._with(self.regime.ahead)
        worth = self._worth(ahead)
        return (
            sum(share for share, more in zip(ahead, worth, strict=True) if more) - self._price(sum(worth))
            > self.regime.position
        )

    def _with(self, weights_B4: Sequence[Sequence[float]]) -> list[float]:
        """Survival with one token more."""
        rows = zip(self.survival, weights_B4, self.told, strict=True)
        return [share and share * accepted(weights, told) for share, weights, told in rows]

    def _worth(self, survival: list[float]) -> list[bool]:
        """Which sequences verify a token more, of such survivals: the surest as long as each is worth its price, or all or none."""
        batch, used = len(survival), sum(self.lengths)
        if not self.regime.packs:
            return [sum(survival) > self._price(batch)] * batch
        worth = [False] * batch
        for row, price in zip(
            sorted(range(batch), key=lambda row: -survival[row]), self.regime.prices[used:], strict=False
        ):
            if survival[row] <= price:
                break
            worth[row] = True
        return worth

    def _price(self, num: int) -> float:
        """In tokens: what so many further ones cost."""
        used = sum(self.lengths)
        return sum(self.regime.prices[used : used + num])


def features(told: Sequence[float]) -> tuple[float, float, float, float]:
    """What the logit of acceptance is linear in: one, the last position's confidence, the mean of those before it, log of the place."""
    place = len(told)
    return 1.0, told[-1], sum(told[:-1]) / (place - 1) if place > 1 else 0.0, math.log(place)


def accepted(weights: Sequence[float], told: Sequence[float]) -> float:
    """The probability of acceptance under weights of its logit."""
    logit = sum(weight * feature for weight, feature in zip(weights, features(told), strict=True))
    return 1 / (1 + math.exp(min(-logit, SURE)))
