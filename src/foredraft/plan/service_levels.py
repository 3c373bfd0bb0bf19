"""Levels of service: how far the modes of a draft miss them, and how far a plan meets them.

Promises: of modes that meet the levels none is passed over for a faster one that does not. Refuses to know: how modes are scored.

Shapes: C concurrencies, P pairs of a load and a mode, S draws.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from foredraft.plan.estimated import estimated
from foredraft.plan.terms import Terms
from foredraft.records import Estimate, NearestLevel, ScheduleStep, ServiceLevels

if TYPE_CHECKING:
    from foredraft.plan.outcome import SimulatedOutcome
    from foredraft.plan.problem import Problem
    from foredraft.plan.search import Scored

Array = NDArray[np.float64]

FOREMOST = 1e3  # what a level missed by a factor e weighs beside a gain of that factor
FIRST_TOKEN_SD = 0.1  # of log TTFT, of what published rows are missed by beside the cost law's own uncertainty
UNTOLD = 10.0  # an interval that spans such a factor tells nothing


def excess(terms: Terms, ttft_s: Array, tpot_s: Array) -> Array:
    """By how much ways to run miss the levels on latency: the log of the mean over the level, both summed, [P] of draws [P, S]; 0 where
    they are met.
    """
    missed = np.zeros(len(ttft_s))
    for limit, values in ((terms.ttft_s, ttft_s), (terms.tpot_s, tpot_s)):
        if limit is not None:
            missed += np.maximum(np.log(values.mean(axis=-1) / limit), 0.0)
    return missed


def shortfall(terms: Terms, output_len: float, speed: ArrayLike, missed: ArrayLike) -> float:
    """By how much, in log, the output tokens/s [C] at loads whose `missed` is 0 stay below the rate asked for; of all loads where
    none meets the levels.
    """
    if terms.rate is None:
        return 0.0
    speed, meets = np.asarray(speed, dtype=float), np.broadcast_to(np.asarray(missed) == 0, np.shape(speed))
    most = (speed[meets] if meets.any() else speed).max() / output_len
    return max(float(np.log(terms.rate / most)), 0.0)


def misses(problem: "Problem", chosen: "SimulatedOutcome") -> float:
    """The share of loads that miss a level on latency under the chosen way to run each [C, S], and by how much the rate is missed."""
    missed = excess(problem.settings.terms, chosen.ttft_s, chosen.tpot_s)
    short = shortfall(problem.settings.terms, problem.workload.output_len, chosen.output_tok_s.mean(axis=-1), missed)
    return float(problem.weights @ (missed > 0)) + short


def first_token(draws: Array, scored: "Scored", *, factor: Array | float = 0.0) -> Estimate | None:
    """TTFT of `draws` [S], with what the model of it misses; None where they differ too much to tell one. `factor` as of `estimated`."""
    missed = FIRST_TOKEN_SD * np.random.default_rng(0).permutation(ndtri((np.arange(len(draws)) + 0.5) / len(draws)))
    estimate = estimated(draws * np.exp(missed), "s", scored, factor=factor + missed)
    return estimate if estimate.high < UNTOLD * estimate.low else None


class _Reached(NamedTuple):
    """Loads, with the seconds and requests per second there."""

    clients: Array
    ttft_s: Array
    tpot_s: Array
    requests_per_s: Array


def service_levels(problem: "Problem", schedule: tuple[ScheduleStep, ...]) -> ServiceLevels | None:
    """How far `schedule` meets the levels asked for, by its middle draws; None where none is asked for."""
    terms, length = problem.settings.terms, problem.workload.output_len
    limits = {"ttft_s": terms.ttft_s, "tpot_s": terms.tpot_s}
    if terms.rate is None and not any(limits.values()):
        return None
    steps = sorted(schedule, key=lambda step: step.concurrency)
    clients = np.array([step.concurrency for step in steps], dtype=float)
    drafted = _Reached(
        clients, np.array([step.ttft_s.value if step.ttft_s else np.inf for step in steps]), np.array([step.tpot_s.value for step in steps]),
        np.array([step.output_tok_s.value for step in steps]) / length,
    )  # fmt: skip
    bare = problem.server(None, speculate=False).load(clients, 0.0, 1.0)
    plain = _Reached(clients, bare.ttft_s, bare.tpot_s, bare.output_tok_s / length)
    (most, rate), (plain_most, plain_rate) = _most(drafted, limits), _most(plain, limits)
    nearest = {} if most else _nearest(drafted, limits)
    rate_clients = None
    if terms.rate is not None and rate is not None and most is not None:
        if rate >= terms.rate:
            rate_clients = _crossing(np.maximum.accumulate(drafted.requests_per_s), clients, terms.rate)
        else:
            nearest = nearest | {"rate": NearestLevel(value=rate, clients=round(most))}
    return ServiceLevels(
        **limits, rate=terms.rate, clients=most, requests_per_s=rate, rate_clients=rate_clients, plain_clients=plain_most,
        plain_requests_per_s=plain_rate, nearest=nearest, searched=most == clients[-1],
    )  # fmt: skip


def _most(reached: _Reached, limits: dict[str, float | None]) -> tuple[float | None, float | None]:
    """About the most clients at which both latencies lie within their limits, between loads in log, and the most requests per second up
    to there; None where they do at no load.
    """
    most = float(reached.clients[-1])
    for name, limit in limits.items():
        if limit is None:
            continue
        values = getattr(reached, name)
        beyond = np.flatnonzero(values > limit)
        if len(beyond) and beyond[0] == 0:
            return None, None
        if len(beyond):
            upto = slice(beyond[0] - 1, beyond[0] + 1)
            most = min(most, _crossing(values[upto], reached.clients[upto], limit))
    speeds = np.exp(np.interp(np.log(most), np.log(reached.clients), np.log(reached.requests_per_s)))
    below = reached.requests_per_s[reached.clients <= most]
    return most, float(max(speeds, below.max(initial=0.0)))


def _crossing(values: Array, clients: Array, limit: float) -> float:
    """Clients at which rising `values` reach `limit`, both in log; at the first where they begin above it."""
    return float(np.exp(np.interp(np.log(limit), np.log(values), np.log(clients))))


def _nearest(reached: _Reached, limits: dict[str, float | None]) -> dict[str, NearestLevel]:
    """Of each level that no load meets the least value, and where; of all where each is met somewhere, but none together."""
    least = {name: int(np.argmin(getattr(reached, name))) for name, limit in limits.items() if limit is not None}
    values = {
        name: NearestLevel(value=float(getattr(reached, name)[i]), clients=int(reached.clients[i]))
        for name, i in least.items()
    }
    missed = {name: level for name, level in values.items() if level.value > (limits[name] or 0.0)}
    return missed or values
