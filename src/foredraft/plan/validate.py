"""Predictions against measurements that others published: what the laws get right, by how much they miss, and what they could not judge.

Promises: only what the rule allows is looked at (lookaheads up to 2, the no-draft rows, shapes and machines); hyperparameters fitted across tables
are fitted without the judged document; rows that lack what a prediction needs are counted and named. Refuses to know: formulas (they are laws).
"""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from foredraft import shapes
from foredraft.laws import acceptance, cost
from foredraft.laws.acceptance import Curve, PositionLaw
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.machines import machine
from foredraft.plan.drafts import draft_shape, kind_of
from foredraft.published import document
from foredraft.records import Observation, Record

KNOWN_LOOKAHEAD = 2  # what a prediction may look at: a quick run at one and two draft tokens
DEFAULT_LENGTHS = (256.0, 512.0)  # prompt and answer tokens where a table does not state them; an assumption, reported as such


class CurvePoint(Record):
    """τ at one lookahead: measured, predicted with its interval, and what a constant α says."""

    curve: str
    lookahead: int
    measured: float
    predicted: float
    low: float
    high: float
    constant_alpha: float


class RatioPoint(Record):
    """Throughput over no speculation at one load and lookahead; `known` rows were given to the prediction."""

    setting: str
    load: int
    lookahead: int
    measured: float
    predicted: float
    known: bool = False


class Choice(Record):
    """The lookahead that the prediction picks at one load, the measured best, and the share of throughput lost between them."""

    setting: str
    load: int
    chosen: int
    best: int
    regret: float


class Validation(Record):
    """What `foredraft validate` found in one table, or in several together."""

    curves: tuple[CurvePoint, ...] = ()
    ratios: tuple[RatioPoint, ...] = ()
    choices: tuple[Choice, ...] = ()
    ladders: tuple[RatioPoint, ...] = ()
    fixed_regret: dict[int, tuple[float, float]] = {}
    lacking: dict[str, int] = {}
    assumed: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The figures a reader wants first: errors as fractions, means and worsts, and counts."""
        out: dict[str, Any] = {}
        for k in sorted({point.lookahead for point in self.curves}):
            points = [p for p in self.curves if p.lookahead == k]
            out[f"tokens_per_step_error_k{k}"] = _mean(abs(p.predicted / p.measured - 1) for p in points)
            out[f"constant_alpha_error_k{k}"] = _mean(abs(p.constant_alpha / p.measured - 1) for p in points)
        if self.curves:
            out["tokens_per_step_interval_coverage"] = _mean(p.low <= p.measured <= p.high for p in self.curves)
        if judged := [p for p in self.ratios if not p.known]:
            out["throughput_ratio_error"] = _mean(abs(p.predicted / p.measured - 1) for p in judged)
        if self.choices:
            out |= {"best_k_regret_mean": _mean(c.regret for c in self.choices), "best_k_regret_worst": max(c.regret for c in self.choices)}
            out["fixed_k_regret_mean"], out["fixed_k_regret_worst"] = min(self.fixed_regret.values())
        if self.ladders:
            out["ladder_ratio_error"] = _mean(abs(p.predicted / p.measured - 1) for p in self.ladders)
        return out | {"num_curve_points": len(self.curves), "num_ratio_rows": len(self.ratios), "num_choices": len(self.choices),
                      "num_ladder_rows": len(self.ladders), "lacking": self.lacking}  # fmt: skip
