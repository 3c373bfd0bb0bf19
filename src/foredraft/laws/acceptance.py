"""How acceptance falls with position: from τ at one or two lookaheads to the whole curve, with what other drafts have
shown as the prior.

Promises: a prediction is a posterior over per-position acceptance, with an interval; constant α is its special case
(slope 0). Refuses to know: which draft or table a curve belongs to; files.

The law: logit α_i = level + slope·(1 − decay^(i−1)), i = 1, 2, … A head drafts from its own features and drifts; an
independent model or a prompt lookup reads the accepted text afresh, so its prior slope is 0, which is constant α. (level,
slope) of a draft is drawn from a bivariate Student t, heavy-tailed because a few drafts (one-step MTP layers) fall
far outside the rest; a τ measured at lookahead k scatters by `noise`·(k/2)^`noise_growth` in log τ, growing with k
because a later position is reached more rarely and the two-parameter curve is only approximate. The hyperparameters
are fitted across curves by maximum evidence. With two parameters the posterior is summed on a grid: no sampler, no
seed, the same number every time.

Shapes: A levels × B slopes on the grid, K positions.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import erfinv

from foredraft.kinds import Prior
from foredraft.laws.draws import WeightedPoints, stratified
from foredraft.laws.speedup import accept_prob_from_rate
from foredraft.records import Observation, Record

Array = NDArray[np.float64]
Curve = Mapping[int, float]  # lookahead -> tokens per step, bonus included

MAX_POSITIONS = 16
STEADY = ("lookup", "lm")  # priors of drafts that read the accepted text afresh
LEVELS = np.linspace(-4.0, 5.0, 301)
SLOPES = np.linspace(-4.0, 2.5, 217)
GRID = np.stack(np.meshgrid(LEVELS, SLOPES, indexing="ij"), axis=-1)  # [A, B, 2]
DECAYS = (0.4, 0.5, 0.6, 0.7)
NOISES = (0.005, 0.007, 0.01)
NOISE_GROWTHS = (0.0, 1.0)
TAILS = (1.0, 2.0, 4.0)


class PositionLaw(Record, frozen=True):
    """Hyperparameters of the law: prior mean and scale of a head's (level, slope), tail, decay, noise; and how many curves taught them."""

    mean: tuple[float, float]
    scale: tuple[tuple[float, float], tuple[float, float]]
    tail: float
    decay: float
    noise: float
    noise_growth: float
    num_curves: int
    evidence: float


@dataclass(frozen=True)
class CurvePosterior:
    """Posterior over one draft's curve: `weights` [P] and `accept_given_prefix` [P, K] at the grid points that carry it."""

    weights: Array
    accept_given_prefix: Array

    @property
    def survival(self) -> Array:
        """P(at least i draft tokens accepted) at each grid point, [P, K]."""
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


def posterior(law: PositionLaw, curve: Curve, *, kind: Prior, extra_noise: float = 0.0) -> CurvePosterior:
    """What `curve` (τ at some lookaheads; may be empty) says of acceptance at every position, under the prior `law`.

    `kind` names the prior; that of drafts that are not heads has slope 0. `extra_noise` widens the likelihood in
    log τ, for curves measured elsewhere than where they will be used. Raises ValueError on τ < 1, τ > lookahead + 1
    or a lookahead outside 1 … 16.
    """
    check_curve(curve)
    log_weights = _log_prior(steady(law) if kind in STEADY else law) + _log_likelihood(law, curve, extra_noise)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    keep = weights > 1e-9
    accept = _accept(law.decay)[keep]
    return CurvePosterior(weights[keep] / weights[keep].sum(), accept)


def predict(
    law: PositionLaw, curve: Curve, lookaheads: Sequence[int], *, kind: Prior, level: float = 0.9
) -> dict[int, tuple[float, float, float]]:
    """What a run at each of `lookaheads` would measure, given the τ in `curve`: (median, low, high), the run's own scatter included."""
    curve_posterior = posterior(law, curve, kind=kind)
    z = np.sqrt(2) * erfinv(level)
    out = {}
    for k in lookaheads:
        mid, low, high = curve_posterior.tokens_per_step(k, level)
        scatter = z * law.noise * (k / 2) ** law.noise_growth
        down, up = np.hypot(np.log([mid / low, high / mid]), scatter).tolist()
        out[k] = (mid, mid * math.exp(-down), mid * math.exp(up))
    return out


def steady(law: PositionLaw) -> PositionLaw:
    """The same law around constant α: slope 0 at every level, so without the heads' correlation of the two."""
    (level, _), (_, slope) = law.scale
    return msgspec.structs.replace(law, mean=(law.mean[0], 0.0), scale=((level, 0.0), (0.0, slope)))


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


class Lesson(NamedTuple):
    """One curve to learn from: its weight (say 1/√n of its document, so that none drowns the rest), and which prior it follows."""

    curve: Curve
    weight: float = 1.0
    kind: Prior = "head"


