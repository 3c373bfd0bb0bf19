"""The search: which draft, trained on how much, run how at each load.

Promises: one number decides and is shown, the mean log gain over joint draws of acceptance and costs; fewer draws only
sort out what cannot win: modes far behind at a load, budgets far behind another of the same draft. Refuses to know: formulas (laws),
what candidates there are, file formats.

Shapes: C concurrencies, M modes (chains and trees), P pairs of a load and a mode, S draws, K positions.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.engines import ENGINES
from foredraft.machines import device_time
from foredraft.plan.candidate import Candidate, Steps
from foredraft.plan.outcome import Pairs, SimulatedOutcome, outcome, tokens_per_step, training_s
from foredraft.plan.problem import NOTHING, Mode, PlanSettings, Problem
from foredraft.plan.service_levels import FOREMOST, excess, misses
from foredraft.plan.ties import SAME_SPEED, cheapest, identity

Array = NDArray[np.float64]
TREE_DEPTHS = (3, 5, 7)
TREE_TOPKS = (2, 4, 8)
TREE_NODES = (7, 15, 31, 63)


class Sift(NamedTuple):
    """A round of fewer draws than a plan's, and how far behind, in log gain, is too far for the next: `modes` behind the best of their load,
    `drafts` behind the best of all, or of their own kind and size.
    """

    draws: int
    modes: float
    drafts: float


# Times a plan's draws, and at most: of the planned draft in its modes for the intervals that are shown; fewer where runs scatter, which
# smooths their ends.
FINER, SMOOTHED, MOST_DRAWS = 16, 4, 2**16
SIFTS = (Sift(128, 0.02, 0.03), Sift(1024, 0.01, 0.02))


@dataclass(frozen=True, eq=False)
class Scored:
    """A candidate (None: no speculation) with its best mode at each concurrency and what that brings: `gain` is the mean log of the
    objective over no speculation, weighted over the loads, training paid; `outcome` its draws [C, S], `gains` [S]; `near` the pairs of a
    load and a mode that may be the best; `sifted` the gains of the draws that all drafts had, where this one had more; `missed`:
    how far it misses the levels of service (`service_levels.misses`).
    """

    candidate: Candidate | None
    gain: float
    modes: tuple[Mode, ...]
    training_share: float
    outcome: SimulatedOutcome = field(repr=False)
    gains: Array = field(repr=False)
    near: Pairs = field(repr=False)
    sifted: Array = field(repr=False)
    missed: float = 0.0

    @property
    def merit(self) -> float:
        """What drafts are chosen by: levels of service, then the gain."""
        return self.gain - FOREMOST * self.missed

    @property
    def tau(self) -> Array:
        """Mean tokens per step at each concurrency."""
        return self.outcome.tau.mean(axis=-1)

    @property
    def running(self) -> Array:
        """Mean sequences that decode together at each concurrency."""
        return self.outcome.running.mean(axis=-1)

    @property
    def step_s(self) -> Array:
        """Mean seconds of a step with its share of prompts, at each concurrency: running · τ / (tokens/s)."""
        return (self.outcome.running * self.outcome.tau / self.outcome.output_tok_s).mean(axis=-1)


def modes_for(candidate: Candidate | None, settings: PlanSettings) -> tuple[Mode, ...]:
    """Plain decoding, chains, and trees where the engine has trees that pay."""
    if candidate is None:
        return (Mode(0, 1, 0),)
    longest = min(settings.max_lookahead, candidate.block or settings.max_lookahead)
    chains = tuple(Mode(k, 1, k) for k in range(1 if settings.always else 0, longest + 1))
    trees = ENGINES[settings.engine].trees and settings.trees and settings.objective != "tokens_per_flop"
    if not trees or candidate.choice.kind == "lookup":
        return chains
    return chains + tuple(
        Mode(d, k, w)
        for d in TREE_DEPTHS
        if d <= settings.max_lookahead
        for k in TREE_TOPKS
        for w in TREE_NODES
        if d < w <= k * d
    )


def score(problem: Problem, candidate: Candidate | None) -> Scored:
    """The candidate at its best modes, under all draws. Raises ValueError as `weigh`."""
    scored = weigh(problem, candidate, SIFTS[0])
    for sift in (*SIFTS[1:], None):
        scored = weigh(problem, candidate, sift, scored)
    return scored


def weigh(problem: Problem, candidate: Candidate | None, sift: Sift | None, before: Scored | None = None) -> Scored:
    """The candidate at the best modes of those that were near `before` (all without), under the draws of `sift`, or under a plan's.

    Raises ValueError where the draft does not fit beside the target or costs more to train than allowed.
    """
    problem.heed()
    settings, num_loads = problem.settings, len(problem.concurrency)
    if candidate and before is None:
        _check_training(candidate, settings)
    num = min(sift.draws, settings.num_draws) if sift else settings.num_draws
    pairs = before.near if before else Pairs.all(num_loads, modes_for(candidate, settings))
    drawn = outcome(problem, candidate, pairs, _steps(problem, candidate, pairs.modes, num))
    judge = problem if sift else problem.reference
    judged = drawn if judge is problem else outcome(judge, candidate, pairs, _steps(judge, candidate, pairs.modes, num))
    value = judged.lift.mean(axis=-1) - FOREMOST * excess(settings.terms, judged.ttft_s, judged.tpot_s)
    if ENGINES[settings.engine].one_mode:
        totals = np.asarray(np.bincount(pairs.places, problem.weights[pairs.loads] * value), dtype=np.float64)
        value = totals[pairs.places]
    best = np.array([_shortest(pairs, value, np.flatnonzero(pairs.loads == load)) for load in range(num_loads)])
    most = np.array([value[pairs.loads == load].max() for load in range(num_loads)])
    near = pairs.at(np.flatnonzero(value >= most[pairs.loads] - (sift.modes if sift else 0.0)))
    chosen = drawn.at(best)
    gains = problem.weights @ chosen.lift
    spent = np.log1p(training_s(problem, candidate) * chosen.output_tok_s.mean(axis=-1) / settings.devices)
    return Scored(
        candidate, float(gains.mean()), tuple(pairs.mode(i) for i in best), float(problem.weights @ spent), chosen, gains, near,
        gains if before is None or sift else before.gains, misses(problem, chosen),
    )  # fmt: skip


def _check_training(candidate: Candidate, settings: PlanSettings) -> None:
    """Raises ValueError on a draft that costs more to train than allowed."""
    if (hours := candidate.choice.training_gpu_hours) > settings.max_training_gpu_hours:
        spent, most = device_time(hours), device_time(settings.max_training_gpu_hours)
        on = f" on {tokens:.2g} tokens" if (tokens := candidate.choice.draft_tokens) else ""
        raise ValueError(f"training{on} costs {spent}, more than {most}; raise --max-gpu-hours to weigh it")


def _steps(
    problem: Problem, candidate: Candidate | None, modes: Sequence[Mode], num: int, frozen: frozenset[str] = NOTHING
) -> Steps:
    """What each mode's steps bring, [M, S]."""
    if candidate is None:
        return Steps(np.ones((len(modes), num)))
    accept, tails = problem.accept(candidate, num, frozen), problem.tails(candidate, num, frozen)
    tau = tokens_per_step(accept, tails, candidate.tail.middle, modes)
    return problem.steps(candidate, tau, [mode.depth for mode in modes], frozen)


