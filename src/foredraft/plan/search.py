"""The search: which draft, trained on how much, run how at each load.

Promises: every combination of candidate, step mode and concurrency is scored over the same draws of acceptance, in
whole-array arithmetic; the winner is then judged again with the cost law's own uncertainty drawn too. Refuses to
know: formulas (laws), what candidates there are, file formats.

Shapes: C concurrencies, M modes (chains and trees), S draws, K positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.engines import ENGINES, USUAL
from foredraft.laws.calibration import MULTIPLIERS, adjusted
from foredraft.laws.cost import ServedLoad, ServerCost
from foredraft.laws.deviation import slowdown
from foredraft.laws.own_costs import UNEVEN, OwnCosts
from foredraft.laws.passes import Layout
from foredraft.laws.speedup import best_tree, rank_acceptance
from foredraft.machines import device_time
from foredraft.plan.candidate import Candidate
from foredraft.plan.served import Place, alike
from foredraft.plan.trees import PUBLISHED, grown
from foredraft.records import Machine, Record, Workload
from foredraft.shapes import Shape

Array = NDArray[np.float64]
NOTHING: frozenset[str] = frozenset()
OBJECTIVES = ("throughput", "latency", "tokens_per_flop")
KINDS = ("head", "lm", "lookup")
TREE_DEPTHS = (3, 5, 7)
TREE_TOPKS = (2, 4, 8)
TREE_NODES = (7, 15, 31, 63)
TREE_DRAWS = 8


class PlanSettings(Record, frozen=True):
    """What the user fixes; the rest is searched. `devices` in all make `data_parallel` replicas; `dtype` None: the weights as the
    checkpoint stores them. `horizon_tokens` is the output over which a draft's training is paid
    back; without `trees` chains alone are weighed; `kinds` of draft to weigh, all by
    default; `always`: the best draft is planned even where none pays.
    """

    objective: str = "throughput"
    engine: str = USUAL.name
    devices: int = 1
    data_parallel: int = 1
    expert_parallel: bool = False
    dtype: str | None = None
    kv_dtype: str | None = None
    max_lookahead: int = 8
    horizon_tokens: float = 1e11
    max_training_gpu_hours: float = 1e5
    draws: int = 64
    seed: int = 0
    trees: bool = True
    kinds: tuple[str, ...] = KINDS
    always: bool = False

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.kinds if kind not in KINDS]:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {unknown[0]}")
        if not self.kinds:
            raise ValueError(f"kinds must name one or more of {', '.join(KINDS)}")
        for name, allowed in (("objective", OBJECTIVES), ("engine", ENGINES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)}")
        for name in ("devices", "data_parallel", "max_lookahead", "horizon_tokens", "max_training_gpu_hours", "draws"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.devices % self.data_parallel:
            raise ValueError(f"data_parallel ({self.data_parallel}) must divide devices ({self.devices})")
        if self.max_lookahead > 16:
            raise ValueError(
                f"max_lookahead must not exceed 16, the positions that the acceptance law knows; got {self.max_lookahead}"
            )

    @property
    def layout(self) -> Layout:
        """How the devices share the models."""
        return Layout(self.devices // self.data_parallel, self.data_parallel, self.expert_parallel)


class Mode(NamedTuple):
    """One way to draft: passes, tokens a pass, nodes verified; depth 0 is plain decoding."""

    depth: int
    width: int
    nodes: int


@dataclass(frozen=True)
class Scored:
    """A candidate with its best mode at each concurrency and what that brings: gain is the log of objective over no speculation."""

    candidate: Candidate | None
    gain: float
    modes: tuple[Mode, ...]
    tau: Array
    step_s: Array
    running: Array
    training_share: float


@dataclass(frozen=True)
class Problem:
    """One target on one machine under one workload, with the settings that hold throughout, and the cost law as own rows calibrate it."""

    target: Shape
    machine: Machine
    workload: Workload
    settings: PlanSettings
    calibrated: OwnCosts | None = None

    @property
    def weights(self) -> Array:
        weights = np.array(self.workload.weights or [1.0] * len(self.workload.concurrency))
        return weights / weights.sum()

    @property
    def concurrency(self) -> Array:
        return np.array(self.workload.concurrency, dtype=float)

    def server(self, draft: Shape | None, speculate: bool = True) -> ServerCost:
        """The server of the target beside `draft`; raises ValueError where it does not fit."""
        server = self.place.server(draft, self.workload.input_len, self.workload.output_len, speculate=speculate)
        return adjusted(server, self.calibrated.multipliers) if self.calibrated else server

    @property
    def place(self) -> Place:
        settings = self.settings
        return Place(self.target, self.machine, settings.engine, settings.layout, settings.dtype, settings.kv_dtype)

    def multiplier_draws(self) -> Array:
        """Multipliers on a server's coefficients, [S, multipliers]: of the calibration's posterior, else of the prior."""
        rng = np.random.default_rng(self.settings.seed + 2)
        if self.calibrated:
            return self.calibrated.draws(self.settings.draws, rng)
        spread = np.array(list(MULTIPLIERS.values())) * self.place.prior_width
        return np.exp(rng.standard_normal((self.settings.draws, len(MULTIPLIERS))) * spread)

    def deviations(self, candidate: Candidate | None, *, drawn: bool) -> Array | None:
        """How own rows say that steps deviate from the modelled ones: coefficients [C, 3], or draws of them [C, S, 3]; None without."""
        if not self.calibrated:
            return None
        draft, deviation = alike(candidate.shape if candidate else None), self.calibrated.deviation
        if not drawn:
            return deviation.mean(self.concurrency, draft)
        rng = np.random.default_rng(self.settings.seed + 4)
        return deviation.draws(self.concurrency, draft, self.settings.draws, rng)

    def run_noise(self) -> Array:
        """A run's own scatter of speculative and of plain throughput at each load, as factors [2, C, S]."""
        noise = self.calibrated.noise if self.calibrated else 0.0
        shape = (2, len(self.workload.concurrency), self.settings.draws)
        sds = np.array([np.hypot(noise, UNEVEN) if self.calibrated else 0.0, noise])
        return np.exp(sds[:, None, None] * np.random.default_rng(self.settings.seed + 5).standard_normal(shape))


