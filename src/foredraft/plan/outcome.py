"""What ways to run a draft bring, draw by draw: tokens per step, throughput, latency, and the gain over plain decoding.

Promises: whole-array arithmetic over pairs of a load and a mode; the same costs for a draft and for plain decoding in every draw.
Refuses to know: which pairs are worth asking for.

Shapes: P pairs of a load and a mode, M modes, S draws, K positions.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.engines import ENGINES
from foredraft.laws.calibration import adjusted
from foredraft.laws.cost import ServedLoad, ServerCost
from foredraft.laws.deviation import slowdown
from foredraft.laws.speedup import BestTree
from foredraft.plan.candidate import Candidate, Steps
from foredraft.plan.problem import Mode, Problem
from foredraft.plan.trees import static, tokens_per_step_in

Array = NDArray[np.float64]


class SimulatedOutcome(NamedTuple):
    """Draws of what pairs of a load and a mode bring, all [P, S]: `lift` is the log of the objective over no speculation, training paid;
    `scatter` and `plain_scatter` the logs of how a run's own speed scatters, with the draft and without, which is in all of them.
    """

    lift: Array
    speedup: Array
    tau: Array
    output_tok_s: Array
    ttft_s: Array
    tpot_s: Array
    plain_tok_s: Array
    plain_tpot_s: Array
    running: Array
    scatter: Array
    plain_scatter: Array

    def at(self, pairs: NDArray[np.intp]) -> "SimulatedOutcome":
        """Those of some pairs."""
        return SimulatedOutcome(*(part[pairs] for part in self))


class Pairs(NamedTuple):
    """Loads, each with a mode, by their places in the workload and among `modes`: P of either."""

    loads: NDArray[np.intp]
    places: NDArray[np.intp]
    modes: tuple[Mode, ...]

    @classmethod
    def all(cls, num_loads: int, modes: Sequence[Mode]) -> "Pairs":
        """Every mode at every load, load by load."""
        places = np.arange(len(modes))
        return cls(np.repeat(np.arange(num_loads), len(modes)), np.tile(places, num_loads), tuple(modes))

    @classmethod
    def each(cls, modes: Sequence[Mode]) -> "Pairs":
        """A mode for every load."""
        different = tuple(dict.fromkeys(modes))
        return cls(np.arange(len(modes)), np.array([different.index(mode) for mode in modes]), different)

    def at(self, pairs: NDArray[np.intp]) -> "Pairs":
        """Some of them."""
        used, places = np.unique(self.places[pairs], return_inverse=True)
        return Pairs(self.loads[pairs], places, tuple(self.modes[i] for i in used))

    def mode(self, pair: int) -> Mode:
        return self.modes[self.places[pair]]

    @property
    def is_whole(self) -> bool:
        """Whether they are every mode at every load."""
        return len(self.loads) == (self.loads[-1] + 1) * len(self.modes)

    @property
    def dials(self) -> Array:
        """Depth, width and nodes of each mode, [3, M]."""
        return np.array(self.modes, dtype=float).reshape(-1, 3).T


def outcome(
    problem: Problem, candidate: Candidate | None, pairs: Pairs, steps: Steps, *, costs_frozen: bool = False
) -> SimulatedOutcome:
    """What each of `pairs` brings where `steps` are of its modes, under drawn costs or, if `costs_frozen`, at their centre.

    Raises ValueError where the draft does not fit beside the target.
    """
    server = problem.server(candidate.shape if candidate else None, speculate=candidate is not None)
    num = None if costs_frozen else steps.tau.shape[-1]
    server = adjusted(server, problem.costs(num))
    load = _load(server, problem, pairs, steps)
    depth, tau = pairs.dials[0, pairs.places, None], steps.tau[pairs.places]
    if server.draft and ENGINES[problem.settings.engine].idle_draft:
        load = _idling(load, server, depth[:, 0] == 0)
    plain = ServedLoad(*(part[pairs.loads] for part in problem.plain(num)))
    deviations = problem.deviations(candidate, num)
    if deviations is not None:
        load, plain = _slowed(load, plain, tau, depth, deviations[pairs.loads])
    scatter, bare = problem.scatter(num)[:, pairs.loads]
    scatter = np.where(depth > 0, scatter, bare)
    load, plain = _sped(load, np.exp(scatter)), _sped(plain, np.exp(bare))
    latency = problem.settings.objective == "latency"
    speedup = plain.tpot_s / load.tpot_s if latency else load.output_tok_s / plain.output_tok_s
    lift = _lift(problem, candidate, load, plain, tau, depth)
    parts = (
        lift,
        speedup,
        tau,
        load.output_tok_s,
        load.ttft_s,
        load.tpot_s,
        plain.output_tok_s,
        plain.tpot_s,
        load.running,
        scatter,
        bare,
    )
    return SimulatedOutcome(*np.broadcast_arrays(*parts))


def _load(server: ServerCost, problem: Problem, pairs: Pairs, steps: Steps) -> ServedLoad:
    """Of each pair [P, S]; of whole sets what hangs on the load alone, or on the mode, is worked out once."""
    clients, dials = problem.concurrency, pairs.dials[:, :, None]
    width = dials[1, :1] if (dials[1] == dials[1, 0]).all() else dials[1]
    if steps.looked_up or not pairs.is_whole:
        (depth, _, nodes), width = dials[:, pairs.places], width if len(width) == 1 else width[pairs.places]
        clients, steps = clients[pairs.loads, None], steps.at(pairs.places)
        depth, nodes = steps.spent(depth, nodes, server.running(clients))
        return server.load(clients, depth, steps.tau, width=width, nodes=nodes)
    load = server.load(clients[: pairs.loads[-1] + 1, None, None], dials[0], steps.tau, width=width, nodes=dials[2])
    return ServedLoad(*(each.reshape(len(pairs.loads), -1) for each in np.broadcast_arrays(*load)))


def _lift(
    problem: Problem, candidate: Candidate | None, load: ServedLoad, plain: ServedLoad, tau: Array, depth: Array
) -> Array:
    """log of the objective over no speculation [P, S]. Throughput counts the draft's training as device time spent per token of the
    horizon.
    """
    settings = problem.settings
    if settings.objective == "latency":
        return np.log(plain.tpot_s / load.tpot_s)
    if settings.objective == "tokens_per_flop":
        shape = candidate.shape if candidate else None
        cost_ratio = shape.flops_per_token(0) / problem.target.flops_per_token(0) if shape else 0.0
        return np.log(tau / (1 + depth * cost_ratio))
    spent_s = settings.devices / load.output_tok_s + training_s(problem, candidate)
    return np.log(settings.devices / plain.output_tok_s / spent_s)


def training_s(problem: Problem, candidate: Candidate | None) -> float:
    """Device seconds of training per token served over the horizon."""
    settings = problem.settings
    return (
        (candidate.choice.training_gpu_hours if candidate else 0.0)
        * 3600
        * settings.terms.train_weight
        / settings.horizon_tokens
    )


def _slowed(
    load: ServedLoad, plain: ServedLoad, tau: Array, depth: Array, deviations: Array
) -> tuple[ServedLoad, ServedLoad]:
    """`load` and `plain` of modelled servers as own rows say that they deviate; `deviations` [P, S, 3]."""
    share = load.output_tok_s / (np.where(depth > 0, tau, np.nan) * plain.output_tok_s)
    undrafted = np.full_like(plain.output_tok_s, np.nan)
    return _sped(load, 1 / slowdown(deviations, share)), _sped(plain, 1 / slowdown(deviations, undrafted))


def _idling(load: ServedLoad, server: ServerCost, idle: NDArray[np.bool_]) -> ServedLoad:
    """`load` where steps that draft nothing, of the pairs `idle` [P], still make the draft's pass."""
    speed = np.ones(np.broadcast_shapes(load.output_tok_s.shape, load.running.shape))
    speed[idle] = server.idle_speed(load.running[idle])
    return _sped(load, speed)


