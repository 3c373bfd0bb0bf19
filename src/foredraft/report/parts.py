"""The parts of a page: a section of words, pictures and tables, and how numbers are written in them.

Promises: a picture carries what its caption must say; a table's cells are plain text. Refuses to know: HTML, figures'
ink, what is measured.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from foredraft.records import Estimate
from foredraft.report import style
from foredraft.report.documents import Span

NONE = "–"  # not measured


class Picture(NamedTuple):
    """A figure: `paint` draws it, `caption` says data, n, conditions and the level of intervals."""

    name: str
    title: str
    caption: str
    paint: Callable[[Any], None]
    height_in: float = 3.7


class Table(NamedTuple):
    """Rows of text under headings; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: Sequence[Sequence[str]]


class Section(NamedTuple):
    """A part of the page with a heading of its own; `lede` says in a sentence or two what it shows."""

    name: str
    title: str
    lede: str
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()


class Tile(NamedTuple):
    """A headline number: what it is, the number, what it means."""

    label: str
    value: str
    note: str


class Headline(NamedTuple):
    """What a newcomer reads first: the verdict, what qualifies it, what to type, and `arms`: what was measured, or else a few numbers."""

    text: str
    tiles: Sequence[Tile] = ()
    remarks: Sequence[str] = ()
    commands: Sequence[str] = ()
    arms: Table | None = None


# --- Numbers as text ---


def number(span: Span | Estimate | float | None, form: str = ".2f", scale: float = 1.0) -> str:
    """1.61 (0.96–2.12), without brackets where there is no interval, – where it was not measured."""
    if span is None:
        return NONE
    if isinstance(span, int | float):
        return f"{span * scale:{form}}"
    text = f"{span.value * scale:{form}}"
    if span.low is None or span.high is None:
        return text.replace("-", "−")
    low, high = f"{span.low * scale:{form}}", f"{span.high * scale:{form}}"
    to = "\u00a0to\u00a0" if "-" in low + high else "–"
    return f"{text}\u00a0({low}{to}{high})".replace("-", "−")


def count(value: float | None) -> str:
    return NONE if value is None else style.count(value)


def signed(share: float) -> str:
    """+3.1 %, −2.0 %: a relative error, predicted over measured."""
    return f"{100 * share:+.1f}\u00a0%".replace("-", "−")


def rate(value: float) -> str:
    """Tokens per second with as many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def levels(spans: Sequence[Span]) -> str:
    """What a caption says of the intervals that `spans` have."""
    shares = sorted({span.level for span in spans if span.level is not None})
    if not shares:
        return "No intervals: the records give none."
    bare = sum(span.level is None for span in spans)
    lack = f" ({bare} of {len(spans)} points have none)" if bare else ""
    return f"{' and '.join(style.percent(level) for level in shares)} intervals{lack}."


def listed(names: Sequence[str], most: int = 4) -> str:
    """a, b and c; with the rest counted where there are many."""
    if len(names) > most:
        return f"{', '.join(names[: most - 1])} and {len(names) - most + 1} more"
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
