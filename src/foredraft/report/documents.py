"""What a report stands on: every record that lies in the folders given.

Promises: a document that cannot be read is an error that names it; an observation that lies in several files counts once;
nothing is averaged or filled in. Refuses to know: how records are shown.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from foredraft import records
from foredraft.records import Estimate, Fit, Machine, Measurement, Observation, Plan, Provenance

DOCUMENTS = ("Plan.json", "Fit*.json", "observations.jsonl", "measurements.jsonl", "machine.json",
             "metrics.jsonl with recipe.json", "sweep.json")  # fmt: skip
PRUNED = {"checkpoints", "exports", "features", "tensorboard"}  # of a training run: no records of ours
PACKED = ".gz"  # lines may be
NOWHERE = Provenance(source="")


class Span(NamedTuple):
    """A number, and its interval where it has one."""

    value: float
    low: float | None = None
    high: float | None = None
    level: float | None = None


class Row(NamedTuple):
    """An observation, with the measurement around it where there is one."""

    observation: Observation
    measurement: Measurement | None = None

    @property
    def category(self) -> str | None:
        return self.measurement.category if self.measurement else None

    @property
    def way(self) -> str | None:
        return self.measurement.way if self.measurement else None

    def span(self, name: str) -> Span | None:
        """A field of the observation with its interval; None where it was not measured."""
        if self.measurement and (interval := self.measurement.intervals.get(name)):
            return span_of(interval)
        value = getattr(self.observation, name)
        return None if value is None else Span(float(value))

    def survival(self) -> tuple[Span, ...]:
        """P(at least i draft tokens accepted), from i = 1."""
        if self.measurement and self.measurement.survival:
            return tuple(map(span_of, self.measurement.survival))
        return tuple(Span(value) for value in self.observation.survival or ())

    def accept_given_prefix(self) -> tuple[Span, ...]:
        """Acceptance at position i given all before; from joint survival where it is not recorded itself."""
        if self.measurement and self.measurement.accept_given_prefix:
            return tuple(map(span_of, self.measurement.accept_given_prefix))
        joint = (1.0, *(self.observation.survival or ()))
        pairs = itertools.pairwise(joint)
        return tuple(Span(after / before) for before, after in pairs if before > 0)


class RunModel(TypedDict, total=False):
    """What a recipe trains."""

    kind: str
    layers: int


class RunPrediction(TypedDict):
    """What a recipe's plan expects."""

    tokens_per_step: Estimate


class RunRecipe(TypedDict, total=False):
    """recipe.json as far as a page shows it: one of an older version too."""

    model: RunModel
    predicted: RunPrediction | None


class RunFigures(TypedDict, total=False):
    """The figures of a line that every run has."""

    tokens: float
    seconds: float


class RunLog(NamedTuple):
    """A training run: its recipe, and the lines of metrics.jsonl in order."""

    name: str
    recipe: RunRecipe
    lines: Sequence[Mapping[str, Any]]
    folder: Path = Path("RUN")


class SweepCell(TypedDict, total=False):
    """A cell of sweep.json as far as a page shows it."""

    name: str
    verb: str
    state: str
    tokens: float | None
    tokens_per_step: float | None
    seconds: float | None
    error: str | None


class SweptCells(TypedDict, total=False):
    """sweep.json."""

    cells: list[SweepCell]
    left_out: dict[str, str]


class Documents(NamedTuple):
    """All records of the folders; each document with the path it was read from."""

    folders: tuple[Path, ...]
    paths: tuple[Path, ...]
    plans: tuple[Plan, ...] = ()
    fits: tuple[Fit, ...] = ()
    rows: tuple[Row, ...] = ()
    machines: tuple[Machine, ...] = ()
    runs: tuple[RunLog, ...] = ()
    sweeps: tuple[SweptCells, ...] = ()

    @property
    def observations(self) -> list[Observation]:
        """The observation of every row: a category's has a dataset of its own, so that no law pools it with the whole."""
        return [row.observation for row in self.rows]


def span_of(estimate: Estimate) -> Span:
    return Span(estimate.value, estimate.low, estimate.high, estimate.level)