def _shortest(pairs: Pairs, value: Array, places: NDArray[np.intp]) -> int:
    """Of some pairs the one of the least depth, then of the fewest nodes, whose value is the greatest within SAME_SPEED."""
    good = places[value[places] >= value[places].max() - SAME_SPEED]
    return int(min(good, key=lambda i: (pairs.mode(i).depth, pairs.mode(i).nodes)))


def rank(
    problem: Problem, everybody: Iterable[Candidate], ranked: Sequence[Scored] = ()
) -> tuple[list[Scored], dict[str, str]]:
    """The best budgets of every draft that fits, beside those `ranked` already, no speculation among them: the one to plan first, the
    others by their gain; and why the others (the first of several budgets) do not fit.

    Under all draws stand those that could be planned and the best of each identity; behind them the rest.
    """
    first, second = SIFTS
    problem.plain(first.draws)  # whether the target fits at all is no candidate's matter
    scored, dropped = [], {}
    for candidate in everybody:
        try:
            scored.append(weigh(problem, candidate, first))
        except ValueError as error:
            dropped.setdefault(f"{candidate.choice.name} of {candidate.choice.params:.3g} parameters", str(error))
    scored = _ahead(scored, first.drafts, _draft) + ([] if ranked else [weigh(problem, None, first)])
    if problem.settings.num_draws <= first.draws and problem.settings.seed == 0:
        return ordered([*ranked, *scored]), dropped  # further rounds would have the same draws
    scored = [weigh(problem, each.candidate, second, each) for each in scored]
    best = max(each.merit for each in (*scored, *ranked))
    bests = _ahead([*scored, *ranked], 0.0, identity)
    last = [each for each in scored if each in bests or each.merit >= best - second.drafts]
    finals = [weigh(problem, each.candidate, None, each) for each in last]
    return ordered([*ranked, *finals, *(each for each in scored if each not in last)]), dropped


