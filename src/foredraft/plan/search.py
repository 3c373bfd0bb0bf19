"""The search: which draft, trained on how much, run how at each load.

Promises: one number decides and is shown, the mean log gain over joint draws of acceptance and costs; fewer draws only
sort out what cannot win: modes far behind at a load, budgets far behind another of the same draft. Refuses to know: formulas (laws),
what candidates there are, file formats.

Shapes: C concurrencies, M modes (chains and trees), P pairs of a load and a mode, S draws, K positions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from foredraft.engines import ENGINES
from foredraft.machines import device_time
from foredraft.plan.candidate import Candidate
from foredraft.plan.outcome import Pairs, SimulatedOutcome, outcome, tokens_per_step, training_s
from foredraft.plan.problem import NOTHING, Mode, PlanSettings, Problem
from foredraft.plan.ties import SAME_SPEED, cheapest

Array = NDArray[np.float64]
TREE_DEPTHS = (3, 5, 7)
TREE_TOPKS = (2, 4, 8)
TREE_NODES = (7, 15, 31, 63)
SCREENING_DRAWS = 128
MODES_WITHIN = 0.02  # of log gain: modes further behind the best of their load are not judged again
BUDGETS_WITHIN = 0.03  # the same of a draft trained on fewer or more tokens, behind the best budget of that draft


@dataclass(frozen=True)
class Scored:
    """A candidate (None: no speculation) with its best mode at each concurrency and what that brings: `gain` is the mean log of the
    objective over no speculation, weighted over the loads, training paid; `outcome` its draws [C, S], `gains` [S].
    """

    candidate: Candidate | None
    gain: float
    modes: tuple[Mode, ...]
    training_share: float
    outcome: SimulatedOutcome = field(repr=False)
    gains: Array = field(repr=False)

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


class Screened(NamedTuple):
    """A candidate under few draws: its gain, and the pairs of a load and a mode that may be its best."""

    candidate: Candidate | None
    gain: float
    pairs: Pairs


def modes_for(candidate: Candidate | None, settings: PlanSettings) -> tuple[Mode, ...]:
    """Plain decoding, chains, and trees where the engine has trees that pay."""
    if candidate is None:
        return (Mode(0, 1, 0),)
    chains = tuple(Mode(k, 1, k) for k in range(1 if settings.always else 0, settings.max_lookahead + 1))
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


def screen(problem: Problem, candidate: Candidate | None) -> Screened:
    """Every mode at every load under few draws.

    Raises ValueError where the draft does not fit beside the target or costs more to train than allowed.
    """
    settings = problem.settings
    if candidate and (hours := candidate.choice.training_gpu_hours) > settings.max_training_gpu_hours:
        spent, most = device_time(hours), device_time(settings.max_training_gpu_hours)
        on = f" on {tokens:.2g} tokens" if (tokens := candidate.choice.draft_tokens) else ""
        raise ValueError(f"training{on} costs {spent}, more than {most}; raise --max-gpu-hours to weigh it")
    modes, num_loads = modes_for(candidate, settings), len(problem.concurrency)
    loads = np.repeat(np.arange(num_loads), len(modes))
    tau = _tau(problem, candidate, modes, min(SCREENING_DRAWS, settings.num_draws))
    every = Pairs(loads, modes * num_loads)
    lift = outcome(problem, candidate, every, np.tile(tau, (num_loads, 1))).lift
    value = lift.mean(axis=-1).reshape(num_loads, len(modes))
    if ENGINES[settings.engine].one_mode:
        value = np.broadcast_to(problem.weights @ value, value.shape)
    best = value.max(axis=1, keepdims=True)
    near = np.flatnonzero(value >= best - MODES_WITHIN)
    pairs = Pairs(loads[near], [every.modes[i] for i in near])
    return Screened(candidate, float(problem.weights @ best[:, 0]), pairs)


def score(problem: Problem, screened: Screened) -> Scored:
    """The candidate at the best of its pairs, under all draws."""
    candidate, pairs, settings = screened.candidate, screened.pairs, problem.settings
    modes = list(dict.fromkeys(pairs.modes))
    tau = _tau(problem, candidate, modes, settings.num_draws)[[modes.index(mode) for mode in pairs.modes]]
    drawn = outcome(problem, candidate, pairs, tau)
    best = _best_pairs(problem, pairs, drawn.lift.mean(axis=-1))
    chosen = drawn.at(best)
    gains = problem.weights @ chosen.lift
    spent = np.log1p(training_s(problem, candidate) * chosen.output_tok_s.mean(axis=-1) / settings.devices)
    best_modes = tuple(pairs.modes[i] for i in best)
    return Scored(candidate, float(gains.mean()), best_modes, float(problem.weights @ spent), chosen, gains)


def _tau(
    problem: Problem, candidate: Candidate | None, modes: Sequence[Mode], num: int, frozen: frozenset[str] = NOTHING
) -> Array:
    """Tokens per step of each mode, [M, S]."""
    if candidate is None:
        return np.ones((len(modes), num))
    accept, tails = problem.accept(candidate, num, frozen), problem.tails(candidate, num, frozen)
    return tokens_per_step(accept, tails, candidate.tail.middle, modes)


def _best_pairs(problem: Problem, pairs: Pairs, value: Array) -> NDArray[np.intp]:
    """Of each load the pair with the shortest lookahead (then the fewest nodes) among those as good as the best, [C]; one mode for
    all loads where the engine cannot change it while it runs.
    """
    loads = range(len(problem.concurrency))
    by_load = [np.flatnonzero(pairs.loads == load) for load in loads]
    if ENGINES[problem.settings.engine].one_mode:
        together = problem.weights @ np.stack([value[places] for places in by_load])
        place = _shortest([pairs.modes[i] for i in by_load[0]], together)
        return np.array([places[place] for places in by_load])
    return np.array([places[_shortest([pairs.modes[i] for i in places], value[places])] for places in by_load])


def _shortest(modes: Sequence[Mode], value: Array) -> int:
    """The place of the mode of the least depth, then of the fewest nodes, whose value is the greatest within SAME_SPEED."""
    good = np.flatnonzero(value >= value.max() - SAME_SPEED)
    return int(min(good, key=lambda i: (modes[i].depth, modes[i].nodes)))


def rank(problem: Problem, everybody: Iterable[Candidate]) -> tuple[list[Scored], dict[str, str]]:
    """The best budgets of every draft that fits, no speculation among them, the one to plan first and the others by their gain; and
    why the others (the first of several budgets) do not fit.
    """
    problem.plain(SCREENING_DRAWS)  # whether the target fits at all is no candidate's matter
    screened, dropped = [], {}
    for candidate in everybody:
        try:
            screened.append(screen(problem, candidate))
        except ValueError as error:
            dropped.setdefault(f"{candidate.choice.name} of {candidate.choice.params:.3g} parameters", str(error))
    most: dict[tuple[str, float], float] = {}
    for each in screened:
        most[_draft(each)] = max(most.get(_draft(each), -np.inf), each.gain)
    near = [each for each in screened if each.gain >= most[_draft(each)] - BUDGETS_WITHIN]
    return ordered([score(problem, each) for each in (screen(problem, None), *near)]), dropped


def _draft(screened: Screened) -> tuple[str, float]:
    choice = screened.candidate.choice if screened.candidate else None
    return (choice.name, choice.params) if choice else ("", 0.0)


def ordered(scored: Sequence[Scored]) -> list[Scored]:
    """The one to plan first, which is the cheapest of those that gain as much as the best; the others by their gain."""
    best = cheapest(scored)
    return [best, *sorted((each for each in scored if each is not best), key=lambda each: -each.gain)]


def simulate(
    problem: Problem, scored: Scored, *, frozen: frozenset[str] = NOTHING, costs_frozen: bool = False
) -> SimulatedOutcome:
    """The chosen modes again [C, S], with some factors at their centre."""
    loads = np.arange(len(problem.concurrency))
    tau = _tau(problem, scored.candidate, scored.modes, problem.settings.num_draws, frozen)
    return outcome(problem, scored.candidate, Pairs(loads, scored.modes), tau, costs_frozen=costs_frozen)
