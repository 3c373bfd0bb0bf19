"""A sweep's cells: what ran, what came of it, what failed and why.

Promises: every cell of sweep.json is counted, failures first. Refuses to know: how cells are run.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from foredraft.report import style
from foredraft.report.documents import Documents
from foredraft.report.parts import NONE, Section, Table, count, number

FILLED_BY = "sweep.json, which `foredraft sweep GRID.json --out DIR` writes"
MOST = 200  # lines of the table
ORDER = ("failed", "stopped", "running", "waiting", "done")


def section(documents: Documents) -> Section | None:
    if not documents.sweeps:
        return None
    cells = [cell for sweep in documents.sweeps for cell in sweep.get("cells", ())]
    tally = Counter(state(cell) for cell in cells)
    states = ", ".join(f"{tally[state]} {state}" for state in ORDER if tally[state])
    spent = sum(cell.get("seconds") or 0.0 for cell in cells)
    lede = f"{style.plural(len(cells), 'cell')}: {states}; {spent / 3600:.2g} hours of work in all."
    notes = [f"Not run: {name}: {why}" for sweep in documents.sweeps for name, why in sweep.get("left_out", {}).items()]
    return Section("sweep", "The sweep", lede, (), [_table(cells)], notes)


def state(cell: Mapping[str, Any]) -> str:
    """The state in one word: a cell that waits for another is waiting."""
    state = str(cell.get("state", "waiting"))
    return state if state in ORDER else "waiting"


def _table(cells: Sequence[Mapping[str, Any]]) -> Table:
    ranked = sorted(cells, key=lambda cell: ORDER.index(state(cell)))
    rows = [
        (
            str(cell.get("name", NONE)), str(cell.get("verb", NONE)), str(cell.get("state", NONE)),
            count(cell.get("tokens")), number(cell.get("tokens_per_step")), number(cell.get("seconds"), ",.0f"),
            str(cell.get("error") or ""),
        )
        for cell in ranked[:MOST]
    ]  # fmt: skip
    cut = f"; the first {MOST} of {len(ranked)}" if len(ranked) > MOST else ""
    head = ("cell", "verb", "state", "tokens", "tokens per step", "seconds", "error")
    return Table(
        f"Cells, failures first{cut}; tokens per step is the last held out, or the largest measured", head, rows
    )