def fit_position_law(lessons: Sequence[Lesson]) -> PositionLaw:
    """Hyperparameters of greatest evidence over `lessons`.

    Every combination of decay, noise, its growth and the tail is tried; mean and scale are fitted by EM within each.
    Raises ValueError with fewer than 4 curves of at least 3 lookaheads: two parameters leave nothing to learn from
    shorter ones.
    """
    usable = [lesson._replace(curve=_within(lesson.curve)) for lesson in lessons]
    usable = [lesson for lesson in usable if len(lesson.curve) >= 3]
    if len(usable) < 4:
        raise ValueError(f"the position law needs 4 curves τ(k) with 3 or more lookaheads, got {len(usable)}")
    for lesson in usable:
        check_curve(lesson.curve)
    return max(
        (_fit_prior(usable, *setting) for setting in product(DECAYS, NOISES, NOISE_GROWTHS, TAILS)),
        key=lambda law: law.evidence,
    )


def _fit_prior(
    lessons: Sequence[Lesson], decay: float, noise: float, noise_growth: float, tail: float, rounds: int = 12
) -> PositionLaw:
    """EM for the prior's mean and scale at fixed other hyperparameters; the t tail enters as the usual scale-mixture
    weights.

    Level and scale are learned from every curve, the mean slope from the heads alone: the others' is 0 by theory. The
    others share the heads' covariance here, which the evidence prefers (10.40 against 10.32 per curve without).
    """
    law = PositionLaw(
        mean=(1.0, -0.3), scale=((1.0, 0.0), (0.0, 0.25)), tail=tail, decay=decay, noise=noise,
        noise_growth=noise_growth, num_curves=len(lessons), evidence=-np.inf,
    )  # fmt: skip
    logs = np.stack([_log_likelihood(law, lesson.curve) for lesson in lessons])
    peaks = logs.max(axis=1)
    likelihoods = np.exp(logs - peaks[:, None])
    share = np.array([lesson.weight for lesson in lessons]) / sum(lesson.weight for lesson in lessons)
    drifts = np.array([lesson.kind not in STEADY for lesson in lessons])
    points = GRID.reshape(-1, 2)
    for _ in range(rounds):
        level = weight = evidence = 0.0
        slope, scale = law.mean[1], np.zeros((2, 2))
        recentred = msgspec.structs.replace(law, mean=(law.mean[0], 0.0))
        for group, prior_law in ((drifts, law), (~drifts, recentred)):
            if not group.any():
                continue
            offset = points - prior_law.mean
            prior = np.exp(_log_prior(prior_law))
            total = likelihoods[group] @ prior
            mass = prior * ((share[group] / total) @ likelihoods[group])
            pull = mass * (tail + 2) / (tail + np.einsum("pi,ij,pj->p", offset, np.linalg.inv(law.scale), offset))
            evidence += share[group] @ (np.log(total) + peaks[group])
            level, weight = level + pull @ points[:, 0], weight + pull.sum()
            scale += np.einsum("p,pi,pj->ij", pull, offset, offset)
            if prior_law is law:
                slope = pull @ points[:, 1] / pull.sum()
        law = msgspec.structs.replace(
            law,
            mean=(float(level / weight), float(slope)),
            evidence=float(evidence),
            scale=tuple(map(tuple, (scale + 1e-3 * np.eye(2)).tolist())),
        )
    return law


def _within(curve: Curve) -> dict[int, float]:
    return {k: tau for k, tau in curve.items() if k <= MAX_POSITIONS}


@cache
def _accept(decay: float) -> Array:
    """accept_given_prefix at every grid point, [A·B, K]."""
    fade = 1 - decay ** np.arange(MAX_POSITIONS)
    level, slope = GRID.reshape(-1, 2).T
    return 1 / (1 + np.exp(-(level[:, None] + slope[:, None] * fade)))


@cache
def _log_tau(decay: float) -> Array:
    """log τ at every grid point and lookahead 1 … K, [A·B, K]."""
    return np.log1p(np.cumsum(np.cumprod(_accept(decay), axis=1), axis=1))


def _log_likelihood(law: PositionLaw, curve: Curve, extra_noise: float = 0.0) -> Array:
    """log p(curve | grid point), normalised, [A·B]; zero for an empty curve."""
    lookaheads = np.array(sorted(curve), dtype=int)
    if not lookaheads.size:
        return np.zeros(len(LEVELS) * len(SLOPES))
    spread = np.hypot(law.noise * (lookaheads / 2) ** law.noise_growth, extra_noise)
    misfit = (_log_tau(law.decay)[:, lookaheads - 1] - np.log([curve[int(k)] for k in lookaheads])) / spread
    return -0.5 * (misfit**2).sum(axis=1) - np.log(spread).sum() - 0.5 * len(lookaheads) * np.log(2 * np.pi)


def _log_prior(law: PositionLaw) -> Array:
    """log of the bivariate t on the grid, normalised to sum 1 over it, [A·B]."""
    offset = GRID.reshape(-1, 2) - law.mean
    distance = np.einsum("pi,ij,pj->p", offset, np.linalg.inv(law.scale), offset)
    log_density = -(law.tail + 2) / 2 * np.log1p(distance / law.tail)
    peak = log_density.max()
    return log_density - peak - np.log(np.exp(log_density - peak).sum())


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
