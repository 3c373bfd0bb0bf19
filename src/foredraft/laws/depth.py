"""What more layers bring a draft: the gain in accepted tokens from one depth to another, by how the draft drafts.

Promises: a slope per series (architecture, target, recipe) drawn from those of its way of drafting, so that one not seen yet has an
interval that covers how far architectures differ; own runs at several depths narrow it. Refuses to know: what layers cost.

The law, of a draft with L layers: log(τ − 1) = level + a·rise(L), rise(L) = (1 − L^−b)/(1 − 2^−b), which is log2 L as b → 0. So a is
what the first doubling brings, and b how soon layers stop to pay: 0 never, 2 almost at once. a of a series is normal about the mean of its
way of drafting (token by token, or a block at once); mean and spread are summed on a grid, b on SATURATIONS with equal weights. A document
weighs 1, whatever number of its series. The level of a series says nothing.

Chosen with the published series (published/dial_series.json) in sight: in τ − 1 they agree better than in τ (docs/log.md).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from foredraft import kinds
from foredraft.kinds import Kind
from foredraft.laws import forms
from foredraft.laws.law import Array
from foredraft.laws.series import dial_series
from foredraft.records import Observation

NOISE = 0.015  # sd of a measured log(τ − 1): about 1 % of τ, what a few hundred requests leave
SATURATIONS = (0.0, 0.5, 1.0, 2.0)
MEANS, SPREADS = np.linspace(-0.2, 0.8, 41), np.geomspace(0.02, 0.5, 16)
USUAL_MEAN, USUAL_MEAN_SD, USUAL_SPREAD = 0.1, 0.2, 0.1  # of a first doubling, before any series is seen
STRATA = ndtri((np.arange(15) + 0.5) / 15)  # of a normal, by which a cell is summed
NUM = 1000


class DepthSeries(NamedTuple):
    """τ by layers of drafts alike otherwise, and how much the series weighs."""

    layers: tuple[float, ...]
    tokens_per_step: tuple[float, ...]
    weight: float = 1.0


class _Cells(NamedTuple):
    """A posterior of (a, b) as a mixture of normals: log weights [C], mean and sd of a, and b."""

    log_weights: Array
    mean: Array
    sd: Array
    saturation: Array


def depth_gain(
    kind: Kind, layers: float, observations: Iterable[Observation] = (), *, reference: float = 1, num: int = NUM,
    seed: int = 0,
) -> Array:  # fmt: skip
    """Draws [num], in an order of `seed`, of (τ − 1) of a draft of `layers` over that of one of `reference` layers, else alike.

    From published series of its way of drafting, or of both ways where the kind is of neither, and from those of the kind that
    `observations` hold. Raises ValueError below one layer.
    """
    taught = tuple(published_series(way) for way in ways_of(kind))
    return gain_draws(taught, layers, reference, tuple(own_series(kind, observations)), num=num, seed=seed)


def gain_draws(
    taught: Sequence[Sequence[DepthSeries]], layers: float, reference: float, own: tuple[DepthSeries, ...] = (), *,
    num: int = NUM, seed: int = 0,
) -> Array:  # fmt: skip
    """`depth_gain` as the series in `taught`, those of each way alike, and those of the draft's `own` kind teach it."""
    if not min(layers, reference) >= 1:
        raise ValueError(f"layers must be at least 1, got {min(layers, reference):g}: give a depth")
    cells = _posterior(tuple(map(tuple, taught)), own)
    steps = np.array([float(rise(layers, b) - rise(reference, b)) for b in SATURATIONS])
    slopes = cells.mean[:, None] + cells.sd[:, None] * STRATA
    logs = (slopes * steps[np.searchsorted(SATURATIONS, cells.saturation), None]).ravel()
    order = np.argsort(logs)
    reached = np.cumsum(np.repeat(np.exp(cells.log_weights), len(STRATA))[order])
    picked = np.searchsorted(reached, (np.arange(num) + 0.5) / num * reached[-1])
    return np.random.default_rng(seed).permutation(np.exp(logs[order[picked]]))


def rise(layers: ArrayLike, saturation: float) -> Array:
    """What `layers` gain over one, in units of the first doubling: 0 at 1 layer, 1 at 2."""
    depth = np.asarray(layers, dtype=float)
    return np.log2(depth) if saturation == 0 else (1 - depth**-saturation) / (1 - 2.0**-saturation)


