"""Cells: one verb each, what it needs, and a digest of all that decides its result.

Promises: a digest changes with the cell's words, its recipe and whatever it needs, and with nothing else; an order in which
nothing comes before what it needs. Refuses to know: the document behind them, how they are run.
"""

import difflib
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from foredraft.records import Record

CELLS, FINAL, EXPORTS, RECIPE = "cells", "final", "exports", "recipe.json"  # the last three as `train` names them
OWN = "."
DECIDING = "export_at", "export_dtype"  # the part of a recipe's `watch` that others may rely on
NAME = re.compile(r"[A-Za-z0-9][\w.+-]*")
REFERENCE = re.compile(r"@(\.(?=/|$)|[A-Za-z0-9][\w.+-]*?)(/[^@]*?)?((?:\+ngram(?::\d+(?:,\d+)?)?)?(?:@.*)?)")


class Cell(Record, frozen=True):
    """One verb with its `words`, in which `@NAME` stands for what another cell makes; `recipe` is written beside for `train`.

    `inputs` must be there before anything runs, `products` (in the cell's folder) afterwards. `tokens`: to be trained on, where
    it trains. `kin`: a name for cells that take about equally long per token, by which the time left is told.
    """

    name: str
    words: tuple[str, ...]
    recipe: dict[str, Any] | None = None
    inputs: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    tokens: float | None = None
    alone: bool = False
    kin: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"cell name {self.name!r}: use letters, digits and . _ + -, a letter or digit first")

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the cells that it refers to, each once."""
        matches = (REFERENCE.fullmatch(text) for text in (*self.words, *_paths(self.recipe)) if text.startswith("@"))
        return tuple(dict.fromkeys(match[1] for match in matches if match and match[1] != OWN))


class Definition(Record, frozen=True):
    """What decides a cell's result: its words and recipe, and the digests of the cells it needs."""

    words: tuple[str, ...]
    recipe: dict[str, Any] | None = None
    needs: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def digest(self) -> str:
        return sha256(msgspec.json.encode(self, order="sorted")).hexdigest()[:16]


def _paths(recipe: Any) -> Iterator[str]:
    """Strings of a recipe that may refer to a cell: a model's `init` and the stages' `data`."""
    if recipe:
        yield from (text for text in [recipe.get("model", {}).get("init")] if isinstance(text, str))
        yield from (text for stage in recipe.get("stages", ()) if isinstance(text := stage.get("data"), str))


def ordered(cells: Iterable[Cell]) -> list[Cell]:
    """The cells in order, each after those it needs. Raises ValueError for a name twice or not there, and for a circle."""
    named: dict[str, Cell] = {}
    for cell in cells:
        if cell.name in named:
            raise ValueError(f"two cells are named {cell.name}: rename one")
        named[cell.name] = cell
    out: dict[str, Cell] = {}

    def put(cell: Cell, above: tuple[str, ...]) -> None:
        if cell.name in above:
            raise ValueError(f"cells wait for each other in a circle: {' → '.join((*above, cell.name))}")
        for need in cell.needs:
            if need not in named:
                raise ValueError(f"cell {cell.name}: there is no cell named {need} (@{need})")
            if need not in out:
                put(named[need], (*above, cell.name))
        out[cell.name] = cell

    for cell in named.values():
        if cell.name not in out:
            put(cell, ())
    return list(out.values())


def definitions(cells: Iterable[Cell]) -> dict[str, Definition]:
    """Of cells in order, by name."""
    by_name: dict[str, Definition] = {}
    for cell in cells:
        needs = {need: by_name[need].digest for need in cell.needs}
        by_name[cell.name] = Definition(words=cell.words, recipe=_deciding(cell.recipe), needs=needs)
    return by_name


def _deciding(recipe: dict[str, Any] | None) -> dict[str, Any] | None:
    """Without what is merely looked at along the way, which may differ when a run goes on."""
    if recipe is None:
        return None
    watch = {key: value for key, value in recipe.get("watch", {}).items() if key in DECIDING}
    return {key: value for key, value in recipe.items() if key != "watch"} | ({"watch": watch} if watch else {})


def dependants(cells: Iterable[Cell], names: Iterable[str]) -> set[str]:
    """`names` and all that need any of them, of cells in order."""
    affected = set(names)
    for cell in cells:
        if affected & set(cell.needs):
            affected.add(cell.name)
    return affected


def difference(old: Definition, new: Definition) -> str:
    """The first lines in which two definitions differ, on one line."""
    lines = difflib.unified_diff(_lines(old), _lines(new), n=0, lineterm="")
    changed = [f"{line[0]} {line[1:].strip()}" for line in lines if _tells(line)]
    return "; ".join(changed[:8]) + ("; …" if len(changed) > 8 else "")


def _lines(definition: Definition) -> list[str]:
    return msgspec.json.format(msgspec.json.encode(definition, order="sorted"), indent=1).decode().splitlines()


def _tells(line: str) -> bool:
    return line[0] in "+-" and not line.startswith(("+++", "---")) and line[1:].strip() not in "{}[],"


class Places:
    """Where cells keep what they make, below the sweep's folder `out`."""

    def __init__(self, out: Path, cells: Iterable[Cell]) -> None:
        self.root = out / CELLS
        self.trained = {cell.name for cell in cells if cell.recipe is not None}

    def folder(self, name: str) -> Path:
        return self.root / name

    def resolve(self, text: str, cell: str) -> str:
        """`text` with a reference in its place as a path, as the cell of that name sees it; any other text as it is."""
        match = REFERENCE.fullmatch(text)
        if match is None:
            return text
        name, inside, spec = match[1], match[2] or "", match[3]
        if name == OWN:
            return f"{self.folder(cell)}{inside}{spec}"
        model = f"/{FINAL}" if name in self.trained and not inside else ""
        return f"{self.folder(name)}{model}{inside}{spec}"

    def words(self, cell: Cell) -> tuple[str, ...]:
        return tuple(self.resolve(word, cell.name) for word in cell.words)

    def recipe(self, cell: Cell) -> dict[str, Any] | None:
        """The recipe with paths in place of references."""
        if cell.recipe is None:
            return None
        recipe = msgspec.json.decode(msgspec.json.encode(cell.recipe))
        if "init" in recipe.get("model", {}):
            recipe["model"]["init"] = self.resolve(recipe["model"]["init"], cell.name)
        for stage in recipe.get("stages", ()):
            if isinstance(stage.get("data"), str):
                stage["data"] = self.resolve(stage["data"], cell.name)
        return recipe


def missing(cells: Iterable[Cell], here: Path) -> list[str]:
    """Inputs that are not there, seen from the folder `here`, each with the cells that need it."""
    needed_by: dict[str, list[str]] = {}
    for cell in cells:
        for path in cell.inputs:
            if not (here / path).exists():
                needed_by.setdefault(path, []).append(cell.name)
    return [f"{path} (for {_some(names)})" for path, names in needed_by.items()]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def paths(texts: Iterable[str | None]) -> tuple[str, ...]:
    """The paths among texts: what is neither missing nor a reference."""
    return tuple(dict.fromkeys(text for text in texts if text and not text.startswith("@")))
