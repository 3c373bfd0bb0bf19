"""A sweep as a document: axes that are multiplied out, measurements of what comes of them, and cells named one by one.

Promises: an unknown key is an error; what the document means does not depend on where it lies. Refuses to know: how cells are
named, ordered or run.

A path is as on the command line, relative to where the sweep is started. `@NAME` in its place is what cell NAME makes: the
trained model of a `train` cell, else the cell's folder; `@NAME/rest` is a file in the cell's folder, `@.` the cell's own.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from foredraft.kinds import BESIDE
from foredraft.records import Record, require

SHARED, EACH = "shared", "each"
OPTIONS = "num", "max_tokens", "way", "rounds", "dtype", "seed", "chat", "params", "on_error"  # of `foredraft measure`


def check_recipe(recipe: Mapping[str, Any], where: str = "recipe") -> None:
    """Raise ValueError where the parts that a sweep lays over each other are not of a recipe's form."""
    if not isinstance(recipe.get("model", {}), Mapping):
        raise ValueError(f"{where}.model must be an object, got {recipe['model']!r}")
    stages = recipe.get("stages", [{}])
    if not (isinstance(stages, list) and stages and all(isinstance(stage, Mapping) for stage in stages)):
        raise ValueError(f"{where}.stages must be a list of objects, got {stages!r}")


class Rate(Record, frozen=True):
    """Learning rate of a draft of N parameters: `value`·(N / `params`)^`power`."""

    value: float
    params: float
    power: float

    def __post_init__(self) -> None:
        require(self, positive=("value", "params"))
        if not -10 <= self.power <= 10:  # published rates fall with a power of a fifth to a half
            raise ValueError(f"power must lie in -10…10, got {self.power}")

    def at(self, params: float) -> float:
        return self.value * (params / self.params) ** self.power


class Then(Record, frozen=True):
    """A second training that starts from each draft of a family (SFT after pretraining). `recipe` is laid over the family's."""

    recipe: dict[str, Any]
    data: str | None = None
    held_out: str | None = None

    def __post_init__(self) -> None:
        check_recipe(self.recipe)


class Drafts(Record, frozen=True):
    """A family of drafts: every combination of the axes `params`, `layers` and `seeds`, each at every budget of `tokens`.

    `recipe` is a training recipe without what the axes say, laid over the sweep's; without `tokens` its stages say the budget.
    `runs`: "shared", one run per combination, saved at every budget (its rate must be constant, or the earlier ones would be
    unfinished), or "each", a run with a whole schedule per budget. `folder`: a draft that is there, or "ngram", to be measured.
    """

    params: tuple[float, ...] = ()
    layers: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    tokens: tuple[float, ...] = ()
    recipe: dict[str, Any] = msgspec.field(default_factory=dict)
    rate: Rate | None = None
    runs: str = SHARED
    data: str | None = None
    held_out: str | None = None
    then: Then | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        check_recipe(self.recipe)
        require(self, positive=("params", "layers", "tokens"), non_negative=("seeds",))
        if self.runs not in (SHARED, EACH):
            raise ValueError(f"runs must be {SHARED} or {EACH}, got {self.runs!r}")
        if self.folder and (self.params or self.layers or self.tokens or self.recipe or self.then):
            raise ValueError("folder names a draft that is there; leave out its axes, recipe and then")
        if self.params and self.layers:
            raise ValueError("params size a language model and layers a head; give one of them")
        if self.rate and not self.params:
            raise ValueError("rate needs the axis params; without it say learning_rate in the recipe's stage")


class Measure(Record, frozen=True):
    """Measurements of drafts: a cell per draft, batch and temperature, in which all of `spec` run beside plain decoding.

    `name`: part of its cells' names; left out, its place among the others, m1 the first.
    `spec`: "@5" a chain, "@5,4,16" a tree (depth, topk, nodes), "+ngram@5" the chain behind a look-up; empty: the target
    alone. `of`: names of drafts, with * and ?.
    `stems`: also drafts that a `then` goes on from. `alone`: nothing of the sweep runs beside it, as timings need; left out, so
    unless `way` is "forced". `target`: another than the sweep's, a path or @NAME of what a cell trains. The rest are options of
    `foredraft measure`; `threads` is the machine's business.
    """

    name: str | None = None
    spec: tuple[str, ...] = ()
    batch: tuple[int, ...] = (1,)
    temperature: tuple[float, ...] = (0.0,)
    of: tuple[str, ...] = ("*",)
    stems: bool = False
    alone: bool | None = None
    target: str | None = None
    prompts: str | None = None
    num: int | None = None
    max_tokens: int | None = None
    way: str | None = None
    rounds: int | None = None
    dtype: str | None = None
    seed: int | None = None
    chat: str | None = None
    params: str | None = None
    on_error: str | None = None
    stop: bool = True

    def __post_init__(self) -> None:
        require(self, positive=("batch", "num", "max_tokens", "rounds"), non_negative=("temperature", "seed"))
        for field in ("batch", "temperature"):
            if not getattr(self, field):
                raise ValueError(f"measure.{field} must hold at least one value")
            if self.way == "forced" and len(getattr(self, field)) > 1:
                raise ValueError(
                    f"measure.{field} is of live decoding: way forced reads answers of temperatures 0 and 1 alike, so that "
                    "a second value would measure the same again; leave it out"
                )
        for spec in self.spec:
            if not spec.startswith(("@", BESIDE)):
                raise ValueError(
                    f"measure.spec must be as @5, @5,4,16 or {BESIDE}@5, got {spec!r}; of says which drafts"
                )


class Named(Record, frozen=True):
    """One cell. Either `recipe`, a whole training recipe, with `data` per stage, or `run`, the words of another verb.

    `target`: the sweep's, where the recipe needs one and none is named.

    `reads`: paths that must be there, beside those with @. `alone` as in `Measure`.
    """

    recipe: dict[str, Any] | None = None
    data: tuple[str, ...] = ()
    held_out: str | None = None
    target: str | None = None
    run: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    alone: bool = False

    def __post_init__(self) -> None:
        if (self.recipe is None) == (not self.run):
            raise ValueError("a cell must give exactly one of recipe and run")
        if self.run and (self.data or self.held_out or self.target):
            raise ValueError("data, held_out and target go with a recipe; a cell with run says them in its words")


class Grid(Record, frozen=True):
    """The whole sweep. `recipe`: what all recipes have in common. `features`: a folder in which the target's hidden states are
    cached once, for all heads that read them. `planner`: how many next runs of `plan`, a Plan.json, to add."""

    target: str | None = None
    data: str | None = None
    held_out: str | None = None
    prompts: str | None = None
    features: str | None = None
    device: str = "cpu"
    recipe: dict[str, Any] = msgspec.field(default_factory=dict)
    drafts: dict[str, Drafts] = msgspec.field(default_factory=dict)
    measure: tuple[Measure, ...] = ()
    cells: dict[str, Named] = msgspec.field(default_factory=dict)
    plan: str | None = None
    planner: int = 0

    def __post_init__(self) -> None:
        require(self, non_negative=("planner",))
        check_recipe(self.recipe)
        if self.planner and self.plan is None:
            raise ValueError("planner takes the next runs of a plan: name its Plan.json as plan")
        if not (self.drafts or self.cells or self.measure or self.planner):
            raise ValueError("nothing to run: give drafts, measure, cells or planner")
        if (self.drafts or self.measure or self.planner) and self.target is None:
            raise ValueError("target is missing: name the folder that drafts, measure and planner belong to")
