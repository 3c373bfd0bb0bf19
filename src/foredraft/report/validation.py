"""The figures of a validation, as PNG and SVG: τ by lookahead, throughput ratios, and what the choice of k costs.

Promises: every point drawn is in the Validation, measured beside predicted; a kind that was not judged has no figure.
Refuses to know: how predictions are made.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foredraft.report import style
from foredraft.report.style import BLACK, BLUE, GREEN, GREY, MARKERS, ORANGE, SKY, VERMILION
from foredraft.validate.findings import CurvePoint, LookaheadChoice, RatioPoint, Validation

MOST_PANELS, COLUMNS, NAME_WIDTH = 12, 4, 31
LOAD = "load: clients, or sequences in the batch"
ALLOWED = 0.1  # the band about equality


def draw_validation(validation: Validation, directory: str | Path) -> list[Path]:
    """Draw the figures that `validation` allows into `directory` and return the paths of the files, PNG and SVG of each."""
    figures: dict[str, Callable[[Any], None]] = {}
    if validation.curves:
        few = len({point.curve for point in validation.curves}) <= MOST_PANELS
        figures["validation_tokens_per_step"] = partial(_curves if few else _curve_scatter, points=validation.curves)
    if validation.ratios:
        title = "Output tokens/s over no speculation, predicted from no draft and k ≤ 2"
        figures["validation_ratios"] = partial(_ratios, points=validation.ratios, title=title)
    if validation.ladders:
        title = "Speedup over no speculation, predicted from shape and machine alone"
        figures["validation_ladders"] = partial(_ratios, points=validation.ladders, title=title)
    if validation.choices:
        figures["validation_regret"] = partial(_regret, validation=validation)
    return style.draw(directory, figures)


# --- τ by lookahead ---


def _curves(figure: Any, points: Sequence[CurvePoint]) -> None:
    """One panel per curve: measured, predicted with its interval, and a constant α."""
    names = list(dict.fromkeys(point.curve for point in points))
    common, differing = style.shared_parts(names)
    columns = min(len(names), COLUMNS if len(names) > 4 else 3)
    rows = -(-len(names) // columns)
    figure.set_size_inches(max(2.9 * columns, 6.5), 1.6 + 2.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _curve(axes, sorted((p for p in points if p.curve == name), key=lambda p: p.lookahead))
        axes.set_title(style.wrap(differing[name], NAME_WIDTH), fontsize=9)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[: len(names)]:
        axes.set(xlabel="lookahead k", ylabel="τ, tokens/step")
    style.title(figure, f"τ at k ≥ {min(p.lookahead for p in points)}, predicted from k ≤ 2\n{common}".strip())
    style.legend(figure, panels[:1])


def _curve(axes: Any, points: Sequence[CurvePoint]) -> None:
    k = [point.lookahead for point in points]
    low, high = ([float(getattr(point, end)) for point in points] for end in ("low", "high"))
    if len(k) > 1:
        axes.fill_between(k, low, high, color=SKY, alpha=0.3, lw=0, label="90 % interval")
    else:
        axes.vlines(k, low, high, color=SKY, lw=4, alpha=0.5, label="90 % interval")
    axes.plot(k, [point.predicted for point in points], "-", color=BLUE, label="predicted")
    axes.plot(k, [point.constant_alpha for point in points], "--", color=VERMILION, label="constant α")
    axes.plot(k, [point.measured for point in points], "o", color=BLACK, ms=5, label="measured", zorder=4)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _curve_scatter(figure: Any, points: Sequence[CurvePoint]) -> None:
    """All curves at once: predicted against measured τ, by lookahead."""
    figure.set_size_inches(7, 5.5)
    axes = figure.subplots()
    measured, predicted = (np.array([getattr(p, name) for p in points]) for name in ("measured", "predicted"))
    ends = np.array([(p.low, p.high) for p in points]).T
    axes.errorbar(measured, predicted, yerr=style.bars(predicted, *ends), fmt="none", ecolor=GREY, lw=0.8, alpha=0.5,
                  label="90 % interval")  # fmt: skip
    lookaheads = sorted({point.lookahead for point in points})
    colours = _sequence(len(lookaheads))
    for i, k in enumerate(lookaheads):
        here = np.array([point.lookahead == k for point in points])
        axes.plot(measured[here], predicted[here], MARKERS[i % len(MARKERS)], color=colours[i], mec=BLACK, mew=0.5, ms=6,
                  label=f"k = {k}")  # fmt: skip
    _equality(axes, np.concatenate([measured, predicted, ends.ravel()]))
    axes.set(xlabel="measured τ, tokens/step", ylabel="predicted τ, tokens/step")
    curves = len({point.curve for point in points})
    style.title(figure, f"τ at k ≥ {lookaheads[0]}, predicted from k ≤ 2: {curves} curves, {len(points)} points")
    style.legend(figure, [axes], most=5)


def _sequence(number: int) -> list[Any]:
    """Colours in an order that the eye and a grey print both see."""
    from matplotlib import colormaps

    return [colormaps["cividis"](x) for x in np.linspace(0, 1, max(number, 2))][:number]


def _equality(axes: Any, values: np.ndarray) -> None:
    """The line of equality and the band of ±10 % about it, on both axes alike."""
    span = np.array([0.93 * np.nanmin(values), 1.07 * np.nanmax(values)])
    band = f"±{style.percent(ALLOWED)}"
    axes.fill_between(
        span, (1 - ALLOWED) * span, (1 + ALLOWED) * span, color=GREEN, alpha=0.15, lw=0, label=band, zorder=0
    )
    axes.plot(span, span, "-", color=BLACK, lw=1, label="equal", zorder=1)
    axes.set(xlim=span, ylim=span, aspect="equal")


# --- Ratios to no speculation ---


def _ratios(figure: Any, points: Sequence[RatioPoint], title: str) -> None:
    """Predicted against measured ratio, coloured by load; a marker per setting where they are few."""
    from matplotlib.colors import LogNorm

    figure.set_size_inches(7, 6)
    axes = figure.subplots()
    settings = list(dict.fromkeys(point.setting for point in points))
    common, differing = style.shared_parts(settings)
    few = len(settings) <= len(MARKERS)
    loads = sorted({point.load for point in points})
    scale = LogNorm(loads[0] / 1.1, loads[-1] * 1.1)
    dots = None
    for i, setting in enumerate(settings):
        here = np.array([(p.measured, p.predicted, p.load) for p in points if p.setting == setting]).T
        label = style.wrap(differing[setting], 60) if few else None
        dots = axes.scatter(here[0], here[1], c=here[2], norm=scale, cmap="cividis", marker=MARKERS[i] if few else "o",
                            edgecolors=BLACK, linewidths=0.6, s=38, label=label, zorder=3)  # fmt: skip
    _equality(axes, np.array([(p.measured, p.predicted) for p in points]).ravel())
    if axes.get_xlim()[0] < 1:
        axes.axhline(1, color=GREY, lw=1, ls=":")
        axes.axvline(1, color=GREY, lw=1, ls=":", label="no speculation")
    axes.set(xlabel="measured ratio, × no speculation", ylabel="predicted ratio, × no speculation")
    if len(loads) > 1:
        bar = figure.colorbar(dots, ax=axes, label=LOAD)
        bar.set_ticks(loads, labels=[f"{load}" for load in loads])
        bar.minorticks_off()
    else:
        title += f", at load {loads[0]}"
    style.title(figure, f"{title}\n{common or style.plural(len(settings), 'setting')}, {len(points)} rows", 84)
    style.legend(figure, [axes])


# --- What the choice of k costs ---


def _regret(figure: Any, validation: Validation) -> None:
    """Throughput lost against the measured best k: by load with the k chosen, and against one k for all loads."""
    fixed = validation.fixed_regret
    figure.set_size_inches(9 if fixed else 6.5, 4.5)
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if fixed else [figure.subplots()]
    _regret_by_load(panels[0], validation.choices)
    if fixed:
        best = min(fixed, key=lambda k: fixed[k])
        panels[0].axhline(100 * fixed[best][0], color=VERMILION, ls="--", label=f"best fixed k, {best}: mean")
        panels[0].set_ylim(0, 100 * 1.1 * max(fixed[best][0], *(choice.regret for choice in validation.choices)))
        _regret_by_rule(panels[1], validation)
    number = style.plural(len(validation.choices), "choice")
    style.title(figure, f"Share of throughput lost against the measured best k: {number}, settings × loads", 110)
    style.legend(figure, panels)


def _regret_by_load(axes: Any, choices: Sequence[LookaheadChoice]) -> None:
    """Mean over settings as a bar, each setting as a circle."""
    loads = sorted({choice.load for choice in choices})
    lost = [[100 * choice.regret for choice in choices if choice.load == load] for load in loads]
    axes.bar(range(len(loads)), [np.mean(values) for values in lost], color=BLUE, width=0.6, label="predicted k, mean")
    x = [place for place, values in enumerate(lost) for _ in values]
    axes.plot(x, np.concatenate(lost), "o", mfc="white", mec=BLACK, ms=5, clip_on=False, zorder=4, label="each setting")
    axes.set_xticks(range(len(loads)), [f"{load}" for load in loads])
    axes.set(xlabel=LOAD, ylabel="throughput lost, %")
    axes.set_ylim(bottom=0)
    axes.grid(False, axis="x")


def _regret_by_rule(axes: Any, validation: Validation) -> None:
    """Mean and worst over all loads and settings: the prediction, and each fixed k."""
    regrets = [choice.regret for choice in validation.choices]
    rules = {"predicted": (float(np.mean(regrets)), max(regrets))}
    rules |= {f"{k}": ends for k, ends in sorted(validation.fixed_regret.items())}
    rows = np.arange(len(rules))
    mean, worst = 100 * np.array(list(rules.values())).T
    axes.barh(rows, mean, color=[BLUE] + [ORANGE] * (len(rules) - 1), height=0.6)
    axes.barh([0], [0], color=ORANGE, label="one fixed k, mean")
    axes.plot(worst, rows, "D", color=BLACK, ms=5, label="worst case")
    axes.set_yticks(rows, list(rules))
    axes.set(xlabel="throughput lost over all loads, %", ylabel="k at every load", xlim=(0, worst.max() * 1.08))
    axes.invert_yaxis()
    axes.grid(False, axis="y")
