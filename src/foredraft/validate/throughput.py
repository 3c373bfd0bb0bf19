"""Throughput tables: the ratio to no speculation, and the best k, at every load, from the no-draft rows and the rows
at k ≤ 2.

The cost law is calibrated on what may be seen. What it still misses at a load (an engine's scheduling there, say) is
read off that load's own rows at k ≤ 2 and carried to larger k.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.laws import acceptance, calibration
from foredraft.laws.acceptance import PositionLaw
from foredraft.laws.calibration import CostRow
from foredraft.records import Observation
from foredraft.validate.curves import visible_part
from foredraft.validate.findings import KNOWN_LOOKAHEAD, LookaheadChoice, RatioPoint, Validation, setting
from foredraft.validate.servers import Servers, servers

Group = dict[tuple[int, int], float]  # (load, lookahead) -> output tokens/s
CARRY = 0.5  # how much of the change of the miss from k = 1 to 2 goes on per further k
CANDIDATE_CURVES = 25  # τ curves tried where a table states none


def judge(rows: Sequence[Observation], law: PositionLaw, machine: str | None = None) -> Validation:
    """Predict every throughput row beyond k = 2, and pick k at every load."""
    plain = plain_speeds(rows)
    groups: dict[tuple, list[Observation]] = defaultdict(list)
    lacking: dict[str, int] = defaultdict(int)
    for row in rows:
        if row.output_tok_s is None or row.method == "none":
            continue
        if lack := _lack(row, plain):
            lacking[lack] += 1
        else:
            groups[(*place(row), row.method, row.draft)].append(row)
    ratios: list[RatioPoint] = []
    judged: list[list[Observation]] = []
    choices: list[LookaheadChoice] = []
    assumed: list[str] = []
    for group in groups.values():
        larger = [row for row in group if lookahead(row) > KNOWN_LOOKAHEAD]
        if not any(lookahead(row) <= KNOWN_LOOKAHEAD for row in group):
            lacking["throughput at k ≤ 2 (for throughput at larger k)"] += len(larger)
            continue
        predicted, notes = predict_group(group, plain_beside(group[0], plain), law, machine)
        assumed += notes
        judged.append(group)
        points = _ratios(group, plain_beside(group[0], plain), predicted)
        ratios += [point for point in points if point.lookahead > KNOWN_LOOKAHEAD]
        choices += _choices(points)
    return Validation(
        ratios=tuple(ratios), choices=tuple(choices), fixed_regret=fixed_regret(judged, plain), lacking=dict(lacking),
        assumed=tuple(assumed),
    )  # fmt: skip


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


def _lack(row: Observation, plain: Mapping[tuple, Mapping[int, float]]) -> str | None:
    """What a speculative row with a throughput lacks to be judged here."""
    if not load(row):
        return "a concurrency or batch size (for throughput)"
    if not row.lookahead:
        return "k (for throughput)"
    if row.lookahead > acceptance.MAX_POSITIONS:
        return f"a lookahead within {acceptance.MAX_POSITIONS} (for throughput)"
    if (row.topk or 1) > 1:
        return "a chain (throughput of trees is judged with known τ only)"
    if load(row) not in plain_beside(row, plain):
        return "a no-draft row at the same load (for throughput)"
    return None


def predict_group(
    group: Sequence[Observation], plain: Mapping[int, float], law: PositionLaw, machine: str | None = None
) -> tuple[Group, tuple[str, ...]]:
    """Output tokens/s at every (load, k) of the group, from `plain` and the rows at k ≤ 2; and what was assumed."""
    visible = [row for row in group if lookahead(row) <= KNOWN_LOOKAHEAD]
    costs = servers(group[0], plain, machine)
    drifts = kinds.of_method(group[0].method).drifts
    curves = [curve for curve in acceptance.chain_curves(visible).values() if curve]
    if curves:
        taus, notes = (
            1 + np.cumsum(acceptance.posterior(law, visible_part(curves[0]), drifts=drifts).median_curve()),
            costs.assumed,
        )
        multipliers = _calibrated(costs, plain, visible, taus)
    else:
        taus, multipliers = _best_curve(costs, plain, visible, law)
        notes = (*costs.assumed, f"{setting(group[0])}: no τ in the rows, read from their throughput")
    table = np.array([(load(row), lookahead(row), taus[lookahead(row) - 1], row.output_tok_s) for row in group])
    model = calibration.predict_rows(costs.plain, costs.speculative, table, multipliers)
    misses: dict[int, dict[int, float]] = defaultdict(dict)
    for (n, k, _, measured), value in zip(table, model, strict=True):
        if k <= KNOWN_LOOKAHEAD:
            misses[int(n)][int(k)] = float(np.log(measured / value))
    return {
        (int(n), int(k)): float(value * np.exp(_carried(misses[int(n)], int(k))))
        for (n, k, *_), value in zip(table, model, strict=True)
    }, notes


def _calibrated(
    costs: Servers, plain: Mapping[int, float], visible: Sequence[Observation], taus: NDArray
) -> dict[str, float]:
    return calibration.calibrate(
        costs.plain, costs.speculative, _rows(plain, visible, taus), prior_width=costs.prior_width
    ).multipliers


def _rows(plain: Mapping[int, float], visible: Sequence[Observation], taus: NDArray) -> list[CostRow]:
    bare = [CostRow(n, 0, 1.0, speed) for n, speed in plain.items()]
    return bare + [
        CostRow(load(row), lookahead(row), taus[lookahead(row) - 1], row.output_tok_s or 0.0) for row in visible
    ]


def _best_curve(
    costs: Servers, plain: Mapping[int, float], visible: Sequence[Observation], law: PositionLaw
) -> tuple[NDArray, dict[str, float]]:
    """Where no τ is stated: return the curve, of those drawn from the prior, that calibration reconciles best with the measured speeds."""
    draws = acceptance.posterior(law, {}, drifts=kinds.of_method(visible[0].method).drifts).draws(
        CANDIDATE_CURVES, np.random.default_rng(0)
    )
    curves = [(1 + np.cumsum(np.cumprod(accept))) for accept in draws]
    fits = [
        calibration.calibrate(
            costs.plain, costs.speculative, _rows(plain, visible, taus), prior_width=costs.prior_width
        )
        for taus in curves
    ]
    best = min(range(len(curves)), key=lambda i: fits[i].misfit)
    return curves[best], fits[best].multipliers


def _carried(misses: Mapping[int, float], k: int) -> float:
    """The log miss at `k` given those at 1 and 2 of the same load; 0 where the load has no known row."""
    if k in misses or not misses:
        return misses.get(k, 0.0)
    last = max(misses)
    trend = misses[2] - misses[1] if len(misses) == 2 else 0.0
    return misses[last] + CARRY * (k - last) * trend


def _ratios(group: Sequence[Observation], plain: Mapping[int, float], predicted: Group) -> list[RatioPoint]:
    return [
        RatioPoint(
            setting=setting(row),
            load=load(row),
            lookahead=lookahead(row),
            measured=(row.output_tok_s or 0.0) / plain[load(row)],
            predicted=predicted[load(row), lookahead(row)] / plain[load(row)],
        )
        for row in group
    ]


def _choices(points: Sequence[RatioPoint]) -> list[LookaheadChoice]:
    """At each load the k of the highest predicted ratio (0, no speculation, is 1) against the measured best."""
    out = []
    for n in sorted({p.load for p in points}):
        here = [p for p in points if p.load == n]
        predicted, measured = (
            {0: 1.0} | {p.lookahead: p.predicted for p in here},
            {0: 1.0} | {p.lookahead: p.measured for p in here},
        )
        chosen, best = max(predicted, key=lambda k: predicted[k]), max(measured, key=lambda k: measured[k])
        out.append(
            LookaheadChoice(
                setting=here[0].setting, load=n, chosen=chosen, best=best, regret=1 - measured[chosen] / measured[best]
            )
        )
    return out


def fixed_regret(
    groups: Sequence[Sequence[Observation]], plain: Mapping[tuple, Mapping[int, float]]
) -> dict[int, tuple[float, float]]:
    """Mean and worst regret of one k for every load and group that measured it: the rule to beat."""
    lost: dict[int, list[float]] = defaultdict(list)
    for group in groups:
        for n in {load(row) for row in group}:
            speeds = {lookahead(row): row.output_tok_s or 0.0 for row in group if load(row) == n} | {
                0: plain_beside(group[0], plain)[n]
            }
            for k, speed in speeds.items():
                lost[k].append(1 - speed / max(speeds.values()))
    full = max(map(len, lost.values()), default=0)
    return {k: (float(np.mean(v)), max(v)) for k, v in sorted(lost.items()) if len(v) == full}
