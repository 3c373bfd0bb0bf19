"""Predictions against measurements that others published: what the laws get right, by how much they miss, and what
they could not judge.

Promises: a prediction looks only at what its rule allows (lookaheads up to 2, the no-draft rows, shapes and
machines); hyperparameters fitted across tables are fitted without the judged document; rows that lack what a
prediction needs are counted and named. Refuses to know: formulas (they are laws), and how tables are read.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from foredraft.plan import evidence
from foredraft.published.tables import COLUMNS_HELP
from foredraft.records import Observation, with_hint
from foredraft.validate import curves, ladders, throughput
from foredraft.validate.findings import CurvePoint, LookaheadChoice, RatioPoint, Validation, merge


def validate(rows: Sequence[Observation], *, machine: str | None = None) -> Validation:
    """Judge every kind of prediction that `rows` allow. `machine` stands in for rows that do not state one.

    Raises ValueError, one line, when no row allows any.
    """
    law = evidence.position_law(evidence.documents(list(rows)))
    parts = [curves.judge(rows, law), throughput.judge(rows, law, machine), ladders.judge(rows, law, machine)]
    validation = merge(parts)
    if not (validation.curves or validation.ratios or validation.ladders):
        lacking = "; ".join(f"{n} rows lack {what}" for what, n in validation.lacking.items())
        usual = "needs rows of τ at several k, of throughput by load and k, or of speedup with τ"
        raise with_hint(ValueError(f"no prediction can be judged: {lacking or usual}"), COLUMNS_HELP)
    return validation


class Judged(NamedTuple):
    """By table: what was predicted beside what was measured; and of tables that allow no prediction why not."""

    tables: dict[str, Validation]
    refused: dict[str, str]


def validate_tables(tables: Mapping[str, Sequence[Observation]], *, machine: str | None = None) -> Judged:
    """Judge each table by itself. Raises ValueError, one line, when none allows a prediction."""
    judged, refused = {}, {}
    for name, rows in tables.items():
        try:
            judged[name] = validate(rows, machine=machine)
        except ValueError as error:
            refused[name] = str(error)
    if not judged:
        raise with_hint(ValueError("; ".join(f"{name}: {why}" for name, why in refused.items())), COLUMNS_HELP)
    return Judged(judged, refused)


__all__ = [
    "CurvePoint",
    "Judged",
    "LookaheadChoice",
    "RatioPoint",
    "Validation",
    "merge",
    "validate",
    "validate_tables",
]
