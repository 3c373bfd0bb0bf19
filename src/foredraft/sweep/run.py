"""The driver: which cell next, what becomes of those that fail, and the tables after each.

Promises: nothing starts before all it needs is done; a failure stops what needs it and nothing else; what is done is never run
again unasked; an interrupt gives every cell the time to save. Refuses to know: where cells run, what they compute.
"""

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from foredraft import records
from foredraft.sweep.cells import Cell, definitions, dependants, missing
from foredraft.sweep.figures import figures_of
from foredraft.sweep.folder import DONE, FAILED, SWEEP, CellState, Folder, Sweep, versions
from foredraft.sweep.job import RUNNING, Job, Outcome
from foredraft.sweep.local_runner import Runner

LOOK_S = 1.0
Show = Callable[[Sequence[CellState]], None]


def prepared(cells: Sequence[Cell], out: Path, here: Path, redo: Collection[str] = (), *, dry: bool = False) -> Folder:
    """The sweep's folder, `redo` and what depends on it forgotten.

    Raises ValueError where an input is missing, `redo` names no cell, or a done cell is now defined otherwise.
    """
    if lacking := missing(cells, here):
        raise ValueError(f"not there: {'; '.join(lacking)}")
    folder = Folder(out, cells, definitions(cells))
    unknown = set(redo) - {cell.name for cell in cells}
    if unknown:
        raise ValueError(f"redo: no cell is named {', '.join(sorted(unknown))}")
    again = dependants(cells, redo)
    changed = {name: text for name, text in folder.changed().items() if name not in again}
    if changed:
        first = next(iter(changed))
        more = f" (and {len(changed) - 1} more cells)" if len(changed) > 1 else ""
        raise ValueError(
            f"cell {first} has results of another definition{more}: {changed[first]}; give the old one, another --out, or --redo {first}"
        )
    if not dry:
        folder.lock()
        folder.clear(again)
    return folder


