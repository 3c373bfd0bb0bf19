"""What a cell has come to, read from the files it writes: tokens, tokens per step, and the time that is left.

Promises: a figure that is not there yet is None. Refuses to know: what the figures mean.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from foredraft.records import parse
from foredraft.sweep.cells import Cell
from foredraft.sweep.folder import OBSERVATIONS, CellState

METRICS = "metrics.jsonl"
HELD_OUT = "held_out_tokens_per_step"


class Figures(NamedTuple):
    tokens: float | None = None
    tokens_per_step: float | None = None


def figures_of(cell: Cell, folder: Path) -> Figures:
    """Of training: tokens so far and the last held-out τ; of a measurement: the largest τ."""
    if cell.recipe is not None:
        lines = list(_lines(folder / METRICS))
        tokens = [line["tokens"] for line in lines if "tokens" in line]
        taus = [line[HELD_OUT] for line in lines if HELD_OUT in line]
        return Figures(tokens[-1] if tokens else None, taus[-1] if taus else None)
    taus = [line["tokens_per_step"] for line in _lines(folder / OBSERVATIONS) if line.get("tokens_per_step")]
    return Figures(None, max(taus) if taus else None)


def _lines(path: Path) -> Iterable[dict[str, Any]]:
    """Whole JSON lines of a file that may be missing, or written to at this moment."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError:
        return
    for line in lines:
        if line.endswith(b"\n"):
            try:
                yield parse(line, dict[str, Any])
            except ValueError:
                continue


def seconds_left(cells: Mapping[str, Cell], states: Iterable[CellState], slots: int) -> float | None:
    """For what still waits or runs, by the seconds per token (a measurement: per cell) of done cells: of the same kin where there
    are any, else of the same verb; None where neither is.
    """
    spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    states = list(states)
    for state in states:
        if state.state == "done" and state.seconds:
            for key in (cells[state.name].kin, state.verb):
                spent[key][0] += state.seconds
                spent[key][1] += cells[state.name].tokens or 1.0
    total = 0.0
    for state in states:
        if state.state not in ("waiting", "queued", "running"):
            continue
        cell = cells[state.name]
        seconds, work = next((spent[key] for key in (cell.kin, state.verb) if key in spent), (0.0, 0.0))
        if not work:
            return None
        total += max(0.0, (cell.tokens or 1.0) - (state.tokens or 0.0)) * seconds / work
    return total / max(1, slots)
