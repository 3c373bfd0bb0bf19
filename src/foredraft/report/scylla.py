"""The Scylla reproduction as tables and as figures (arXiv 2505.07858).

Promises: every number shown comes from `plan.scylla.reproduce`, computed or published, and says which. Refuses to know: how the
numbers are computed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from foredraft.laws.scylla import LogTheorem, published_scylla
from foredraft.report import style
from foredraft.report.style import BLACK, BLUE, COLOURS, GREEN, GREY, ORANGE, VERMILION
from foredraft.report.terminal import Blocks, Titled

LABELS = {"none": "no draft", "eagle2": "EAGLE-2", "scylla": "Scylla"}
LOOKS = {"none": (GREY, "o"), "eagle2": (ORANGE, "s"), "scylla": (BLUE, "^")}


def tables(report: Mapping[str, Any]) -> Blocks:
    """The stated values under each reading, Table 5 predicted and published, other readings of it, and what is assumed."""
    blocks: Blocks = [_stated(report["theorems"])]
    blocks += [
        Text(f"{_number(each)}, open: {'; '.join(each['ambiguities'])}", style="dim") for each in report["theorems"]
    ]
    line = next(each["throughput"] for each in report["theorems"] if "throughput" in each)
    misses = ", ".join(f"{LABELS[column]} {miss:.0%}" for column, miss in line["mean_error_of"].items())
    blocks += [Text(f"theorem 1.3's throughput line misses Table 5's columns by (mean): {misses}", style="dim")]
    blocks += [_table_5(report["table_5"]), _readings(report)]
    return [*blocks, Text("\n".join(f"assumes: {note}" for note in report["assumes"]), style="dim")]


def _stated(theorems: list[Mapping[str, Any]]) -> Titled:
    formulas = "\n".join(f"{_number(theorem)}: {theorem['formula']}, {theorem['about']}" for theorem in theorems)
    columns = ("law", "of", "stated", "gives", "read as", "agrees")
    table = Titled(
        f"Scylla's theorems: what they give for what the paper states, and whether within rounding\n{formulas}",
        *columns,
    )
    for theorem in theorems:
        for stated in theorem["stated"]:
            for says in stated.get("readings", (stated,)):
                agrees = "yes" if says["agrees"] else "no"
                value, gives = f"{stated['value']:g}", f"{says['says']:.4g}"
                table.add_row(_number(theorem), stated["what"], value, gives, says.get("reading", "as printed"), agrees)
        for pairing in theorem.get("pairings", ()):
            gives = ", ".join(f"{tau:.2f}" for tau in pairing["tokens_per_step"])
            sizes = ", ".join(f"{size / 1e6:.0f}" for size in pairing["params"])
            table.add_row(_number(theorem), f"τ at {sizes} M", "", gives, pairing["name"], "")
    return table


def _number(theorem: Mapping[str, Any]) -> str:
    """1.1 of theorem_1_1."""
    return theorem["name"].removeprefix("theorem_").replace("_", ".")


def _table_5(table_5: Mapping[str, Any]) -> Titled:
    """Both columns, and the best number of verified tokens by either law."""
    mean = " and ".join(f"{LABELS[c]} {table_5[f'{c}_mean_error']:.1%}" for c in ("eagle2", "scylla"))
    title = (
        f"Table 5, {table_5['target']} on {table_5['devices']}×{table_5['machine']}, tokens/s: published, and from the plain column and τ\n"
        f"mean error {mean}; EAGLE-2 falls below no draft at {table_5['eagle2_below_none']}, published {table_5['eagle2_below_none_published']}"
    )
    table = Titled(
        title,
        "batch",
        "no draft",
        "EAGLE-2",
        "predicted",
        "error",
        "Scylla",
        "predicted ",
        "error ",
        "nodes",
        "k_opt",
        "best nodes",
    )
    for row in table_5["rows"]:
        columns = []
        for name in ("eagle2", "scylla"):
            column = row[name]
            columns += [
                f"{column['published']:g}", f"{column['predicted']:.0f} [{column['low']:.0f}, {column['high']:.0f}]", f"{column['error']:+.0%}",
            ]  # fmt: skip
        nodes = row["scylla"]["nodes"]
        best = row["scylla"]["best_nodes"]
        table.add_row(
            str(row["batch"]), f"{row['none']['published']:g}", *columns, str(nodes), f"{row['k_opt']:.1f}", str(best)
        )
    return table


def _readings(report: Mapping[str, Any]) -> Titled:
    table = Titled(
        "Table 5 under other readings", "", "EAGLE-2, mean error", "Scylla, mean error", "EAGLE-2 below no draft at"
    )
    for reading in [report["table_5"] | {"name": "as assumed"}, *report["other_readings"]]:
        table.add_row(
            reading["name"],
            f"{reading['eagle2_mean_error']:.1%}",
            f"{reading['scylla_mean_error']:.1%}",
            str(reading["eagle2_below_none"] or "none"),
        )
    return table


def draw(directory: str | Path, report: Mapping[str, Any]) -> list[Path]:
    """Draw all figures into `directory` and return the paths of the files, PNG and SVG of each."""
    return style.draw(directory, painters(report))


def painters(report: Mapping[str, Any]) -> dict[str, Callable[[Any], None]]:
    """What draws each figure, by name."""
    paper = published_scylla()
    return {
        "scylla_1_tokens": partial(_log_theorem, theorem=paper.theorem_1_1, label="pretraining tokens T"),
        "scylla_2_layers": partial(_log_theorem, theorem=paper.theorem_1_2, label="decoder layers D"),
        "scylla_3_paths": partial(_paths, report=report),
        "scylla_4_table_5": partial(_throughput, report=report),
    }


CAPTIONS = {
    "scylla_1_tokens": ("Theorem 1.1: τ by pretraining tokens", "The formula as it may be read; shaded: its coefficients' rounding, no intervals."),
    "scylla_2_layers": ("Theorem 1.2: τ by decoder layers", "The printed formula; shaded: its coefficients' rounding, no intervals."),
    "scylla_3_paths": ("Theorem 1.3: paths by batch", "The printed formula beside the trees of our cost law; shaded: rounding, no intervals."),
    "scylla_4_table_5": ("Table 5: tokens/s by batch", "Points as published, lines from the plain column and τ; shaded: 90\u00a0% intervals."),
}  # fmt: skip


def _log_theorem(figure: Any, theorem: LogTheorem, label: str) -> None:
    """Each reading's line with the rounding of its coefficients, and what the paper states."""
    axes = figure.subplots()
    at = np.geomspace(*theorem.domain, 100)
    for reading, colour in zip(theorem.readings, COLOURS, strict=False):
        middle, off = theorem.tokens_per_step(at, reading), theorem.rounding(at, reading)
        axes.plot(at, middle, color=colour, label=reading.name)
        axes.fill_between(at, middle - off, middle + off, color=colour, alpha=0.15, lw=0)
    points = [(stated.at, stated.value) for stated in theorem.stated if stated.over is None]
    if points:
        axes.plot(*np.array(points).T, "*", color=VERMILION, mec=BLACK, ms=12, label="stated")
    for pairing, marker in zip(theorem.pairings, ("o", "s"), strict=False):
        axes.plot(
            pairing.layers,
            theorem.tokens_per_step(pairing.layers),
            marker,
            mfc="none",
            mec=BLACK,
            ms=8,
            label=f"138, 275, 413 M: {pairing.name}",
        )
    axes.set(xscale="log", xlabel=label, ylabel="τ, tokens per step")
    style.log_axis(axes.xaxis, style.count)
    figure.suptitle(f"{theorem.formula}; shaded: rounding of the coefficients", fontsize=10)
    figure.legend(ncols=1 if theorem.pairings else 2, loc="outside lower center")


