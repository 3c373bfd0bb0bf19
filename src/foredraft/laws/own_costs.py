"""The cost law on a user's own rows: multipliers shared by all of them, and by load what those leave.

Promises: one law for `plan` and `validate`; where rows at two lookaheads stand at a load it can follow them as far as a straight
line in k does, where none do it falls back on the cost law. Refuses to know: acceptance, which rows belong together, files.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.laws.calibration import MULTIPLIERS, Calibration, CostRow, calibrate_served, predict_served
from foredraft.laws.cost import ServerCost
from foredraft.laws.deviation import Cells, Deviation, deviation, slowdown
from foredraft.laws.draws import normals
from foredraft.laws.passes import Array

# sd of log tokens/s between runs, at least: thirty cells of vLLM (Qwen3-32B FP8, two GPUs, 1 to 128 clients, k = 1 to 8), three runs
# each, scatter by 1.1 % (github.com/tomasruizt/vllm-scripts, experiments/adaptive_k).
RUN_NOISE = 0.012
# sd of log step at a drafted cell about what its load's other rows say: kernels and padding make steps uneven in k. Qwen3-32B's at k ≥ 3
# miss by 2 % (bf16, one H100) and 9 % (FP8, two); the geometric mean. A tree's twice that (SpecForge's).
UNEVEN = 0.04
CALIBRATION_NOISE = 0.03  # the same of what the multipliers alone leave of published rows
SECOND = 1.1  # calibration is repeated where its misfit exceeds that noise by this factor
MOST_SERVERS = 8  # of each draft, that calibration sees
MOST_CELLS = 400  # cells that the deviation sees; more are averaged over neighbouring loads


class Measured(NamedTuple):
    """A measured load: its server, that server without a draft, the row, its draft and its run."""

    server: ServerCost
    plain: ServerCost
    row: CostRow
    draft: Hashable = None
    run: Hashable = None


@dataclass(frozen=True)
class OwnCosts:
    """Multipliers of greatest posterior, the covariance of their logarithms, what they leave by load, the sd of a further run,
    the mean relative error over the rows, how many, and over which loads.
    """

    multipliers: dict[str, float]
    covariance: Array
    deviation: Deviation
    noise: float
    error: float
    num_rows: int
    loads: tuple[int, int]

    def draws(self, num: int, rng: np.random.Generator) -> Array:
        """Multipliers on the calibrated servers, [num, multipliers]."""
        symmetric = 0.5 * (self.covariance + self.covariance.T)
        drawn = np.stack([normals(num, rng) for _ in MULTIPLIERS], axis=1)
        return np.exp(drawn @ np.linalg.cholesky(symmetric).T)

    def output_tok_s(self, loads: Sequence[Measured]) -> tuple[Array, Array]:
        """Output tokens/s at each of `loads`, and the sd of its logarithm, scatter of runs and unevenness included."""
        cells = _cells(loads, self.multipliers)
        speeds, sds = np.empty(len(loads)), np.empty(len(loads))
        modelled = predict_served([load.server for load in loads], [load.row for load in loads], self.multipliers)
        depth, width = np.array([(load.row.depth, load.row.width) for load in loads]).T
        by_draft: dict[Hashable, list[int]] = defaultdict(list)
        for i, load in enumerate(loads):
            by_draft[load.draft].append(i)
        for draft, places in by_draft.items():
            concurrency, at = np.unique(cells.load[places], return_inverse=True)
            share, covariance = cells.plain_share[places], self.deviation.covariance(concurrency, draft)
            slower = slowdown(self.deviation.mean(concurrency, draft)[at], share)
            sd = self.deviation.sd(covariance, at, share)
            uneven = UNEVEN * (depth[places] > 0) * np.where(width[places] > 1, 2.0, 1.0)
            speeds[places], sds[places] = modelled[places] / slower, np.hypot(np.hypot(sd / slower, self.noise), uneven)
        return speeds, sds


def own_costs(rows: Sequence[Measured], *, prior_width: float = 1.0) -> OwnCosts:
    """The law given `rows`. Raises ValueError without any."""
    if not rows:
        raise ValueError("calibration needs at least one measured row with a throughput")
    cells, cell_of = averaged(rows)
    taus, speeds = np.array([row.row[2:4] for row in rows], dtype=float).T
    noise = _scatter(np.log(taus / speeds), cell_of)
    table = [cell.row for cell in cells]
    calibration = _calibrated(_usual(cells), prior_width)
    left = deviation(_fewer(_cells(cells, calibration.multipliers)), noise)
    loads = [int(row.concurrency) for row in table]
    costs = OwnCosts(
        calibration.multipliers, calibration.covariance, left, noise, 0.0, len(rows), (min(loads), max(loads))
    )
    fitted = costs.output_tok_s(cells)[0] / [row.tokens_per_step for row in table]
    error = float(np.mean(np.abs(fitted[cell_of] * taus / speeds - 1)))
    return OwnCosts(costs.multipliers, costs.covariance, left, noise, error, len(rows), costs.loads)


def _calibrated(cells: Sequence[Measured], prior_width: float) -> Calibration:
    """Multipliers given `cells`; once more with their own misfit for noise where it exceeds CALIBRATION_NOISE."""
    served, table, runs = [cell.server for cell in cells], [cell.row for cell in cells], [cell.run for cell in cells]
    calibration = calibrate_served(served, table, noise=CALIBRATION_NOISE, prior_width=prior_width, runs=runs)
    missed = np.log(predict_served(served, table, calibration.multipliers) / [row.output_tok_s for row in table])
    scatter = 1.4826 * float(np.median(np.abs(missed)))
    if scatter < SECOND * CALIBRATION_NOISE:
        return calibration
    return calibrate_served(served, table, noise=scatter, prior_width=prior_width, runs=runs)


def _usual(cells: Sequence[Measured]) -> list[Measured]:
    """Cells of MOST_SERVERS servers of each draft, those with the most: many lengths teach little more, and each costs a pass."""
    by_draft: dict[Hashable, Counter[int]] = defaultdict(Counter)
    for cell in cells:
        by_draft[cell.draft][id(cell.server)] += 1
    usual = {server for servers in by_draft.values() for server, _ in servers.most_common(MOST_SERVERS)}
    return [cell for cell in cells if id(cell.server) in usual]


def averaged(rows: Sequence[Measured]) -> tuple[list[Measured], NDArray[np.intp]]:
    """One row for repeats of a load in a run, with the geometric means of speed and τ; and the place of each row's there."""
    places: dict[tuple, int] = {}
    numbers: dict[Hashable, int] = {}
    by_id: dict[int, int] = {}  # to hash a draft takes longer than all else here, and rows share few objects
    cell_of = np.empty(len(rows), dtype=int)
    for i, (server, _, row, draft, run) in enumerate(rows):
        if id(draft) not in by_id:
            by_id[id(draft)] = numbers.setdefault(draft, len(numbers))
        nodes = None if math.isnan(row.nodes) else row.nodes
        cell = (id(server), row.concurrency, row.depth, row.width, nodes, by_id[id(draft)], run)
        cell_of[i] = places.setdefault(cell, len(places))
    counts = np.bincount(cell_of)
    logs = np.log([row.row[2:4] for row in rows])
    taus, speeds = (np.exp(np.bincount(cell_of, column) / counts).tolist() for column in logs.T)
    firsts = np.unique(cell_of, return_index=True)[1]
    cells = [
        rows[i]._replace(row=rows[i].row._replace(tokens_per_step=tau, output_tok_s=speed))
        for i, tau, speed in zip(firsts, taus, speeds, strict=True)
    ]
    return cells, cell_of


