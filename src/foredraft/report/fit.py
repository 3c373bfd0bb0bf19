"""The figure of a fit, as PNG and SVG: the law with its interval over the data behind it, and beyond.

Promises: the curve and its interval are the fit's own draws; the range of the data is shaded and what lies outside is
dashed; only observations of the fit's own pool are drawn. Refuses to know: how a law is fitted.
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.laws.fit import by_range, outcome, predict_draws, sample_words
from foredraft.laws.forms import law_named
from foredraft.laws.law import Law
from foredraft.records import Fit, Observation
from foredraft.report import style
from foredraft.report.style import BLACK, BLUE, GREEN, GREY, MARKERS, PURPLE, VERMILION

COLOURS = (BLUE, VERMILION, GREEN, PURPLE)
BEYOND, POINTS, LEVEL, NAME_LENGTH = 2.0, 200, 0.9, 120
NAMES = {
    "draft_tokens": "training tokens of the draft, D", "draft_params": "parameters of the draft, N",
    "target_tokens": "training tokens of the target, D′", "target_params": "parameters of the target, M",
    "draft_layers": "decoder layers of the draft, L", "tree_nodes": "tree nodes verified per step, w",
    "draft_perplexity": "perplexity of the draft per token, x", "target_perplexity": "perplexity of the target per token, y",
    "tokens_per_step": "τ", "accept_prob": "α", "loss": "loss",
}  # fmt: skip
Fixed = Mapping[str, float]


def draw_fit(fit: Fit, observations: Iterable[Observation], directory: str | Path) -> list[Path]:
    """Draw `fit` over those of `observations` that it speaks for; the file is named after the law and the pool."""
    rows, _ = by_range(fit, observations)
    return style.draw(directory, {file_name(fit): painter(fit, rows)})


def painter(fit: Fit, rows: Sequence[Observation], beyond: Sequence[Observation] = ()) -> Callable[[Any], None]:
    """What draws `fit` over `rows`, with those `beyond` the range of its data marked apart."""
    return partial(_fit, fit=fit, law=law_named(fit.law), rows=rows, beyond=beyond)


def _pool(fit: Fit) -> str:
    return (fit.provenance[0].note or "") if fit.provenance else ""


def file_name(fit: Fit) -> str:
    """Law and pool, which together are one fit's own; cut with a checksum where that is long."""
    name = re.sub(r"[^\w.+-]+", "_", f"fit_{fit.law}_{_pool(fit)}").strip("_.")
    return name if len(name) <= NAME_LENGTH else f"{name[:NAME_LENGTH]}_{zlib.crc32(name.encode()):08x}"


def _fit(figure: Any, fit: Fit, law: Law, rows: Sequence[Observation], beyond: Sequence[Observation] = ()) -> None:
    """Data, mean and interval over the leading input; the other inputs at what was observed, or at their medians."""
    axes = figure.subplots()
    axes.axvspan(*fit.domain[law.leading], color=GREY, alpha=0.1, lw=0, label="range of the data")
    groups, reach = _groups(law, [*rows, *beyond], fit), _reach(fit, law, beyond)
    for (fixed, members), colour, marker in zip(groups, COLOURS, MARKERS, strict=False):
        colour = colour if len(groups) > 1 else BLUE
        _law(axes, fit, law, fixed, colour, _fixed_label(fixed, bool(members)), reach)
        inside = [row for row in members if any(row is other for other in rows)]
        _dots(axes, law, inside, marker, colour if len(groups) > 1 else BLACK, 6 if len(rows) <= 30 else 4)
    if len(groups) == 1 and not groups[0][1] and rows:
        _dots(axes, law, rows, "o", BLACK, 4)
    if beyond:
        _dots(axes, law, beyond, "D", "white", 6)
        axes.plot([], [], "D", mfc="white", mec=BLACK, label=f"{len(beyond)} held out, beyond the range")
    axes.plot([], [], "o", color=BLACK, label=style.plural(len(rows), "observation"))
    axes.plot([], [], "--", color=GREY, label="beyond the data")
    axes.fill_between([], [], [], color=GREY, alpha=0.3, lw=0, label=f"{style.percent(LEVEL)} interval of the mean")
    _leading_axis(axes, *reach)
    _frame(axes, fit, law, groups, [*rows, *beyond], reach)
    axes.set(xlabel=NAMES.get(law.leading, law.leading), ylabel=f"{NAMES.get(law.output, law.output)}, {law.unit}")
    _title(figure, fit)
    style.legend(figure, [axes], most=3)


def _dots(axes: Any, law: Law, rows: Sequence[Observation], marker: str, colour: str, size: float) -> None:
    """Observations where they were measured."""
    x, y = [getattr(row, law.leading) for row in rows], [outcome(law, row) for row in rows]
    axes.plot(x, y, marker, ls="none", mfc=colour, mec=BLACK, ms=size, alpha=0.9, zorder=4)


def _reach(fit: Fit, law: Law, beyond: Sequence[Observation]) -> tuple[float, float]:
    """The leading input's range in the data and in the rows held out."""
    values = [*fit.domain[law.leading], *(getattr(row, law.leading) for row in beyond)]
    return min(values), max(values)


