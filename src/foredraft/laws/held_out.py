"""Laws held to runs that they were not fitted on: the largest draft, the longest budget, the widest tree.

Promises: what is held out is chosen by its dials alone, before any fit; a prediction is of one further run. Refuses to
know: how a law is fitted.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from foredraft.laws.fit import by_range, outcome, predict
from foredraft.laws.forms import law_named
from foredraft.records import Estimate, Fit, Observation, Record

DIALS = ("draft_params", "draft_layers", "draft_tokens", "tree_nodes")
LEVEL = 0.9


class HeldOut(Record, frozen=True):
    """A row outside the range of a fit's data: what the law says of one further run there, and what came out."""

    law: str
    at: dict[str, float]
    row: Observation
    predicted: Estimate
    measured: float


def without_largest(
    rows: Iterable[Observation], dials: Sequence[str] = DIALS
) -> tuple[list[Observation], list[Observation]]:
    """Split rows into those to fit on and those held out: all rows of a target, method and family at the largest value of any of `dials`.

    A dial that takes fewer than three values there holds nothing out, since two values would leave no law to fit. Raises
    ValueError on an unknown dial.
    """
    rows = list(rows)
    if unknown := [name for name in dials if name not in DIALS]:
        raise ValueError(f"hold_out must be among {', '.join(DIALS)}, got {unknown[0]}")
    values_of: dict[tuple, set[float]] = {}
    for row in rows:
        for name in dials:
            if (value := _setting(row, name)) is not None:
                values_of.setdefault((*_kin(row), name), set()).add(value)
    largest = {key: max(values) for key, values in values_of.items() if len(values) > 2}
    out = [any(_setting(row, n) == largest.get((*_kin(row), n), object()) for n in dials) for row in rows]
    return [row for row, gone in zip(rows, out, strict=True) if not gone], [
        row for row, gone in zip(rows, out, strict=True) if gone
    ]


def _setting(row: Observation, dial: str) -> float | None:
    """A dial's value; a chain has no width, whose nodes are its lookahead."""
    return None if dial == "tree_nodes" and row.topk == 1 else getattr(row, dial)


def _kin(row: Observation) -> tuple[str, str, str | None]:
    return row.target, row.method, row.family


def judge(fit: Fit, rows: Iterable[Observation]) -> list[HeldOut]:
    """Every row of the fit's pool outside the range of its data, beside the interval of one further run there."""
    law = law_named(fit.law)
    judged = []
    for row in by_range(fit, rows)[1]:
        at, measured = {name: float(getattr(row, name)) for name in law.inputs}, outcome(law, row)
        assert measured is not None
        predicted = predict(fit, LEVEL, new_run=True, seed=0, **at)
        judged.append(HeldOut(law=fit.law, at=at, row=row, predicted=predicted, measured=measured))
    return judged


def r_squared(fit: Fit, rows: Iterable[Observation]) -> float | None:
    """R² of the law over the rows behind it; None where those at hand are not as many as it was fitted on."""
    inside, law = by_range(fit, rows)[0], law_named(fit.law)
    if len(inside) != fit.num_observations or len(inside) < 3:
        return None
    measured = np.array([outcome(law, row) for row in inside], dtype=float)
    inputs = {name: np.array([getattr(row, name) for row in inside], dtype=float) for name in law.inputs}
    spread = float(((measured - measured.mean()) ** 2).sum())
    missed = float(((measured - law.predict(fit.parameters, **inputs)) ** 2).sum())
    return 1 - missed / spread if spread > 0 else None