class Driver:
    """A sweep at work. `threads` goes to each cell's process as OMP_NUM_THREADS; None leaves torch its choice."""

    def __init__(
        self, folder: Folder, runner: Runner, here: Path, *, threads: int | None = None, retry_failed: bool = False,
        environment: Mapping[str, str] | None = None, left_out: Mapping[str, str] | None = None,
        program: tuple[str, ...] | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.runner, self.here, self.threads, self.program = folder, runner, here, threads, program
        self.environment = dict(environment or {}) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        self.left_out = dict(left_out or {})
        self.cells = {cell.name: cell for cell in folder.cells}
        self.states = {cell.name: self._earlier_state(cell, retry_failed) for cell in folder.cells}
        self.running: dict[Future[Outcome], Cell] = {}

    def _earlier_state(self, cell: Cell, retry_failed: bool) -> CellState:
        """As an earlier sweep left it."""
        state = CellState(
            name=cell.name, verb=cell.words[0], state="waiting", digest=self.folder.digests[cell.name],
            command=self.folder.command(cell), needs=cell.needs, of_tokens=cell.tokens,
        )  # fmt: skip
        for name, word in ((DONE, "done"), (FAILED, "failed")):
            ended = self.folder.ended(cell, name)
            if ended and (word == "done" or not retry_failed):
                return self._over(cell, state, ended.outcome)
        return state

    def _over(self, cell: Cell, state: CellState, outcome: Outcome) -> CellState:
        figures = figures_of(cell, self.folder.of(cell))
        word = "stopped" if outcome.stopped else "failed" if outcome.error else "done"
        return msgspec.structs.replace(
            state, state=word, seconds=outcome.seconds, error=outcome.error, host=outcome.host, tokens=figures.tokens,
            tokens_per_step=figures.tokens_per_step,
        )  # fmt: skip

    def run(self, show: Show = lambda _: None) -> Sweep:
        """Run all that can be run, telling `show` of every change, and give what came of it.

        Raises KeyboardInterrupt, with everything saved, where SIGINT or SIGTERM asked to stop.
        """
        self._block()
        self._keep()
        show(self.rows)
        try:
            with asked_to_stop():
                while self._start_ready() or self.running:
                    show(self.rows)
                    self._look()
        except KeyboardInterrupt:
            self.runner.stop()
            while self.running:
                self._look()
            show(self.rows)
            raise
        finally:
            sweep = self._keep(finished=not self.running)
        show(self.rows)
        return sweep

    @property
    def rows(self) -> list[CellState]:
        return list(self.states.values())

    # what next

    def _start_ready(self) -> bool:
        """Start what can be; True where something was."""
        ready = [cell for cell in self.folder.cells if self._ready(cell)]
        slots = self.runner.slots
        if slots == 1:
            return not self.running and self._start(ready[:1])
        if any(cell.alone for cell in self.running.values()):
            return False
        free = None if slots is None else slots - len(self.running)
        if self._start([cell for cell in ready if not cell.alone][:free]):
            return True
        return not self.running and self._start([cell for cell in ready if cell.alone][:1])

    def _ready(self, cell: Cell) -> bool:
        return self.states[cell.name].state == "waiting" and all(
            self.states[need].state == "done" for need in cell.needs
        )

    def _start(self, cells: Sequence[Cell]) -> bool:
        for cell in cells:
            self.folder.begin(cell)
            places = self.folder.places
            job = Job(
                cell.name, places.words(cell), self.folder.of(cell), self.here, self.environment, cell.products, self.program
            )  # fmt: skip
            self.running[self.runner.start(job)] = cell
            self._now(cell, state="queued")
        return bool(cells)

    def _look(self) -> None:
        """Wait a little, and take in what has ended and how far the others are."""
        done, _ = wait(self.running, timeout=LOOK_S, return_when=FIRST_COMPLETED)
        for future in done:
            self._end(self.running.pop(future), future.result())
        for cell in self.running.values():
            self._follow(cell)
        if done:
            self._block()
            self._keep()

    def _follow(self, cell: Cell) -> None:
        """How far a cell is, once its process has begun."""
        try:
            seconds = max(0.0, time.time() - (self.folder.of(cell) / RUNNING).stat().st_mtime)
        except OSError:
            return
        figures = figures_of(cell, self.folder.of(cell))
        self._now(
            cell, state="running", seconds=seconds, tokens=figures.tokens, tokens_per_step=figures.tokens_per_step
        )

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        wrong = None if outcome.error or outcome.stopped else self.folder.unreadable(cell)
        if wrong:
            outcome = msgspec.structs.replace(outcome, error=wrong)
        threads = str(self.threads) if self.threads else None
        self.folder.end(cell, outcome, now(), threads)
        self.states[cell.name] = self._over(cell, self.states[cell.name], outcome)

    def _block(self) -> None:
        """Mark what waits, directly or not, for a cell that failed."""
        for cell in self.folder.cells:
            if self.states[cell.name].state != "waiting":
                continue
            for need in cell.needs:
                state = self.states[need].state
                if state == "failed" or state.startswith("waits for"):
                    self._now(cell, state=f"waits for {need}" if state == "failed" else state)
                    break

    def _now(self, cell: Cell, **changes: Any) -> None:
        self.states[cell.name] = msgspec.structs.replace(self.states[cell.name], **changes)

    def _keep(self, finished: bool = False) -> Sweep:
        """Write the tables and sweep.json."""
        self.folder.assemble()
        sweep = Sweep(
            cells=tuple(self.rows), versions=versions(), created=now(), finished=finished, left_out=self.left_out
        )
        records.write(self.folder.out / SWEEP, sweep)
        return sweep


def failures(sweep: Sweep) -> list[str]:
    """A line for each cell that failed, and for those that wait for it."""
    waits = [cell for cell in sweep.cells if cell.state.startswith("waits for")]
    lines = []
    for cell in sweep.cells:
        if cell.state == "failed":
            behind = sum(late.state == f"waits for {cell.name}" for late in waits)
            lines.append(f"{cell.name}: {cell.error}" + (f" ({behind} cells wait for it)" if behind else ""))
    return lines


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def asked_to_stop() -> Iterator[None]:
    """Within it SIGTERM is a KeyboardInterrupt, as SIGINT is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