def _leading_axis(axes: Any, low: float, high: float) -> None:
    """Log; log(1 + x) where the range starts at 0, with ticks at 0, 1, 3, 7, ..."""
    if low > 0:
        axes.set(xscale="log", xlim=(low / BEYOND, high * BEYOND))
        style.log_axis(axes.xaxis, style.count)
    else:
        axes.set_xscale("function", functions=(np.log1p, np.expm1))
        ticks = [2.0**i - 1 for i in range(64) if 2.0**i - 1 <= high * BEYOND]
        axes.set_xticks(ticks, [style.count(tick) for tick in ticks])
        axes.set_xlim(-0.15, max(high, 1) * BEYOND)


def _groups(law: Law, rows: Sequence[Observation], fit: Fit) -> list[tuple[Fixed, list[Observation]]]:
    """Rows by the values of all inputs but the leading one; where there are many, one line at the medians without rows."""
    names_fixed = [name for name in law.inputs if name != law.leading]
    groups: dict[tuple[float, ...], list[Observation]] = {}
    for row in rows:
        groups.setdefault(tuple(float(getattr(row, name)) for name in names_fixed), []).append(row)
    if 1 <= len(groups) <= len(COLOURS):
        return [(dict(zip(names_fixed, key, strict=True)), members) for key, members in sorted(groups.items())]
    if groups:
        return [(dict(zip(names_fixed, np.median(list(groups), axis=0).tolist(), strict=True)), [])]
    return [({name: float(np.sqrt(np.prod(fit.domain[name]))) for name in names_fixed}, [])]


def _fixed_label(fixed: Fixed, observed: bool) -> str:
    """What the other inputs are held at."""
    if not fixed:
        return "law"
    at = ", ".join(
        f"{NAMES.get(name, name).rsplit(', ', 1)[-1]} = {style.count(value)}" for name, value in fixed.items()
    )
    return f"law at {at}" + ("" if observed else " (medians)")


def _grid(low: float, high: float) -> np.ndarray:
    """The leading input from a factor below its range to a factor above."""
    if low > 0:
        return np.geomspace(low / BEYOND, high * BEYOND, POINTS)
    return np.concatenate([[0.0], np.geomspace(1, max(high, 1) * BEYOND, POINTS)])


def _band(fit: Fit, law: Law, x: np.ndarray, fixed: Fixed) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and ends of the interval over the leading input."""
    inputs = {law.leading: x, **{name: np.full_like(x, value) for name, value in fixed.items()}}
    mean = np.clip(law.predict(fit.parameters, **inputs), *law.limits)
    low, high = np.quantile(predict_draws(fit, **inputs), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return mean, low, high


def _law(axes: Any, fit: Fit, law: Law, fixed: Fixed, colour: str, label: str, reach: tuple[float, float]) -> None:
    """Solid over the data, dashed beyond."""
    start, end = fit.domain[law.leading]
    x = np.union1d(_grid(*reach), [start, end])
    mean, low, high = _band(fit, law, x, fixed)
    axes.fill_between(x, low, high, color=colour, alpha=0.18, lw=0)
    inside = (x >= start) & (x <= end)
    axes.plot(x[inside], mean[inside], "-", color=colour, label=label)
    for part in (x <= start, x >= end):
        axes.plot(x[part], mean[part], "--", color=colour)


def _frame(
    axes: Any,
    fit: Fit,
    law: Law,
    groups: Sequence[tuple[Fixed, list[Observation]]],
    rows: Sequence[Observation],
    reach: tuple[float, float],
) -> None:
    """Limits of the output: all data and means, and the interval as far as it stays within twice their range of them."""
    x = np.union1d(_grid(*reach), fit.domain[law.leading])
    bands = [_band(fit, law, x, fixed) for fixed, _ in groups]
    core = np.array(
        [value for mean, _, _ in bands for value in mean] + [outcome(law, row) or np.nan for row in rows], dtype=float
    )
    bottom, top = np.nanmin(core), np.nanmax(core)
    room = 2 * max(top - bottom, 0.02 * abs(top))
    low = max(bottom - room, min(np.nanmin(low) for _, low, _ in bands))
    high = min(top + room, max(np.nanmax(high) for _, _, high in bands))
    low, high = min(low, bottom), max(high, top)
    axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _title(figure: Any, fit: Fit) -> None:
    """Law, formula, pool, and how far to trust it."""
    error = f", error on the largest run held out {fit.held_out_error:.3g}" if fit.held_out_error is not None else ""
    bound = f"; at its bound: {', '.join(fit.at_bound)}" if fit.at_bound else ""
    style.title(figure, f"{fit.law}: {fit.formula}\n{pool_words(fit)}\n{sample_words(fit)}{error}{bound}", 86)


def pool_words(fit: Fit) -> str:
    """What was held equal among the observations, counts as a reader writes them."""
    return re.sub(r"=(\d{5,}(?:\.\d+)?)", lambda match: f"={style.count(float(match[1]))}", _pool(fit))
