"""Plans held to the study that they are made of: for laws.py.

`planned`: by dtype and load what is planned from all rows, training aside, and N* of an independent model, of the plan and of SDSL.
`left_out`: by dtype every cell's speedup from all others but those of its draft drafted alike, and at each load the cell of the greatest
predicted gain against the one of the greatest measured.
`hindsight`: as `foredraft validate --target` gives it: every cell's speedup from plain decoding and k ≤ 2, the largest and longest
drafts' tokens per step from the others, and SDSL's N*. `choices`: at each batch the draft, of any kind or none, that the planner picks among those
that were timed, against the best measured one, each in its best chain. `latency`: SDSL's figure: seconds to the first token, per token
and to the last by the distance |N - N*|/M of independent models. `last_budget`: drafts of a recipe's last budget, predicted
by what the planner makes of its first two alone.

Promises: what cannot be judged stands under `lacking`, with the reason. Refuses to know: how costs and laws are fitted.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from scipy.stats import rankdata

from foredraft import kinds
from foredraft.engines import named_in
from foredraft.laws.acceptance import MAX_POSITIONS
from foredraft.laws.own_costs import OwnCosts
from foredraft.plan import from_study
from foredraft.plan.at_hand import DraftAtHand, draft_at_hand, measured_of
from foredraft.plan.candidate import Candidate
from foredraft.plan.hindsight import each_left_out, judge_by_class, place_of, plain_speeds
from foredraft.plan.matching import completed, match
from foredraft.plan.plan import plan
from foredraft.plan.predicted import predicted_from
from foredraft.plan.problem import PlanSettings, Problem
from foredraft.plan.search import rank
from foredraft.plan.served import Place, TimedRow, calibrated, load, timed
from foredraft.plan.study import Study, StudyDraft, pool, study_of
from foredraft.records import HeldOutPrediction, Hindsight, JudgedCell, Machine, Observation, Workload
from foredraft.shapes import Shape

ROLES = ("lm", "head")
NONE = "none"  # no speculation
LOADS = 1, 8, 32  # that are planned for
FIRST = 2  # budgets that a plan may see of a recipe before it predicts the last


def judged(
    target: Shape, machine: Machine, observations: Sequence[Observation], beside: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything, by temperature's class where it has one; `beside`: folders of trained drafts, whose rows count with the others."""
    at_hand = [draft for name in beside if (draft := draft_at_hand(name, target))]
    bare = list(observations)
    rows_beside = [row for draft in at_hand for row in measured_of(draft, target)]
    observations = completed(target, (*bare, *rows_beside), beside=[each.shape for each in at_hand if each.shape]).rows
    return _judged(target, machine, observations) | {"planned": planned(target, machine, bare, at_hand)}


def _judged(target: Shape, machine: Machine, observations: Sequence[Observation]) -> dict[str, Any]:
    observations = completed(target, observations).rows
    hindsights = judge_by_class(target, machine, observations)
    greedy = [row for row in observations if not row.temperature]
    rows, place = timed_rows(target, machine, greedy)
    studies = [study for role in ROLES if (study := study_of(target, greedy, 0.0, role))]
    return {
        "left_out": {dtype: left_out(target, machine, of) for dtype, of in by_dtype(greedy).items()},
        "hindsight": [summary(each) for each in hindsights],
        "choices": choices(place, studies, rows),
        "latency": latency(
            target, rows, next((c.optimum for each in hindsights for c in each.choices if c.by == "SDSL"), None)
        ),
        "last_budget": [last_budget(target, machine, observations, heat) for heat in (0.0, 1.0)],
    }


def timed_rows(target: Shape, machine: Machine, rows: Sequence[Observation]) -> tuple[list[TimedRow], Place]:
    place = place_of(target, machine, rows)
    matched = match(place, rows, 0.0)
    return timed(place, matched.rows, matched.leave_out), place


