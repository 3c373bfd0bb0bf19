"""Batch ladders and single reports: the speedup at each load from names alone, and with its own τ where a row states one.

The level of acceptance is what a plan would take (`plan.levels`), without the document of the judged row; the cost law stands with its
defaults. Nothing of the judged row is used but target, machine, engine, draft, prompts, load and, where stated, how it drafts.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec
import numpy as np
from numpy.typing import NDArray

from foredraft import kinds, shapes
from foredraft.laws.calibration import adjusted
from foredraft.laws.conditions import task_of
from foredraft.laws.draws import normals
from foredraft.laws.speedup import speedup_leviathan
from foredraft.plan import evidence
from foredraft.plan.cells import USUAL, Drafting, conditions
from foredraft.plan.levels import level_of, tokens_per_step
from foredraft.records import Observation
from foredraft.shapes import Shape
from foredraft.validate.findings import RatioPoint, Validation, setting
from foredraft.validate.names import with_log_sd
from foredraft.validate.servers import DEFAULT_LENGTHS, Servers, known_servers
from foredraft.validate.throughput import load, lookahead, place, plain_beside, plain_speeds

Array = NDArray[np.float64]

DRAWS = 1000
ENDS = (0.05, 0.5, 0.95)
# A server's head where a row states neither τ nor k: what the examples of vLLM's and SGLang's documentation draft.
SERVED = (Drafting(3), Drafting(5))


@dataclass(frozen=True)
class Report:
    """For what acceptance is asked by a judged row."""

    target: Shape
    temperature: float
    task: str | None
    lengths: tuple[float, float]
    without: frozenset[str]
    observations: tuple[Observation, ...] = ()


def judge(rows: Sequence[Observation], machine: str | None, advance: Callable[[int], object] = int) -> Validation:
    """Predict the ratio of every speculative row that states one: with its τ, less what a throughput table judges; and from names alone."""
    plain, calibrated = plain_speeds(rows), _calibrated_groups(rows)
    ladders: list[RatioPoint] = []
    gains: list[RatioPoint] = []
    lacking: Counter[str] = Counter()
    assumed: dict[str, None] = {}
    for row in rows:
        advance(1)
        measured = measured_speedup(row, plain)
        if row.method == "none" or measured is None:
            continue
        nameless = msgspec.structs.replace(row, tokens_per_step=None, survival=None)
        try:
            if _group(row) not in calibrated:
                ladders.append(_predict(row, measured, machine, assumed))
            if row.accept_prob is None:
                gains.append(_predict(nameless, measured, machine, {} if row.tokens_per_step else assumed))
        except ValueError as error:
            lacking[f"{error} (for speedups by batch)"] += 1
    return Validation(ladders=tuple(ladders), gains=tuple(gains), lacking=dict(lacking), assumed=tuple(assumed))


def _group(row: Observation) -> tuple:
    return (*place(row), row.method, row.draft)


def _calibrated_groups(rows: Sequence[Observation]) -> set[tuple]:
    """Groups that the throughput kind judges: they have speeds at several lookaheads."""
    depths: dict[tuple, set[int]] = defaultdict(set)
    for row in rows:
        if row.method != "none" and row.output_tok_s and load(row) and lookahead(row):
            depths[_group(row)].add(lookahead(row))
    return {group for group, several in depths.items() if len(several) > 1}


def measured_speedup(row: Observation, plain: Mapping[tuple, Mapping[int, float]]) -> float | None:
    """As the row states it, or over plain decoding beside it."""
    bare = plain_beside(row, plain).get(load(row))
    return row.speedup if row.speedup is not None else (row.output_tok_s / bare if row.output_tok_s and bare else None)


def _predict(row: Observation, measured: float, machine: str | None, assumed: dict[str, None]) -> RatioPoint:
    """Raises ValueError naming what the row lacks. A stated α and cost ratio need no shapes (arXiv 2211.17192, theorem 3.8)."""
    if row.accept_prob is not None and row.cost_ratio is not None and row.lookahead:
        return RatioPoint(
            setting=setting(row), load=load(row) or 1, lookahead=row.lookahead, measured=measured,
            predicted=float(speedup_leviathan(row.accept_prob, row.lookahead, row.cost_ratio)),
        )  # fmt: skip
    if not load(row):
        raise ValueError("a batch size or concurrency")
    draftings = draftings_of(row)
    lengths = (row.input_len or DEFAULT_LENGTHS[0], row.output_len or DEFAULT_LENGTHS[1])
    servers = known_servers(row, lengths, machine)
    low, middle, high = _ends(row, servers, draftings, lengths)
    for note, missing in (
        (f"prompts of {lengths[0]:.0f} and answers of {lengths[1]:.0f} tokens", row.input_len is None or row.output_len is None),
        (f"{row.method} drafts as usual: {draftings[0].depth} passes", row.lookahead is None),
        (f"τ of {row.method} from other published curves", row.tokens_per_step is None),
        (f"machine {machine}", row.machine is None),
    ):  # fmt: skip
        if missing:
            assumed[note] = None
    return RatioPoint(
        setting=setting(row),
        load=load(row),
        lookahead=draftings[0].depth,
        measured=measured,
        predicted=middle,
        low=low,
        high=high,
    )


def _ends(
    row: Observation, servers: Servers, draftings: Sequence[Drafting], lengths: tuple[float, float]
) -> tuple[float, float, float]:
    """The 5 %, 50 % and 95 % points of the speedup, each way to draft as likely."""
    logs = []
    for drafting in draftings:
        taus = np.array([row.tokens_per_step]) if row.tokens_per_step else _drawn_taus(*_asked(row, lengths), drafting)
        gain, sd = gains_at(servers, float(load(row)), drafting, taus)
        sd = float(np.hypot(sd, conditions().report_sd))
        logs.append(np.resize(np.log(gain), DRAWS) + sd * normals(DRAWS, np.random.default_rng(1)))
    low, middle, high = np.exp(np.quantile(np.concatenate(logs), ENDS)).tolist()
    return low, middle, high


def gains_at(servers: Servers, clients: float, drafting: Drafting, taus: Array) -> tuple[Array, float]:
    """Speedup over no speculation at each of `taus` [S], and the sd of its logarithm under the cost law's uncertainty."""
    middle = round(float(np.median(taus)), 2)
    return _gains(servers, clients, drafting, taus), _log_sd(servers, clients, drafting, middle)


