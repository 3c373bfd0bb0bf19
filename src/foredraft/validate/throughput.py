"""Throughput tables: the ratio to no speculation (where a load has no such row, to its smallest lookahead), and the best k, at every
load, from the no-draft rows and the rows at k ≤ 2 (at the smallest k where that is larger).

The law is that of a plan with own rows (`laws.own_costs`); the plain rule stands beside it. Trees are judged with their own τ.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.laws import acceptance
from foredraft.laws.acceptance import Curve, PositionLaw
from foredraft.laws.calibration import CostRow, calibrate
from foredraft.laws.own_costs import RUN_NOISE, Measured, own_costs
from foredraft.records import Observation
from foredraft.validate import plain_rule
from foredraft.validate.findings import KNOWN_LOOKAHEAD, LookaheadChoice, RatioPoint, Validation, setting
from foredraft.validate.servers import Servers, servers

Array = NDArray[np.float64]
CANDIDATE_CURVES = 25  # τ curves tried where a table states none
TIE = RUN_NOISE / 2  # of speed: lookaheads nearer than that are decided for the shorter chain
INTERVAL_SD = 1.645  # sd of a normal from the middle to either end of a 90 % interval


class PredictedSpeed(NamedTuple):
    """Output tokens/s, the sd of its logarithm, and what the plain rule says."""

    speed: float
    log_sd: float = 0.0
    rule: float | None = None


Chains = dict[tuple[int, int], PredictedSpeed]  # (load, lookahead) -> what is predicted


def judge(
    rows: Sequence[Observation], law: PositionLaw, machine: str | None = None, advance: Callable[[int], object] = int
) -> Validation:
    """Predict every throughput row beyond the known lookaheads, and pick k at every load; `advance` is told of rows as they are done."""
    plain = plain_speeds(rows)
    groups: dict[tuple, list[Observation]] = defaultdict(list)
    lacking: Counter[str] = Counter()
    for row in rows:
        if row.output_tok_s is None or row.method == "none":
            advance(1)
        elif lack := _lack(row):
            lacking[lack] += 1
            advance(1)
        else:
            groups[(*place(row), row.method, row.draft)].append(row)
    ratios: list[RatioPoint] = []
    trees: list[RatioPoint] = []
    choices: list[LookaheadChoice] = []
    judged: list[tuple[Sequence[Observation], Mapping[int, float]]] = []
    assumed: list[str] = []
    for group in groups.values():
        beside = plain_beside(group[0], plain)
        try:
            part = _judge_group(group, beside, law, machine)
        except ValueError as error:
            lacking[f"{error} (for throughput)"] += len(group)
        else:
            ratios += part.ratios
            trees += part.trees
            choices += part.choices
            assumed += part.assumed
            lacking.update(part.lacking)
            judged.append(([row for row in group if not _is_tree(row)], beside))
        advance(len(group))
    return Validation(
        ratios=tuple(ratios), trees=tuple(trees), choices=tuple(choices), fixed_regret=fixed_regret(judged),
        lacking=dict(lacking), assumed=tuple(dict.fromkeys(assumed)),
    )  # fmt: skip


def _judge_group(
    group: Sequence[Observation], plain: Mapping[int, float], law: PositionLaw, machine: str | None
) -> Validation:
    chains, trees = ([row for row in group if _is_tree(row) is tree] for tree in (False, True))
    known = known_lookahead(chains)
    visible = [row for row in chains if lookahead(row) <= known]
    if not any(lookahead(row) > known for row in chains) and not trees:
        return Validation()
    if not visible and not plain:
        return Validation(lacking={"a row without speculation or throughput of chains (for throughput)": len(group)})
    predicted, tree_speeds, notes = predict_group(group, plain, law, machine)
    points, alone = _ratios(chains, plain, predicted, known)
    lacking = {"a row without speculation, or at a known k, at the same load (for throughput)": alone} if alone else {}
    return Validation(
        ratios=tuple(point for point in points if point.lookahead > known),
        trees=tuple(
            _point(row, plain[load(row)], 0, prediction)
            for row, prediction in zip(trees, tree_speeds, strict=True)
            if load(row) in plain
        ),
        choices=tuple(_choices(points)), assumed=notes, lacking=lacking,
    )  # fmt: skip


def known_lookahead(chains: Sequence[Observation]) -> int:
    """The largest lookahead that a prediction may look at."""
    return max(KNOWN_LOOKAHEAD, min((lookahead(row) for row in chains), default=0))


def plain_speeds(rows: Sequence[Observation]) -> dict[tuple, dict[int, float]]:
    """Mean output tokens/s without speculation, by place and load."""
    speeds_by_place: dict[tuple, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.method == "none" and row.output_tok_s is not None and load(row):
            speeds_by_place[place(row)][load(row)].append(row.output_tok_s)
    return {
        key: {n: float(np.mean(speeds)) for n, speeds in by_load.items()} for key, by_load in speeds_by_place.items()
    }


def place(row: Observation) -> tuple:
    """What rows to be compared have in common besides the draft."""
    return (row.target, row.dataset, row.temperature, row.engine, row.machine, row.tensor_parallel)


def plain_beside(row: Observation, plain: Mapping[tuple, Mapping[int, float]]) -> Mapping[int, float]:
    """No-draft speeds by load for `row`: of its own place, or of the only place that differs in nothing but cells left blank."""
    if place(row) in plain:
        return plain[place(row)]
    kin = [key for key in plain if all(a is None or b is None or a == b for a, b in zip(key, place(row), strict=True))]
    return plain[kin[0]] if len(kin) == 1 else {}


def load(row: Observation) -> int:
    """Clients, or the batch; 0 where a row states neither."""
    return row.concurrency or row.batch_size or 0


def lookahead(row: Observation) -> int:
    return row.lookahead or 0


def _is_tree(row: Observation) -> bool:
    return (row.topk or 1) > 1


def _lack(row: Observation) -> str | None:
    """What a speculative row with a throughput lacks to be judged here."""
    if not load(row):
        return "a concurrency or batch size (for throughput)"
    if not row.lookahead:
        return "k (for throughput)"
    if row.lookahead > acceptance.MAX_POSITIONS:
        return f"a lookahead within {acceptance.MAX_POSITIONS} (for throughput)"
    if _is_tree(row) and (row.tokens_per_step is None or row.tree_nodes is None):
        return "a chain (throughput of trees is judged with known τ and nodes only)"
    return None


class Taus(NamedTuple):
    """τ at k = 1 … 16, the sd of its logarithm, and by (load, k) the τ measured there."""

    curve: Array
    log_sd: Array
    at: Mapping[tuple[int, int], float]

    def of(self, row: Observation) -> float:
        """A known row's own τ, else that of the curve."""
        return self.at.get((load(row), lookahead(row)), float(self.curve[lookahead(row) - 1]))


