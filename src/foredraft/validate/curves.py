"""AL(k) curves: τ at larger lookaheads from runs at k ≤ 2."""

from collections.abc import Sequence
from math import log

from scipy.optimize import minimize_scalar

from foredraft import kinds
from foredraft.laws import acceptance
from foredraft.laws.acceptance import Curve, PositionLaw
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.records import Observation
from foredraft.validate.findings import KNOWN_LOOKAHEAD, CurvePoint, Validation


def judge(rows: Sequence[Observation], law: PositionLaw) -> Validation:
    """Predict every chain τ beyond k = 2 from those up to it."""
    points: list[CurvePoint] = []
    lacking: dict[str, int] = {}
    for key, curve in acceptance.chain_curves(rows).items():
        visible, larger = visible_part(curve), [k for k in curve if k > KNOWN_LOOKAHEAD]
        if not larger:
            continue
        if not visible or max(larger) > acceptance.MAX_POSITIONS:
            what = "τ at k ≤ 2 (for τ at larger k)" if not visible else f"a lookahead within {acceptance.MAX_POSITIONS}"
            lacking[what] = lacking.get(what, 0) + len(larger)
            continue
        alpha = constant_alpha(visible)
        for k, (mid, low, high) in acceptance.predict(law, visible, larger, kind=kinds.of_method(key[1]).prior).items():
            points.append(
                CurvePoint(
                    curve=" · ".join(filter(None, key)), lookahead=k, measured=curve[k], predicted=mid, low=low,
                    high=high, constant_alpha=float(tokens_per_step_constant(alpha, k)),
                )
            )  # fmt: skip
    return Validation(curves=tuple(points), lacking=lacking)


def visible_part(curve: Curve) -> dict[int, float]:
    """What a prediction may see of a curve."""
    return {k: tau for k, tau in curve.items() if k <= KNOWN_LOOKAHEAD}


def constant_alpha(visible: Curve) -> float:
    """The one α of least squares in log τ over the visible rows: the rule to beat."""
    fit = minimize_scalar(
        lambda a: sum(log(float(tokens_per_step_constant(a, k)) / tau) ** 2 for k, tau in visible.items()),
        bounds=(0, 1),
        method="bounded",
    )
    return float(fit.x)
