"""What a machine reaches where rows are multiplied with weights that no cache holds: bandwidth, rate, and how they overlap.

Promises: the three figures that a probe's stack of matrices says, in the very form in which `laws.passes` takes a pass. Refuses to know:
models, engines, files.

    seconds(T) = (memory^p + (T · compute)^p)^(1/p),   memory = bytes / bandwidth, compute = FLOPs of a row / rate

A probe on a machine that does other work scatters by some percent, so that p is held to [1, MOST_BLEND].
"""

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import scipy  # whose `optimize` loads where it is first used: it takes a fifth of a second

LEAST_ROWS = 3  # numbers of rows that say three figures
MOST_BLEND = 8.0


class ReachedRates(NamedTuple):
    """Bytes per second, FLOP per second, and the power `blend` by which the two times add."""

    bandwidth: float
    flops_per_s: float
    blend: float


def reached_rates(stack_bytes: float, bytes_per_weight: float, seconds: Mapping[int, float]) -> ReachedRates | None:
    """Of `seconds` by number of rows through `stack_bytes` of weights; None of fewer than LEAST_ROWS numbers."""
    return (
        _fitted(stack_bytes, bytes_per_weight, tuple(sorted(seconds.items()))) if len(seconds) >= LEAST_ROWS else None
    )


@cache
def _fitted(stack_bytes: float, bytes_per_weight: float, timed: tuple[tuple[int, float], ...]) -> ReachedRates:
    rows, seconds = np.array(timed).T
    row_s = seconds[-1] / rows[-1]

    def off(logs: np.ndarray) -> np.ndarray:
        memory, compute, over = np.exp(logs)
        blend = 1 + over
        return np.log((memory**blend + (rows * compute) ** blend) ** (1 / blend) / seconds)

    start = np.log([seconds[0], row_s, 1.0])
    below, above = np.array([1.0, 1.0, 7.0]), np.array([1.0, 1.0, np.log(MOST_BLEND - 1)])
    solution = scipy.optimize.least_squares(
        off, start, bounds=(start - below, start + above), loss="soft_l1", f_scale=0.05
    )
    memory, compute, over = np.exp(solution.x)
    return ReachedRates(stack_bytes / memory, 2 * stack_bytes / bytes_per_weight / compute, 1 + over)
