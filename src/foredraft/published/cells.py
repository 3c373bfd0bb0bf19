"""Cells of a table: a number however people write it, a list by position, each text read once.

Promises: a word, a NaN or a comma that may mean two things is a ValueError; a blank cell is None. Refuses to know: columns' meaning.
"""

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

REMEMBERED = 4096  # cells of a column whose meaning is remembered, so that 100,000 equal ones are read once
SHOWN, LISTED = 40, 12  # characters of a cell, and names of a list, that a message shows


class Column:
    """One column: where it is, the field that it holds, and what its cells say, each read once. `real`: a number as a rule, in units of 1 / `per`."""

    def __init__(
        self, place: int, name: str, of: str, read: Callable[[Any], Any], *, real: bool = False, per: float = 1.0
    ) -> None:
        self.place, self.name, self.of, self.read, self.real, self.per = place, name, of, read, real, per
        self.seen: dict[Any, Any] = {}

    def value(self, cell: Any, where: str) -> Any:
        """What a cell says, None of a blank one. Raises ValueError with the place and the column."""
        if len(self.seen) > REMEMBERED:
            self.seen = {}
        stripped = cell.strip() if isinstance(cell, str) else cell
        try:
            self.seen[cell] = None if stripped == "" else self.read(stripped)
        except ValueError as error:
            raise ValueError(f"{where}: column {self.name}: {error}") from None
        return self.seen[cell]


def values_of(columns: Sequence[Column], cells: Sequence[Any], where: str) -> dict[str, Any]:
    """The fields that a row states."""
    fields = {}
    for column in columns:
        cell = cells[column.place]
        if cell is None or cell == "":
            continue
        value = _real(cell) if column.real else None
        if value is None:
            value = column.seen[cell] if cell in column.seen else column.value(cell, where)
        if value is not None:
            fields[column.of] = value / column.per if column.per != 1 else value
    return fields


def _real(cell: Any) -> float | None:
    """A finite number as computers write it; None of any other cell."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if value - value == 0 else None


def survival_of(cell: Any, name: str) -> tuple[float, ...] | None:
    """Joint acceptance by position from a cell such as '72.8;51.3' (per cent where the column says pct); conditional ones are chained."""
    try:
        values = [
            float(value) / (100 if "pct" in name or "percent" in name else 1)
            for value in re.split(r"[;,|\s]+", str(cell).strip("[]() "))
            if value
        ]
    except ValueError:
        raise ValueError(f"{shortened(cell)!r} is not a list of numbers") from None
    if "conditional" in name:
        values = [math.prod(values[: i + 1]) for i in range(len(values))]
    if any(b > a + 0.005 for a, b in pairwise(values)):
        raise ValueError("joint acceptance cannot rise with position; name a conditional column so")
    return tuple(values) or None


def number_of(cell: Any, *, decimal_comma: bool = False) -> float:
    """A finite number. Raises ValueError on a word, NaN, and a comma that might part thousands or decimals."""
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = _spelt(cell, decimal_comma)
    if not math.isfinite(value):
        raise ValueError(f"{shortened(cell)!r} is not a finite number; leave the cell blank if it was not measured")
    return value


def _spelt(cell: Any, decimal_comma: bool) -> float:
    """A number with a sign behind it (1.7x, 36 %), or with a comma."""
    text = re.sub(r"\s", "", cell).rstrip("%x×") if isinstance(cell, str) else ""
    if "," in text and "." in text:
        text = text.replace(",", "") if text.rindex(".") > text.rindex(",") else text.replace(".", "").replace(",", ".")
    elif text.count(",") == 1 and not decimal_comma and re.search(r",\d{3}$", text):
        raise ValueError(f"{shortened(cell)!r} may part thousands or decimals; write it without the comma")
    try:
        return float(text.replace(",", ".") if text.count(",") == 1 else text.replace(",", ""))
    except ValueError:
        raise ValueError(f"{shortened(cell)!r} is not a number") from None


def whole_of(cell: Any) -> int:
    """The value of a field that counts something."""
    value = number_of(cell)
    if not value.is_integer():
        raise ValueError(f"{value} is not a whole number")
    return int(value)


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(shortened, names[:LISTED])) + more


def shortened(cell: Any) -> str:
    text = " ".join(str(cell).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def key_of(name: str) -> str:
    """Column names and methods compared in lower case, with every run of other signs as one underscore."""
    return re.sub(r"[^a-z0-9()]+", "_", name.strip().lower()).strip("_")


def nested_value(value: Any, key: str) -> Any:
    """The first value under `key` anywhere in nested JSON objects, the outermost first; None where there is none."""
    levels = [value]
    while levels:
        objects = [level for level in levels if isinstance(level, dict)]
        if (named := next((each[key] for each in objects if each.get(key) is not None), None)) is not None:
            return named
        levels = [
            inner
            for each in levels
            for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
        ]
    return None
