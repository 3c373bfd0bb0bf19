"""An acceptance that is stated, not predicted: its spelling, and curves that hold to it.

Promises: what is stated holds in every draw; beyond it the position law goes on. Refuses to know: which draft it is of, engines.

Shapes: S draws, K positions.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foredraft.laws.acceptance import MAX_POSITIONS, Curve, survival_through

Array = NDArray[np.float64]

SPELLING = "2.6@3 (tokens per step with the target's own, at a lookahead) or 0.8,0.6,0.4 (share of steps that accept so many or more)"
HALVINGS = 60  # of a move of logits, from ± 30 down to rounding


class Accepted(NamedTuple):
    """What is accepted of a draft: P(at least i drafted tokens accepted) by position, and whether that was said by position
    or only its sum was, τ less the target's own token.
    """

    survival: tuple[float, ...]
    by_position: bool = False

    def tokens_per_step(self, lookahead: int) -> float:
        """τ, the target's own token included."""
        return 1 + sum(self.survival[:lookahead])

    @property
    def curve(self) -> Curve:
        """τ at the lookaheads that were stated."""
        reach = len(self.survival)
        return {k: self.tokens_per_step(k) for k in (range(1, reach + 1) if self.by_position else (reach,))}


def stated_acceptance(text: str) -> Accepted:
    """`SPELLING` as survival by position. Raises ValueError on what no chain can accept."""
    try:
        tau, at, lookahead = text.partition("@")
        curve = {int(lookahead): float(tau)} if at else {}
        shares = () if at else tuple(map(float, text.split(",")))
    except ValueError:
        raise ValueError(f"--accept must be {SPELLING}, got {text!r}") from None
    try:
        if curve:
            return Accepted(survival_through(curve))
    except ValueError as error:
        raise ValueError(f"--accept {text}: {error}") from None
    falls = all(a >= b for a, b in zip((1.0, *shares), (*shares, 0.0), strict=True))
    if not falls or len(shares) > MAX_POSITIONS:
        raise ValueError(
            f"--accept: shares by position must fall, from 1 to 0, over at most {MAX_POSITIONS}; got {text}"
        )
    return Accepted(shares, by_position=True)


def held_to(accept: Array, accepted: Accepted) -> Array:
    """accept_given_prefix [S, K] as `accepted` says: its own numbers where it goes by position, else all logits of a draw moved alike so
    that its τ there is the one stated.
    """
    reach, out = len(accepted.survival), accept.copy()
    if accepted.by_position:
        survival = np.array((1.0, *accepted.survival))
        out[:, :reach] = np.divide(survival[1:], survival[:-1], out=np.zeros(reach), where=survival[:-1] > 0)
        return out
    logits, total = logit(np.clip(accept, 1e-9, 1 - 1e-9)), sum(accepted.survival)
    low, high = np.full(len(accept), -30.0), np.full(len(accept), 30.0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = np.cumprod(expit(logits[:, :reach] + middle[:, None]), axis=1).sum(axis=1) > total
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return expit(logits + ((low + high) / 2)[:, None])
