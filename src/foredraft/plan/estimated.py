"""Draws as an estimate: the value by which drafts are ranked, and the interval. Refuses to know: what is drawn."""

from typing import TYPE_CHECKING, Any

import numpy as np

from foredraft.laws.draws import ends
from foredraft.records import Estimate

if TYPE_CHECKING:
    from foredraft.plan.search import Scored

SOURCE = "foredraft plan: position law × loss laws × cost law over published and own observations"


def estimated(draws: Any, unit: str, scored: "Scored", level: float = 0.9, *, factor: Any = None) -> Estimate:
    """Geometric mean and equal-tailed interval of `draws`, all positive, with what the draft's acceptance extrapolates in; `factor` as of
    `laws.draws.ends`.
    """
    low, high = ends(draws, level, factor)
    return Estimate(
        value=float(np.clip(np.exp(np.log(draws).mean()), low, high)), low=low, high=high, unit=unit, source=SOURCE, level=level,
        extrapolates=scored.candidate.extrapolates if scored.candidate else (),
    )  # fmt: skip