def ways_of(kind: Kind) -> tuple[str, ...]:
    """How drafts of `kind` draft, as series tell them apart; both ways for kinds that no series is of."""
    seen = {kinds.of_method(series.method).checkpoint for series in dial_series("draft_layers")}
    return (kind.passes,) if kind.passes == "block" or kind.checkpoint in seen else ("token", "block")


def published_series(way: str, without: str | None = None) -> tuple[DepthSeries, ...]:
    """The published series of a way of drafting, but those of the source `without`; the series of a document share one weight."""
    rows = [series for series in dial_series("draft_layers") if series.passes == way and series.source != without]
    sizes = Counter(series.source for series in rows)
    return tuple(DepthSeries(series.at, series.tokens_per_step, 1 / sizes[series.source]) for series in rows)


def own_series(kind: Kind, observations: Iterable[Observation]) -> list[DepthSeries]:
    """Rows of `kind` that differ in layers alone, at two depths or more; repeats are averaged."""
    pools: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in observations:
        alike = kinds.of_method(row.method).checkpoint == kind.checkpoint
        if alike and row.draft_layers and row.tokens_per_step and row.tokens_per_step > 1:
            pool = tuple(getattr(row, name) for name in forms.LAW_1_2.pool)
            pools[pool][row.draft_layers].append(row.tokens_per_step)
    series = []
    for by_depth in pools.values():
        depths = sorted(by_depth)
        taus = tuple(float(np.mean(by_depth[depth])) for depth in depths)
        series += [DepthSeries(tuple(map(float, depths)), taus)] * (len(depths) > 1)
    return series


@cache
def _posterior(taught: tuple[tuple[DepthSeries, ...], ...], own: tuple[DepthSeries, ...]) -> _Cells:
    """Over the ways together, each with an equal share before `own` series speak."""
    parts = [_mixture(_grid(series), own, b) for series in taught for b in SATURATIONS]
    log, mean, sd, saturation = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Cells(log - log.max(), mean, sd, saturation)


@cache
def _grid(taught: tuple[DepthSeries, ...]) -> Array:
    """Posterior log weights of mean and spread of a over MEANS × SPREADS, [M, S], their sum 1."""
    log = -0.5 * ((MEANS[:, None] - USUAL_MEAN) / USUAL_MEAN_SD) ** 2 - 0.5 * (SPREADS / USUAL_SPREAD) ** 2
    log = log + np.log(SPREADS)  # the grid is even in the logarithm
    for series in taught:
        by_saturation = np.stack([_log_likelihood((series,), b) for b in SATURATIONS])
        log = log + series.weight * np.logaddexp.reduce(by_saturation, axis=0)
    return log - np.logaddexp.reduce(log, axis=None)


def _mixture(grid: Array, own: tuple[DepthSeries, ...], saturation: float) -> _Cells:
    """a of a further series at every mean and spread and one b: as drawn, or as `own` series of it say besides."""
    along, along_square, _ = _sums(own, saturation)
    precision = SPREADS**-2.0 + along_square / NOISE**2
    mean = (MEANS[:, None] * SPREADS**-2.0 + along / NOISE**2) / precision
    log = grid + (_log_likelihood(own, saturation) if own else 0.0)
    sd = np.broadcast_to(precision**-0.5, mean.shape)
    return _Cells(log.ravel(), mean.ravel(), sd.ravel(), np.full(mean.size, saturation))


def _sums(series: Sequence[DepthSeries], saturation: float) -> tuple[float, float, float]:
    """Σ g·y, Σ g² and Σ y² of rise g and log(τ − 1) y, each about its mean in its series."""
    along = along_square = square = 0.0
    for layers, taus, _ in series:
        g, y = rise(np.array(layers), saturation), np.log(np.array(taus) - 1)
        g, y = g - g.mean(), y - y.mean()
        along, along_square, square = along + float(g @ y), along_square + float(g @ g), square + float(y @ y)
    return along, along_square, square


def _log_likelihood(series: Sequence[DepthSeries], saturation: float) -> Array:
    """log p of series that share a and b, their levels aside, at every mean and spread of a: [M, S]."""
    along, along_square, square = _sums(series, saturation)
    num = sum(len(each.layers) - 1 for each in series)
    variance = NOISE**2 + SPREADS**2 * along_square
    missed = square - along**2 / along_square
    off = (along - MEANS[:, None] * along_square) ** 2 / along_square
    return -0.5 * (off / variance + np.log(variance) + missed / NOISE**2 + (num - 1) * np.log(NOISE**2))
