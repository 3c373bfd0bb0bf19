"""Fixed, schedule or adaptive: what a lookahead by load, and one that follows the draft's confidence, bring over the best fixed one.

Promises: all three are weighed under the plan's own joint draws of acceptance and costs (the adaptive one under some of them, spread
evenly over how much is accepted); an adaptive length is named as a setting only where the planned engine has one for the draft.
Chains only: no engine adapts trees. Refuses to know: formulas (laws), how a schedule is written for an engine.

Shapes: C concurrencies, S draws, K positions, N = K + 1 lengths, 0 among them.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from foredraft import kinds
from foredraft.engines import ENGINES
from foredraft.engines.engine import Adaptive
from foredraft.laws.adaptive import (
    CAPTURED,
    AdaptiveLaw,
    Spent,
    batch_sd,
    best_common,
    best_stopping,
    budgets,
    in_common,
    realised,
    seen_survival,
    spreads,
)
from foredraft.laws.calibration import adjusted
from foredraft.laws.draws import stratified
from foredraft.plan import evidence
from foredraft.plan.candidate import Steps
from foredraft.plan.problem import Problem
from foredraft.plan.search import Scored
from foredraft.plan.ties import SAME_SPEED
from foredraft.records import LEAST_PROMISE, DraftChoice, DraftLengths, Estimate, LengthGain

Array = NDArray[np.float64]
GRID_DRAWS = 1024  # at most, of every length at every load
DRAWS = 128  # of the plan's, spread evenly over the chain that they accept, for adaptive lengths
SURE = 0.9  # share of the draws that must agree on gain or loss for a verdict
WORTH = 1.01  # a gain below that is nothing
# Of our own engine with a confidence measured there: its rule decides under measured times, which hold what deciding takes.
OWN = AdaptiveLaw(
    auc=0.5,
    auc_sd=0.0,
    shared=0.0,
    request_sd=0.0,
    realised=1.0,
    realised_sd=0.0,
    overhead=0.0,
    overhead_sd=0.0,
    num_cases=0,
)
SOURCE = "foredraft plan: spread of acceptance × cost law over published cases of adaptive lengths"
WORTH_IT, IDLE, LOSES = "worth it", "nothing", "loses"


class _Grid(NamedTuple):
    """Of chains of every length: seconds per token of one sequence in the plan's terms, seconds of a step, and of its verification with
    what drafting takes whatever the length [C, N, S]; and of one more pass of a draft that goes token by token [C, S].
    """

    pace_s: Array
    step_s: Array
    verify_s: Array
    pass_s: Array

    def at(self, draws: NDArray[np.intp]) -> "_Grid":
        """Those of some draws."""
        return _Grid(*(part[..., draws] for part in self))


def lengths(problem: Problem, best: Scored) -> tuple[LengthGain, ...]:
    """What the schedule and an adaptive length bring at each concurrency; () without a draft."""
    candidate, settings = best.candidate, problem.settings
    if candidate is None:
        return ()
    accept = problem.accept(candidate, min(settings.num_draws, GRID_DRAWS))[:, : settings.max_lookahead]
    survival = np.cumprod(accept, axis=1, dtype=np.float64)
    tau = np.concatenate([np.ones((len(survival), 1)), 1 + np.cumsum(survival, axis=1)], axis=1).T  # [N, S]
    steps = problem.steps(candidate, tau, range(len(tau)))
    grid, tau = _grid(problem, best, steps), steps.tau
    level = -np.log(grid.pace_s).mean(axis=2)
    if settings.always:
        level[:, 0] = -np.inf
    fixed, scheduled = _shortest(problem.weights @ level), _scheduled(problem, best, level)
    adaptive = ENGINES[settings.engine].adaptive(_kind(candidate.choice))
    picked = np.argsort(tau[-1], kind="stable")[
        np.linspace(0, len(survival) - 1, min(DRAWS, len(survival))).astype(int)
    ]
    some, law, rng = grid.at(picked), evidence.adaptive_law(), np.random.default_rng(0)
    auc, share, cost = (stratified(len(picked), rng) for _ in range(3))
    spent = []
    if candidate.choice.kind != "lookup" and candidate.lookup is None:
        shared_sd, single_sd = spreads(law, auc)
        if adaptive and adaptive.stops and candidate.lengths:
            law, (shared_sd, single_sd) = OWN, _measured_spreads(candidate.lengths, problem.workload.temperature)
        packed = adaptive.packed if adaptive and problem.machine.threads else 0
        seen = seen_survival(survival[picked], shared_sd, single_sd)
        spent = _adaptive(law, some, survival[picked], seen, best.running, max(fixed, *scheduled, 1), adaptive, packed)
    out = []
    for c, clients in enumerate(problem.workload.concurrency):
        here = scheduled[c]
        ahead = grid.pace_s[c, fixed] / grid.pace_s[c, here]
        if fixed and not here:
            ahead *= best.outcome.speedup[c].mean()  # the grid's 0 is a server without a draft
        tokens = float(best.running[c]) / settings.data_parallel * (here + 1)
        gain = LengthGain(
            concurrency=int(clients), fixed=fixed, scheduled=here, schedule=_estimate(ahead),
            schedule_verdict=verdict(ahead) if here != fixed else IDLE, uncaptured=tokens if tokens > CAPTURED else None,
        )  # fmt: skip
        if spent:
            by_engine = partial(realised, law, gain_quantiles=share, cost_quantiles=cost)
            ratio = _over(some, c, here, tau[here, picked], spent[c], by_engine)
            verified = float(np.median(spent[c].verified))
            if adaptive and adaptive.stops and np.median(ratio) < 1 + LEAST_PROMISE:
                ratio, verified = np.ones_like(ratio), here  # which is what our engine's rule does then
            gain = _with_adaptive(gain, ahead[picked] * ratio, verified, adaptive)
        out.append(gain)
    return tuple(out)


def _shortest(level: Array) -> int:
    """The shortest of the best lengths."""
    return int(np.flatnonzero(level >= level.max() - SAME_SPEED)[0])


def _scheduled(problem: Problem, best: Scored, level: Array) -> list[int]:
    """The lookahead at each load: the plan's own where it is a schedule of chains, else the best chain."""
    if ENGINES[problem.settings.engine].one_mode or any(mode.nodes != mode.depth for mode in best.modes):
        return [_shortest(each) for each in level]
    return [mode.depth for mode in best.modes]