def modes_for(candidate: Candidate | None, settings: PlanSettings) -> tuple[Mode, ...]:
    """Plain decoding, chains, and trees where the engine has trees that pay."""
    chains = tuple(Mode(k, 1, k) for k in range(1 if settings.always else 0, settings.max_lookahead + 1))
    if (
        not ENGINES[settings.engine].trees
        or not settings.trees
        or settings.objective == "tokens_per_flop"
        or candidate is None
        or candidate.choice.kind == "lookup"
    ):
        return chains
    return chains + tuple(
        Mode(d, k, w)
        for d in TREE_DEPTHS
        if d <= settings.max_lookahead
        for k in TREE_TOPKS
        for w in TREE_NODES
        if d < w <= k * d
    )


def tokens_per_step(accept: Array, modes: Sequence[Mode], tail: float | Array) -> Array:
    """τ of every draw in every mode, [S, M]; chains exactly, trees as the best static tree of that many nodes.

    `tail` [S] grows the trees of every draw under its own tail; under one for all they are grown for a few draws and
    interpolated, which is enough to rank by.
    """
    reach = np.cumsum(np.cumprod(accept, axis=1), axis=1)
    tau = np.empty((len(accept), len(modes)))
    trees: dict[tuple[int, int], list[int]] = {}
    for i, mode in enumerate(modes):
        if mode.nodes == mode.depth:
            tau[:, i] = 1 + (reach[:, mode.depth - 1] if mode.depth else 0.0)
        else:
            trees.setdefault((mode.depth, mode.width), []).append(i)
    for (depth, width), places in trees.items():
        sizes = [modes[i].nodes for i in places]
        if isinstance(tail, np.ndarray):
            tau[:, places] = [
                grown(row, width, branch_tail, sizes) for row, branch_tail in zip(accept[:, :depth], tail, strict=True)
            ]
        else:
            tau[:, places] = _between(accept[:, :depth], width, tail, sizes)
    return tau


def static_tree(candidate: Candidate, mode: Mode, settings: PlanSettings) -> tuple[tuple[int, int], ...]:
    """(parent, rank) of the nodes of the mode's best static tree at mean acceptance, parents first; empty for a chain."""
    if mode.width <= 1:
        return ()
    draws = candidate.acceptance.draws(settings.draws, np.random.default_rng(settings.seed), NOTHING)
    table = rank_acceptance(draws[:, : mode.depth].mean(axis=0), mode.width, candidate.tail.middle)
    tree = best_tree(table, mode.nodes, mode.depth, mode.width)
    return tuple(zip(tree.parents.tolist(), tree.ranks.tolist(), strict=True))


