"""A sweep's folder: what each cell has come to, and the tables put together from all of them.

Promises: a cell is done when done.json holds the digest of its definition, and nothing else makes it so; done.json and the
tables appear whole or not at all. Refuses to know: how cells are run.

    OUT/sweep.json, OUT/observations.jsonl, OUT/measurements.jsonl
    OUT/cells/NAME/cell.json, log.txt, done.json | failed.json, and what the verb writes: a whole training run, observations.jsonl
"""

import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from foredraft import records
from foredraft.records import Observation, Provenance, Record
from foredraft.sweep.cells import RECIPE, Cell, Definition, Places, difference
from foredraft.sweep.job import RUNNING, Outcome

CELL, DONE, FAILED, OBSERVATIONS, MEASUREMENTS, SWEEP = (
    "cell.json", "done.json", "failed.json", "observations.jsonl", "measurements.jsonl", "sweep.json"
)  # fmt: skip
CHECKPOINTS = "checkpoints"  # as `train` names them
VERSIONS = "foredraft", "torch", "transformers", "numpy", "ray"


class Begun(Record, frozen=True):
    """cell.json: what a cell was when it was last started, and its command with paths in place of references."""

    definition: Definition
    digest: str
    command: str


class Ended(Record, frozen=True):
    """done.json or failed.json. `seconds`: of the process that ended so."""

    digest: str
    command: str
    outcome: Outcome
    created: str
    versions: dict[str, str]
    threads: str | None = None


class CellState(Record, frozen=True):
    """A row of the table and of sweep.json. `state`: waiting, running, done, failed, stopped or "waits for NAME".

    `tokens` are those trained on so far, of `of_tokens`; `tokens_per_step` the last figure held out, or the largest measured.
    """

    name: str
    verb: str
    state: str
    digest: str
    command: str
    needs: tuple[str, ...] = ()
    seconds: float | None = None
    tokens: float | None = None
    of_tokens: float | None = None
    tokens_per_step: float | None = None
    error: str | None = None
    host: str | None = None


class Sweep(Record, frozen=True):
    """sweep.json. `left_out`: the planner's runs that no cell can stand for, and why."""

    cells: tuple[CellState, ...]
    versions: dict[str, str]
    created: str
    finished: bool = False
    left_out: dict[str, str] = msgspec.field(default_factory=dict)


class Folder:
    """`out` and the cells in it."""

    def __init__(self, out: Path, cells: Sequence[Cell], definitions: Mapping[str, Definition]) -> None:
        self.out, self.cells, self.definitions = out, cells, definitions
        self.places = Places(out, cells)
        self.digests = {name: definition.digest for name, definition in definitions.items()}
        self._lock: Any = None

    def of(self, cell: Cell) -> Path:
        return self.places.folder(cell.name)

    def command(self, cell: Cell) -> str:
        return " ".join(("foredraft", *self.places.words(cell)))

    def lock(self) -> None:
        """Keep other sweeps out until this process ends. Raises ValueError where one is at work."""
        self._lock = records.lock(self.out / "lock", f"{self.out}: another sweep is at work there")

    def release(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    # what is there

    def ended(self, cell: Cell, name: str) -> Ended | None:
        """done.json or failed.json, if it belongs to the cell as it is defined now."""
        ended = _read(Ended, self.of(cell) / name)
        return ended if ended and ended.digest == self.digests[cell.name] else None

    def changed(self) -> dict[str, str]:
        """Cells that were done, or trained in part, under another definition, with the difference."""
        differences: dict[str, str] = {}
        for cell in self.cells:
            begun = _read(Begun, self.of(cell) / CELL)
            if begun and begun.digest != self.digests[cell.name] and self._has_results(cell):
                differences[cell.name] = difference(begun.definition, self.definitions[cell.name])
        return differences

    def _has_results(self, cell: Cell) -> bool:
        folder = self.of(cell)
        return (folder / DONE).is_file() or any((folder / CHECKPOINTS).glob("step-*"))

    # what is written

    def clear(self, names: Iterable[str]) -> None:
        """Forget all that these cells have made."""
        for name in names:
            shutil.rmtree(self.places.folder(name), ignore_errors=True)

    def begin(self, cell: Cell) -> None:
        """The cell's folder with what it is about to be."""
        folder = self.of(cell)
        for name in (FAILED, DONE, RUNNING):  # the last where a machine was lost
            (folder / name).unlink(missing_ok=True)
        if cell.recipe is not None:
            records.write(folder / RECIPE, self.places.recipe(cell))
        begun = Begun(
            definition=self.definitions[cell.name], digest=self.digests[cell.name], command=self.command(cell)
        )
        records.write(folder / CELL, begun)

    def end(self, cell: Cell, outcome: Outcome, created: str, threads: str | None) -> None:
        """done.json or failed.json; of a cell that was stopped, neither."""
        if outcome.stopped:
            return
        ended = Ended(
            digest=self.digests[cell.name], command=self.command(cell), outcome=outcome, created=created, versions=versions(),
            threads=threads,
        )  # fmt: skip
        records.write(self.of(cell) / (FAILED if outcome.error else DONE), ended)

    def assemble(self) -> int:
        """Put the observations and measurements of all done cells together, and give how many observations there are."""
        observations: list[Observation] = []
        measurements: list[dict[str, Any]] = []
        for cell in self.cells:
            done = self.ended(cell, DONE)
            if done is None:
                continue
            rows = _rows(Observation, self.of(cell) / OBSERVATIONS)
            observations += [self._with_origin(row, cell, done) for row in rows]
            for row in _rows(dict[str, Any], self.of(cell) / MEASUREMENTS):
                observation = msgspec.convert(row["observation"], Observation)
                measurements.append(row | {"observation": self._with_origin(observation, cell, done)})
        for name, rows in ((OBSERVATIONS, observations), (MEASUREMENTS, measurements)):
            if rows:
                records.write_lines(self.out / name, rows)
            else:
                (self.out / name).unlink(missing_ok=True)
        return len(observations)

    def unreadable(self, cell: Cell) -> str | None:
        """What is wrong with the records that a cell left, so that it fails alone."""
        try:
            _rows(Observation, self.of(cell) / OBSERVATIONS)
            _rows(dict[str, Any], self.of(cell) / MEASUREMENTS)
        except ValueError as error:
            return str(error)
        return None

    def _with_origin(self, row: Observation, cell: Cell, done: Ended) -> Observation:
        """The row, its provenance completed by the cell, its command, its definition and the recipes behind it."""
        origin, makers = row.provenance, [need for need in cell.needs if need in self.places.trained]
        trained = "".join(f"; trained by {name}, recipe {self.digests[name]}" for name in makers)
        note = f"sweep cell {cell.name}, definition {done.digest}{trained}; {done.threads or 'default'} threads"
        provenance = Provenance(
            source=origin.source, trust=origin.trust, note=f"{origin.note}; {note}" if origin.note else note, command=origin.command or done.command,
            versions=done.versions | origin.versions, created=origin.created or done.created,
        )  # fmt: skip
        return msgspec.structs.replace(row, provenance=provenance)


def _read(kind: Any, path: Path) -> Any:
    return records.read(kind, path) if path.is_file() else None


def _rows(kind: Any, path: Path) -> list[Any]:
    """Of a file that may be missing or empty."""
    return records.read_lines(kind, path) if path.is_file() and path.stat().st_size else []


def versions() -> dict[str, str]:
    """Of what a cell's process imports, as installed; read without importing any."""
    installed = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed
