"""How acceptance changes with position: from τ at one or two lookaheads to the whole curve, with what other drafts of its kind have shown
as the prior.

Promises: a prediction is a posterior over per-position acceptance, with an interval that widens beyond what was measured; constant α is
its special case (no step, no carry; of an independent model exactly, else but for the rise below); the same numbers every time. Refuses to
know: which draft or table a curve belongs to; files.

The law: logit α_i = level + log(1 + (i−1)·SPREAD·(1 − σ(level))) + step·[i > 1] + carry·(1 − DECAY^(i−2))·[i > 2], i = 1, 2, …
The logarithm is what a text of easy and hard stretches does: those where the first i−1 drafts were accepted are easier than most, and were
α Beta-distributed over stretches, the odds of acceptance would rise so; curves of some kinds show less of it (SPREADS). The step is from
the first position, which has the target's own hidden states or none, to the second; the carry is what goes on from there. Carry is drawn
about the step times a factor of the kind: prompt lookup reads the drafted text afresh, an independent model's second position tells as
little as its first, a head drifts on from its own estimates, a block drafted at once steps down once and holds.

(level, step, carry) of a draft is drawn from a Student t of its kind, heavy-tailed because some drafts fall far outside the rest; a kind
with few curves borrows from the others (`acceptance_fit`). A measured τ scatters in log τ: by the noise of a run, growing with √k, where
each lookahead was run apart, hardly where the positions are those of one run; and by what the law misses beyond the second position.

Shapes: P points of the posterior × K positions, N levels of noise.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtri

from foredraft.kinds import Prior
from foredraft.laws.draws import WeightedPoints, stratified
from foredraft.laws.points import StudentT, close_in, lattice, log_sum, normalised
from foredraft.laws.speedup import accept_prob_from_rate
from foredraft.records import Observation, Record

Array = NDArray[np.float64]
Curve = Mapping[int, float]  # lookahead -> tokens per step, bonus included

MAX_POSITIONS = 16
SPREAD, DECAY = 0.3, 0.6  # chosen by leaving documents out, see docs/log.md
# Of kinds that rise less beyond their step and carry: MTP layers and independent models, whose constant α is the law without, not at all.
SPREADS: dict[Prior, float] = {"lm": 0.0, "mtp": 0.0, "block": 0.12}
LONE_TAIL = 8.0  # of the prior where no τ is known: heavy tails are for curves that stand against it, by themselves no draft has shown them
# Levels of noise in log τ: of a run at k = 2, and of what the law misses at k = 4. [N, 2]
NOISES = np.array([(run, miss) for run in (0.0015, 0.005, 0.015) for miss in (0.002, 0.03)])


class KindPrior(Record, frozen=True):
    """What is expected of (level, step, carry) of one kind's drafts: location and scale of a Student t."""

    kind: Prior
    mean: tuple[float, ...]
    scale: tuple[tuple[float, ...], ...]


class PositionLaw(Record, frozen=True):
    """What published curves teach: a prior per kind and its tail; how much of each level of `NOISES` there is in curves of one run and of
    a run per lookahead; how many curves taught it, and their evidence.
    """

    priors: tuple[KindPrior, ...]
    tail: float
    noise_of_one_run: tuple[float, ...]
    noise_of_runs: tuple[float, ...]
    num_curves: int
    evidence: float

    def prior(self, kind: Prior, tail: float | None = None) -> StudentT:
        """The prior of a kind, of another `tail` if given. Raises ValueError on one that the law does not know."""
        prior = next((prior for prior in self.priors if prior.kind == kind), None)
        if prior is None:
            raise ValueError(f"kind must be one of {', '.join(prior.kind for prior in self.priors)}, got {kind!r}")
        return StudentT(np.array(prior.mean), np.array(prior.scale), tail or self.tail)

    def noise(self, one_run: bool) -> Array:
        """log of the share of each level of noise, [N]."""
        return np.log(self.noise_of_one_run if one_run else self.noise_of_runs)


