"""The cost law calibrated on measured loads: multipliers on a server's coefficients, shared by all its rows.

Promises: the multipliers of greatest posterior and their covariance; a run's level may lie off, its ratios count. Refuses to
know: what a step costs (`laws.cost`), acceptance, search, files.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import scipy  # whose `optimize` loads where it is first used: it takes a fifth of a second
from numpy.typing import NDArray

from foredraft.laws.cost import Prefill, ServerCost
from foredraft.laws.passes import Array


class Calibration(NamedTuple):
    """`multipliers` (see MULTIPLIERS), the covariance of their logarithms, and the misfit (half the robust squares, prior included)."""

    multipliers: dict[str, float]
    covariance: Array
    misfit: float


class CostRow(NamedTuple):
    """A measured load for calibration: `output_tok_s` at `concurrency` clients, chain length or tree depth `depth` and
    `tokens_per_step`; of a tree its `width`, and the `nodes` that are verified (NaN: a chain). Of an engine that clocks its own steps the
    shares of its time that prompts and drafting took, else NaN.
    """

    concurrency: float
    depth: float
    tokens_per_step: float
    output_tok_s: float
    width: float = 1.0
    nodes: float = np.nan
    prompt_share: float = np.nan
    draft_share: float = np.nan


# Multipliers on a server's coefficients: name -> sd of its logarithm where shapes and machine are known. Calibrating
# Qwen3-32B with three drafts on an H100 moved the defaults by 1 % (memory), up to 10 % (compute), 1 to 8 % (draft
# weights) and up to 20 % (fixed costs); others' software differs more.
MULTIPLIERS = {
    "memory": 0.15, "experts": 0.3, "compute": 0.25, "target_fixed": 0.6, "draft_weight": 0.15, "draft_fixed": 0.4, "speculation": 0.5,
    "tree": 0.5, "capacity": 0.15, "prefill": 0.4, "blend": 0.4,
}  # fmt: skip

NARROW = "prefill"  # never widened: it would take for itself how steps grow with the load
MOST_STEPS = 25  # of the search for the greatest posterior, which takes about ten; rows that no server explains may go on for hundreds
SHARE_NOISE = 0.01  # sd of a measured share of time about the modelled one: the clocks are those of one run, and only the law's form is missed
SWING = 0.15  # sd of log speed between runs on a shared machine: plain decoding of one model, 2 cores, six batches: 0.11 to 0.16


def calibrate(
    plain: ServerCost, speculative: ServerCost, rows: Sequence[CostRow], *, noise: float = 0.03,
    prior_width: float = 1.0,
) -> Calibration:  # fmt: skip
    """As `calibrate_served`, with rows of depth 0 on `plain` and the others on `speculative`."""
    served = [speculative if row.depth > 0 else plain for row in rows]
    return calibrate_served(served, rows, noise=noise, prior_width=prior_width)


def calibrate_served(
    served: Sequence[ServerCost], rows: Sequence[CostRow], *, noise: float = 0.03, prior_width: float = 1.0,
    runs: Sequence[Hashable] | None = None,
) -> Calibration:  # fmt: skip
    """The multipliers of greatest posterior given `rows`, one set for all; each row was measured on the server at its
    place in `served` (the same object for the same server).

    `noise` is the sd of log throughput; `prior_width` multiplies the priors' sds, for servers whose shapes are guessed. `runs`
    says which rows were measured in one run (left out: all): a run's mean may lie off by `SWING`, so that its ratios weigh more
    than its level, while the level of all runs together counts in full. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("calibration needs at least one measured row with a throughput")
    table, places = np.array(rows, dtype=float), _places(served)
    prior = np.array([sd * (1.0 if name == NARROW else prior_width) for name, sd in MULTIPLIERS.items()])
    number = {run: i for i, run in enumerate(dict.fromkeys(runs or ()))}
    run_of = np.array([number[run] for run in runs] if runs else [0] * len(rows))

    def misfits(log_multipliers_MS: Array) -> Array:
        multipliers = dict(zip(MULTIPLIERS, np.exp(log_multipliers_MS), strict=True))
        off_RS = _levelled(np.log(_predicted(places, table, multipliers) / table[:, 3:4]), run_of, noise)
        shares_off = _shares_off(places, table, multipliers)
        return np.concatenate([off_RS / noise, shares_off / SHARE_NOISE, log_multipliers_MS / prior[:, None]])

    def slopes(x_M: Array) -> Array:
        """Forward differences, all in one pass over the servers: each has few rows, so that the passes are what takes time."""
        steps = np.sqrt(np.finfo(float).eps) * np.where(x_M < 0, -1, 1) * np.maximum(1, np.abs(x_M))
        moved = misfits(x_M[:, None] + np.column_stack((np.zeros_like(x_M), np.diag(steps))))
        return (moved[:, 1:] - moved[:, :1]) / ((x_M + steps) - x_M)

    solution = scipy.optimize.least_squares(
        lambda x_M: misfits(x_M[:, None])[:, 0], np.zeros(len(MULTIPLIERS)), slopes, loss="soft_l1", x_scale=prior,
        max_nfev=MOST_STEPS,
    )  # fmt: skip
    covariance = np.linalg.inv(solution.jac.T @ solution.jac)
    multipliers = dict(zip(MULTIPLIERS, np.exp(solution.x).tolist(), strict=True))
    return Calibration(multipliers, covariance, float(solution.cost))