def read_documents(folders: Iterable[str | Path]) -> Documents:
    """Read every record in `folders` and below. Raises ValueError where there is none, or one that cannot be read."""
    roots = tuple(dict.fromkeys(Path(folder) for folder in folders))
    if missing := [folder for folder in roots if not folder.is_dir()]:
        raise ValueError(f"{missing[0]}: no such folder; name folders that hold records")
    paths = {os.path.realpath(path): path for folder in roots for path in _walk(folder)}
    documents = [path for path in paths.values() if _kind(path)]
    if not documents:
        raise ValueError(f"{', '.join(map(str, roots))}: no records there; a report is made of {', '.join(DOCUMENTS)}")
    of = {kind: [path for path in documents if _kind(path) == kind] for kind in {_kind(path) for path in documents}}
    runs = [_run(path) for path in of.get("metrics", [])]
    return Documents(
        folders=roots,
        paths=tuple(documents),
        plans=_distinct(records.read(Plan, path) for path in of.get("plan", [])),
        fits=_distinct(fit for path in of.get("fit", []) for fit in _fits(path)),
        rows=tuple(_rows(of.get("measurements", []), of.get("observations", []))),
        machines=_distinct(records.read(Machine, path) for path in of.get("machine", [])),
        runs=_numbered([run for run in runs if run.lines]),
        sweeps=tuple(records.read(SweptCells, path) for path in of.get("sweep", [])),
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Files in order of their names; the cells of a sweep are in its own assembled files."""
    for where, inside, names in os.walk(folder):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name not in PRUNED)
        names += [name for name in inside if _kind(Path(name))]  # a folder of a record's name is told when it is read
        assembled = {name.removesuffix(PACKED) for name in names} & {"observations.jsonl", "measurements.jsonl"}
        yield from (Path(where) / name for name in sorted(names))
        if "sweep.json" in names and "cells" in inside:
            inside.remove("cells")
            yield from (
                path for path in _walk(Path(where) / "cells") if path.name.removesuffix(PACKED) not in assembled
            )


def _kind(path: Path) -> str | None:
    """Which document a file is, by its name."""
    if path.name.startswith("Fit") and path.suffix == ".json":
        return "fit"
    if path.name == "metrics.jsonl":
        return "metrics"
    names = ("Plan.json", "observations.jsonl", "measurements.jsonl", "machine.json", "sweep.json")
    name = path.name.removesuffix(PACKED) if path.name.endswith(".jsonl" + PACKED) else path.name
    return Path(name).stem.lower() if name in names else None


def _fits(path: Path) -> list[Fit]:
    """One fit, or a list of them."""
    data = records.read_bytes(path)
    if data.lstrip().startswith(b"["):
        return records.decode(list[Fit], data, name=str(path))
    return [records.decode(Fit, data, name=str(path))]


def _distinct(items: Iterable[Any]) -> tuple[Any, ...]:
    distinct: list[Any] = []
    for item in items:
        if item not in distinct:
            distinct.append(item)
    return tuple(distinct)


def _rows(measured: Sequence[Path], observed: Sequence[Path]) -> Iterator[Row]:
    """Measurements, then the observations that none of them holds; where a row came from does not tell rows apart."""
    yielded: set[tuple[Any, ...]] = set()
    rows = [Row(m.observation, m) for path in measured for m in records.read_lines(Measurement, path)]
    rows += [Row(o) for path in observed for o in records.read_lines(Observation, path)]
    for row in rows:
        bare = msgspec.structs.replace(row.observation, provenance=NOWHERE)
        keys = {(bare, row.way, row.category), (bare, None, None)}
        if (bare, row.way, row.category) not in yielded:
            yield row
        yielded |= keys


def _numbered(runs: Sequence[RunLog]) -> tuple[RunLog, ...]:
    """Runs of one name numbered."""
    same = {name: [run for run in runs if run.name == name] for name in dict.fromkeys(run.name for run in runs)}
    return tuple(
        run._replace(name=f"{name} ({i})") if len(of) > 1 else run
        for name, of in same.items()
        for i, run in enumerate(of, 1)
    )


def _run(path: Path) -> RunLog:
    """A run; a last line that was torn by a crash belongs to no step, as for a run that goes on."""
    recipe = path.with_name("recipe.json")
    lines = [line for line in records.read_bytes(path).splitlines(keepends=True) if line.strip()]
    complete = lines if not lines or lines[-1].endswith(b"\n") else lines[:-1]
    rows = [_figures(line, f"{path}:{i}") for i, line in enumerate(complete, 1)]
    return RunLog(
        _run_name(path), records.read(RunRecipe, recipe) if os.path.lexists(recipe) else {}, rows, path.parent
    )


def _figures(line: bytes, where: str) -> Mapping[str, Any]:
    """All of a line's figures, once those that every run has are known to be numbers."""
    records.decode(RunFigures, line, name=where)
    return records.decode(dict[str, float | str | bool | None], line, name=where)


def _run_name(path: Path) -> str:
    """The folder of the run; of a sweep's cell, the cell."""
    folder = path.resolve().parent
    return folder.parent.name if folder.name == "run" else folder.name