def summary(hindsight: Hindsight) -> dict[str, Any]:
    """A hindsight's errors by load, drafts and choices; its cells are in hindsight.json."""
    by_load: dict[str, list[float]] = defaultdict(list)
    for cell in hindsight.cells:
        by_load[str(cell.load)].append(abs(cell.predicted / cell.measured - 1))
    return {
        "temperature": hindsight.temperature, "cells": len(hindsight.cells), "error": hindsight.error,
        "error_by_load": {batch: float(np.mean(errors)) for batch, errors in by_load.items()},
        "drafts": of_predictions(hindsight.drafts), "choices": msgspec.to_builtins(hindsight.choices), "lacking": hindsight.lacking,
    }  # fmt: skip


def of_predictions(predictions: Sequence[HeldOutPrediction]) -> dict[str, Any] | None:
    """Mean and worst relative error of tokens per step, and how many lay inside their 90 % intervals; None of none."""
    errors = {each.draft: each.predicted.value / each.measured - 1 for each in predictions}
    if not errors:
        return None
    off = np.abs(list(errors.values()))
    inside = sum(each.predicted.covers(each.measured) for each in predictions)
    return {
        "held_out": len(errors),
        "relative_error": float(off.mean()),
        "worst": float(off.max()),
        "inside_90": inside,
        "errors": errors,
    }


# What is planned from all rows.


def planned(
    target: Shape, machine: Machine, observations: Sequence[Observation], at_hand: Sequence[DraftAtHand]
) -> dict[str, Any]:
    """By dtype and load, for requests as long as those timed: which draft, how, its gain with its interval and the seconds per token; the
    size of an independent model of the greatest gain, and SDSL's N* of tokens per FLOP.
    """
    return {
        dtype: [_planned(target, machine, observations, at_hand, dtype, of, batch) for batch in LOADS]
        for dtype, of in by_dtype([row for row in observations if not row.temperature]).items()
    }


def _planned(
    target: Shape, machine: Machine, observations: Sequence[Observation], at_hand: Sequence[DraftAtHand], dtype: str,
    rows: Sequence[Observation], batch: int,
) -> dict[str, Any]:  # fmt: skip
    prompt, answer = np.array([(row.input_len, row.output_len) for row in rows], dtype=float).mean(axis=0).tolist()
    settings = PlanSettings(
        engine=named_in(place_of(target, machine, rows).engine).name,
        dtype=dtype,
        horizon_tokens=1e18,
        max_training_gpu_hours=1e9,
    )
    best = plan(
        target,
        machine,
        Workload(input_len=prompt, output_len=answer, concurrency=(batch,)),
        settings,
        observations,
        beside=at_hand,
    )
    step = best.schedule[0]
    return {
        "batch": batch, "draft": best.draft and best.draft.name, "lookahead": step.lookahead, "topk": step.topk, "nodes": step.tree_nodes,
        "speedup": [step.speedup.value, step.speedup.low, step.speedup.high], "tpot_s": step.tpot_s.value,
        "best_params": best.continuous_params and best.continuous_params.value, "sdsl_params": best.theory_params,
    }  # fmt: skip


# Each way of drafting left out in turn.


def by_dtype(rows: Sequence[Observation]) -> dict[str, list[Observation]]:
    """Rows with a clock."""
    groups: dict[str, list[Observation]] = defaultdict(list)
    for row in rows:
        if row.output_tok_s and row.dtype:
            groups[row.dtype].append(row)
    return groups


def left_out(target: Shape, machine: Machine, observations: Sequence[Observation]) -> dict[str, Any]:
    """`picked`: by load, of cells on the prompts with the most of them, all held out. `regret`: in measured speed."""
    rows, place = timed_rows(target, machine, observations)
    cells = each_left_out(place, rows)
    errors = np.array([cell.predicted / cell.measured - 1 for cell in cells])
    return {
        "cells": [msgspec.to_builtins(cell) for cell in cells],
        "error": float(np.abs(errors).mean()) if cells else None,
        "worst": float(np.abs(errors).max()) if cells else None,
        "mean": float(errors.mean()) if cells else None,
        "picked": [
            _picked([cell for cell in cells if cell.load == batch]) for batch in sorted({c.load for c in cells})
        ],
    }


