"""Predictions against measurements that others published: what the laws get right, by how much they miss, and what
they could not judge.

Promises: a prediction looks only at what its rule allows (lookaheads up to 2, the no-draft rows, shapes and
machines); hyperparameters fitted across tables are fitted without the judged document; rows that lack what a
prediction needs are counted and named. Refuses to know: formulas (they are laws), and how tables are read.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from foredraft.plan import evidence
from foredraft.published.tables import COLUMNS_HELP
from foredraft.records import Observation, with_hint
from foredraft.validate import curves, ladders, names, throughput
from foredraft.validate.findings import CurvePoint, LookaheadChoice, RatioPoint, Validation, merge

STAGES = 3  # times that each row is gone through: throughput, speedups, names


def validate(
    rows: Sequence[Observation], *, machine: str | None = None, advance: Callable[[int], object] = int
) -> Validation:
    """Judge every kind of prediction that `rows` allow. `machine` stands in for rows that do not state one; `advance` is told of
    rows as they are done, each STAGES times.

    Raises ValueError, one line, when no row allows any.
    """
    law = evidence.position_law(evidence.documents(list(rows)))
    parts = [curves.judge_documents(rows, evidence.position_law)]
    parts += [throughput.judge(rows, law, machine, advance), ladders.judge(rows, machine, advance)]
    validation = merge([*parts, names.judge(rows, machine, advance)])
    if not (
        validation.curves
        or validation.ratios
        or validation.trees
        or validation.ladders
        or validation.gains
        or validation.named
    ):
        lacking = "; ".join(f"{n} rows lack {what}" for what, n in validation.lacking.items())
        usual = "needs rows of τ at several k, of throughput by load and k, or of speedup with τ"
        raise with_hint(ValueError(f"no prediction can be judged: {lacking or usual}"), COLUMNS_HELP)
    return validation


class Judged(NamedTuple):
    """By table: what was predicted beside what was measured; and of tables that allow no prediction why not."""

    tables: dict[str, Validation]
    refused: dict[str, str]


def validate_tables(
    tables: Mapping[str, Sequence[Observation]], *, machine: str | None = None, advance: Callable[[int], object] = int
) -> Judged:
    """Judge each table by itself. Raises ValueError, one line, when none allows a prediction."""
    judged, refused = {}, {}
    for name, rows in tables.items():
        try:
            judged[name] = validate(rows, machine=machine, advance=advance)
        except ValueError as error:
            refused[name] = str(error)
    if not judged:
        raise with_hint(ValueError("; ".join(f"{name}: {why}" for name, why in refused.items())), COLUMNS_HELP)
    return Judged(judged, refused)


__all__ = [
    "STAGES",
    "CurvePoint",
    "Judged",
    "LookaheadChoice",
    "RatioPoint",
    "Validation",
    "merge",
    "validate",
    "validate_tables",
]
