"""Intervals by resampling whole requests: the percentile bootstrap over clusters (Efron 1979).

What a request contributes are sums (steps, tokens, seconds), and a figure is a function of sums; so a draw is the figure of
a weighted sum. Tokens of one request resemble each other, which is why they are drawn together.

Promises: the same sums give the same interval, always: the draws have a seed of their own. Refuses to know: what is measured.

Shapes: D requests, K sums of each, R draws.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from foredraft.records import Estimate

Array = NDArray[np.float64]
Figure = Callable[[Array], Array]  # of sums [..., K], nan where they do not say

DRAWS = 2000
LEVEL = 0.9
QUANTILES = (0.05, 0.95)
SEED = 0


def ratio(top_D: Array, bottom_D: Array, unit: str, source: str) -> Estimate:
    """Σ top / Σ bottom, pooled, with its 90 % interval; of a single cluster the interval is the value alone."""
    picks = np.random.default_rng(SEED).integers(len(top_D), size=(DRAWS, len(top_D)))
    low, high = np.quantile(top_D[picks].sum(1) / bottom_D[picks].sum(1), QUANTILES).tolist()
    return Estimate(value=float(top_D.sum() / bottom_D.sum()), low=low, high=high, unit=unit, source=source)


def figure(
    sums_DK: Array, of: Figure, unit: str, source: str, limits: tuple[float, float] | None = None
) -> Estimate | None:
    """`of` the summed requests with its 90 % interval; None where they do not say.

    One request alone says nothing of the next: its interval is then `limits`, all that is possible, or there is none. Where
    a share is 0 or 1 in every request no draw differs, so `limits` (0, 1) widen it by Clopper and Pearson's bound (1934) on
    the requests.
    """
    value = float(of(sums_DK.sum(0)))
    if not math.isfinite(value):
        return None
    if len(sums_DK) < 2:
        return None if limits is None else _estimate(value, *limits, unit, source)
    drawn = of(weights(len(sums_DK)) @ sums_DK)
    low, high = np.quantile(drawn[np.isfinite(drawn)], QUANTILES).tolist()
    if limits == (0, 1) and value in (0, 1):
        away = 1 - (1 - LEVEL) ** (1 / len(sums_DK))
        low, high = (0.0, max(high, away)) if value == 0 else (min(low, 1 - away), 1.0)
    return _estimate(value, low, high, unit, source)


def figures(
    sums_DK: Array, of: Figure, num: int, unit: str, source: str, limits: tuple[float, float] | None = None
) -> tuple[Estimate, ...]:
    """`figure` of each of `num` values that `of` gives, [..., num], up to the first that the requests do not say."""
    estimates = []
    for i in range(num):
        estimate = figure(sums_DK, lambda sums, i=i: of(sums)[..., i], unit, source, limits)
        if estimate is None:
            break
        estimates.append(estimate)
    return tuple(estimates)


def weights(num: int) -> Array:
    """How often each draw takes each of `num` requests, [R, D]; every row adds up to `num`."""
    return np.random.default_rng(SEED).multinomial(num, np.full(num, 1 / num), size=DRAWS).astype(float)


def requests_for_width(estimate: Estimate | None, num: int, width: float) -> int | None:
    """Requests of this kind after which the interval would be `width` wide, from `num` that made it as wide as it is.

    A width falls as 1/√requests. None of fewer than two requests, which show no spread. Raises ValueError on width ≤ 0.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a positive number of tokens per step, got {width}")
    if estimate is None or num < 2:
        return None
    return max(2, math.ceil(num * ((estimate.high - estimate.low) / width) ** 2))


def divided(top: Array, bottom: Array) -> Array:
    """top / bottom, nan where nothing is below."""
    top, bottom = np.broadcast_arrays(np.asarray(top, float), np.asarray(bottom, float))
    return np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)


def _estimate(value: float, low: float, high: float, unit: str, source: str) -> Estimate:
    return Estimate(value=value, low=float(low), high=float(high), unit=unit, source=source, level=LEVEL)