def _picked(cells: Sequence[JudgedCell]) -> dict[str, Any]:
    planned, best = (max(cells, key=lambda cell: getattr(cell, name)) for name in ("predicted", "measured"))
    return {
        "batch": best.load, "cells": len(cells), "planned": _spelt(planned), "predicted": planned.predicted, "measured": planned.measured,
        "best": _spelt(best), "best_measured": best.measured, "regret": 1 - planned.measured / best.measured,
    }  # fmt: skip


def _spelt(cell: JudgedCell) -> str:
    return f"{cell.draft}@{cell.lookahead}" + (
        f" ({cell.tree_nodes} nodes)" if cell.tree_nodes > cell.lookahead else ""
    )


# The planned draft against the best measured one.


def choices(place: Place, studies: Sequence[Study], rows: Sequence[TimedRow]) -> list[dict[str, Any]]:
    """By load, of trained drafts in chains and without a look-up, in which all are timed, and of none; loads at which fewer than two were
    timed are left out. Speedups are those of one run where rows have them, since runs of different hours differ in more than their draft.
    """
    calibration, plain = calibrated(place, rows), plain_speeds(rows)
    if calibration is None:
        return []
    weighed = {draft.name: candidate for study in studies for draft, candidate in candidates(study, place.machine)}
    chains = [row for row in rows if row.cost.width == 1 and row.observation.draft in weighed]
    drafted = [row for row in chains if load(row.observation) in plain]
    loads = sorted({load(row.observation) for row in drafted})
    by_load = {batch: [row for row in drafted if load(row.observation) == batch] for batch in loads}
    return [
        _choice(place, weighed, calibration, batch, of, plain[batch])
        for batch, of in by_load.items()
        if len({row.observation.draft for row in of}) > 1
    ]


def _choice(
    place: Place, weighed: Mapping[str, Candidate], calibration: OwnCosts, batch: int, rows: Sequence[TimedRow], plain: float
) -> dict[str, Any]:  # fmt: skip
    """What the plan picks at a load. `regret`: of its draft at the best way that was timed; `regret_in_mode`: of the mode that it plans, None
    where that was not timed.
    """
    speedups: dict[str, dict[tuple[int, int], float]] = defaultdict(dict)
    for row in rows:
        ways, way = speedups[row.observation.draft or ""], (int(row.cost.depth), int(row.cost.nodes))
        ways[way] = max(row.observation.speedup or row.cost.output_tok_s / plain, ways.get(way, 0.0))
    first = rank(_problem(place, rows, batch, calibration), [weighed[name] for name in speedups])[0][0]
    speedups[NONE] = {(0, 0): 1.0}
    mode = first.modes[0]
    planned = next((name for name in weighed if weighed[name] is first.candidate and mode.depth), NONE)
    best = max(speedups, key=lambda name: max(speedups[name].values()))
    most, in_mode = max(speedups[best].values()), speedups[planned].get((mode.depth, mode.nodes))
    return {
        "batch": batch, "drafts": len(speedups) - 1, "planned": planned, "planned_mode": list(mode), "best": best, "best_speedup": most,
        "regret": 1 - max(speedups[planned].values()) / most, "regret_in_mode": None if in_mode is None else 1 - in_mode / most,
    }  # fmt: skip


def candidates(study: Study, machine: Machine) -> list[tuple[StudyDraft, Candidate]]:
    """The study's drafts as the planner weighs them."""
    heads = from_study.heads(study, machine)[0] if study.drafts[0].kind.role == "head" else []
    pairs = []
    for draft in study.drafts:
        name = from_study.head_name(draft.shape) + (f" ({draft.family})" if draft.family else "")
        like = [c for c in heads if (c.choice.name, c.choice.draft_tokens) == (name, draft.tokens)]
        weighed = (
            like or from_study.models_like(study, machine, [(draft.shape, draft.tokens)])
            if draft.kind.role == "lm"
            else like
        )
        pairs += [(draft, candidate) for candidate in weighed[:1]]
    return pairs