def predict_group(
    group: Sequence[Observation], plain: Mapping[int, float], law: PositionLaw, machine: str | None = None
) -> tuple[Chains, list[PredictedSpeed], tuple[str, ...]]:
    """Of chains at every (load, k) of the group and of its trees, from `plain` and the known rows; and what was assumed."""
    chains, trees = ([row for row in group if _is_tree(row) is tree] for tree in (False, True))
    visible = [row for row in chains if lookahead(row) <= known_lookahead(chains)]
    costs = servers(group[0], plain or _undrafted(visible), machine)
    kind = kinds.of_method(group[0].method).prior
    curves = [curve for curve in acceptance.chain_curves(visible).values() if curve]
    notes = costs.assumed
    if curves or not visible:
        taus = _carried(law, curves[0] if curves else {}, kind, _measured(visible))
    else:
        taus = _best_curve(costs, plain, visible, law)
        notes = (*notes, f"{setting(group[0])}: no τ in the rows, read from their throughput")
    fitted = own_costs(
        [Measured(costs.plain, costs.plain, CostRow(n, 0, 1.0, speed)) for n, speed in plain.items()]
        + [_chain(costs, row, taus.of(row), row.output_tok_s or 0.0) for row in visible],
        prior_width=costs.prior_width,
    )
    cells = [_chain(costs, row, float(taus.curve[lookahead(row) - 1])) for row in chains]
    tree_cells = [
        Measured(
            costs.speculative, costs.plain,
            CostRow(load(row), lookahead(row), row.tokens_per_step or 1.0, 1.0, row.topk or 1, row.tree_nodes or 0), "draft",
        )
        for row in trees
    ]  # fmt: skip
    speeds, sds = fitted.output_tok_s(cells + tree_cells)
    rule = partial(_by_rule, _steps(visible, taus), plain_rule.carried_tau(curves[0]) if curves else None)
    predictions = {
        (n, k): PredictedSpeed(speed, float(np.hypot(sd, taus.log_sd[k - 1])), rule(n, k))
        for (n, k), speed, sd in zip(
            ((load(row), lookahead(row)) for row in chains), speeds.tolist(), sds.tolist(), strict=False
        )
    }
    return (
        predictions,
        [
            PredictedSpeed(*pair)
            for pair in zip(speeds[len(chains) :].tolist(), sds[len(chains) :].tolist(), strict=True)
        ],
        notes,
    )