@dataclass(frozen=True)
class CurvePosterior:
    """Posterior over one draft's curve: `weights` [P] and `accept_given_prefix` [P, K] at the points that carry it."""

    weights: Array
    accept_given_prefix: Array

    @property
    def survival(self) -> Array:
        """P(at least i draft tokens accepted) at each point, [P, K]."""
        return np.cumprod(self.accept_given_prefix, axis=-1, dtype=np.float64)

    def tokens_per_step(self, lookahead: int, level: float = 0.9) -> tuple[float, float, float]:
        """Median and interval of τ at `lookahead` (0 gives 1). The median, because the posterior is skewed towards
        slow decay. Raises ValueError beyond the positions that the law knows.
        """
        if not 0 <= lookahead <= MAX_POSITIONS:
            raise ValueError(f"a lookahead within {MAX_POSITIONS}, got {lookahead}")
        tau = 1 + self.survival[:, :lookahead].sum(axis=-1)
        low, mid, high = _quantiles(tau, self.weights, ((1 - level) / 2, 0.5, (1 + level) / 2))
        return mid, low, high

    def draws(self, num: int, rng: np.random.Generator) -> Array:
        """`num` curves accept_given_prefix [num, K] drawn from the posterior."""
        return self.accept_given_prefix[self._points.at(stratified(num, rng), stratified(num, rng))]

    @cached_property
    def _points(self) -> WeightedPoints:
        """Along what a chain of half the positions gains, and in that along the acceptance of the last."""
        half = self.accept_given_prefix.shape[-1] // 2
        return WeightedPoints.along(self.weights, self.survival[:, :half].sum(axis=-1), self.accept_given_prefix[:, -1])

    @cached_property
    def median_accept(self) -> Array:
        """accept_given_prefix [K] whose every point is the posterior median."""
        return np.array([_quantiles(column, self.weights, (0.5,))[0] for column in self.accept_given_prefix.T])

    def median_curve(self) -> Array:
        """The survival curve [K] whose every point is the posterior median."""
        return np.array([_quantiles(column, self.weights, (0.5,))[0] for column in self.survival.T])


def posterior(
    law: PositionLaw, curve: Curve, *, kind: Prior, extra_noise: float = 0.0, one_run: bool = False
) -> CurvePosterior:
    """What `curve` (τ at some lookaheads; may be empty) says of acceptance at every position, under the prior of `kind`.

    `extra_noise` widens the likelihood in log τ, for curves measured elsewhere than where they will be used. `one_run`: the τ are of
    one run's positions, not of a run per lookahead. Raises ValueError on τ < 1, τ > lookahead + 1 or a lookahead outside 1 … 16.
    """
    points, weights, _ = _posterior(law, curve, kind, extra_noise, one_run)
    carries = weights > 1e-9
    return CurvePosterior(weights[carries] / weights[carries].sum(), accept(points[carries], MAX_POSITIONS, kind))


def predict(
    law: PositionLaw, curve: Curve, lookaheads: Sequence[int], *, kind: Prior, one_run: bool = False, level: float = 0.9
) -> dict[int, tuple[float, float, float]]:
    """What a run at each of `lookaheads` would measure, given the τ in `curve`: (median, low, high), what the law misses and, where
    each lookahead is a run apart, that run's own scatter included.
    """
    points, weights, levels = _posterior(law, curve, kind, 0.0, one_run)
    log_tau = _log_tau(points, max(lookaheads), kind)
    spread, standard = lattice(len(points), 2).T
    chosen = (np.cumsum(levels, axis=0) < spread).sum(axis=0).clip(max=len(levels) - 1)
    out = {}
    for k in lookaheads:
        (mid,) = _quantiles(log_tau[:, k - 1], weights, (0.5,))
        seen = log_tau[:, k - 1] + scatter([k], one_run)[chosen, 0] * ndtri(standard)
        low, high = _quantiles(seen, weights, ((1 - level) / 2, (1 + level) / 2))
        out[k] = (math.exp(mid), math.exp(min(low, mid)), math.exp(max(high, mid)))
    return out


def _posterior(
    law: PositionLaw, curve: Curve, kind: Prior, extra_noise: float, one_run: bool
) -> tuple[Array, Array, Array]:
    """Points [P, 3] and their weights [P], and the share of each level of noise at each point [N, P]."""
    check_curve(curve)
    shares = law.noise(one_run)[:, None]

    def by_noise(points: Array) -> Array:
        return log_likelihood(points, curve, one_run, kind, extra_noise) + shares

    prior = law.prior(kind, None if curve else LONE_TAIL)
    points, base = close_in(prior, lambda points: log_sum(by_noise(points), 0)[0])
    levels = by_noise(points)
    fit = log_sum(levels, 0)[0]
    return points, normalised(base + fit), np.exp(levels - fit)


def accept(points: Array, num: int, kind: Prior = "head") -> Array:
    """accept_given_prefix [P, num] of the law at `points` [P, 3]."""
    level, step, carry = points.T[:, :, None]
    i = np.arange(num)
    rise = np.log1p(i * SPREADS.get(kind, SPREAD) * expit(-level))
    return expit(level + rise + step * (i > 0) + carry * (1 - DECAY ** (i - 1).clip(min=0)))


def _log_tau(points: Array, num: int, kind: Prior) -> Array:
    """log τ at lookaheads 1 … num, [P, num]."""
    return np.log1p(np.cumsum(np.cumprod(accept(points, num, kind), axis=1), axis=1))


def scatter(lookaheads: Sequence[int], one_run: bool) -> Array:
    """sd of log τ at each lookahead and level of noise, [N, L]: of the run, which grows with √k where each is a run apart, and of what
    the law misses beyond the second position.
    """
    k = np.asarray(lookaheads, dtype=np.float64)
    run = NOISES[:, :1] * (np.ones_like(k) if one_run else np.sqrt(k / 2))
    return np.hypot(run, NOISES[:, 1:] * np.log2(k / 2).clip(min=0))


