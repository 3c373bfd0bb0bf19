"""From the document to its cells: axes multiplied out, recipes laid over each other, measurements set on drafts.

Promises: every recipe is checked before anything runs, and a cell's name tells its dials. Refuses to know: how cells are run.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from foredraft import records
from foredraft.kinds import BESIDE, LM, NGRAM
from foredraft.recipe import LanguageModel, Recipe
from foredraft.sweep.cells import EXPORTS, FINAL, RECIPE, Cell, ordered, paths
from foredraft.sweep.grid import EACH, OPTIONS, Drafts, Grid, Measure, Named

CACHE = "@./../../kept"  # below the sweep's folder: what a target says of the prompts, for all teacher-forced cells
SUFFIXES = (1e9, "G"), (1e6, "M"), (1e3, "k")


class Draft(NamedTuple):
    """What can be measured: a reference or path, the tokens it was trained on (None: not known here), the training `run` that
    made it, by which observations cluster, the `family` whose recipe it shares, and whether a `then` goes on from it.
    """

    name: str
    where: str
    tokens: float | None
    run: str
    family: str | None = None
    stem: bool = False


class Family(NamedTuple):
    """What a family comes to: cells and drafts, as they follow from each other."""

    cells: list[Cell]
    drafts: list[Draft]


def expand(grid: Grid) -> list[Cell]:
    """All cells in order: named ones, then each family's with its measurements behind each draft.

    Raises ValueError for a recipe that is wrong, a measurement of nothing, and as `cells.ordered` does.
    """
    cells = [_named(name, cell, grid) for name, cell in grid.cells.items()]
    drafts: list[Draft] = []
    for name, family in grid.drafts.items():
        expanded = family_of(name, family, grid, {draft.where: draft.tokens for draft in drafts})
        cells += expanded.cells
        drafts += expanded.drafts
    measurements = [
        cell for i, entry in enumerate(grid.measure, 1) for cell in measured(entry, entry.name or f"m{i}", drafts, grid)
    ]
    return _interleaved(ordered([*cells, *measurements]))


def _interleaved(cells: Sequence[Cell]) -> list[Cell]:
    """Each measurement as soon as what it needs is there, so that the first figures come early."""
    waiting = [cell for cell in cells if cell.words[0] == "measure"]
    out: list[Cell] = []
    for cell in (cell for cell in cells if cell.words[0] != "measure"):
        out.append(cell)
        done = {cell.name for cell in out}
        out += [late for late in waiting if late.needs and done.issuperset(late.needs)]
        waiting = [late for late in waiting if late not in out]
    return ordered([*out, *waiting])


def _named(name: str, cell: Named, grid: Grid) -> Cell:
    if cell.recipe is not None:
        recipe = laid(grid.recipe, cell.recipe)
        data = cell.data or given_or(None, grid.data)
        decoded = _decoded(recipe, f"cells.{name}")
        needs_target = decoded.needs_target or getattr(decoded.model, "params", None)
        target, held_out = cell.target or (grid.target if needs_target else None), cell.held_out or grid.held_out
        return training(name, recipe, data, held_out, target, grid, where=f"cells.{name}")
    return Cell(name=name, words=cell.run, inputs=paths(cell.reads), alone=cell.alone, kin=" ".join(cell.run[:2]))


def family_of(name: str, family: Drafts, grid: Grid, trained: Mapping[str, float | None]) -> Family:
    """Cells and drafts of `drafts.NAME`; `trained`: the tokens of earlier drafts, by reference, which a recipe's `init` may name."""
    if family.folder:
        return Family([], [Draft(name, family.folder, None, name)])
    cells: list[Cell] = []
    drafts: list[Draft] = []
    for params, layers, seed in product(family.params or (None,), family.layers or (None,), family.seeds or (None,)):
        label = "-".join([name, *_labels(n=params, L=layers, s=seed)])
        recipe = recipe_at(family, grid, params, layers, seed)
        if family.tokens and len(recipe["stages"]) != 1:
            raise ValueError(
                f"drafts.{name}.recipe.stages: tokens is the budget of one stage; say what follows as then"
            )
        runs, saved = _runs(label, recipe, name, family, grid)
        init = recipe["model"].get("init")
        before = trained.get(init) if init else 0.0
        saved = [draft._replace(tokens=_sum(before, draft.tokens)) for draft in saved]
        cells += runs
        drafts += saved
        for draft in saved if family.then else ():
            after = f"{draft.name}-then"
            cells.append(_then(draft, recipe, name, family, grid))
            drafts.append(Draft(after, f"@{after}", draft.tokens, draft.run, f"{name}-then"))
    return Family(cells, drafts)


def _sum(before: float | None, tokens: float | None) -> float | None:
    return None if before is None or tokens is None else before + tokens


def _labels(**dials: float | None) -> Iterator[str]:
    return (f"{key}{short(value)}" for key, value in dials.items() if value is not None)