def _shares_off(
    places: Sequence[tuple[ServerCost, NDArray[np.intp]]], table: Array, multipliers: Mapping[str, Array]
) -> Array:
    """How far the modelled shares of prompts and of drafting lie off those measured, where they were, by draw of the multipliers;
    a slow minute moves neither.
    """
    parts = [np.zeros((0, len(next(iter(multipliers.values())))))]
    for server, here in places:
        clocked = here[np.isfinite(table[here, 6])]
        if len(clocked):
            concurrency, depth, tau, _, width, nodes, *measured = table[clocked].T[..., None]
            nodes = np.where(np.isnan(nodes), depth, nodes)
            shares = adjusted(server, multipliers).shares(concurrency, depth, tau, width=width, nodes=nodes)
            parts += [modelled - share for modelled, share in zip(shares, measured, strict=True)]
    return np.concatenate(parts)


def _levelled(off_RS: Array, run_of: NDArray[np.intp], noise: float) -> Array:
    """Log errors with each run's distance from the mean run divided by its sd, noise and swing together, over that of noise alone."""
    sizes = np.bincount(run_of)[:, None]
    means = np.column_stack([np.bincount(run_of, off) for off in off_RS.T]) / sizes
    share = 1 / np.sqrt(1 + sizes * (SWING / noise) ** 2)
    return off_RS - ((1 - share) * (means - means.mean(axis=0)))[run_of]


def predict_rows(plain: ServerCost, speculative: ServerCost, table: Array, multipliers: Mapping[str, float]) -> Array:
    """Output tokens/s of each row (concurrency, depth, τ, …) under calibrated servers."""
    return _predicted_once(_places([speculative if depth > 0 else plain for depth in table[:, 1]]), table, multipliers)


def predict_served(served: Sequence[ServerCost], rows: Sequence[CostRow], multipliers: Mapping[str, float]) -> Array:
    """Output tokens/s of each row on the server at its place in `served`, calibrated."""
    return _predicted_once(_places(served), np.array(rows, dtype=float), multipliers)


def _places(served: Sequence[ServerCost]) -> list[tuple[ServerCost, NDArray[np.intp]]]:
    """Each server with the places of its rows."""
    ids = np.array([id(server) for server in served])
    servers = {id(server): server for server in served}
    return [(server, np.flatnonzero(ids == name)) for name, server in servers.items()]


def _predicted_once(
    places: Sequence[tuple[ServerCost, NDArray[np.intp]]], table: Array, multipliers: Mapping[str, float]
) -> Array:
    """Output tokens/s of each row."""
    return _predicted(places, table, {name: np.array([value]) for name, value in multipliers.items()})[:, 0]


def _predicted(
    places: Sequence[tuple[ServerCost, NDArray[np.intp]]], table: Array, multipliers: Mapping[str, Array]
) -> Array:
    """Output tokens/s [R, S] under each of S draws of the multipliers; a table's columns are CostRow's, of which those from the
    throughput on may be missing.
    """
    speeds = np.empty((len(table), len(next(iter(multipliers.values())))))
    for server, here in places:
        concurrency, depth, tau = table[here, :3].T[..., None]
        width, nodes = table[here, 4:6].T[..., None] if table.shape[1] > 4 else (1.0, np.nan)
        nodes = np.where(np.isnan(nodes), depth, nodes)
        tau = np.where(depth > 0, tau, 1.0)
        load = adjusted(server, multipliers).load(concurrency, depth, tau, width=width, nodes=nodes)
        speeds[here] = load.output_tok_s
    return speeds


def adjusted(server: ServerCost, multipliers: Mapping[str, Any]) -> ServerCost:
    """`server` with calibration's multipliers applied: numbers, or draws [S] of each, which broadcast along the last axis."""
    memory, compute, weight = (multipliers[name] for name in ("memory", "compute", "draft_weight"))
    draft = server.draft and server.draft.scaled(
        fixed=multipliers["draft_fixed"], memory=memory * weight, compute=compute * weight
    )
    return replace(
        server,
        target=server.target.scaled(
            fixed=multipliers["target_fixed"], memory=memory, compute=compute, experts=multipliers["experts"]
        ),
        draft=draft, block=server.block and server.block.scaled(memory=memory * weight, compute=compute * weight),
        speculation_s=server.speculation_s * multipliers["speculation"],
        tree_level_s=server.tree_level_s * multipliers["tree"],
        capacity_tokens=server.capacity_tokens * multipliers["capacity"],
        prefill=Prefill(*(part * multipliers["prefill"] for part in server.prefill)), blend=1 + (server.blend - 1) * multipliers["blend"],
    )  # fmt: skip
