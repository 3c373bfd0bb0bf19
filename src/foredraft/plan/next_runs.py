"""Which run would narrow the plan most for its cost.

Each uncertain factor of the plan is frozen at its centre in turn; the share of the interval's width that vanishes is
what a run that settles the factor can be expected to remove. Refuses to know: how the factors enter.
"""

import numpy as np

from foredraft import kinds
from foredraft.laws.calibration import MULTIPLIERS
from foredraft.laws.draws import ends
from foredraft.plan.candidate import Candidate, training_rate
from foredraft.plan.candidates import FACTORS
from foredraft.plan.heads import HEAD_TOKENS
from foredraft.plan.problem import NOTHING, Problem
from foredraft.plan.search import Scored, finer, simulate
from foredraft.records import NextRun

START_HOURS = 0.25  # of each device, to load models and warm up
FINER = 2  # times the draws of the ranking, by which the shares of the width are told
REQUESTS = 200  # give τ to about 1 % (metrics of published runs)


def next_runs(problem: Problem, best: Scored) -> tuple[NextRun, ...]:
    """Runs that would settle one factor each, the most width removed per device-hour first; none for a plan without a draft."""
    if best.candidate is None:
        return ()
    best = finer(problem, best, FINER)
    assert best.candidate is not None
    wide = _width(best.gains)
    if wide <= 0:
        return ()
    runs = []
    for factor in (*FACTORS, "costs"):
        frozen = NOTHING if factor == "costs" else frozenset({factor})
        settled = simulate(problem, best, frozen=frozen, costs_frozen=factor == "costs")
        narrow = _width(problem.weights @ settled.lift)
        if (share := 1 - narrow / wide) > 0.01:
            what, settles, hours = _run(problem, best.candidate, factor)
            tokens = training_tokens(best.candidate, factor)
            runs.append(
                NextRun(
                    run=what, settles=settles, narrows=float(share), gpu_hours=hours, factor=factor, draft_tokens=tokens
                )
            )
    return tuple(sorted(runs, key=lambda run: -run.narrows / run.gpu_hours))


def _width(values: np.ndarray) -> float:
    low, high = ends(values)
    return high - low


def training_tokens(candidate: Candidate, factor: str) -> float | None:
    """What a draft is trained on to settle `factor`, within the own study's range; None where measuring alone settles it."""
    if factor in ("costs", "draft", "trees"):
        return None
    choice, studied = candidate.choice, candidate.study_range
    if studied:
        return min(max((choice.draft_tokens or studied.most) / 10, studied.least), studied.most)
    return HEAD_TOKENS[0] if factor == "data" and choice.kind == "head" else (choice.draft_tokens or 1e9) / 10


def _run(problem: Problem, candidate: Candidate, factor: str) -> tuple[str, str, float]:
    """The run that settles `factor`, what it settles, and its device-hours."""
    choice, devices = candidate.choice, problem.settings.devices
    served = problem.server(None, speculate=False).load(8, 0, 1.0).output_tok_s
    measuring = devices * (START_HOURS + REQUESTS * problem.workload.output_len / float(served) / 3600)
    if factor == "costs":
        return (
            f"serve {problem.target.name} without a draft and with any draft at k = 1, at concurrency 1 and {max(problem.workload.concurrency)}",
            f"the cost law's {len(MULTIPLIERS)} coefficients on this machine",
            2 * measuring,
        )
    if factor == "draft" and candidate.study_range:
        nearest = f"the own {choice.name} nearest to {choice.params:.2g} parameters on {choice.draft_tokens:.2g} tokens"
        return f"measure τ at k = 1 and 2 with {nearest}, on more prompts", FACTORS[factor], 2 * measuring
    if factor == "draft" and choice.kind == "head":
        return (
            f"measure τ at k = 1 and 2 with a public {kinds.of_choice(choice).label} head of {problem.target.name} on your prompts",
            FACTORS[factor],
            2 * measuring,
        )
    if factor == "draft" and choice.kind == "lookup":
        return f"measure τ at k = 1 and 2 with {choice.name} on your prompts", FACTORS[factor], 2 * measuring
    if factor == "draft":
        return (
            f"measure τ at k = 1 and 2 with a public draft of about {choice.params:.2g} parameters on your prompts",
            FACTORS[factor],
            2 * measuring,
        )
    if factor == "trees":
        return "measure τ of one chain and one tree of the same depth on your prompts", FACTORS[factor], 2 * measuring
    small = training_tokens(candidate, factor)
    assert small is not None, "all that is settled by measuring came before"
    if factor == "data" and (choice.kind == "head" or candidate.study_range):
        tokens = small
        hours = choice.training_gpu_hours * tokens / (choice.draft_tokens or tokens)
        what = "the head" if choice.kind == "head" else f"a {choice.params:.2g}-parameter draft"
        return f"train {what} on {tokens:.0e} tokens and measure τ", FACTORS[factor], hours + 2 * measuring
    hours = 6 * choice.params * small / training_rate(problem.train_machine) / 3600
    return (
        f"train a {choice.params:.2g}-parameter draft on {small:.0e} tokens and measure its loss and τ",
        FACTORS[factor],
        hours + 2 * measuring,
    )