def log_likelihood(points: Array, curve: Curve, one_run: bool, kind: Prior, extra_noise: float = 0.0) -> Array:
    """log p(curve | point, level of noise), [N, P]; zero for an empty curve."""
    if not curve:
        return np.zeros((len(NOISES), len(points)))
    lookaheads = sorted(curve)
    misfit = _log_tau(points, lookaheads[-1], kind)[:, np.array(lookaheads) - 1] - np.log(
        [curve[k] for k in lookaheads]
    )
    spread = np.hypot(scatter(lookaheads, one_run), extra_noise)
    constant = np.log(spread).sum(axis=1) + 0.5 * len(lookaheads) * math.log(2 * math.pi)
    return -0.5 * (1 / spread**2) @ (misfit**2).T - constant[:, None]


def check_curve(curve: Curve) -> None:
    """Raise ValueError, one line, on a τ that no chain can give."""
    for k, tau in curve.items():
        if not 1 <= k <= MAX_POSITIONS:
            raise ValueError(f"lookahead {k} of a τ(k) curve must lie in 1…{MAX_POSITIONS}")
        if not 1 <= tau <= k + 1:
            raise ValueError(f"tokens_per_step {tau} at lookahead {k} must lie in [1, {k + 1}] (bonus token included)")


def survival_through(curve: Curve) -> tuple[float, ...]:
    """A survival curve with exactly the τ that `curve` has at each of its lookaheads, up to the longest.

    Between two lookaheads acceptance given the prefix is constant, or survival is, where it would else fall below what the next one
    asks for. Raises ValueError as `check_curve`, and where τ rises faster later than before, which no chain's does.
    """
    check_curve(curve)
    lookaheads = [0, *sorted(curve)]
    taus = [1.0, *(curve[k] for k in lookaheads[1:])]
    slopes = np.diff(taus) / np.diff(lookaheads)
    if (slopes < 0).any() or (np.diff(slopes) > 1e-9).any():
        raise ValueError(f"tokens_per_step must rise with the lookahead, ever more slowly; got {dict(curve)}")
    survival: list[float] = []
    for num, slope, next_slope in zip(np.diff(lookaheads), slopes, [*slopes[1:], 0.0], strict=True):
        level = survival[-1] if survival else 1.0
        alpha = float(accept_prob_from_rate(min(slope / level, 1.0) if level else 0.0, num))
        stretch = level * alpha ** np.arange(1, num + 1)
        survival += stretch.tolist() if stretch[-1] >= next_slope else [float(slope)] * int(num)
    return tuple(survival)


def _quantiles(values: Array, weights: Array, levels: Sequence[float]) -> list[float]:
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return [float(values[order[min(np.searchsorted(reached, level), len(order) - 1)]]) for level in levels]


def chain_curves(observations: Iterable[Observation]) -> dict[tuple[str, ...], Curve]:
    """τ(k) of every chain in `observations`: one curve per target, method, draft, dataset, temperature and document;
    repeats are averaged.

    A row that carries survival by position gives τ at every lookahead up to its own, unless the curve has rows of its
    own there. Acceptance does not depend on the batch, so rows at several concurrencies are repeats.
    """
    measured: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    implied: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in observations:
        if row.method == "none" or (row.topk or 1) > 1 or not row.lookahead:
            continue
        key = curve_key(row)
        if row.tokens_per_step is not None:
            measured[key][row.lookahead].append(row.tokens_per_step)
        tau = 1.0
        for k, share in enumerate(row.survival or (), 1):
            tau += share
            implied[key][k].append(tau)
    return {
        key: {k: float(np.mean(taus)) for k, taus in sorted({**implied[key], **measured[key]}.items())}
        for key in {**measured, **implied}
    }


def curve_key(row: Observation) -> tuple[str, ...]:
    """What two rows of one τ(k) curve have in common."""
    return (
        row.target, row.method, row.draft or "", row.dataset or "",
        str(row.temperature if row.temperature is not None else ""), row.engine or "",
    )  # fmt: skip


def single_runs(observations: Iterable[Observation]) -> frozenset[tuple[str, ...]]:
    """The curves of `chain_curves` whose τ below the longest lookahead are positions of one run, none a run apart."""
    apart: dict[tuple[str, ...], set[int]] = defaultdict(set)
    longest: dict[tuple[str, ...], int] = {}
    for row in observations:
        key = curve_key(row)
        if row.lookahead and row.tokens_per_step is not None:
            apart[key].add(row.lookahead)
        if row.lookahead and row.survival:
            longest[key] = max(longest.get(key, 0), len(row.survival))
    return frozenset(key for key, num in longest.items() if all(k >= num for k in apart[key]))