def verdict(gain: Array) -> str:
    """A word for draws of a ratio: whether the gain is worth it, nothing to speak of or not sure, or a loss."""
    if np.mean(gain > 1) >= SURE and np.median(gain) >= WORTH:
        return WORTH_IT
    return LOSES if np.mean(gain < 1) >= SURE and np.median(gain) <= 1 / WORTH else IDLE


def _with_adaptive(gain: LengthGain, ratio: Array, verified: float, adaptive: Adaptive | None) -> LengthGain:
    return replace(
        gain, adaptive=_estimate(ratio), adaptive_verdict=verdict(ratio), verified=verified,
        adapts=adaptive.by if adaptive else "sequence", setting=_setting(adaptive),
    )  # fmt: skip


def _setting(adaptive: Adaptive | None) -> str | None:
    if adaptive is None:
        return None
    return f"{adaptive.setting} (needs {adaptive.needs})" if adaptive.needs else adaptive.setting


def _estimate(ratio: Array, level: float = 0.9) -> Estimate:
    low, middle, high = np.quantile(ratio, ((1 - level) / 2, 0.5, (1 + level) / 2)).tolist()
    return Estimate(value=middle, low=low, high=high, unit="× the best fixed length", source=SOURCE, level=level)


def _kind(choice: DraftChoice) -> kinds.Kind:
    """The kind of a plan's draft, of those too that no folder can be."""
    if choice.kind != "head":
        return kinds.NGRAM if choice.kind == "lookup" else kinds.LM
    try:
        return kinds.of_name(choice.method or "")
    except ValueError:
        return kinds.of_method(choice.method or "")


