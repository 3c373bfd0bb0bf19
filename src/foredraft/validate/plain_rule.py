"""The rules to beat, by hand from rows at k = 1 and 2: a load's step time on a straight line in k; τ by constant α, by the second
position's acceptance from there on, and by the logit step between the two carried on.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foredraft.laws.acceptance import MAX_POSITIONS
from foredraft.laws.speedup import accept_prob_from_rate

Array = NDArray[np.float64]
CARRIED, FADE = (
    0.35,
    0.5,
)  # share of the step from α_1 to α_2 that goes on in all, and by how much it fades per position


def constant_alpha(visible: Mapping[int, float]) -> float:
    """The α that gives the τ of the largest visible lookahead, were it the same at every position."""
    k = max(visible)
    return float(accept_prob_from_rate((visible[k] - 1) / k, k))


def second_alpha_tau(curve: Mapping[int, float]) -> Array | None:
    """τ at k = 1 … 16 from those at 1 and 2 with α_i = α_2 for i > 2; None without both, or where they leave no α_2."""
    pair = _first_two(curve)
    return None if pair is None else _tau(np.array([pair[0], *[pair[1]] * (MAX_POSITIONS - 1)]))


def carried_tau(curve: Mapping[int, float]) -> Array | None:
    """τ at k = 1 … 16 from those at 1 and 2; None without both, or where they leave nothing to carry on.

    logit α_i = logit α_2 + 0.35 · (logit α_2 − logit α_1) · (1 − 0.5^(i−2)).
    """
    if (pair := _first_two(curve)) is None:
        return None
    first, second = logit(pair)
    beyond = CARRIED * (1 - FADE ** np.arange(1, MAX_POSITIONS - 1))
    return _tau(np.array([*pair, *expit(second + beyond * (second - first))]))


def _first_two(curve: Mapping[int, float]) -> tuple[float, float] | None:
    """α_1 and α_2, where both lie between 0 and 1."""
    if not {1, 2} <= curve.keys():
        return None
    first, second = curve[1] - 1, (curve[2] - curve[1]) / max(curve[1] - 1, 1e-9)
    return (first, second) if 0 < first < 1 and 0 < second < 1 else None


def _tau(accept: Array) -> Array:
    return np.asarray(1 + np.cumsum(np.cumprod(accept)), dtype=np.float64)


def step_at(steps: Mapping[int, float], k: int) -> float | None:
    """Step time at `k` on the line through those at 1 and 2; None without both."""
    if not {1, 2} <= steps.keys():
        return None
    return steps[2] + (k - 2) * (steps[2] - steps[1])
