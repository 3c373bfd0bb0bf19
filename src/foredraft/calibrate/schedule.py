"""From a server's law to its schedule: which lookahead at which load, what that gains, and when to switch off.

Promises: no lookahead longer than one that was measured; a change of lookahead that gains nothing is left out. Refuses to know: how the law
came about, files.

Shapes: C loads, K lookaheads, S draws.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.calibrate.law import ServedLaw
from foredraft.records import CalibratedLoad, Estimate, Observation

Array = NDArray[np.float64]

SOURCE, GAIN = "foredraft calibrate", "× output tokens/s of no draft"
ALIKE = 0.005  # of the speed: within it two lookaheads are as good, and the one of the load before stays
QUANTILES = (0.05, 0.95)


class Scheduled(NamedTuple):
    """Loads with their lookaheads, what they gain over no draft, the best single lookahead and its gain; `off_above` and the rest as
    `ServerCalibration` says.
    """

    loads: tuple[CalibratedLoad, ...]
    gain: Estimate
    best_fixed: int
    fixed_gain: Estimate
    off_above: int | None
    break_even: float | None
    usual_load: int


def scheduled(
    law: ServedLaw, rows: Sequence[Observation], weights: Mapping[int, float] | None = None, *, one_mode: bool = False
) -> Scheduled:
    """The schedule at the loads of `weights` (clients: share of the time), else at those measured and the doublings between; `one_mode`: of
    an engine that keeps one lookahead at every load.
    """
    loads = sorted(weights) if weights else loads_between(*law.loads, {row.concurrency or 0 for row in rows})
    share = np.array([weights[load] if weights else 1.0 for load in loads])
    share /= share.sum()
    lookaheads = tuple(range(law.longest + 1))
    speeds = law.draws(loads, lookaheads)
    gains = np.log(speeds / speeds[:, :1])
    over_loads = np.einsum("c,cks->ks", share, gains)
    fixed = int(np.argmax(over_loads.mean(axis=-1)))
    idle = law.idle_speed(loads)
    chosen = [fixed] * len(loads) if one_mode else _chosen(speeds.mean(axis=-1), idle)
    gain_of = _gains(gains, chosen, idle)
    if (share @ gain_of).mean() <= 0:
        chosen, gain_of = [0] * len(loads), np.zeros_like(gain_of)
    usual = int(np.argmax(share)) if weights else int(np.argmin(np.abs(np.log(loads) - np.log(loads).mean())))
    each = tuple(
        _load(law, rows, load, speeds[i], chosen[i], gain_of[i], idle[i], share[i] if weights else None)
        for i, load in enumerate(loads)
    )
    return Scheduled(
        each, estimate(np.exp(share @ gain_of), GAIN), fixed, estimate(np.exp(over_loads[fixed]), GAIN), _off_above(loads, gains),
        _break_even(law, loads[usual], chosen[usual]), loads[usual],
    )  # fmt: skip


def loads_between(least: int, most: int, measured: set[int]) -> list[int]:
    """Doublings from `least` to `most`, those measured among them."""
    doublings = {2**i for i in range(most.bit_length()) if least <= 2**i <= most}
    return sorted(doublings | {load for load in measured if load} | {least, most})


def estimate(draws: Array, unit: str) -> Estimate:
    """The middle draw with its 90 % interval."""
    low, value, high = np.quantile(draws, (QUANTILES[0], 0.5, QUANTILES[1])).tolist()
    return Estimate(value=value, low=low, high=high, unit=unit, source=SOURCE)


def ranges_of(loads: Sequence[CalibratedLoad]) -> list[tuple[int, int, int]]:
    """[first batch, last batch, lookahead] from 1 on; a change lies midway between two loads."""
    ranges: list[tuple[int, int, int]] = []
    for i, each in enumerate(loads):
        end = (each.concurrency + loads[i + 1].concurrency) // 2 if i + 1 < len(loads) else each.concurrency
        if ranges and ranges[-1][2] == each.scheduled:
            ranges[-1] = (ranges[-1][0], end, each.scheduled)
        else:
            ranges.append((ranges[-1][1] + 1 if ranges else 1, end, each.scheduled))
    return ranges


def _chosen(speeds: Array, idle: Array) -> list[int]:
    """The fastest lookahead at each load, of `speeds` [C, K]; 0 as it is where the draft runs all the same."""
    speeds = speeds.copy()
    if not (speeds[:, 1:] > speeds[:, :1]).any():
        return [0] * len(speeds)
    speeds[:, 0] *= idle
    chosen: list[int] = []
    for row in speeds:
        best = int(np.argmax(row))
        stays = bool(chosen) and row[chosen[-1]] >= (1 - ALIKE) * row[best]
        chosen.append(chosen[-1] if stays else best)
    return chosen


def _gains(gains: Array, chosen: Sequence[int], idle: Array) -> Array:
    """log of the schedule's speed over no draft's, [C, S]; a 0 among others pays for the draft that runs all the same."""
    if not any(chosen):
        return np.zeros_like(gains[:, 0])
    return np.stack([gains[i, k] if k else np.full(gains.shape[-1], np.log(idle[i])) for i, k in enumerate(chosen)])


def _off_above(loads: Sequence[int], gains: Array) -> int | None:
    """The largest load at which some lookahead gains in most draws: behind the last that was looked at, where the middle gain comes to none
    between it and the next.
    """
    most = np.median(gains[:, 1:], axis=-1).max(axis=-1, initial=-np.inf)
    if not (most > 0).any():
        return 0
    last = int(np.flatnonzero(most > 0)[-1])
    if last + 1 == len(loads):
        return None
    (load, beyond), (gain, loss) = loads[last : last + 2], most[last : last + 2]
    return int(load * (beyond / load) ** (gain / (gain - loss)))


def _break_even(law: ServedLaw, load: int, lookahead: int) -> float | None:
    """τ at which a lookahead is as fast as no draft, at one load; None of none."""
    if not lookahead:
        return None
    plain, drafted = np.median(law.draws([load], [0, lookahead])[0], axis=-1)
    return float(law.tokens_per_step(lookahead) * plain / drafted)


def _load(
    law: ServedLaw, rows: Sequence[Observation], load: int, speeds: Array, chosen: int, gain: Array, idle: float, weight: float | None
) -> CalibratedLoad:  # fmt: skip
    rng = np.random.default_rng(load)
    scatter = np.exp(law.costs.noise * rng.standard_normal(speeds.shape))
    predicted = {k: estimate(speeds[k] * scatter[k], "tokens/s") for k in range(len(speeds))}
    measured: dict[int, list[float]] = {}
    for row in rows:
        if row.concurrency == load and row.output_tok_s:
            measured.setdefault(row.lookahead or 0, []).append(row.output_tok_s)
    return CalibratedLoad(
        concurrency=load, predicted=predicted, scheduled=chosen, gain=estimate(np.exp(gain), GAIN),
        sure=float((gain > 0).mean()), measured={k: float(np.mean(speed)) for k, speed in sorted(measured.items())},
        weight=None if weight is None else float(weight), idle=predicted[0].value * float(idle),
    )  # fmt: skip