def _grid(problem: Problem, best: Scored, steps: Steps) -> _Grid:
    """Of every length at every concurrency under all draws; `steps` [N, S]."""
    candidate, settings, tau = best.candidate, problem.settings, steps.tau
    assert candidate is not None
    costs = problem.costs(tau.shape[1])
    server = adjusted(problem.server(candidate.shape), costs)
    clients, counts = problem.concurrency[:, None, None], np.arange(len(tau), dtype=float)[:, None]
    some, batch = np.maximum(counts, 1.0), best.running[:, None, None]
    depth, nodes = steps.spent(some, some, server.running(clients))
    drafted, bare = server.load(clients, depth, tau, nodes=nodes), problem.plain(tau.shape[1])
    if settings.objective == "latency":
        pace, slow = drafted.tpot_s, bare.tpot_s
    else:
        pace, slow = drafted.running / drafted.output_tok_s, bare.running / bare.output_tok_s
    plain_step_s = adjusted(problem.server(None, speculate=False), costs).step_s(batch, 0.0)
    step = np.where(counts > 0, server.step_s(batch, depth, nodes=nodes), plain_step_s)
    shape = step.shape
    pace = np.broadcast_to(np.where(counts > 0, pace, slow[:, None]), shape)
    if server.block:
        verify, passes = server.step_s(batch, counts[-1], nodes=counts), np.zeros((shape[0], 1, shape[2]))
    else:
        passes = server.step_s(batch, 2.0, nodes=0.0) - server.step_s(batch, 1.0, nodes=0.0)
        verify = server.step_s(batch, 1.0, nodes=counts) - passes
    return _Grid(pace, step, np.broadcast_to(verify, shape), np.broadcast_to(passes, (shape[0], 1, shape[2]))[:, 0])


def _adaptive(
    law: AdaptiveLaw,
    grid: _Grid,
    survival: Array,
    seen: Array,
    running: Array,
    most: int,
    adaptive: Adaptive | None,
    packed: int,
) -> list[Spent]:
    """What the best adaptive length spends at each concurrency, `seen` being what a confidence sees of the survival of single sequences.
    Where an engine adapts each sequence's verified tokens, `most` are drafted; where none adapts, drafting would stop early too.
    `packed`: tokens of a pass up to which our own engine computes nothing for padding.
    """
    verify, passes = np.swapaxes(grid.verify_s, 1, 2), grid.pass_s  # [C, S, N], [C, S]
    if adaptive and adaptive.stops:
        alone = [batch * (1 + most) <= packed for batch in running.tolist()]
        shown = [
            seen if one_by_one else in_common(seen, batch)
            for one_by_one, batch in zip(alone, running.tolist(), strict=True)
        ]
        batches = [batch if one_by_one else 1 for one_by_one, batch in zip(alone, running.tolist(), strict=True)]
        return [best_stopping(*parts) for parts in zip(shown, verify, passes, batches, strict=True)]
    if adaptive and adaptive.by == "batch":
        drafting = passes[:, :, None] * np.arange(verify.shape[2])
        batches = [seen_survival(survival, batch_sd(law, batch), 0.0) for batch in running]
        return [best_common(seen, step_s) for seen, step_s in zip(batches, verify + drafting, strict=True)]
    if not passes.any():
        of_block = budgets(seen)
        return [of_block.best(step_s) for step_s in verify]
    if adaptive:
        of_chain = budgets(seen[:, :, :most])
        return [
            of_chain.best(step_s[:, : most + 1] + most * each[:, None])
            for step_s, each in zip(verify, passes, strict=True)
        ]
    return [best_stopping(seen, *parts) for parts in zip(verify, passes, running.tolist(), strict=True)]


def _measured_spreads(measured: DraftLengths, temperature: float) -> tuple[float, float]:
    """(shared sd, each position's own sd) of the draft's own confidence, at the nearest temperature measured."""
    nearest = min(measured.confidences, key=lambda each: abs(each.temperature - temperature))
    return nearest.shared_sd, nearest.single_sd


def _over(grid: _Grid, c: int, length: int, tau: Array, spent: Spent, by_engine: Callable[[Array], Array]) -> Array:
    """Speed of the adaptive length over a fixed one [S]: steps are shortened, what prompts take of the time is not."""
    decoding_s = grid.step_s[c, length] / tau
    ratio = 1 / by_engine(np.log(decoding_s * spent.tokens / spent.seconds))
    share = np.minimum(decoding_s / grid.pace_s[c, length], 1.0)
    return 1 / (1 - share + share * ratio)