def _chain(costs: Servers, row: Observation, tau: float, speed: float = 1.0) -> Measured:
    return Measured(costs.speculative, costs.plain, CostRow(load(row), lookahead(row), tau, speed), "draft")


def _undrafted(visible: Sequence[Observation]) -> dict[int, float]:
    """What decoding without a draft might give where no row says: a step of the smallest known k for one token."""
    least = min((lookahead(row) for row in visible), default=0)
    return {
        load(row): (row.output_tok_s or 0.0) / (row.tokens_per_step or 1.0)
        for row in visible
        if lookahead(row) == least
    }


def _measured(visible: Sequence[Observation]) -> dict[tuple[int, int], float]:
    """Mean τ by load and lookahead, of rows that state it."""
    taus: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in visible:
        if row.tokens_per_step is not None:
            taus[load(row), lookahead(row)].append(row.tokens_per_step)
    return {cell: float(np.mean(values)) for cell, values in taus.items()}


def _carried(law: PositionLaw, curve: Curve, kind: kinds.Prior, measured: Mapping[tuple[int, int], float]) -> Taus:
    """τ at larger k: halfway, in log, between the position law's and the logit step carried on, which err apart (InferenceX 6.1 and
    7.6 %, SpecDecode-Bench 1.7 and 2.3 %).
    """
    lookaheads = range(1, acceptance.MAX_POSITIONS + 1)
    mid, low, high = np.array(list(acceptance.predict(law, curve, lookaheads, kind=kind).values())).T
    carried = plain_rule.carried_tau(curve)
    middle = mid if carried is None else np.sqrt(mid * carried)
    return Taus(middle, np.log(high / low) / (2 * INTERVAL_SD), measured)


def _steps(visible: Sequence[Observation], taus: Taus) -> dict[int, dict[int, float]]:
    """Mean step time by load and lookahead."""
    steps: dict[tuple[int, int], list[float]] = defaultdict(list)
    for row in visible:
        steps[load(row), lookahead(row)].append(load(row) * taus.of(row) / (row.output_tok_s or np.inf))
    by_load: dict[int, dict[int, float]] = defaultdict(dict)
    for (n, k), values in steps.items():
        by_load[n][k] = float(np.mean(values))
    return by_load


def _by_rule(steps: Mapping[int, Mapping[int, float]], carried: Array | None, n: int, k: int) -> float | None:
    """Tokens/s by the plain rule."""
    step_s = plain_rule.step_at(steps.get(n, {}), k)
    return None if carried is None or step_s is None or step_s <= 0 else n * float(carried[k - 1]) / step_s


def _best_curve(costs: Servers, plain: Mapping[int, float], visible: Sequence[Observation], law: PositionLaw) -> Taus:
    """Where no τ is stated: the curve, of those drawn from the prior, that calibration reconciles best with the measured speeds."""
    posterior = acceptance.posterior(law, {}, kind=kinds.of_method(visible[0].method).prior)
    draws = posterior.draws(CANDIDATE_CURVES, np.random.default_rng(0))
    curves = [1 + np.cumsum(np.cumprod(accept)) for accept in draws]
    bare = [CostRow(n, 0, 1.0, speed) for n, speed in plain.items()]
    fits = [
        calibrate(
            costs.plain, costs.speculative,
            bare + [CostRow(load(row), lookahead(row), taus[lookahead(row) - 1], row.output_tok_s or 0.0) for row in visible],
            prior_width=costs.prior_width,
        ).misfit
        for taus in curves
    ]  # fmt: skip
    likelihood = np.exp(min(fits) - np.array(fits))
    best = int(np.argmin(fits))
    off = np.log(np.array(curves) / curves[best])
    return Taus(curves[best], np.sqrt(likelihood @ off**2 / likelihood.sum()), {})