def _asked(row: Observation, lengths: tuple[float, float]) -> tuple[Report, str, str | None]:
    report = Report(
        shapes.shape(row.target), row.temperature or 0.0, task_of(row.dataset), lengths, evidence.documents([row])
    )
    return report, row.method, row.draft


@lru_cache(maxsize=4096)
def _drawn_taus(report: Report, method: str, draft: str | None, drafting: Drafting) -> Array:
    """Draws of τ of such a draft, as a plan would take it."""
    level = level_of(report, kinds.of_method(method), draft=draft, method=method, tree=drafting.tree)
    return tokens_per_step(level.acceptance.draws(DRAWS, np.random.default_rng(0), frozenset()), drafting)


def _gains(servers: Servers, clients: float, drafting: Drafting, taus: Array) -> Array:
    """Speedup over no speculation at each of `taus` [S] and the cost law's defaults."""
    fast = servers.speculative.load(clients, drafting.depth, taus, width=drafting.width, nodes=drafting.nodes)
    return np.asarray(fast.output_tok_s / servers.plain.load(clients, 0.0, 1.0).output_tok_s, dtype=np.float64)


@lru_cache(maxsize=4096)
def _log_sd(servers: Servers, clients: float, drafting: Drafting, tau: float) -> float:
    """sd of the logarithm of the speedup under the cost law's uncertainty."""

    def ratio(multipliers: Mapping[str, float]) -> float:
        slow, fast = (adjusted(server, multipliers) for server in (servers.plain, servers.speculative))
        return float(_gains(servers._replace(plain=slow, speculative=fast), clients, drafting, np.array([tau]))[0])

    return with_log_sd(ratio, servers.prior_width)[1]


def draftings_of(row: Observation) -> tuple[Drafting, ...]:
    """How the row may have drafted. Raises ValueError where it does not say and nothing is usual."""
    if row.lookahead:
        return (Drafting(row.lookahead, row.topk or 1, row.tree_nodes),)
    if row.tokens_per_step is None and row.engine and kinds.role_of(row.method) == "head":
        return SERVED
    if row.method not in USUAL:
        raise ValueError(f"the chain length, and none is usual for {row.method}")
    return (USUAL[row.method],)