def _problem(place: Place, rows: Sequence[TimedRow], batch: int, calibration: OwnCosts) -> Problem:
    """The load that `rows` were timed at, training aside."""
    workload = Workload(
        input_len=float(np.mean([row.server.input_len for row in rows])), output_len=float(np.mean([row.server.output_len for row in rows])),
        concurrency=(batch,), temperature=0.0,
    )  # fmt: skip
    settings = PlanSettings(
        engine=named_in(place.engine).name, devices=place.layout.devices, dtype=place.dtype, horizon_tokens=1e18,
        max_lookahead=min(int(max(row.cost.depth for row in rows)), MAX_POSITIONS), trees=False,
    )  # fmt: skip
    return Problem(place.target, place.machine, workload, settings, calibration)


# SDSL's figure.


def latency(target: Shape, rows: Sequence[TimedRow], optimum: float | None) -> dict[str, Any]:
    """Of independent models of the largest budget at batch 1, each at its fastest chain, since N* is of that budget; `rank_correlation`
    of the distance with seconds per token.
    """
    if optimum is None:
        return {"lacking": "N* of the study: no independent models were timed at two sizes, or no law gives it"}
    models = [
        row.observation for row in rows if kinds.role_of(row.observation.method) == "lm" and load(row.observation) == 1
    ]
    budget = max((row.draft_tokens or 0.0 for row in models), default=0.0)
    fastest: dict[str, Observation] = {}
    for row in models:
        if (row.topk or 1) == 1 and row.tpot_s and row.draft and row.draft_tokens == budget:
            fastest[row.draft] = min(fastest.get(row.draft, row), row, key=lambda each: each.tpot_s or np.inf)
    points = [
        {"draft": name, "distance": abs((row.draft_params or 0.0) - optimum) / target.params, "ttft_s": row.ttft_s, "tpot_s": row.tpot_s,
         "ttot_s": (row.ttft_s or 0.0) + (row.tpot_s or 0.0) * ((row.output_len or 1.0) - 1)}
        for name, row in sorted(fastest.items())
    ]  # fmt: skip
    figures: dict[str, Any] = {"optimum": optimum, "points": points}
    if len(points) > 2:
        distances, seconds = ([point[name] for point in points] for name in ("distance", "tpot_s"))
        figures["rank_correlation"] = float(np.corrcoef(rankdata(distances), rankdata(seconds))[0, 1])
    return figures


# The last budget from the first two.


def last_budget(
    target: Shape, machine: Machine, observations: Sequence[Observation], temperature: float
) -> dict[str, Any]:
    predictions: list[HeldOutPrediction] = []
    lacking: list[str] = []
    for role in ROLES:
        rows = pool(target, observations, temperature, role)
        study = study_of(target, rows, temperature, role)
        if study is None:
            lacking.append(f"{role}: fewer than two drafts of known tokens at temperature {temperature:g}")
            continue
        first, last = _ends(study)
        foreseen = {
            each.draft: each
            for each in predicted_from([row for row in rows if row.draft in first], study, machine, role)
        }
        predictions += [foreseen[name] for name in last if name in foreseen]
        lacking += [f"{name}: {FIRST} budgets give no law that speaks of it" for name in last if name not in foreseen]
        few = {_recipe(draft) for draft in study.drafts} - {
            _recipe(draft) for draft in study.drafts if draft.name in first
        }
        lacking += [f"{family}: fewer than {FIRST + 1} budgets" for family in sorted(few)]
    return {"temperature": temperature, "drafts": of_predictions(predictions), "lacking": lacking}


def _ends(study: Study) -> tuple[set[str], list[str]]:
    """Names of the drafts of the first budgets of each recipe, and of its last, of recipes that have more than `FIRST`."""
    recipes: dict[str, list[StudyDraft]] = defaultdict(list)
    for draft in study.drafts:
        recipes[_recipe(draft)].append(draft)
    first: set[str] = set()
    last: list[str] = []
    for drafts in recipes.values():
        budgets = sorted({draft.tokens for draft in drafts})
        if len(budgets) > FIRST:
            first |= {draft.name for draft in drafts if draft.tokens in budgets[:FIRST]}
            last += [draft.name for draft in drafts if draft.tokens == budgets[-1]]
    return first, last


def _recipe(draft: StudyDraft) -> str:
    return draft.family or draft.kind.name
