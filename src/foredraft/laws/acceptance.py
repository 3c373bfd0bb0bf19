"""How acceptance falls with position: from τ at one or two lookaheads to the whole curve, with what other drafts have shown as the prior.

Promises: a prediction is a posterior over per-position acceptance, with an interval; constant α is its special case (slope 0).
Refuses to know: which draft or table a curve belongs to; files.

The law: logit α_i = level + slope·(1 − decay^(i−1)), i = 1, 2, … The slope is where drafts differ: heads trained for one step lose acceptance
quickly, n-gram matches gain it. (level, slope) of a draft is drawn from a bivariate Student t, heavy-tailed because a few drafts (one-step MTP
layers) fall far outside the rest; a τ measured at lookahead k scatters by `noise`·(k/2)^`noise_growth` in log τ, growing with k because a later
position is reached more rarely and the two-parameter curve is only approximate. The hyperparameters are fitted across curves by maximum evidence.
With two parameters the posterior is summed on a grid: no sampler, no seed, the same number every time.

Shapes: A levels × B slopes on the grid, K positions.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import erfinv

from foredraft.records import Observation, Record

Array = NDArray[np.float64]
Curve = Mapping[int, float]  # lookahead -> tokens per step, bonus included

MAX_POSITIONS = 16
LEVELS = np.linspace(-4.0, 5.0, 301)
SLOPES = np.linspace(-4.0, 2.5, 217)
GRID = np.stack(np.meshgrid(LEVELS, SLOPES, indexing="ij"), axis=-1)  # [A, B, 2]
DECAYS = (0.4, 0.5, 0.6, 0.7)
NOISES = (0.005, 0.007, 0.01)
NOISE_GROWTHS = (0.0, 1.0)
TAILS = (1.0, 2.0, 4.0)


class PositionLaw(Record):
    """Hyperparameters of the law: prior mean and scale of (level, slope), tail, decay, noise; and how many curves taught them."""

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
        return np.cumprod(self.accept_given_prefix, axis=-1)

    def tokens_per_step(self, lookahead: int, level: float = 0.9) -> tuple[float, float, float]:
        """Median and interval of τ at `lookahead` (0 gives 1). The median, because the posterior is skewed towards slow decay."""
        tau = 1 + self.survival[:, :lookahead].sum(axis=-1)
        low, mid, high = _quantiles(tau, self.weights, ((1 - level) / 2, 0.5, (1 + level) / 2))
        return mid, low, high

    def draws(self, num: int, rng: np.random.Generator) -> Array:
        """`num` curves accept_given_prefix [num, K] drawn from the posterior."""
        return self.accept_given_prefix[rng.choice(len(self.weights), size=num, p=self.weights)]

    def median_curve(self) -> Array:
        """The survival curve [K] whose every point is the posterior median."""
        return np.array([_quantiles(column, self.weights, (0.5,))[0] for column in self.survival.T])


def posterior(law: PositionLaw, curve: Curve, *, extra_noise: float = 0.0) -> CurvePosterior:
    """What `curve` (τ at some lookaheads; may be empty) says of acceptance at every position, under the prior `law`.

    `extra_noise` widens the likelihood in log τ, for curves measured elsewhere than where they will be used. Raises ValueError on τ < 1,
    τ > lookahead + 1 or a lookahead outside 1 … 16.
    """
    check_curve(curve)
    log_weights = _log_prior(law) + _log_likelihood(law, curve, extra_noise)
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    keep = weights > 1e-9
    accept = _accept(law.decay)[keep]
    return CurvePosterior(weights[keep] / weights[keep].sum(), accept)


def predict(law: PositionLaw, curve: Curve, lookaheads: Sequence[int], level: float = 0.9) -> dict[int, tuple[float, float, float]]:
    """What a run at each of `lookaheads` would measure, given the τ in `curve`: (median, low, high), the run's own scatter included."""
    known = posterior(law, curve)
    z = np.sqrt(2) * erfinv(level)
    out = {}
    for k in lookaheads:
        mid, low, high = known.tokens_per_step(k, level)
        scatter = z * law.noise * (k / 2) ** law.noise_growth
        out[k] = (mid, mid * np.exp(-np.hypot(np.log(mid / low), scatter)), mid * np.exp(np.hypot(np.log(high / mid), scatter)))
    return out


