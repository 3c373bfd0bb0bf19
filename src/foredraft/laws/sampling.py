"""How far off a draft's acceptance may lie because it was measured on few prompts and steps.

What a step accepts scatters as its survival says, and the steps of one request are alike: of m steps each, R requests tell as much as
R·m / (1 + (m − 1)·ALIKE) steps that are not. The rows of one data set are of the same prompts, whatever their lookahead and batch, so
that the best measured of them counts, and the whole curve lies off together, as its logits' level.

Promises: the sd of that level, 0 where no row says how much it measured. Refuses to know: which rows are of the draft, the prior.

Shapes: K positions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foredraft.records import Observation

Array = NDArray[np.float64]

# Correlation of what steps of one request accept: the intervals of 60 independent models measured on 28 prompts each ask for 0.1
# (docs/log.md).
ALIKE = 0.1
USUAL_STEPS = 40.0  # of a request, where a row does not say how long its answers were


def sampling_sd(rows: Sequence[Observation], accept: Array) -> float:
    """sd of the level of `accept` [K] (accept_given_prefix), which `rows` measured: their mean over data sets, each by its surest row."""
    by_dataset: dict[str | None, list[float]] = {}
    for row in rows:
        if (variance := _variance(row, accept)) is not None:
            by_dataset.setdefault(row.dataset, []).append(variance)
    surest = [min(variances) for variances in by_dataset.values()]
    return float(np.sqrt(sum(surest))) / len(surest) if surest else 0.0


def _variance(row: Observation, accept: Array) -> float | None:
    """Of the level, from one row; None where it says neither its steps nor its requests."""
    reach = np.cumprod(accept[: row.lookahead or 1])
    accepted = reach.sum()
    steps_each = row.output_len / (1 + accepted) if row.output_len else USUAL_STEPS
    steps = row.steps or (row.num_requests * steps_each if row.num_requests else None)
    if steps is None:
        return None
    requests = min(row.num_requests or steps / steps_each, steps)
    effective = steps / (1 + (steps / max(requests, 1.0) - 1) * ALIKE)
    scatter = (2 * np.arange(len(reach)) + 1) @ reach - accepted**2
    slope = (reach * np.cumsum(1 - accept[: len(reach)])).sum()
    return float(scatter / effective / slope**2)
