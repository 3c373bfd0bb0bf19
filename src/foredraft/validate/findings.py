"""What a validation found, as records; see the package's docstring."""

from collections.abc import Iterable
from typing import Any

from msgspec import field

from foredraft.records import Observation, Record

KNOWN_LOOKAHEAD = 2  # what a prediction may look at: a quick run at one and two draft tokens


class CurvePoint(Record, frozen=True):
    """τ at one lookahead: measured, predicted with its 90 % interval, and what a constant α fitted to the same known rows says."""

    curve: str
    lookahead: int
    measured: float
    predicted: float
    low: float
    high: float
    constant_alpha: float


class RatioPoint(Record, frozen=True):
    """Throughput over no speculation at one load (clients or batch) and chain length."""

    setting: str
    load: int
    lookahead: int
    measured: float
    predicted: float


class LookaheadChoice(Record, frozen=True):
    """The lookahead that the prediction picks at one load, the measured best, and the share of throughput lost between them."""

    setting: str
    load: int
    chosen: int
    best: int
    regret: float


class Validation(Record, frozen=True):
    """What was judged, and what could not be: `lacking` counts rows by what they lack, `assumed` names what was filled in."""

    curves: tuple[CurvePoint, ...] = ()
    ratios: tuple[RatioPoint, ...] = ()
    choices: tuple[LookaheadChoice, ...] = ()
    fixed_regret: dict[int, tuple[float, float]] = field(default_factory=dict)
    ladders: tuple[RatioPoint, ...] = ()
    lacking: dict[str, int] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Errors as fractions (means over rows), regrets, interval coverage and counts: the figures a reader wants first."""
        out: dict[str, Any] = {}
        for k in sorted({point.lookahead for point in self.curves}):
            points = [p for p in self.curves if p.lookahead == k]
            out[f"tokens_per_step_error_k{k}"] = _mean(abs(p.predicted / p.measured - 1) for p in points)
            out[f"constant_alpha_error_k{k}"] = _mean(abs(p.constant_alpha / p.measured - 1) for p in points)
        if self.curves:
            out["tokens_per_step_error"] = _mean(abs(p.predicted / p.measured - 1) for p in self.curves)
            out["constant_alpha_error"] = _mean(abs(p.constant_alpha / p.measured - 1) for p in self.curves)
            out["interval_coverage"] = _mean(p.low <= p.measured <= p.high for p in self.curves)
        if self.ratios:
            out["throughput_ratio_error"] = _mean(abs(p.predicted / p.measured - 1) for p in self.ratios)
        if self.choices:
            out |= {
                "best_k_regret_mean": _mean(c.regret for c in self.choices),
                "best_k_regret_worst": max(c.regret for c in self.choices),
            }
        if self.fixed_regret:
            out["best_fixed_k"], (mean, worst) = min(self.fixed_regret.items(), key=lambda item: item[1])
            out |= {"best_fixed_k_regret_mean": mean, "best_fixed_k_regret_worst": worst}
        if self.ladders:
            out["ladder_ratio_error"] = _mean(abs(p.predicted / p.measured - 1) for p in self.ladders)
        return out | {
            "curve_points": len(self.curves),
            "ratio_rows": len(self.ratios),
            "choices": len(self.choices),
            "ladder_rows": len(self.ladders),
        }


def merge(parts: Iterable[Validation]) -> Validation:
    """Several validations as one."""
    parts = list(parts)
    lacking: dict[str, int] = {}
    for part in parts:
        for what, count in part.lacking.items():
            lacking[what] = lacking.get(what, 0) + count
    joined = {
        name: tuple(item for part in parts for item in getattr(part, name))
        for name in ("curves", "ratios", "choices", "ladders", "assumed")
    }
    fixed = {k: v for part in parts for k, v in part.fixed_regret.items()}
    return Validation(
        **joined | {"assumed": tuple(dict.fromkeys(joined["assumed"]))}, lacking=lacking, fixed_regret=fixed
    )


def setting(row: Observation) -> str:
    """What tells one group of rows from another, for people."""
    return " · ".join(str(v) for v in (row.target, row.method, row.draft, row.dataset, row.machine) if v)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