def short(value: float, digits: int = 6) -> str:
    """So many digits at most, with k, M or G: 250k, 1.4M."""
    scale, letter = next(((scale, letter) for scale, letter in SUFFIXES if value >= scale), (1, ""))
    return f"{value / scale:.{digits}g}{letter}"


def recipe_at(
    family: Drafts, grid: Grid, params: float | None = None, layers: int | None = None, seed: int | None = None
) -> dict[str, Any]:
    """The family's recipe at a point of its axes, without the budgets of `tokens`."""
    recipe = laid(grid.recipe, family.recipe)
    model = recipe.setdefault("model", {})
    stages = recipe.setdefault("stages", [{}])
    if params is not None:
        model.setdefault("kind", LM.name)
        model["params"] = params
    if layers is not None:
        model["layers"] = layers
    if seed is not None:
        recipe["seed"] = seed
    if family.rate and params is not None:
        stages[0]["learning_rate"] = float(f"{family.rate.at(params):.4g}")
    return recipe


def _runs(label: str, recipe: dict[str, Any], name: str, family: Drafts, grid: Grid) -> tuple[list[Cell], list[Draft]]:
    """One run that is saved at every budget, or a run per budget."""
    budgets, stem = sorted(set(family.tokens)), family.then is not None

    def cell(label: str, recipe: dict[str, Any]) -> Cell:
        data, held_out = given_or(family.data, grid.data), family.held_out or grid.held_out
        return training(label, recipe, data, held_out, grid.target, grid, where=f"drafts.{name}", kin=name)

    if not budgets:
        run = cell(label, recipe)
        return [run], [Draft(label, f"@{label}", run.tokens, label, name, stem)]
    if family.runs == EACH or len(budgets) == 1:
        labels = {f"{label}-d{short(budget)}": budget for budget in budgets}
        cells = [cell(each, laid(recipe, {"stages": [{"tokens": budget}]})) for each, budget in labels.items()]
        return cells, [Draft(each, f"@{each}", budget, each, name, stem) for each, budget in labels.items()]
    last = budgets[-1]
    shared = laid(recipe, {"stages": [{"tokens": last}], "watch": {"export_at": budgets[:-1]}})
    run = cell(label, shared)
    _check_shared(shared, budgets, f"drafts.{name}")
    places = {budget: f"@{label}/{export_at(budget)}" for budget in budgets[:-1]} | {last: f"@{label}"}
    return [run], [Draft(f"{label}-d{short(b)}", places[b], b, label, name, stem) for b in budgets]


def given_or(first: str | None, shared: str | None) -> tuple[str, ...]:
    """A family's path, or else the sweep's, if there is either."""
    path = first or shared
    return (path,) if path else ()


def export_at(budget: float) -> str:
    """Where a run saves the model at a budget, below its cell's folder; as `train` names it."""
    return f"{EXPORTS}/tokens-{budget:.6g}"


