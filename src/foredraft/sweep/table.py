"""The sweep as a person sees it: a live table on a terminal, lines elsewhere, the whole at the end.

Promises: as many rows as fit, the ones that matter first; a line per change where there is no terminal. Refuses to know: how
cells are run.
"""

import sys
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from foredraft.sweep.cells import Cell
from foredraft.sweep.expand import short
from foredraft.sweep.figures import seconds_left
from foredraft.sweep.folder import CellState

COLOURS = {"done": "green", "failed": "red", "running": "cyan", "stopped": "yellow"}
RANK = {"running": 0, "queued": 1, "failed": 2, "stopped": 3, "done": 5}  # where not all rows fit; waiting ones are 4


class LiveTable:
    """Shows states as they change. `slots`: cells that run at once."""

    def __init__(self, cells: Sequence[Cell], slots: int) -> None:
        self._cells, self._slots = {cell.name: cell for cell in cells}, slots
        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=2, transient=True) if self._console.is_terminal else None  # fmt: skip
        self._seen: dict[str, str] = {}

    def __enter__(self) -> "LiveTable":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:  # fmt: skip
        if self._live:
            self._live.stop()

    def show(self, states: Sequence[CellState]) -> None:
        remaining_s = seconds_left(self._cells, states, self._slots)
        if self._live:
            room = max(5, self._console.height - 6)
            self._live.update(Group(table(most_telling(states, room)), Text(summary(states, remaining_s), style="dim")))
            return
        self._tell(states, remaining_s)

    def _tell(self, states: Sequence[CellState], remaining_s: float | None) -> None:
        over = sum(state.state in ("done", "failed") for state in states)
        for state in states:
            before = self._seen.get(state.name)
            self._seen[state.name] = state.state
            if before not in (None, state.state) and state.state != "queued":
                tail = f"; about {clock(remaining_s)} left" if remaining_s and state.state == "done" else ""
                print(f"[{over}/{len(states)}] {state.name} {_line(state)}{tail}", file=sys.stderr, flush=True)


def _line(state: CellState) -> str:
    parts = [state.state]
    if state.state == "done":
        parts += [f"in {clock(state.seconds)}", *([f"τ {state.tokens_per_step:.2f}"] if state.tokens_per_step else [])]
    return ", ".join(parts) + (f": {state.error}" if state.error else "")


def most_telling(states: Sequence[CellState], room: int) -> list[CellState]:
    """At most `room` of them in their own order: what runs, what failed, what comes next, what was done last."""
    if len(states) <= room:
        return list(states)
    ranked = sorted(
        range(len(states)),
        key=lambda i: (RANK.get(states[i].state, 4), -i if states[i].state == "done" else i),
    )
    return [states[i] for i in sorted(ranked[:room])]


def table(states: Sequence[CellState]) -> Table:
    rows = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("cell", "state", "tokens", "τ", "time", "error"):
        justify = "right" if name in ("tokens", "τ", "time") else "left"
        rows.add_column(name, justify=justify, overflow="fold" if name == "error" else "ellipsis")
    for state in states:
        rows.add_row(
            Text(state.name), Text(state.state, style=COLOURS.get(state.state, "dim")), _tokens(state),
            f"{state.tokens_per_step:.2f}" if state.tokens_per_step else "", clock(state.seconds) if state.seconds else "",
            Text(state.error or ""),
        )  # fmt: skip
    return rows


def _tokens(state: CellState) -> str:
    if state.of_tokens is None:
        return ""
    return f"{short(state.tokens or 0, 3)} of {short(state.of_tokens, 3)}"


def summary(states: Sequence[CellState], remaining_s: float | None) -> str:
    counts: dict[str, int] = {}
    for state in states:
        word = "waiting for a failed cell" if state.state.startswith("waits for") else state.state
        counts[word] = counts.get(word, 0) + 1
    states_in_words = ", ".join(f"{count} {word}" for word, count in counts.items())
    return states_in_words + (f"; about {clock(remaining_s)} left" if remaining_s else "")


def clock(seconds: float | None) -> str:
    """h:mm:ss."""
    total = round(seconds or 0)
    return f"{total // 3600}:{total % 3600 // 60:02}:{total % 60:02}"


def plan_of(cells: Sequence[Cell], commands: Mapping[str, str], states: Mapping[str, str]) -> list[dict[str, Any]]:
    """What a sweep would run, in order."""
    return [
        {
            "name": cell.name, "state": states[cell.name], "needs": list(cell.needs), "tokens": cell.tokens, "alone": cell.alone,
            "command": commands[cell.name],
        }
        for cell in cells
    ]  # fmt: skip
