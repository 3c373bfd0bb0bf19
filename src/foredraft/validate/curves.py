"""AL(k) curves: τ at larger lookaheads from runs at k ≤ 2, each document judged by a law that it did not teach."""

from collections.abc import Callable, Sequence

from foredraft import kinds
from foredraft.laws import acceptance
from foredraft.laws.acceptance import Curve, PositionLaw
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.published import document
from foredraft.records import Observation
from foredraft.validate import plain_rule
from foredraft.validate.findings import KNOWN_LOOKAHEAD, CurvePoint, Validation, merge


def judge_documents(rows: Sequence[Observation], law_without: Callable[[frozenset[str]], PositionLaw]) -> Validation:
    """Judge the rows of each document by the law without it."""
    documents: dict[str, list[Observation]] = {}
    for row in rows:
        documents.setdefault(document(row.provenance.source), []).append(row)
    return merge([judge(group, law_without(frozenset({name}))) for name, group in documents.items()])


def judge(rows: Sequence[Observation], law: PositionLaw) -> Validation:
    """Predict every chain τ beyond k = 2 from those up to it."""
    points: list[CurvePoint] = []
    lacking: dict[str, int] = {}
    single_runs = acceptance.single_runs(rows)
    documents = {acceptance.curve_key(row): document(row.provenance.source) for row in rows}
    for key, curve in acceptance.chain_curves(rows).items():
        visible, larger = visible_part(curve), [k for k in curve if k > KNOWN_LOOKAHEAD]
        if not larger:
            continue
        if not visible or max(larger) > acceptance.MAX_POSITIONS:
            what = "τ at k ≤ 2 (for τ at larger k)" if not visible else f"a lookahead within {acceptance.MAX_POSITIONS}"
            lacking[what] = lacking.get(what, 0) + len(larger)
            continue
        kind = kinds.of_method(key[1]).prior
        predicted = acceptance.predict(law, visible, larger, kind=kind, one_run=key in single_runs)
        name, where = " · ".join(filter(None, key)), documents[key]
        points += [_point(name, where, kind, visible, k, curve[k], *predicted[k]) for k in larger]
    return Validation(curves=tuple(points), lacking=lacking)


def _point(
    name: str, where: str, kind: str, visible: Curve, k: int, measured: float, predicted: float, low: float, high: float
) -> CurvePoint:
    second, carried = plain_rule.second_alpha_tau(visible), plain_rule.carried_tau(visible)
    return CurvePoint(
        curve=name, document=where, kind=kind, lookahead=k, measured=measured, predicted=predicted, low=low, high=high,
        constant_alpha=float(tokens_per_step_constant(plain_rule.constant_alpha(visible), k)),
        second_alpha=None if second is None else float(second[k - 1]),
        carried_step=None if carried is None else float(carried[k - 1]),
    )  # fmt: skip


def visible_part(curve: Curve) -> dict[int, float]:
    """What a prediction may see of a curve."""
    return {k: tau for k, tau in curve.items() if k <= KNOWN_LOOKAHEAD}
