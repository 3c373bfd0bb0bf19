"""Where SDSL's best draft size and ours part: as a table, in words and as a figure. Refuses to know: how either is computed (`plan.parting`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from foredraft.report import style
from foredraft.report.style import BLACK, COLOURS, GREY, MARKERS, ORANGE, SKY
from foredraft.report.terminal import Blocks, Titled

FIGURE = "sdsl_6_parting"
HEAD = ("target", "machine", "SDSL", "ours", "as good", "gain", "with SDSL's N*")


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each target and machine: both sizes, those that gain as much within 1 %, the gain of each, and each cause's factor."""
    return [
        (
            case["target"], f"{case['devices']}×{case['machine'].removesuffix('-SXM-80GB')}", style.count(case["sdsl"]),
            f"{style.count(case['ours'])}{' (edge)' if case['at_edge'] else ''}", f"{style.count(case['low'])}–{style.count(case['high'])}",
            f"{case['gain']:.2f}", f"{case['gain_at_sdsl']:.2f}", *(f"×{case['share'][cause]:.2f}" for cause in report["causes"]),
        )
        for case in report["cases"]
    ]  # fmt: skip


def title(report: Mapping[str, Any]) -> str:
    return (
        "Where our N* and SDSL's part: parameters of the best independent draft, the factor by which each cause moves it (means over all "
        f"orders of switching, which multiply to the whole)\n{report['assumes']}"
    )


def tables(report: Mapping[str, Any]) -> Blocks:
    """Sizes and gains, then causes: a terminal is too narrow for both at once."""
    sizes = Titled(title(report), *HEAD)
    causes = Titled("By which factor each cause moves N*", *HEAD[:2], *report["causes"])
    for row in rows(report):
        cells = [cell.replace("\u00a0", " ") for cell in row]
        sizes.add_row(*cells[: len(HEAD)])
        causes.add_row(*cells[:2], *cells[len(HEAD) :])
    return [sizes, causes, Text("\n".join(report["words"]), style="dim")]


def draw(directory: str | Path, report: Mapping[str, Any]) -> list[Path]:
    """Draw the figure into `directory` and return the paths of its files."""
    return style.draw(directory, {FIGURE: lambda figure: paint(figure, report)})


def paint(figure: Any, report: Mapping[str, Any]) -> None:
    """Left both sizes of every case, right by which factor each cause moves the one to the other."""
    cases = report["cases"]
    figure.set_figheight(1.9 + 0.34 * len(cases))
    sizes, factors = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    places = np.arange(len(cases))
    for place, case in zip(places, cases, strict=True):
        sizes.plot((case["sdsl"], case["ours"]), (place, place), "-", color=GREY, lw=1, zorder=1)
        sizes.plot(
            (case["low"], case["high"]),
            (place, place),
            "-",
            color=SKY,
            lw=7,
            alpha=0.5,
            zorder=0,
            solid_capstyle="butt",
        )
    sizes.plot([], [], "-", color=SKY, lw=7, alpha=0.5, label="as good within 1\u00a0%")
    sizes.plot(
        [case["sdsl"] for case in cases], places, "o", mfc="white", mec=BLACK, ms=6, ls="none", label="SDSL's N*"
    )
    sizes.plot([case["ours"] for case in cases], places, "*", color=ORANGE, mec=BLACK, ms=10, ls="none", label="our N*")
    names = [f"{case['target']}\n{case['devices']}×{case['machine'].removesuffix('-SXM-80GB')}" for case in cases]
    sizes.set_yticks(places, names)
    sizes.set_ylim(len(cases) - 0.5, -0.5)
    sizes.set(xscale="log", xlabel="draft parameters")
    style.log_axis(sizes.xaxis, style.count, (1.0, 3.0))
    step = 0.7 / len(report["causes"])
    for i, cause in enumerate(report["causes"]):
        at = places + step * (i - (len(report["causes"]) - 1) / 2)
        factors.plot(
            [case["share"][cause] for case in cases], at, MARKERS[i], color=COLOURS[i], ms=4.5, ls="none", label=cause
        )
    factors.axvline(1, color=BLACK, lw=1, ls="--")
    factors.set(xscale="log", xlabel="factor on N*")
    style.log_axis(factors.xaxis)
    for axes in (sizes, factors):
        axes.grid(False, axis="y")
    style.title(figure, "Where our N* and SDSL's part, and by which cause", 88)
    style.legend(figure, [sizes, factors])