def _between(accept: Array, topk: int, tail: float, sizes: Sequence[int]) -> Array:
    """τ of trees, [S, sizes], from those of TREE_DRAWS draws spread evenly over what a chain of the depth would give."""
    chain = np.cumprod(accept, axis=1).sum(axis=1)
    picked = np.argsort(chain)[np.linspace(0, len(chain) - 1, min(TREE_DRAWS, len(chain))).astype(int)]
    taus = np.array([grown(row, topk, tail, sizes) for row in accept[picked]])
    return np.stack([np.interp(chain, chain[picked], column) for column in taus.T], axis=1)


def evaluate(problem: Problem, server: ServerCost, tau: Array, modes: Sequence[Mode]) -> ServedLoad:
    """Throughput, TTFT, TPOT and running sequences at every concurrency, mode and draw, [C, M, S]; `tau` is [S, M]."""
    depth, width, nodes = (np.array(values, dtype=float)[None, :, None] for values in zip(*modes, strict=True))
    return server.load(problem.concurrency[:, None, None], depth, tau.T[None], width=width, nodes=nodes)


def gains(
    problem: Problem, candidate: Candidate | None, load: ServedLoad, plain: ServedLoad, tau: Array,
    modes: Sequence[Mode],
) -> Array:  # fmt: skip
    """log of the objective over no speculation, [C, M, S]; `tau` broadcasts against that.

    Throughput counts the draft's training as device time spent per token of the horizon.
    """
    settings = problem.settings
    if settings.objective == "latency":
        return np.log(plain.tpot_s / load.tpot_s)
    if settings.objective == "tokens_per_flop":
        drafting = (
            candidate.shape.flops_per_token(0) / problem.target.flops_per_token(0)
            if candidate and candidate.shape
            else 0.0
        )
        return np.log(tau / (1 + drafting * np.array([mode.depth for mode in modes])[:, None])) + np.zeros_like(
            load.output_tok_s
        )
    return np.log(settings.devices / plain.output_tok_s) - np.log(
        settings.devices / load.output_tok_s + training_s(problem, candidate)
    )


def training_s(problem: Problem, candidate: Candidate | None) -> float:
    """Device seconds of training per token served over the horizon."""
    return (candidate.choice.training_gpu_hours if candidate else 0.0) * 3600 / problem.settings.horizon_tokens


def score(problem: Problem, candidate: Candidate | None, plain: ServerCost) -> Scored:
    """The candidate at its best modes. Raises ValueError where it does not fit beside the target or costs more to train than allowed."""
    settings = problem.settings
    if candidate and (hours := candidate.choice.training_gpu_hours) > settings.max_training_gpu_hours:
        spent, most = device_time(hours), device_time(settings.max_training_gpu_hours)
        on = f" on {tokens:.2g} tokens" if (tokens := candidate.choice.draft_tokens) else ""
        raise ValueError(f"training{on} costs {spent}, more than {most}; raise max_gpu_hours to weigh it")
    server = problem.server(candidate.shape if candidate else None, speculate=candidate is not None)
    modes = modes_for(candidate, settings) if candidate else (Mode(0, 1, 0),)
    rng = np.random.default_rng(settings.seed)
    tau = (
        tokens_per_step(candidate.acceptance.draws(settings.draws, rng, NOTHING), modes, candidate.tail.middle)
        if candidate
        else np.ones((settings.draws, 1))
    )
    modelled = evaluate(problem, server, tau, modes)
    bare = plain.load(problem.concurrency[:, None, None], 0.0, 1.0)
    deviations = problem.deviations(candidate, drawn=False)
    depths = np.array([mode.depth for mode in modes])[None, :, None]
    coefficients = None if deviations is None else deviations[:, None, None]
    load, bare = _slowed(modelled, bare, tau.T[None], depths, coefficients)
    value = gains(problem, candidate, load, bare, tau.T[None], modes).mean(axis=-1)
    best = _best_modes(value, problem)
    rows = np.arange(len(best))
    depth, width, nodes = (
        np.array([getattr(modes[m], name) for m in best], dtype=float) for name in ("depth", "width", "nodes")
    )
    running = load.running[:, 0, 0]
    speed = load.output_tok_s.mean(axis=-1)[rows, best]
    slower = (modelled.output_tok_s / load.output_tok_s).mean(axis=-1)[rows, best]
    return Scored(
        candidate, float(problem.weights @ value[rows, best]), tuple(modes[m] for m in best), tau.mean(axis=0)[best],
        server.step_s(running, depth, width=width, nodes=nodes) * slower, running,
        float(problem.weights @ np.log1p(training_s(problem, candidate) * speed / settings.devices)),
    )  # fmt: skip


