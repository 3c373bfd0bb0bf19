"""The rule to beat, by hand from rows at k = 1 and 2: a load's step time on a straight line in k, τ's logit step carried on."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foredraft.laws.acceptance import MAX_POSITIONS

Array = NDArray[np.float64]
CARRIED, FADE = (
    0.35,
    0.5,
)  # share of the step from α_1 to α_2 that goes on in all, and by how much it fades per position


def carried_tau(curve: Mapping[int, float]) -> Array | None:
    """τ at k = 1 … 16 from those at 1 and 2; None without both, or where they leave nothing to carry on.

    logit α_i = logit α_2 + 0.35 · (logit α_2 − logit α_1) · (1 − 0.5^(i−2)).
    """
    if not {1, 2} <= curve.keys():
        return None
    first, second = curve[1] - 1, (curve[2] - curve[1]) / max(curve[1] - 1, 1e-9)
    if not (0 < first < 1 and 0 < second < 1):
        return None
    beyond = CARRIED * (1 - FADE ** np.arange(1, MAX_POSITIONS - 1))
    accept = expit(logit(second) + beyond * (logit(second) - logit(first)))
    return np.asarray(1 + np.cumsum(np.cumprod([first, second, *accept])), dtype=np.float64)


def step_at(steps: Mapping[int, float], k: int) -> float | None:
    """Step time at `k` on the line through those at 1 and 2; None without both."""
    if not {1, 2} <= steps.keys():
        return None
    return steps[2] + (k - 2) * (steps[2] - steps[1])
