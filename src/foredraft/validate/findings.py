"""What a validation found, as records; see the package's docstring."""

import re
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from msgspec import field

from foredraft.records import Observation, Record

KNOWN_LOOKAHEAD = 2  # what a prediction may look at: a quick run at one and two draft tokens
MATTERS = 0.05  # a measured gain nearer to 1 than that says neither to speculate nor not to


class CurvePoint(Record, frozen=True):
    """τ at one lookahead: measured, predicted with its 90 % interval, and what the plain rules say from the same known rows: a constant α
    fitted to them, the second position's acceptance from there on, its step from the first carried on (None without k = 1 and 2).
    """

    curve: str
    lookahead: int
    measured: float
    predicted: float
    low: float
    high: float
    constant_alpha: float
    second_alpha: float | None = None
    carried_step: float | None = None
    document: str = ""
    kind: str = ""


class RatioPoint(Record, frozen=True):
    """Throughput at one load (clients or batch) over that at lookahead `baseline` (0: no speculation), with the 90 % interval; `rule`
    is what the plain rule says of it.
    """

    setting: str
    load: int
    lookahead: int
    measured: float
    predicted: float
    low: float | None = None
    high: float | None = None
    rule: float | None = None
    baseline: int = 0


class LookaheadChoice(Record, frozen=True):
    """The lookahead that the prediction picks at one load, the measured best, and the share of throughput lost between them; and
    what the plain rule's pick loses.
    """

    setting: str
    load: int
    chosen: int
    best: int
    regret: float
    rule_regret: float | None = None


class NamedPoint(Record, frozen=True):
    """What follows from names alone: `quantity` is one of QUANTITIES, `mixture` whether the target is one of experts."""

    setting: str
    quantity: str
    load: int
    measured: float
    predicted: float
    low: float
    high: float
    mixture: bool = False


QUANTITIES = ("plain tokens/s", "TTFT in s", "KV cache tokens")


class Validation(Record, frozen=True):
    """What was judged, and what could not be: `lacking` counts rows by what they lack, `assumed` names what was filled in.

    `ratios` are chains beyond the known lookaheads, `trees` the same of trees with their measured τ, `ladders` speedups from shape,
    machine and τ where it is stated, `gains` speedups and `named` other figures from names alone.
    """

    curves: tuple[CurvePoint, ...] = ()
    ratios: tuple[RatioPoint, ...] = ()
    trees: tuple[RatioPoint, ...] = ()
    choices: tuple[LookaheadChoice, ...] = ()
    fixed_regret: dict[int, tuple[float, float]] = field(default_factory=dict)
    ladders: tuple[RatioPoint, ...] = ()
    gains: tuple[RatioPoint, ...] = ()
    named: tuple[NamedPoint, ...] = ()
    lacking: dict[str, int] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()

    def curve_groups(self) -> dict[tuple[str, str], list[CurvePoint]]:
        """Points of τ by document and kind of draft."""
        groups: dict[tuple[str, str], list[CurvePoint]] = {}
        for point in self.curves:
            groups.setdefault((point.document, point.kind), []).append(point)
        return groups

    def summary(self) -> dict[str, Any]:
        """Errors as fractions (means over rows), regrets, interval coverage and counts: the figures a reader wants first."""
        out: dict[str, Any] = {}
        for k in sorted({point.lookahead for point in self.curves}):
            points = [p for p in self.curves if p.lookahead == k]
            out[f"tokens_per_step_error_k{k}"] = _mean(abs(p.predicted / p.measured - 1) for p in points)
            out[f"constant_alpha_error_k{k}"] = _mean(abs(p.constant_alpha / p.measured - 1) for p in points)
        if self.curves:
            out |= _curve_figures(self.curves)
            out["curves_by_kind"] = [
                {"document": where, "kind": kind, "curves": len({p.curve for p in points}), "points": len(points)}
                | _curve_figures(points)
                for (where, kind), points in self.curve_groups().items()
            ]
        for name, points in (
            ("throughput_ratio", self.ratios),
            ("tree_ratio", self.trees),
            ("ladder_ratio", self.ladders),
        ):
            out |= _ratio_figures(name, points)
        if self.choices:
            out |= {
                "best_k_regret_mean": _mean(c.regret for c in self.choices),
                "best_k_regret_worst": max(c.regret for c in self.choices),
            }
        if rule := [c.rule_regret for c in self.choices if c.rule_regret is not None]:
            out |= {"plain_rule_regret_mean": _mean(rule), "plain_rule_regret_worst": max(rule)}
        if self.fixed_regret:
            out["best_fixed_k"], (mean, worst) = min(self.fixed_regret.items(), key=lambda item: item[1])
            out |= {"best_fixed_k_regret_mean": mean, "best_fixed_k_regret_worst": worst}
        out |= _gain_figures(self.gains)
        for quantity in QUANTITIES:
            for mixture in (False, True):
                out |= _named_figures(quantity, mixture, [p for p in self.named if p.quantity == quantity])
        return out | {
            "curve_points": len(self.curves),
            "ratio_rows": len(self.ratios),
            "tree_rows": len(self.trees),
            "choices": len(self.choices),
            "ladder_rows": len(self.ladders),
            "gain_rows": len(self.gains),
            "named_rows": len(self.named),
        }


