"""What more training tokens and more layers bring a head, as draws of τ − 1 over that of the head whose curve is known.

Promises: laws of own runs where they make one, else of published series; a law carried more than an octave beyond its data says so and
widens. Refuses to know: acceptance by position, costs, which heads are worth weighing.

Shapes: S draws.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from foredraft import kinds
from foredraft.kinds import Kind
from foredraft.laws import forms
from foredraft.laws.depth import depth_gain
from foredraft.laws.fit import choose, far_outside, predict_draws, run_sd
from foredraft.plan import evidence
from foredraft.plan.study import TOKEN_LAWS
from foredraft.records import Fit, Observation

Array = NDArray[np.float64]

DEPTHS = (1, 2, 4)  # layers tried for a head


def tokens_law(observations: Sequence[Observation]) -> Fit:
    """The law of τ in tokens that best predicts the largest own run of heads, else the largest of EAGLE-3's figure 1: of the
    pool of comparable rows with the most budgets.
    """
    for rows in (observations, evidence.observations()):
        pools: dict[tuple, list[Observation]] = defaultdict(list)
        for row in rows:
            if kinds.of_method(row.method).unrolled and row.draft_tokens and row.tokens_per_step:
                pools[tuple(getattr(row, name) for name in forms.LAW_1_1.pool)].append(row)
        for pool in sorted(pools.values(), key=lambda pool: -len({row.draft_tokens for row in pool})):
            try:
                return choose(TOKEN_LAWS, pool)
            except ValueError:
                continue
    raise ValueError("no observations of τ against draft_tokens ship with the package")


def tokens_gain(law: Fit, tokens: float, reference: float) -> Array:
    """Draws [S] of (τ − 1) at `tokens` over that at the `reference` tokens of the known curve; where either lies far beyond the law's
    data, with the scatter of a run there.
    """
    here, there = (_at(law, each) for each in (tokens, reference))
    return np.clip(here, 1e-3, None) / np.clip(there, 1e-3, None)


def tokens_outside(law: Fit, tokens: float, reference: float) -> tuple[str, ...]:
    """draft_tokens, where `tokens` or `reference` lie more than an octave beyond the law's data."""
    return tuple(dict.fromkeys(name for each in (tokens, reference) for name in far_outside(law, draft_tokens=each)))


def notes(law: Fit, tokens: float, reference: float, layers: int) -> list[str]:
    """What a plan should say of a head of so many `layers` trained on `tokens`: for people."""
    said = []
    if tokens_outside(law, tokens, reference):
        low, high = law.domain["draft_tokens"]
        said.append(
            f"the law in training tokens ({low:.2g} to {high:.2g}) is carried more than an octave beyond its data: its interval widens by the octave"
        )
    if layers > 1:
        said.append(
            "what further layers bring is drawn from published series of heads alike, and from own runs at several depths"
        )
    return said


def _at(law: Fit, tokens: float) -> Array:
    accepted: Array = predict_draws(law, draft_tokens=tokens) - 1
    if not far_outside(law, draft_tokens=tokens):
        return accepted
    normal = ndtri((np.arange(len(accepted)) + 0.5) / len(accepted))
    return np.add(
        accepted, run_sd(law, draft_tokens=tokens) * np.random.default_rng(0).permutation(normal), dtype=np.float64
    )


def layer_gains(kind: Kind, observations: Sequence[Observation], num: int) -> dict[int, Array]:
    """Draws [num] of what deeper heads of `kind` gain over one of one layer, by number of layers."""
    return {layers: depth_gain(kind, layers, observations, num=num) for layers in DEPTHS}