def _paths(figure: Any, report: Mapping[str, Any]) -> None:
    """Theorem 1.3's k_opt beside the tree that our cost law would have, by batch."""
    axes = figure.subplots()
    rows, theorem = report["table_5"]["rows"], published_scylla().theorem_1_3
    batch = np.geomspace(*theorem.domain, 100)
    middle, off = theorem.best_paths(batch), theorem.rounding(batch)
    axes.plot(batch, middle, color=BLACK, label="k_opt, theorem 1.3")
    axes.fill_between(batch, middle - off, middle + off, color=BLACK, alpha=0.15, lw=0)
    for name in ("eagle2", "scylla"):
        colour, marker = LOOKS[name]
        verified = [row[name]["best_nodes"] + 1 for row in rows]
        axes.plot(
            [row["batch"] for row in rows],
            verified,
            marker,
            color=colour,
            ls="-",
            label=f"our cost law, {LABELS[name]}'s acceptance",
        )
    axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="verified tokens per sequence at the most tokens/s")
    style.log_axis(axes.xaxis, style.count)
    style.log_axis(axes.yaxis, style.count)
    figure.suptitle("Where verification turns from memory to compute", fontsize=10)
    style.legend(figure, [axes], most=2)


def _throughput(figure: Any, report: Mapping[str, Any]) -> None:
    """Table 5: published as points, predicted as lines with their intervals, theorem 1.3's own line dotted."""
    axes = figure.subplots()
    rows = report["table_5"]["rows"]
    batch = [row["batch"] for row in rows]
    for name, (colour, marker) in LOOKS.items():
        column = [row[name] for row in rows]
        axes.plot(
            batch,
            [cell["published"] for cell in column],
            marker,
            color=colour,
            mec=BLACK,
            ms=7,
            ls="none",
            label=f"{LABELS[name]}, published",
        )
        key = "calibrated" if name == "none" else "predicted"
        axes.plot(batch, [cell[key] for cell in column], color=colour, label=f"{LABELS[name]}, {key}")
        if name != "none":
            axes.fill_between(
                batch,
                [cell["low"] for cell in column],
                [cell["high"] for cell in column],
                color=colour,
                alpha=0.15,
                lw=0,
            )
    line = published_scylla().theorem_1_3.throughput(np.array(batch))
    axes.plot(batch, line, ":", color=GREEN, label="theorem 1.3's throughput")
    axes.set(xscale="log", xlabel="batch", ylabel="output tokens/s")
    style.log_axis(axes.xaxis, style.count)
    table = report["table_5"]
    figure.suptitle(
        f"Table 5, {table['target']} on {table['devices']}×{table['machine']}: from the plain column and τ", fontsize=10
    )
    style.legend(figure, [axes], most=3)
