"""What all figures share: palette, sizes, how files are written, and what numbers look like on an axis.

Promises: legible to colour-blind readers, no text under 9 points, the same figure is the same file. Refuses to know:
what is drawn.
"""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.records import Estimate, with_hint

SIZE_IN, DPI = (7.0, 4.5), 150
# Okabe and Ito's palette, legible to colour-blind readers and apart in grey.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
COLOURS = (BLUE, SKY, GREEN, ORANGE, VERMILION)
MARKERS = ("o", "s", "^", "D", "v")
GREY = "#666666"


def draw(
    directory: str | Path, figures: Mapping[str, Callable[[Any], None]], formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Paint each figure, write it into `directory` under its name, and return the paths, one of each of `formats`."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError:
        message = "figures need matplotlib: pip install 'foredraft[plot]'"
        raise with_hint(ImportError(message), "or pass --no-figures") from None
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    with rc_context({"font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "foredraft"}):
        for name, paint in figures.items():
            figure = Figure(figsize=SIZE_IN, dpi=DPI, layout="constrained")
            paint(figure)
            mark_log_axes(figure)
            paths += _save(figure, directory / name, formats)
    return paths


def _save(figure: Any, stem: Path, formats: Sequence[str]) -> list[Path]:
    """Write it without a date, so that the same figure is the same file."""
    paths = [stem.with_name(f"{stem.name}.{form}") for form in formats]
    for path, form in zip(paths, formats, strict=True):
        figure.savefig(path, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else None)
    return paths


# --- Numbers ---


def values(estimates: Iterable[Estimate], scale: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Value, low and high as arrays."""
    value, low, high = np.array([(e.value, e.low, e.high) for e in estimates], dtype=float).T * scale
    return value, low, high


def bars(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths of error bars below and above, [2, R]."""
    return np.clip(np.stack([value - low, high - value]), 0, None)


def percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def interval(estimate: Estimate) -> str:
    """An estimate as a reader writes it: 1.61 (90 %: 0.96 to 2.12)."""
    return f"{estimate.value:.2f} ({percent(estimate.level)}: {estimate.low:.2f} to {estimate.high:.2f})"


def count(value: float) -> str:
    """A count as a reader writes it: 800 M, with a space that no line breaks at."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}\u00a0{letter}"
    return f"{value:.3g}"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


# --- Axes ---


def log_axis(axis: Any, form: Callable[[float], str] = "{:g}".format, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    """Ticks of a log axis that a reader can name: even ones in half a decade, then `steps` of each, then decades."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    low, high = axis.get_view_interval()
    decades = np.log10(high / low)
    logs = LogLocator(subs=steps if decades < 2.6 else (1.0,), numticks=20)
    axis.set_major_locator(MaxNLocator(5) if decades < 0.5 else logs)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_formatter(NullFormatter())


LOG = " (log scale)"


def mark_log_axes(figure: Any) -> None:
    """Each labelled axis that is logarithmic says so."""
    for axes in figure.axes:
        for axis, label in ((axes.xaxis, axes.get_xlabel()), (axes.yaxis, axes.get_ylabel())):
            if axis.get_scale() == "log" and label and not label.endswith(LOG):
                axis.set_label_text(label + LOG)


def load_axis(axes: Any, loads: Sequence[float]) -> None:
    """Concurrency in octaves, a tick at each value asked for."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(loads, [f"{load:g}" for load in loads])
    axes.set_xticks([], minor=True)


def wrap(text: str, width: int) -> str:
    """Lines of at most `width` characters where words allow, with words of paths broken where they must be."""
    return "\n".join(textwrap.wrap(text, width, break_on_hyphens=True))


def wrap_lines(text: str, width: int) -> str:
    """`wrap` for each line of a text."""
    return "\n".join(wrap(line, width) for line in text.splitlines())


def title(figure: Any, text: str, width: int = 100) -> None:
    """What is shown and where it comes from, above all panels."""
    figure.suptitle(wrap_lines(text, width), fontsize=10)


def legend(figure: Any, panels: Sequence[Any], most: int = 4, title: str | None = None) -> None:
    """One legend below all panels, each label once, in as many columns as the figure is wide enough for."""
    labelled = [axes.get_legend_handles_labels() for axes in panels]
    handles = {label: handle for pair in labelled for handle, label in zip(*pair, strict=True)}
    room = 14 * figure.get_size_inches()[0]  # characters of 9 points to the inch
    lengths = [max(map(len, label.splitlines())) for label in handles]
    columns = min(most, len(lengths))
    while columns > 1 and sum(max(part) + 7 for part in np.array_split(lengths, columns)) > room:
        columns -= 1
    figure.legend(handles.values(), handles.keys(), ncols=columns, title=title, loc="outside lower center")


def shared_parts(names: Iterable[str]) -> tuple[str, dict[str, str]]:
    """What ` · ` names have in common, and what is left of each: the title says the first once."""
    names = list(dict.fromkeys(names))
    split = {name: name.split(" · ") for name in names}
    common = [part for part in split[names[0]] if all(part in parts for parts in split.values())] if names else []
    differing = {
        name: " · ".join(part for part in parts if part not in common) or name for name, parts in split.items()
    }
    return " · ".join(common) if len(names) > 1 else "", differing