def _check_shared(recipe: Mapping[str, Any], budgets: Sequence[float], where: str) -> None:
    stage = _decoded(recipe, where).stages[0]
    if stage.schedule != "constant":
        raise ValueError(
            f"{where}.recipe.stages[0].schedule: {stage.schedule} ends with the last budget, so drafts saved before it would be unfinished; "
            'say "constant" (and a then to cool down), or "runs": "each"'
        )
    steps = [-(-budget // stage.tokens_per_step) for budget in budgets]
    for (a, i), (b, j) in pairwise(zip(budgets, steps, strict=True)):
        if i == j:
            raise ValueError(f"{where}.tokens: {a:g} and {b:g} are the same step of {stage.tokens_per_step} tokens")


def _then(draft: Draft, recipe: dict[str, Any], name: str, family: Drafts, grid: Grid) -> Cell:
    """The second training of a draft: the family's recipe from the draft's weights, with `then` laid over it."""
    assert family.then is not None
    model = {key: value for key, value in recipe["model"].items() if key not in ("params", "config", "draft_vocab")}
    base = {key: value for key, value in recipe.items() if key != "watch"}
    base["watch"] = {key: value for key, value in recipe.get("watch", {}).items() if key != "export_at"}
    second = laid(base | {"model": model}, family.then.recipe)
    second["model"] = second["model"] | {"init": draft.where}
    data = given_or(family.then.data or family.data, grid.data)
    held_out = family.then.held_out or family.held_out or grid.held_out
    where = f"drafts.{name}.then"
    return training(f"{draft.name}-then", second, data, held_out, grid.target, grid, where=where, kin=f"{name}-then")


def training(
    name: str, recipe: dict[str, Any], data: Sequence[str], held_out: str | None, target: str | None, grid: Grid, *,
    where: str, kin: str = "",
) -> Cell:  # fmt: skip
    """A `train` cell. Raises ValueError, naming `where` in the document, for a recipe that is wrong or lacks data."""
    decoded = _decoded(recipe, where)
    if not data and any(stage.data is None for stage in decoded.stages):
        raise ValueError(f"{where}: data is missing: name a token folder there or for the whole sweep")
    if decoded.needs_target and target is None:
        message = f"{where}: this recipe learns from a target: name its folder"
        raise records.with_hint(ValueError(message), "target: a Hugging Face folder, in the sweep's document")
    if target is None and decoded.model.init is None and getattr(decoded.model, "config", None) is None:
        raise ValueError(f"{where}: model.params is a size in the target's family: name the target, or give a config")
    words = ["train", f"@./{RECIPE}", "--out", "@."]
    words += [word for path in data for word in ("--data", path)]
    words += [*(("--held-out", held_out) if held_out else ()), *(("--target", target) if target else ())]
    words += ["--features", grid.features] if grid.features and not isinstance(decoded.model, LanguageModel) else []
    words += ["--device", grid.device] if grid.device != "cpu" else []
    inputs = paths((*data, held_out, target, decoded.model.init, *(stage.data for stage in decoded.stages)))
    products = (FINAL, *(export_at(budget) for budget in decoded.watch.export_at))
    return Cell(
        name=name, words=tuple(words), recipe=msgspec.to_builtins(decoded), inputs=inputs, products=products,
        tokens=float(decoded.tokens), kin=kin or name,
    )  # fmt: skip


def _decoded(recipe: Mapping[str, Any], where: str) -> Recipe:
    return records.decode(Recipe, msgspec.json.encode(recipe), name=f"{where}.recipe")


def measured(entry: Measure, label: str, drafts: Sequence[Draft], grid: Grid) -> list[Cell]:
    """A cell per draft that `of` names, batch and temperature; without `spec` one per batch and temperature.

    Raises ValueError where a name in `of` fits no draft, or no prompts are named.
    """
    prompts, target = entry.prompts or grid.prompts, entry.target or grid.target
    assert target is not None, "Grid asks for it"
    if prompts is None:
        raise ValueError(f"measure {label}: prompts is missing: name the file there or for the whole sweep")
    which = _chosen(entry, label, drafts) if entry.spec else [Draft("plain", "", None, "plain")]
    return [
        _measuring(draft, entry, f"{draft.name}-{label}-b{batch}-t{temperature:g}", batch, temperature, prompts, target, grid.device)
        for draft, batch, temperature in product(which, entry.batch, entry.temperature)
    ]  # fmt: skip


def _chosen(entry: Measure, label: str, drafts: Sequence[Draft]) -> list[Draft]:
    open_to = [draft for draft in drafts if entry.stems or not draft.stem]
    for pattern in entry.of:
        if not any(fnmatchcase(draft.name, pattern) for draft in open_to):
            named = ", ".join(draft.name for draft in open_to[:6]) + (", …" if len(open_to) > 6 else "")
            raise ValueError(f"measure {label}: of {pattern!r} names no draft; there are {named or 'none'}")
    return [draft for draft in open_to if any(fnmatchcase(draft.name, pattern) for pattern in entry.of)]


def _measuring(
    draft: Draft, entry: Measure, name: str, batch: int, temperature: float, prompts: str, target: str, device: str
) -> Cell:
    specs = [spec for spec in entry.spec if draft.where != NGRAM.name or not spec.startswith(BESIDE)]
    words = ["measure", target, *(word for spec in specs for word in ("--draft", f"{draft.where}{spec}"))]
    words += ["--prompts", prompts, "--batch", str(batch), "--temperature", f"{temperature:g}", "--run", draft.run]
    words += ["--draft-tokens", f"{draft.tokens:.17g}"] if draft.tokens else []
    words += ["--family", draft.family] if draft.family else []
    for option in OPTIONS:
        value = getattr(entry, option)
        words += [f"--{option.replace('_', '-')}", str(value)] if value is not None else []
    words += [] if entry.stop else ["--no-stop"]
    words += ["--kept", CACHE] if entry.way == "forced" else []
    words += [*(("--device", device) if device != "cpu" else ()), "--out", "@."]
    where = draft.where if draft.where != NGRAM.name else None
    alone = entry.alone if entry.alone is not None else entry.way != "forced"
    return Cell(
        name=name, words=tuple(words), inputs=paths((target, prompts, where)), products=("observations.jsonl",), alone=alone,
        kin=f"measure-b{batch}",
    )  # fmt: skip


def laid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `under`: objects by key, lists of objects (stages) one by one, anything else replaced. Shares nothing with either."""
    out = deepcopy(dict(under))
    for key, value in over.items():
        out[key] = _laid(out[key], value) if key in out else deepcopy(value)
    return out


def _laid(under: Any, over: Any) -> Any:
    if isinstance(under, Mapping) and isinstance(over, Mapping):
        return laid(under, over)
    if isinstance(under, list) and isinstance(over, list) and all(isinstance(item, dict) for item in (*under, *over)):
        paired = [laid(a, b) for a, b in zip(under, over, strict=False)]
        return [*paired, *under[len(over) :], *over[len(under) :]]
    return over


def grid_of(path: Path) -> Grid:
    """Read the document. Raises ValueError naming the file and the field."""
    return records.read(Grid, path)