def _ahead(scored: Sequence[Scored], within: float, of: Callable[[Scored], Hashable]) -> list[Scored]:
    """Those that lie within so much of the best that shares what `of` tells."""
    most: dict[Hashable, float] = {}
    for each in scored:
        most[of(each)] = max(most.get(of(each), -np.inf), each.merit)
    return [each for each in scored if each.merit >= most[of(each)] - within]


def _draft(scored: Scored) -> tuple[str, float] | None:
    choice = scored.candidate.choice if scored.candidate else None
    return (choice.name, choice.params) if choice else None


def ordered(scored: Sequence[Scored]) -> list[Scored]:
    """The one to plan first, which is the cheapest of those that gain as much as the best; the others by their gain, those of fewer draws
    behind.
    """
    full = max(len(each.gains) for each in scored)
    best = cheapest([each for each in scored if len(each.gains) == full])
    others = sorted((each for each in scored if each is not best), key=lambda each: (-len(each.gains), -each.merit))
    return [best, *others]


def finer(problem: Problem, scored: Scored, times: int | None = None) -> Scored:
    """The candidate in its chosen modes under so many times as many draws (left out: as hold its intervals still), those that it was
    ranked by among them: the ends of its intervals move less with the seed, its mean does not.
    """
    pairs, times = Pairs.each(scored.modes), times or (SMOOTHED if scored.outcome.scatter.any() else FINER)
    num = max(len(scored.gains), min(times * len(scored.gains), MOST_DRAWS))
    drawn = outcome(problem, scored.candidate, pairs, _steps(problem, scored.candidate, pairs.modes, num))
    gains = problem.weights @ drawn.lift
    return replace(scored, outcome=drawn, gains=gains, gain=float(gains.mean()))


def finer_tau(problem: Problem, scored: Scored) -> Array:
    """Tokens per step of the chosen mode at each concurrency, which nothing smooths, under `FINER` times a plan's draws [C, S']."""
    num = min(FINER * problem.settings.num_draws, MOST_DRAWS)
    if len(scored.gains) >= num:
        return scored.outcome.tau
    pairs = Pairs.each(scored.modes)
    return _steps(problem, scored.candidate, pairs.modes, num).tau[pairs.places]


def simulate(
    problem: Problem, scored: Scored, *, frozen: frozenset[str] = NOTHING, costs_frozen: bool = False
) -> SimulatedOutcome:
    """The chosen modes again [C, S], with some factors at their centre."""
    pairs = Pairs.each(scored.modes)
    steps = _steps(problem, scored.candidate, pairs.modes, len(scored.gains), frozen)
    if not costs_frozen and np.array_equal(steps.tau[pairs.places], scored.outcome.tau):
        return scored.outcome  # it does not hang on what is frozen
    return outcome(problem, scored.candidate, pairs, steps, costs_frozen=costs_frozen)