def _best_modes(value: Array, problem: Problem) -> Array:
    """The best mode at each concurrency [C]; one mode for all where the engine cannot change it while it runs."""
    if ENGINES[problem.settings.engine].one_mode:
        return np.full(len(value), int(np.argmax(problem.weights @ value)))
    return np.argmax(value, axis=1)


def rank(problem: Problem, everybody: Sequence[Candidate]) -> tuple[list[Scored], dict[str, str]]:
    """All candidates that fit, no speculation among them, best first; and why the others (the first of several budgets) do not."""
    plain = problem.server(None, speculate=False)
    scored, dropped = [score(problem, None, plain)], {}
    for candidate in everybody:
        try:
            scored.append(score(problem, candidate, plain))
        except ValueError as error:
            dropped.setdefault(f"{candidate.choice.name} of {candidate.choice.params:.3g} parameters", str(error))
    return sorted(scored, key=lambda s: -s.gain), dropped


class SimulatedOutcome(NamedTuple):
    """Draws of what the plan brings, cost uncertainty included: all [C, S] but `gain` [S]."""

    gain: Array
    speedup: Array
    tau: Array
    output_tok_s: Array
    ttft_s: Array
    tpot_s: Array
    plain_tok_s: Array


def simulate(
    problem: Problem, scored: Scored, *, frozen: frozenset[str] = NOTHING, costs_frozen: bool = False
) -> SimulatedOutcome:
    """The chosen modes under joint draws of acceptance and of the cost law's multipliers."""
    settings = problem.settings
    rng = np.random.default_rng(settings.seed + 1)
    candidate = scored.candidate
    modes = tuple(dict.fromkeys(scored.modes))
    places = [modes.index(mode) for mode in scored.modes]
    accept = candidate.acceptance.draws(settings.draws, rng, frozen) if candidate else np.full((settings.draws, 1), 0.0)
    tail = candidate.tail if candidate else PUBLISHED
    spread = 0.0 if "trees" in frozen else tail.sd
    tails = tail.middle * np.exp(spread * np.random.default_rng(settings.seed + 3).standard_normal(settings.draws))
    tau = tokens_per_step(accept, modes, tails)[:, places].T
    multipliers = problem.multiplier_draws()
    server = problem.server(candidate.shape if candidate else None, speculate=candidate is not None)
    plain = problem.server(None, speculate=False)
    depth, width, nodes = (
        np.array([getattr(mode, name) for mode in scored.modes], dtype=float) for name in ("depth", "width", "nodes")
    )
    loads, bare = [], []
    for s in range(settings.draws):
        draw = dict(zip(MULTIPLIERS, multipliers[s] if not costs_frozen else np.ones(len(MULTIPLIERS)), strict=True))
        loads.append(adjusted(server, draw).load(problem.concurrency, depth, tau[:, s], width=width, nodes=nodes))
        bare.append(adjusted(plain, draw).load(problem.concurrency, 0.0, 1.0))
    load, none = (
        ServedLoad(*(np.stack(values, axis=-1) for values in zip(*group, strict=True))) for group in (loads, bare)
    )
    deviations = problem.deviations(candidate, drawn=not costs_frozen)
    if deviations is not None and costs_frozen:
        deviations = deviations[:, None]
    load, none = _slowed(load, none, tau, depth[:, None], deviations)
    if not costs_frozen:
        load, none = (_sped(each, by) for each, by in zip((load, none), problem.run_noise(), strict=True))
    lift = gains(problem, candidate, load, none, tau, scored.modes)
    speedup = none.tpot_s / load.tpot_s if settings.objective == "latency" else load.output_tok_s / none.output_tok_s
    return SimulatedOutcome(
        problem.weights @ lift, speedup, tau, load.output_tok_s, load.ttft_s, load.tpot_s, none.output_tok_s
    )


def _slowed(
    load: ServedLoad, plain: ServedLoad, tau: Array, depth: Array, deviations: Array | None
) -> tuple[ServedLoad, ServedLoad]:
    """`load` and `plain` of modelled servers as own rows say that they deviate; `deviations` […, 3] broadcasts against both."""
    if deviations is None:
        return load, plain
    share = load.output_tok_s / (np.where(depth > 0, tau, np.nan) * plain.output_tok_s)
    undrafted = np.full_like(plain.output_tok_s, np.nan)
    return _sped(load, 1 / slowdown(deviations, share)), _sped(plain, 1 / slowdown(deviations, undrafted))


def _sped(load: ServedLoad, by: Array) -> ServedLoad:
    """A load that is `by` times as fast."""
    return ServedLoad(load.output_tok_s * by, load.ttft_s / by, load.tpot_s / by, load.running)
