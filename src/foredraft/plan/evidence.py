"""What the published measurements say that a prediction may lean on, with the judged documents left out.

Refuses to know: what will be predicted with it.
"""

from collections import Counter
from functools import cache
from importlib.resources import files

from foredraft import published
from foredraft.laws import acceptance
from foredraft.laws.acceptance import PositionLaw
from foredraft.records import Observation, decode

NOTHING: frozenset[str] = frozenset()


@cache
def observations(without: frozenset[str] = NOTHING) -> tuple[Observation, ...]:
    """Published observations, less those of the documents in `without` (see `published.document`)."""
    return tuple(row for row in published.observations() if published.document(row.provenance.source) not in without)


def documents(rows: tuple[Observation, ...] | list[Observation]) -> frozenset[str]:
    """The documents that `rows` come from."""
    return frozenset(published.document(row.provenance.source) for row in rows)


@cache
def position_law(without: frozenset[str] = NOTHING) -> PositionLaw:
    """The position law over published curves; the shipped fit unless a document that taught it has to be left out, then refitted (10 s)."""
    if not without & documents(published.observations()):
        return decode(PositionLaw, (files("foredraft.published") / "position_law.json").read_bytes(), name="position_law.json")
    return fit_position_law(observations(without))


def fit_position_law(rows: tuple[Observation, ...]) -> PositionLaw:
    """Each curve weighs 1/√n, n the curves of its document: one document's habits must not drown the others, nor one curve count as much as forty."""
    home = {acceptance.curve_key(row): published.document(row.provenance.source) for row in rows}
    curves = acceptance.chain_curves(rows)
    sizes = Counter(home[key] for key, curve in curves.items() if len(curve) >= 3)
    return acceptance.fit_position_law(list(curves.values()), [max(sizes[home[key]], 1) ** -0.5 for key in curves])