def _sped(load: ServedLoad, by: Array) -> ServedLoad:
    """A load that is `by` times as fast."""
    return ServedLoad(load.output_tok_s * by, load.ttft_s / by, load.tpot_s / by, load.running)


def tokens_per_step(accept: Array, tails: Array, middle: float, modes: Sequence[Mode]) -> Array:
    """τ of each mode under every draw [M, S], from accept_given_prefix [S, K]: of chains, and of trees that are the best ones at the
    mean acceptance and the `middle` tail, since a static tree is chosen before a draw is known. `tails` [S]: of the draws.
    """
    chains = 1 + np.cumsum(np.cumprod(accept, axis=1), axis=1).T
    tau = np.ones((len(modes), len(accept)))
    trees: dict[tuple[int, int], list[int]] = {}
    for i, mode in enumerate(modes):
        if mode.width > 1:
            trees.setdefault((mode.depth, mode.width), []).append(i)
        elif mode.depth:
            tau[i] = chains[mode.depth - 1]
    if trees:
        mean = accept.mean(axis=0)
        grown = [
            static(mean[:depth], width, middle, max(modes[i].nodes for i in places))
            for (depth, width), places in trees.items()
        ]
        for places, curve in zip(trees.values(), tokens_per_step_in(grown, accept, tails), strict=True):
            tau[places] = curve[np.minimum([modes[i].nodes for i in places], len(curve) - 1)]
    return tau


def planned_tree(problem: Problem, candidate: Candidate | None, mode: Mode) -> tuple[tuple[int, int], ...]:
    """(parent, rank) of the nodes of the mode's static tree, parents first; empty for a chain."""
    if mode.width <= 1 or candidate is None:
        return ()
    accept = problem.accept(candidate, problem.settings.num_draws)[:, : mode.depth]
    tree: BestTree = static(accept.mean(axis=0), mode.width, candidate.tail.middle, mode.nodes)
    return tuple(zip(tree.parents.tolist(), tree.ranks.tolist(), strict=True))