def _ratios(
    chains: Sequence[Observation], plain: Mapping[int, float], predicted: Chains, known: int
) -> tuple[list[RatioPoint], int]:
    """Of every chain over no speculation or the least known k of its load; and how many have neither. A known row is as measured."""
    known_rows = sorted((row for row in chains if lookahead(row) <= known), key=lookahead, reverse=True)
    least = {load(row): row for row in known_rows}
    points, alone = [], 0
    for row in chains:
        n, base = load(row), least.get(load(row))
        if n not in plain and base is None:
            alone += 1
            continue
        slow, at = (plain[n], 0) if n in plain else ((base.output_tok_s or 0.0), lookahead(base)) if base else (1.0, 0)
        if lookahead(row) <= known:
            points.append(_point(row, slow, at, PredictedSpeed(row.output_tok_s or 0.0, 0.0, row.output_tok_s)))
        else:
            points.append(_point(row, slow, at, predicted[n, lookahead(row)]))
    return points, alone


def _point(row: Observation, slow: float, baseline: int, prediction: PredictedSpeed) -> RatioPoint:
    ratio, width = prediction.speed / slow, float(np.exp(INTERVAL_SD * prediction.log_sd))
    return RatioPoint(
        setting=setting(row), load=load(row), lookahead=lookahead(row), measured=(row.output_tok_s or 0.0) / slow,
        predicted=ratio, low=ratio / width, high=ratio * width,
        rule=None if prediction.rule is None else prediction.rule / slow, baseline=baseline,
    )  # fmt: skip


def _choices(points: Sequence[RatioPoint]) -> list[LookaheadChoice]:
    """At each load the k of the highest predicted ratio (the baseline's is 1) against the measured best."""
    out = []
    for n in sorted({p.load for p in points}):
        here = [p for p in points if p.load == n]
        bare = {here[0].baseline: 1.0}
        predicted, measured, rule = (
            bare | {p.lookahead: getattr(p, name) for p in here} for name in ("predicted", "measured", "rule")
        )
        best = max(measured, key=lambda k: measured[k])
        chosen = shortest_of_best(predicted)
        ruled = None if None in rule.values() else max(rule, key=lambda k: rule[k])
        out.append(
            LookaheadChoice(
                setting=here[0].setting, load=n, chosen=chosen, best=best, regret=1 - measured[chosen] / measured[best],
                rule_regret=None if ruled is None else 1 - measured[ruled] / measured[best],
            )
        )  # fmt: skip
    return out


def shortest_of_best(speeds: Mapping[int, float]) -> int:
    """The smallest lookahead that cannot be told from the fastest."""
    return min(k for k, speed in speeds.items() if speed >= max(speeds.values()) / (1 + TIE))


def fixed_regret(
    groups: Sequence[tuple[Sequence[Observation], Mapping[int, float]]],
) -> dict[int, tuple[float, float]]:
    """Mean and worst regret of one k for every load and group that measured it: the rule to beat."""
    lost: dict[int, list[float]] = defaultdict(list)
    for chains, plain in groups:
        by_load: dict[int, dict[int, float]] = defaultdict(dict)
        for row in chains:
            by_load[load(row)][lookahead(row)] = row.output_tok_s or 0.0
        for n, measured in by_load.items():
            speeds = measured | ({0: plain[n]} if n in plain else {})
            for k, speed in speeds.items():
                lost[k].append(1 - speed / max(speeds.values()))
    full = max(map(len, lost.values()), default=0)
    return {k: (float(np.mean(v)), max(v)) for k, v in sorted(lost.items()) if len(v) == full}