RULES = ("constant_alpha", "second_alpha", "carried_step")


def _curve_figures(points: Sequence[CurvePoint]) -> dict[str, float]:
    """Mean errors of τ by the law and by each plain rule, and the share of points inside their intervals."""
    out = {"tokens_per_step_error": _mean(abs(p.predicted / p.measured - 1) for p in points)}
    for rule in RULES:
        if errors := [abs(value / p.measured - 1) for p in points if (value := getattr(p, rule)) is not None]:
            out[f"{rule}_error"] = _mean(errors)
    return out | {"interval_coverage": _mean(p.low <= p.measured <= p.high for p in points)}


def _ratio_figures(name: str, points: Sequence[RatioPoint]) -> dict[str, float]:
    """Mean error, coverage of the intervals that there are, and the plain rule's error where it says something."""
    out = {f"{name}_error": _mean(abs(p.predicted / p.measured - 1) for p in points)} if points else {}
    if covered := [p.low <= p.measured <= p.high for p in points if p.low is not None and p.high is not None]:
        out[f"{name}_coverage"] = _mean(covered)
    if rule := [abs(p.rule / p.measured - 1) for p in points if p.rule is not None]:
        out[f"plain_rule_{name}_error"] = _mean(rule)
    return out


def _gain_figures(points: Sequence[RatioPoint]) -> dict[str, float]:
    """Of speedups from names alone: median and worst error, coverage, and how often to speculate or not was right where it matters."""
    if not points:
        return {}
    errors = [abs(p.predicted / p.measured - 1) for p in points]
    out = {"gain_median_error": median(errors), "gain_worst_error": max(errors)}
    if covered := [p.low <= p.measured <= p.high for p in points if p.low is not None and p.high is not None]:
        out["gain_coverage"] = _mean(covered)
    if decided := [(p.predicted > 1) == (p.measured > 1) for p in points if abs(p.measured - 1) > MATTERS]:
        out |= {"speculate_or_not_right": _mean(decided), "speculate_or_not_rows": len(decided)}
    return out


def _named_figures(quantity: str, mixture: bool, points: Sequence[NamedPoint]) -> dict[str, float]:
    """Median and worst error and coverage of one quantity, mixtures of experts apart."""
    points = [p for p in points if p.mixture is mixture]
    if not points:
        return {}
    name = re.sub(r"\W+", "_", f"{'mixture ' if mixture else ''}{quantity.replace('/', ' per ')}".lower())
    errors = [abs(p.predicted / p.measured - 1) for p in points]
    return {
        f"{name}_median_error": median(errors), f"{name}_worst_error": max(errors),
        f"{name}_coverage": _mean(p.low <= p.measured <= p.high for p in points), f"{name}_rows": len(points),
    }  # fmt: skip


def merge(parts: Iterable[Validation]) -> Validation:
    """Several validations as one."""
    parts = list(parts)
    lacking: dict[str, int] = {}
    for part in parts:
        for what, count in part.lacking.items():
            lacking[what] = lacking.get(what, 0) + count
    joined = {
        name: tuple(item for part in parts for item in getattr(part, name))
        for name in ("curves", "ratios", "trees", "choices", "ladders", "gains", "named", "assumed")
    }
    fixed = {k: v for part in parts for k, v in part.fixed_regret.items()}
    return Validation(
        **joined | {"assumed": tuple(dict.fromkeys(joined["assumed"]))}, lacking=lacking, fixed_regret=fixed
    )


def setting(row: Observation) -> str:
    """What tells one group of rows from another, for people."""
    drafted = () if row.method == "none" else (row.method, row.draft)
    machine = f"{row.tensor_parallel}×{row.machine}" if row.machine and (row.tensor_parallel or 1) > 1 else row.machine
    return " · ".join(str(v) for v in (row.target, *drafted, row.dataset, machine) if v)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
