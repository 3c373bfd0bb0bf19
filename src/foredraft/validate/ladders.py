"""Batch ladders: the speedup at each batch from shape and machine alone, where only τ or the chain's length is known.

Nothing of the judged table is used to calibrate: the cost law stands with its defaults.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from foredraft import kinds, shapes
from foredraft.laws import acceptance
from foredraft.laws.acceptance import PositionLaw
from foredraft.laws.speedup import speedup_leviathan
from foredraft.plan import evidence
from foredraft.records import Observation
from foredraft.validate.findings import KNOWN_LOOKAHEAD, RatioPoint, Validation, setting
from foredraft.validate.servers import DEFAULT_LENGTHS, known_servers
from foredraft.validate.throughput import load, place, plain_beside, plain_speeds


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


def judge(rows: Sequence[Observation], law: PositionLaw, machine: str | None) -> Validation:
    """Predict the ratio of every speculative row that states one and that a throughput table does not already judge."""
    plain, calibrated = plain_speeds(rows), _calibrated_groups(rows)
    without = evidence.documents(rows)
    points: list[RatioPoint] = []
    lacking: Counter[str] = Counter()
    assumed: dict[str, None] = {}
    for row in rows:
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
    """Groups that the throughput kind judges: they have a speed at k ≤ 2."""
    return {
        _group(row)
        for row in rows
        if row.method != "none" and row.output_tok_s and load(row) and 0 < (row.lookahead or 0) <= KNOWN_LOOKAHEAD
    }


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
    tau = row.tokens_per_step if row.tokens_per_step is not None else usual_tau(row, drafting.depth, law, without)
    tree = {"width": drafting.width, "nodes": drafting.nodes}
    fast = speculative.load(load(row), drafting.depth, tau, **tree).output_tok_s
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
        setting=setting(row), load=load(row), lookahead=drafting.depth, measured=measured,
        predicted=float(fast / plain.load(load(row), 0, 1.0).output_tok_s),
    )  # fmt: skip


def _drafting(row: Observation) -> Drafting:
    if row.lookahead:
        return Drafting(row.lookahead, row.topk or 1, row.tree_nodes)
    if row.method not in USUAL:
        raise ValueError(f"the chain length, and none is usual for {row.method}")
    if row.tokens_per_step is None:
        raise ValueError("τ or the chain length")
    return USUAL[row.method]


def usual_tau(row: Observation, depth: int, law: PositionLaw, without: frozenset[str]) -> float:
    """τ of a chain of `depth` from other published curves: of this target and method; else of the law's median draft, which is an EAGLE-3 head
    for the most part, scaled by how far the method stands from EAGLE-3 where both were measured.
    """
    target = shapes.shape(row.target)
    curves = acceptance.chain_curves(evidence.observations(without))
    drifts = kinds.of_method(row.method).drifts

    def taus(method: str) -> list[float]:
        kin = [curve for key, curve in curves.items() if key[1] == method and evidence.names(key[0], target)]
        return [acceptance.posterior(law, curve, drifts=drifts).tokens_per_step(depth)[0] for curve in kin]

    if same_method := taus(row.method):
        return float(np.mean(same_method))
    heads = taus(kinds.USUAL_HEAD.name) if drifts else []
    median = float(np.mean(heads or [acceptance.posterior(law, {}, drifts=drifts).tokens_per_step(depth)[0]]))
    return 1 + (median - 1) * (relative_gain(row.method, without) if drifts else 1.0)


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
