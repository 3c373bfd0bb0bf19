"""Fixed, scheduled and adaptive lengths on published cases: what an adaptive length brought over a fixed one, from the rows without it
and the law of adaptive lengths without the case's document; and the schedule against the best fixed length.

Promises: a prediction sees the document's plain rows and those of the compared length at every load, never an adaptive row; what a
step costs is interpolated between these, or follows from names where they are too few. Refuses to know: how cases are read.

Shapes: S draws, K positions.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.laws.acceptance import posterior
from foredraft.laws.adaptive import (
    CAPTURED,
    AdaptiveLaw,
    batch_sd,
    best_common,
    best_stopping,
    budgets,
    realised,
    seen_survival,
    spreads,
)
from foredraft.laws.draws import normals, stratified
from foredraft.plan import evidence
from foredraft.records import JudgedLength, JudgedLengths, JudgedSchedule, LengthCase, Observation, Provenance
from foredraft.validate import throughput
from foredraft.validate.servers import DEFAULT_LENGTHS, of_names

Array = NDArray[np.float64]
DRAWS = 256
SEED = 0
# Of a plain step: DeepSeek-V4-Flash's block of 7 on B300 takes 0.18 of one at one request (vLLM #47808).
DRAFTING = 0.15
# Mean and sd of the log of how much longer steps of more than CAPTURED tokens take: 5.1 × (DeepSeek-V4-Flash on B300),
# 1.3 to 2 × (V4-Pro), none on MI355X.
UNCAPTURED = (0.8, 0.6)
FEWEST_LOADS = 3  # that tell how a step grows, where no plain row does, if they span the tokens of a whole step


class Costs(NamedTuple):
    """Seconds of a step in which every sequence verifies 0 … K drafted tokens [S, K + 1], those of one more drafted token where
    drafting stops early [S] (None: the block is drafted whole, or drafting is in the rows), and where they come from.
    """

    step_s: Array
    pass_s: Array | None
    origin: str


def judge(cases: Sequence[LengthCase], law: AdaptiveLaw | None = None) -> JudgedLengths:
    """Judge every case; `law` stands for the shipped ones, of which each case takes the one that has not seen its document."""
    groups = grouped(cases)
    judged: list[JudgedLength] = []
    lacking: Counter[str] = Counter()
    for case in cases:
        if case.measured is None:
            continue
        try:
            group = groups[server_key(case)]
            for fixed in dict.fromkeys((case.lookahead, best_fixed(group))):
                judged.append(_judge_case(case, group, law or evidence.adaptive_law(case.document), fixed))
        except ValueError as error:
            lacking[f"{case.document}: {error}"] += 1
    schedules = [schedule for group in groups.values() if (schedule := _schedule(group))]
    return JudgedLengths(tuple(judged), tuple(schedules), dict(lacking))


def server_key(case: LengthCase) -> tuple:
    """What cases of one server and one text have in common."""
    return (case.document, case.target, case.method, case.machine, case.devices, case.dataset)


def grouped(cases: Sequence[LengthCase]) -> dict[tuple, list[LengthCase]]:
    """Cases by server and text."""
    groups: dict[tuple, list[LengthCase]] = defaultdict(list)
    for case in cases:
        groups[server_key(case)].append(case)
    return groups


def best_fixed(group: Sequence[LengthCase]) -> int:
    """The fixed length of the highest mean log speed over the loads, of those measured at all."""
    speeds: dict[int, dict[int, float]] = defaultdict(dict)
    for case in group:
        speeds[case.lookahead][case.load] = case.fixed_tok_s or 1.0
    loads = {case.load for case in group}
    everywhere = [k for k, by_load in speeds.items() if set(by_load) == loads]
    return max(everywhere, key=lambda k: float(np.mean(np.log([*speeds[k].values()]))))


def _judge_case(case: LengthCase, group: Sequence[LengthCase], law: AdaptiveLaw, fixed: int) -> JudgedLength:
    """Of the adaptive length over the `fixed` one: that of the case, or a shorter one measured at the same load."""
    rng = np.random.default_rng(SEED)
    log_gain, origin = log_gains(case, group, law, stratified(DRAWS, rng), rng, fixed)
    ratio = realised(law, log_gain, stratified(DRAWS, rng), stratified(DRAWS, rng))
    low, middle, high = np.quantile(ratio, (0.05, 0.5, 0.95)).tolist()
    measured = case.measured or 0.0
    if fixed != case.lookahead:
        speed = next(row.fixed_tok_s for row in group if row.lookahead == fixed and row.load == case.load)
        measured *= (case.fixed_tok_s or 0.0) / (speed or np.inf)
    where = " · ".join(str(part) for part in (case.target, case.draft, case.dataset, _machine(case)) if part)
    return JudgedLength(
        setting=where, document=case.document, load=case.load, lookahead=fixed, measured=measured, predicted=middle, low=low, high=high,
        costs=origin,
    )  # fmt: skip


def _machine(case: LengthCase) -> str | None:
    return f"{case.devices}×{case.machine}" if case.machine and (case.devices or 1) > 1 else case.machine


def log_gains(
    case: LengthCase, group: Sequence[LengthCase], law: AdaptiveLaw, auc_quantiles: Array, rng: np.random.Generator,
    fixed: int | None = None,
) -> tuple[Array, str]:  # fmt: skip
    """Log of tokens/s of the adaptive length over the `fixed` one (None: the case's), before what deciding costs, [S]; and where the costs
    come from. Raises ValueError that says what the rows lack.
    """
    survival = survival_draws(case, len(auc_quantiles), rng)
    tau = 1 + survival.sum(axis=1)
    costs = step_costs(case, group, tau, normals(len(tau), rng))
    shared, single = spreads(law, auc_quantiles)
    if case.adapts == "batch":
        spent = best_common(seen_survival(survival, batch_sd(law, case.load), 0.0), costs.step_s)
    elif costs.pass_s is not None:
        spent = best_stopping(seen_survival(survival, shared, single), costs.step_s, costs.pass_s, case.load)
    else:
        spent = budgets(seen_survival(survival, shared, single)).best(costs.step_s)
    length = case.lookahead if fixed is None else fixed
    fixed_s = costs.step_s[:, length] + (0.0 if costs.pass_s is None else length * costs.pass_s)
    fixed_tau = 1 + survival[:, :length].sum(axis=1)
    return np.log(spent.tokens / spent.seconds) - np.log(fixed_tau / fixed_s), costs.origin


def survival_draws(case: LengthCase, num: int, rng: np.random.Generator) -> Array:
    """The fixed length's survival [S, K]: as stated, else what the position law makes of its τ (or, without, of its kind)."""
    if case.survival:
        return np.tile(np.array(case.survival[: case.lookahead], dtype=float), (num, 1))
    curve = {case.lookahead: case.tokens_per_step} if case.tokens_per_step else {}
    law = evidence.position_law(frozenset({case.document}))
    accept = posterior(law, curve, kind=kinds.of_method(case.method).prior).draws(num, rng)
    return np.cumprod(accept[:, : case.lookahead], axis=1, dtype=np.float64)


def step_costs(case: LengthCase, group: Sequence[LengthCase], tau: Array, uncaptured: Array) -> Costs:
    """What steps cost at the case's load: from the document's own rows, else from names. Raises ValueError that says what is lacking."""
    alike = [row for row in group if row.lookahead == case.lookahead and row.fixed_tok_s]
    loads = {row.load for row in alike}
    spanned = len(loads) >= FEWEST_LOADS and max(loads) > case.lookahead * min(loads)
    if case.fixed_tok_s and (case.plain_tok_s or spanned):
        return Costs(_measured_step_s(case, alike, tau), None, "rows")
    return _named_costs(case, uncaptured)


def _measured_step_s(case: LengthCase, alike: Sequence[LengthCase], tau: Array) -> Array:
    """Interpolated in the tokens of a step between steps that were measured with the same length at all loads and, at this load, without
    drafts (drafting added); τ is the same at every load but where rows say otherwise.
    """
    counts = case.load * np.arange(1, case.lookahead + 2.0)
    relative = {row: (row.tokens_per_step or 0) / (case.tokens_per_step or np.inf) or 1.0 for row in alike}
    points: dict[float, list[float]] = defaultdict(list)  # tokens in a step -> seconds per unit of this case's τ
    for row in alike:
        points[row.load * (row.lookahead + 1.0)].append(row.load * relative[row] / (row.fixed_tok_s or np.inf))
    tokens = np.array(sorted(points))
    per_tau = np.maximum.accumulate([float(np.mean(points[count])) for count in tokens])
    here = case.load / (case.fixed_tok_s or np.inf)
    if case.plain_tok_s is None:
        return tau[:, None] * np.minimum(_line(tokens, per_tau, counts), here)
    bare = np.minimum(case.load / case.plain_tok_s * (1 + DRAFTING), here * tau)
    inside = (tokens > counts[0]) & (tokens < counts[-1])
    places = np.array([counts[0], *tokens[inside], counts[-1]])
    rows = [
        np.interp(counts, places, np.maximum.accumulate([low, *np.clip(t * per_tau[inside], low, here * t), here * t]))
        for low, t in zip(bare, tau, strict=True)
    ]
    return np.array(rows)


def _line(tokens: Array, per_tau: Array, counts: Array) -> Array:
    """Between measured steps on straight lines; below the smallest along the first of them, never under half of that step."""
    slope = (per_tau[1] - per_tau[0]) / (tokens[1] - tokens[0])
    below = np.maximum(per_tau[0] + slope * (counts - tokens[0]), per_tau[0] / 2)
    return np.where(counts < tokens[0], below, np.interp(counts, tokens, per_tau))


@cache
def _named_step_s(
    target: str, machine: str, devices: int | None, engine: str | None, method: str, draft: str | None, load: int, lookahead: int
) -> tuple[Array, float | None]:  # fmt: skip
    """Seconds of a step by drafted tokens that are verified [K + 1], and of one more drafted token where drafting goes token by token."""
    pair = of_names(target, machine, devices, None, engine, method, draft, DEFAULT_LENGTHS)
    if isinstance(pair, str):
        raise ValueError(pair)
    nodes = np.arange(lookahead + 1.0)
    server = pair[1]
    if kinds.of_method(method).passes == "block":
        return server.step_s(load, lookahead, nodes=nodes), None
    one = server.step_s(load, 1, nodes=nodes)
    one_pass = float(server.step_s(load, 2, nodes=0) - server.step_s(load, 1, nodes=0))
    return one - one_pass, one_pass


def _named_costs(case: LengthCase, uncaptured: Array) -> Costs:
    """From names; `uncaptured` [S] says in sds how much longer steps take that no graph was captured of."""
    if not case.machine:
        raise ValueError("a plain row, rows at loads from one to its block, or the machine")
    parts = (case.target, case.machine, case.devices, case.engine, case.method, case.draft, case.load, case.lookahead)
    step_s, pass_s = _named_step_s(*parts)
    outside = case.load * np.arange(1, case.lookahead + 2) > CAPTURED
    longer = np.exp(np.maximum(UNCAPTURED[0] + UNCAPTURED[1] * uncaptured, 0.0))[:, None]
    step_s = np.where(outside, step_s * longer, step_s)
    return Costs(step_s, None if pass_s is None else np.full(len(uncaptured), pass_s), "names")


def _schedule(group: Sequence[LengthCase]) -> JudgedSchedule | None:
    """The planned schedule against the best fixed length; None where one length was measured."""
    by_load: Mapping[int, dict[int, float]] = defaultdict(dict)
    for case in group:
        if case.fixed_tok_s:
            by_load[case.load][case.lookahead] = case.fixed_tok_s
        if case.plain_tok_s:
            by_load[case.load][0] = case.plain_tok_s
    everywhere = set.intersection(*map(set, by_load.values())) if by_load else set()
    if len(everywhere - {0}) < 2 or len(by_load) < 2:
        return None
    chosen = _scheduled(group, everywhere)
    best = {load: max(speeds.values()) for load, speeds in by_load.items()}
    lost = {k: float(np.mean([1 - by_load[load][k] / best[load] for load in by_load])) for k in everywhere}
    fixed = min(lost, key=lambda k: lost[k])
    return JudgedSchedule(
        setting=" · ".join(part for part in (group[0].target, group[0].draft, _machine(group[0])) if part), fixed=fixed,
        fixed_regret=lost[fixed], schedule=tuple(sorted(chosen.items())),
        schedule_regret=float(np.mean([1 - by_load[load][k] / best[load] for load, k in chosen.items()])),
    )  # fmt: skip


def _scheduled(group: Sequence[LengthCase], lengths: set[int]) -> dict[int, int]:
    """Load -> planned lookahead of `lengths`: by the same rows as the adaptive length's, else by plain rows and the smallest lookaheads."""
    compared = [case for case in group if case.adapts]
    if not compared:
        judged = throughput.judge(_observations(group), evidence.position_law(frozenset({group[0].document})))
        return {choice.load: choice.chosen for choice in judged.choices}
    out = {}
    for case in compared:
        rng = np.random.default_rng(SEED)
        survival = survival_draws(case, DRAWS, rng)
        tau = 1 + np.concatenate([np.zeros((DRAWS, 1)), np.cumsum(survival, axis=1)], axis=1)
        costs = step_costs(case, group, tau[:, -1], normals(DRAWS, rng))
        speeds = case.load * np.mean(tau / costs.step_s, axis=0)
        if case.plain_tok_s:
            speeds[0] = case.plain_tok_s
        out[case.load] = max(sorted(lengths & set(range(len(speeds)))), key=lambda k: speeds[k])
    return out


def _observations(group: Sequence[LengthCase]) -> list[Observation]:
    plain = {case.load: case.plain_tok_s for case in group if case.plain_tok_s}
    lengths = [
        (case.lookahead, case.load, case.fixed_tok_s, case.tokens_per_step) for case in group if case.fixed_tok_s
    ]
    first = group[0]
    return [
        Observation(
            run=f"{first.document}:{k}:{load}", target=first.target, method=first.method if k else "none",
            draft=first.draft if k else None, dataset=first.dataset, temperature=first.temperature, engine=first.engine,
            machine=first.machine, tensor_parallel=first.devices, concurrency=load, lookahead=k or None, output_tok_s=speed,
            tokens_per_step=tau, topk=1 if k else None, provenance=Provenance(source=first.source),
        )
        for k, load, speed, tau in [*lengths, *((0, load, speed, None) for load, speed in plain.items())]
    ]  # fmt: skip
