"""Batch ladders: the speedup at each batch from shape and machine alone, where only τ or the chain's length is known.

Nothing of the judged table is used to calibrate: the cost law stands with its defaults.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np

from foredraft import kinds, shapes
from foredraft.laws import acceptance
from foredraft.laws.acceptance import PositionLaw
from foredraft.laws.calibration import adjusted
from foredraft.laws.cost import ServerCost
from foredraft.laws.speedup import speedup_leviathan
from foredraft.plan import evidence
from foredraft.records import Observation
from foredraft.validate.findings import RatioPoint, Validation, setting
from foredraft.validate.names import with_log_sd
from foredraft.validate.servers import DEFAULT_LENGTHS, known_servers
from foredraft.validate.throughput import INTERVAL_SD, load, lookahead, place, plain_beside, plain_speeds


class Drafting(NamedTuple):
    """How a step drafts: passes, tokens a pass, nodes verified."""

    depth: int
    width: int = 1
    nodes: int | None = None


# What the public implementations do where a table does not say (EAGLE repository, see docs/log.md; assisted generation of transformers: 5).
USUAL = {
    "eagle": Drafting(5, 4, 25), "eagle2": Drafting(7, 10, 59), "eagle3": Drafting(7, 10, 59),
    "draft_model": Drafting(5), "ngram": Drafting(10),
}  # fmt: skip
SERVED = Drafting(
    3
)  # a server's head where a row states neither τ nor k: the examples of vLLM's and SGLang's documentation draft 3


def judge(
    rows: Sequence[Observation], law: PositionLaw, machine: str | None, advance: Callable[[int], object] = int
) -> Validation:
    """Predict the ratio of every speculative row that states one and that a throughput table does not already judge."""
    plain, calibrated = plain_speeds(rows), _calibrated_groups(rows)
    without = evidence.documents(rows)
    points: list[RatioPoint] = []
    lacking: Counter[str] = Counter()
    assumed: dict[str, None] = {}
    for row in rows:
        advance(1)
        measured = _measured(row, plain)
        if row.method == "none" or measured is None or _group(row) in calibrated:
            continue
        try:
            points.append(_predict(row, measured, law, machine, without, assumed))
        except ValueError as error:
            lacking[f"{error} (for speedups by batch)"] += 1
    return Validation(ladders=tuple(points), lacking=dict(lacking), assumed=tuple(assumed))


def _group(row: Observation) -> tuple:
    return (*place(row), row.method, row.draft)


def _calibrated_groups(rows: Sequence[Observation]) -> set[tuple]:
    """Groups that the throughput kind judges: they have speeds at several lookaheads."""
    depths: dict[tuple, set[int]] = defaultdict(set)
    for row in rows:
        if row.method != "none" and row.output_tok_s and load(row) and lookahead(row):
            depths[_group(row)].add(lookahead(row))
    return {group for group, several in depths.items() if len(several) > 1}


def _measured(row: Observation, plain: Mapping[tuple, Mapping[int, float]]) -> float | None:
    bare = plain_beside(row, plain).get(load(row))
    return row.speedup if row.speedup is not None else (row.output_tok_s / bare if row.output_tok_s and bare else None)


def _predict(
    row: Observation, measured: float, law: PositionLaw, machine: str | None, without: frozenset[str], assumed: dict
) -> RatioPoint:
    """Raises ValueError naming what the row lacks. A stated α and cost ratio need no shapes (arXiv 2211.17192, theorem 3.8)."""
    if row.accept_prob is not None and row.cost_ratio is not None and row.lookahead:
        return RatioPoint(
            setting=setting(row), load=load(row) or 1, lookahead=row.lookahead, measured=measured,
            predicted=float(speedup_leviathan(row.accept_prob, row.lookahead, row.cost_ratio)),
        )  # fmt: skip
    if not load(row):
        raise ValueError("a batch size or concurrency")
    drafting = _drafting(row)
    lengths = (row.input_len or DEFAULT_LENGTHS[0], row.output_len or DEFAULT_LENGTHS[1])
    plain, speculative = known_servers(row, lengths, machine)
    tau, tau_sd = row.tokens_per_step, 0.0
    if tau is None:
        tau, tau_sd = (
            usual_tau(row.target, row.method, drafting.depth, without),
            _prior_sd(law, row.method, drafting.depth),
        )
    ratio, log_sd = _gain(plain, speculative, float(load(row)), drafting, tau)
    width = float(np.exp(INTERVAL_SD * np.hypot(log_sd, tau_sd)))
    for note, missing in (
        (
            f"prompts of {lengths[0]:.0f} and answers of {lengths[1]:.0f} tokens",
            row.input_len is None or row.output_len is None,
        ),
        (f"{row.method} drafts as usual: {drafting.depth} passes", row.lookahead is None),
        (f"τ of {row.method} from other published curves", row.tokens_per_step is None),
        (f"machine {machine}", row.machine is None),
    ):
        if missing:
            assumed[note] = None
    return RatioPoint(
        setting=setting(row), load=load(row), lookahead=drafting.depth, measured=measured, predicted=ratio, low=ratio / width,
        high=ratio * width,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _gain(
    plain: ServerCost, speculative: ServerCost, clients: float, drafting: Drafting, tau: float
) -> tuple[float, float]:
    """Speedup over no speculation and the sd of its logarithm."""

    def ratio(multipliers: Mapping[str, float]) -> float:
        fast = adjusted(speculative, multipliers).load(
            clients, drafting.depth, tau, width=drafting.width, nodes=drafting.nodes
        )
        return float(fast.output_tok_s / adjusted(plain, multipliers).load(clients, 0.0, 1.0).output_tok_s)

    return with_log_sd(ratio)


def _drafting(row: Observation) -> Drafting:
    if row.lookahead:
        return Drafting(row.lookahead, row.topk or 1, row.tree_nodes)
    if row.method not in USUAL:
        raise ValueError(f"the chain length, and none is usual for {row.method}")
    if row.tokens_per_step is None and (row.engine is None or kinds.role_of(row.method) != "head"):
        raise ValueError("τ or the chain length")
    return USUAL[row.method] if row.tokens_per_step is not None else SERVED


@cache
def _prior_sd(law: PositionLaw, method: str, depth: int) -> float:
    """sd of log τ over drafts of a method of which nothing else is known."""
    _, low, high = acceptance.posterior(law, {}, kind=kinds.of_method(method).prior).tokens_per_step(depth)
    return float(np.log(high / low)) / (2 * INTERVAL_SD)


@cache
def usual_tau(target_name: str, method: str, depth: int, without: frozenset[str]) -> float:
    """τ of a chain of `depth` from other published curves: of this target and method; else of the law's median draft, which is an EAGLE-3 head
    for the most part, scaled by how far the method stands from EAGLE-3 where both were measured.
    """
    target, law = shapes.shape(target_name), evidence.position_law(without)
    curves = acceptance.chain_curves(evidence.observations(without))
    kind = kinds.of_method(method)

    def taus(of: str) -> list[float]:
        kin = [curve for key, curve in curves.items() if key[1] == of and evidence.names(key[0], target)]
        return [acceptance.posterior(law, curve, kind=kind.prior).tokens_per_step(depth)[0] for curve in kin]

    if same_method := taus(method):
        return float(np.mean(same_method))
    heads = taus(kinds.USUAL_HEAD.name) if kind.role == "head" else []
    median = float(np.mean(heads or [acceptance.posterior(law, {}, kind=kind.prior).tokens_per_step(depth)[0]]))
    return 1 + (median - 1) * (relative_gain(method, without) if kind.role == "head" else 1.0)


def relative_gain(method: str, without: frozenset[str]) -> float:
    """(τ - 1) of `method` over that of EAGLE-3, the median over published rows of one target, dataset and temperature; 1 where none pair up."""
    rows = [
        row
        for row in evidence.observations(without)
        if row.tokens_per_step and row.lookahead is None and not row.draft_tokens
    ]
    heads = {
        (row.target, row.dataset, row.temperature): row.tokens_per_step
        for row in rows
        if row.method == kinds.USUAL_HEAD.name
    }
    pairs = [
        (row.tokens_per_step, heads.get((row.target, row.dataset, row.temperature)))
        for row in rows
        if row.method == method
    ]
    ratios = [(tau - 1) / (best - 1) for tau, best in pairs if tau and best and best > 1]
    return float(np.median(ratios)) if ratios else 1.0