def check_curve(curve: Curve) -> None:
    """Raise ValueError, one line, on a τ that no chain can give."""
    for k, tau in curve.items():
        if not 1 <= k <= MAX_POSITIONS:
            raise ValueError(f"lookahead {k} of a τ(k) curve must lie in 1…{MAX_POSITIONS}")
        if not 1 <= tau <= k + 1:
            raise ValueError(f"tokens_per_step {tau} at lookahead {k} must lie in [1, {k + 1}] (bonus token included)")


def fit_position_law(curves: Sequence[Curve], weights: Sequence[float] | None = None) -> PositionLaw:
    """Hyperparameters of greatest evidence over `curves`, each weighted (say by 1/√n of its table, so that no table drowns the rest).

    Every combination of decay, noise, its growth and the tail is tried; mean and scale are fitted by EM within each. Raises ValueError with
    fewer than 4 curves of at least 3 lookaheads: two parameters leave nothing to learn from shorter ones.
    """
    usable = [i for i, curve in enumerate(curves) if len(_within(curve)) >= 3]
    if len(usable) < 4:
        raise ValueError(f"the position law needs 4 curves τ(k) with 3 or more lookaheads, got {len(usable)}")
    kept = [_within(curves[i]) for i in usable]
    for curve in kept:
        check_curve(curve)
    share = np.ones(len(kept)) if weights is None else np.array([weights[i] for i in usable], dtype=float)
    share /= share.sum()
    settings = product(DECAYS, NOISES, NOISE_GROWTHS, TAILS)
    return max((_fit_prior(kept, share, *setting) for setting in settings), key=lambda law: law.evidence)


def _fit_prior(curves: Sequence[Curve], share: Array, decay: float, noise: float, noise_growth: float, tail: float, rounds: int = 12) -> PositionLaw:
    """EM for the prior's mean and scale at fixed other hyperparameters; the t tail enters as the usual scale-mixture weights."""
    law = PositionLaw(mean=(1.0, -0.3), scale=((1.0, 0.0), (0.0, 0.25)), tail=tail, decay=decay, noise=noise, noise_growth=noise_growth,
                      num_curves=len(curves), evidence=-np.inf)  # fmt: skip
    logs = np.stack([_log_likelihood(law, curve).ravel() for curve in curves])
    peaks = logs.max(axis=1)
    likelihoods = np.exp(logs - peaks[:, None])
    points = GRID.reshape(-1, 2)
    for _ in range(rounds):
        offset = points - law.mean
        distance = np.einsum("pi,ij,pj->p", offset, np.linalg.inv(law.scale), offset)
        prior = np.exp(_log_prior(law)).ravel()
        total = likelihoods @ prior
        mass = prior * ((share / total) @ likelihoods)
        pull = mass * (tail + 2) / (tail + distance)
        mean = pull @ points / pull.sum()
        scale = np.einsum("p,pi,pj->ij", pull, offset, offset) + 1e-3 * np.eye(2)
        law = msgspec.structs.replace(law, mean=tuple(mean.tolist()), scale=tuple(map(tuple, scale.tolist())),
                                      evidence=float(share @ (np.log(total) + peaks)))  # fmt: skip
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
    """τ(k) of every chain in `observations`: one curve per target, method, draft, dataset, temperature and document; repeats are averaged.

    A row that carries survival by position gives τ at every lookahead up to its own, unless the curve has rows of its own there. Acceptance
    does not depend on the batch, so rows at several concurrencies are repeats.
    """
    measured: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    implied: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in observations:
        if row.method == "none" or (row.topk or 1) > 1 or not row.lookahead:
            continue
        key = curve_key(row)
        if row.tokens_per_step is not None:
            measured[key][row.lookahead].append(row.tokens_per_step)
        for k, tau in enumerate(1 + np.cumsum(row.survival or ()), 1):
            implied[key][k].append(float(tau))
    return {key: {k: float(np.mean(taus)) for k, taus in sorted({**implied[key], **measured[key]}.items())} for key in {**measured, **implied}}


def curve_key(row: Observation) -> tuple[str, ...]:
    """What two rows of one τ(k) curve have in common."""
    return (row.target, row.method, row.draft or "", row.dataset or "", str(row.temperature if row.temperature is not None else ""), row.engine or "")
