"""The planner's next runs as cells.

What a next run can become: a training of the plan's draft (its size or layers, the run's tokens) with the recipe of the family in
`drafts` of that kind, and a measurement of it; a measurement of prompt lookup; of a chain beside a tree; of step costs with any draft.
What it cannot: a public draft has to be named (a family with `folder`), and a server at a concurrency is measured here
as a batch of that size.

Promises: what cannot be run is told, with what would make it possible. Refuses to know: how the planner chooses.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foredraft import kinds, records
from foredraft.records import DraftChoice, NextRun, Plan
from foredraft.sweep.cells import Cell
from foredraft.sweep.expand import Draft, given_or, laid, measured, recipe_at, short, training
from foredraft.sweep.grid import Drafts, Grid, Measure


class Cannot(ValueError):
    """A next run that no cell can stand for."""


class Planned(NamedTuple):
    """Cells of the runs that were taken, and of each one left out the reason."""

    cells: list[Cell]
    left_out: dict[str, str]


def planned(grid: Grid) -> Planned:
    """Cells of the first `grid.planner` runs of `grid.plan` that can be made of it, in the plan's order.

    Raises ValueError where the plan has no next runs.
    """
    if not grid.planner:
        return Planned([], {})
    assert grid.plan is not None, "Grid asks for it"
    plan = records.read(Plan, Path(grid.plan))
    if plan.draft is None or not plan.next_runs:
        raise ValueError(f"{grid.plan}: the plan has no next runs")
    cells: list[Cell] = []
    left_out: dict[str, str] = {}
    num_runs = 0
    for number, run in enumerate(plan.next_runs, 1):
        if num_runs == grid.planner:
            break
        try:
            cells += _cells(f"next{number}", run, plan, plan.draft, grid)
            num_runs += 1
        except Cannot as error:
            left_out[run.run] = str(error)
    return Planned(cells, left_out)


def _cells(name: str, run: NextRun, plan: Plan, choice: DraftChoice, grid: Grid) -> list[Cell]:
    if run.factor is None:
        raise Cannot("the plan was made by an earlier version; make it anew")
    if run.factor == "draft":
        return measured(Measure(spec=("@1", "@2")), name, [_public(choice, grid)], grid)
    if run.factor == "costs":
        most = max(plan.workload.concurrency)
        return measured(Measure(spec=("@1",), batch=(1, most) if most > 1 else (1,)), name, [_any(choice, grid)], grid)
    if run.factor == "trees":
        return measured(Measure(spec=tuple(_chain_and_tree(plan))), name, [_any(choice, grid)], grid)
    return _trained(name, run, plan, choice, grid)


def _public(choice: DraftChoice, grid: Grid) -> Draft:
    """A draft that is there: prompt lookup, or the first that the document names."""
    if choice.kind == kinds.NGRAM.role:
        return Draft(kinds.NGRAM.name, kinds.NGRAM.name, None, kinds.NGRAM.name)
    for name, family in grid.drafts.items():
        if family.folder and family.folder != kinds.NGRAM.name:
            return Draft(name, family.folder, None, name)
    raise Cannot(f"it needs a draft that is there ({choice.name}): name it under drafts with folder")


def _any(choice: DraftChoice, grid: Grid) -> Draft:
    try:
        return _public(choice, grid)
    except Cannot:
        return Draft(kinds.NGRAM.name, kinds.NGRAM.name, None, kinds.NGRAM.name)


def _chain_and_tree(plan: Plan) -> Iterator[str]:
    """Of one depth: the schedule's deepest; its tree, or where it drafts chains one of 4 × depth nodes, four children each."""
    step = max(plan.schedule, key=lambda step: (step.lookahead, step.tree_nodes))
    depth = max(step.lookahead, 2)
    topk, nodes = (step.topk, step.tree_nodes) if step.topk > 1 else (4, 4 * depth)
    yield f"@{depth}"
    yield f"@{depth},{topk},{nodes}"


def _trained(name: str, run: NextRun, plan: Plan, choice: DraftChoice, grid: Grid) -> list[Cell]:
    if run.draft_tokens is None or not kinds.of_role(choice.kind):
        raise Cannot(f"a {choice.kind} is not trained")
    kin, family = _family(choice, grid)
    params, layers = (choice.non_embedding_params, None) if choice.kind == kinds.LM.role else (None, choice.num_layers)
    recipe = laid(recipe_at(family, grid, params, layers), {"stages": [{"tokens": run.draft_tokens}]})
    label = f"{name}-d{short(run.draft_tokens)}"
    data, held_out = given_or(family.data, grid.data), family.held_out or grid.held_out
    cell = training(label, recipe, data, held_out, grid.target, grid, where=f"planner {name}", kin=name)
    draft = Draft(label, f"@{label}", run.draft_tokens, label, kin)
    depth = max(1, *(step.lookahead for step in plan.schedule))
    return [cell, *measured(Measure(spec=(f"@{depth}",)), name, [draft], grid)]


def _family(choice: DraftChoice, grid: Grid) -> tuple[str | None, Drafts]:
    """The family that says how to train such a draft, and its name; only defaults where there is none."""
    names = [kind.name for kind in kinds.of_role(choice.kind)]
    for name, family in grid.drafts.items():
        model: Mapping[str, Any] = laid(grid.recipe, family.recipe).get("model", {})
        if not family.folder and model.get("kind", kinds.LM.name if family.params else None) in names:
            return name, family
    return None, Drafts(recipe={"model": {"kind": names[0]}})