def _scatter(log_steps: Array, cell_of: NDArray[np.intp]) -> float:
    """sd of a step among repeats of its cell; RUN_NOISE at least, and where nothing was repeated."""
    counts = np.bincount(cell_of)
    off = log_steps - (np.bincount(cell_of, log_steps) / counts)[cell_of]
    return max(RUN_NOISE, float(np.sqrt((off**2).sum() / max(len(off) - len(counts), 1))))


def _cells(loads: Sequence[Measured], multipliers: dict[str, float]) -> Cells:
    """`loads` as the deviation reads them, against the calibrated servers."""
    table = [load.row for load in loads]
    concurrency, depth, tau, measured = np.array([row[:4] for row in table], dtype=float).T
    modelled = predict_served([load.server for load in loads], table, multipliers)
    undrafted = [row._replace(depth=0.0, nodes=0.0, width=1.0) for row in table]
    plain = predict_served([load.plain for load in loads], undrafted, multipliers)
    share = np.where(depth > 0, modelled / (np.where(depth > 0, tau, 1.0) * plain), np.nan)
    return Cells(concurrency, share, modelled / measured, [load.draft for load in loads])


def _fewer(cells: Cells) -> Cells:
    """At most MOST_CELLS cells: those of one draft at neighbouring loads and like shares are averaged."""
    names, step = list(dict.fromkeys(cells.drafts)), 0.0
    numbers = {draft: i for i, draft in enumerate(names)}
    drafts = np.array([numbers[draft] for draft in cells.drafts])
    keys = np.stack([drafts, np.log2(cells.load), np.nan_to_num(cells.plain_share, nan=-1.0)])
    first = group = np.arange(len(drafts))
    while len(first) > MOST_CELLS:
        step = 2 * step or 0.02
        _, first, group = np.unique(
            np.round(keys / [[1], [step], [step]]), axis=1, return_index=True, return_inverse=True
        )
    counts = np.bincount(group.ravel())
    load, ratio = (np.exp(np.bincount(group.ravel(), np.log(values)) / counts) for values in (cells.load, cells.ratio))
    share = np.bincount(group.ravel(), cells.plain_share) / counts
    return Cells(load, share, ratio, [names[drafts[i]] for i in first])
