"""Spans as ink: points with bars, lines with bands, rows of dots.

Promises: an interval is drawn where there is one and only there. Refuses to know: what is measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foredraft.report import style
from foredraft.report.documents import Span
from foredraft.report.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours, so that 42 kinds differ
NAME_WIDTH = 24  # characters of a name beside an axis
Look = dict[str, Any]


def arrays(spans: Sequence[Span]) -> tuple[np.ndarray, np.ndarray]:
    """Values [R], and lengths of bars below and above [2, R], nan where there is no interval."""
    value = np.array([span.value for span in spans], dtype=float)
    ends = [(np.nan, np.nan) if s.low is None or s.high is None else (s.low, s.high) for s in spans]
    low, high = np.array(ends, dtype=float).reshape(-1, 2).T
    return value, style.bars(value, low, high)


def look(i: int, again: int = 0) -> Look:
    """Colour and marker of the i-th kind; its further lines are dashed, with hollow markers."""
    colour = COLOURS[i % len(COLOURS)]
    hollow = {"mfc": "white"} if again else {}
    return {"color": colour, "marker": MARKERS[i % len(MARKERS)], "ls": ("-", "--", ":", "-.")[again % 4], **hollow}


def points(axes: Any, x: Sequence[float], spans: Sequence[Span], drawn: Look, label: str | None, **more: Any) -> None:
    """A series: markers, a line through them, bars."""
    value, bars = arrays(spans)
    axes.errorbar(x, value, yerr=_drawn(bars), label=label, capsize=2.5, elinewidth=1.1, **{"ms": 5, **drawn, **more})


def _drawn(bars: np.ndarray) -> np.ndarray | None:
    return None if np.isnan(bars).all() else np.nan_to_num(bars)


def dots(
    axes: Any, series: Mapping[str, Sequence[Span | None]], names: Sequence[str], looks: Mapping[str, Look]
) -> None:
    """One line per name with a dot of every series, apart where several share a line; the first name on top."""
    shared = any(sum(spans[row] is not None for spans in series.values()) > 1 for row in range(len(names)))
    step = 0.72 / len(series) if shared else 0.0
    for i, (label, spans) in enumerate(series.items()):
        measured = [(row, span) for row, span in enumerate(spans) if span is not None]
        if not measured:
            continue
        value, bars = arrays([span for _, span in measured])
        y = np.array([row for row, _ in measured]) + step * (i - (len(series) - 1) / 2)
        look = {**looks[label], "ls": "none", "ms": 6}
        axes.errorbar(value, y, xerr=_drawn(bars), capsize=2.5, elinewidth=1.3, label=label, **look)
    axes.set_yticks(range(len(names)), [style.wrap(name, NAME_WIDTH) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(False, axis="y")


def band(axes: Any, x: Sequence[float], spans: Sequence[Span], colour: str) -> None:
    """The interval along a line."""
    ends = [(at, s.low, s.high) for at, s in zip(x, spans, strict=True) if s.low is not None and s.high is not None]
    if ends:
        axes.fill_between(*np.array(ends, dtype=float).T, color=colour, alpha=0.18, lw=0)


def no_gain(axes: Any, horizontal: bool = True) -> None:
    """The line of no gain."""
    (axes.axhline if horizontal else axes.axvline)(1, color=GREY, lw=1, ls="--", zorder=1, label="no speculation")


def equal(axes: Any, values: Sequence[float]) -> None:
    """Predicted equals measured, on both axes alike."""
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.1 * abs(high)
    span = (low - room, high + room)
    axes.plot(span, span, "-", color=BLACK, lw=1, zorder=1, label="equal")
    axes.set(xlim=span, ylim=span)


def rows_height(names: Sequence[str], series: int = 1) -> float:
    """Inches of a figure of dots: lines of names, and room for the axis and the legend."""
    lines = sum(max(style.wrap(name, NAME_WIDTH).count("\n") + 1, 0.55 * series) for name in names)
    return 1.25 + 0.19 * lines + 0.09 * len(names)
