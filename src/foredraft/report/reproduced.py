"""Both papers beside ours on one page and in one table: every published number, ours, how far apart, and whose constants stand behind it.

Promises: what could not be reproduced stands there with the reason. Refuses to know: how anything is computed.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from rich.text import Text

from foredraft import __version__
from foredraft.records import write_bytes
from foredraft.report import parting, scylla, sdsl
from foredraft.report.page import render
from foredraft.report.parts import NONE, Headline, Picture, Section, Table, signed
from foredraft.report.terminal import Blocks, Titled

HEAD = ("quantity", "published", "ours", "deviation", "constants")
COMMANDS = ("foredraft reproduce --out DIR", "foredraft reproduce sdsl", "foredraft reproduce scylla")
PAPER, GRID, FITTED = "the paper's", "our grid", "cost law fitted"
CONSTANTS = {
    PAPER: "as printed, none fitted; of SDSL the loss law (Hoffmann), the acceptance plane and D = D' = 1e11",
    GRID: "the paper's, on a grid of targets and tokens of our own, chosen knowing the published line",
    FITTED: "our cost law, its multipliers fitted on the table's column without a draft alone; τ, the paper's, of other targets",
}
NOT_REPRODUCED = {
    "SDSL, figure 1's points and the fit of the plane (R² 0.602)": "the perplexities of the pairs are not published: the plane's "
    "coefficients are taken as they are",
    "SDSL, Table 9 on its own grid": "the grid is not stated; the line hangs on it (three others are in reproduce sdsl)",
    "SDSL, appendix F's latencies": "measured on a machine that is not described: they are drawn as published, not computed",
    "Scylla, theorem 1.1's τ at 1 B tokens": "5.13 follows from the printed formula by no reading of its logarithm",
    "Scylla, theorem 1.3's tokens/s": "the printed line misses the paper's own Table 5 by a third to two thirds",
    "Scylla, the points behind theorems 1.1 and 1.2, and their R²": "neither the runs nor the target they are fitted on are published",
    "Scylla, tokens per step by task and its table 4": "found in no public text; τ of three targets is taken as published",
    "Scylla, training": "code, learning rate, batch and optimiser were not released: ours is another recipe (docs, results)",
}


def sdsl_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Table 5 and the line of Table 9."""
    rows = [
        (
            f"Table 5, N* of {row['target']}", _millions(row["paper_draft_params"]), _millions(row["draft_params"]),
            signed(row["relative_error"]) if row["relative_error"] is not None else NONE, PAPER,
        )
        for row in report["table_5"]
    ]  # fmt: skip
    ours, paper = report["table_9"], report["table_9_paper"]
    for label, key in (("Table 9, μ", "mu"), ("Table 9, M₀", "intercept")):
        low, high = paper[key][1:]
        inside = "inside" if low <= ours[key][0] <= high else "outside"
        rows.append(
            (
                label,
                f"{paper[key][0]:.3g}",
                f"{ours[key][0]:.3g}",
                f"{signed(ours[key][0] / paper[key][0] - 1)}, {inside}",
                GRID,
            )
        )
    slope = ours["draft_tokens_slope"][0]
    rows.append(
        (
            "Table 9, slope of N*/M in ln D",
            f"about {paper['draft_tokens_slope']:.0e}",
            f"{slope:.1e}",
            "base not stated",
            GRID,
        )
    )
    return rows


def _millions(params: float | None) -> str:
    return NONE if params is None else f"{params / 1e6:.4g} M"


def scylla_rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """What the theorems state, by the reading that fits best, and both drafts' columns of Table 5."""
    rows = []
    for theorem in report["theorems"]:
        for stated in theorem["stated"]:
            best = min(stated.get("readings", (stated,)), key=lambda says: abs(says["says"] - stated["value"]))
            agrees = (
                "within rounding"
                if best["agrees"]
                else f"{signed(best['says'] / stated['value'] - 1)}, beyond rounding"
            )
            name = theorem["name"].removeprefix("theorem_").replace("_", ".")
            rows.append(
                (
                    f"theorem {name}, {stated['what']}",
                    f"{stated['value']:g}",
                    f"{best['says']:.4g}",
                    agrees,
                    PAPER,
                )
            )
    for column in ("eagle2", "scylla"):
        for row in report["table_5"]["rows"]:
            cell = row[column]
            ours = f"{cell['predicted']:.0f} ({cell['low']:.0f}–{cell['high']:.0f})"
            what = f"Table 5, {scylla.LABELS[column]} at batch {row['batch']}, tokens/s"
            rows.append((what, f"{cell['published']:g}", ours, signed(cell["error"]), FITTED))
    return rows


def tables(reports: Mapping[str, Any]) -> Blocks:
    """Both papers and where our N* and SDSL's part, for a terminal."""
    blocks: Blocks = []
    for name, rows in (
        ("SDSL (arXiv 2603.11053)", sdsl_rows(reports["sdsl"])),
        ("Scylla (arXiv 2505.07858)", scylla_rows(reports["scylla"])),
    ):
        table = Titled(name, *HEAD)
        for row in rows:
            table.add_row(*(cell.replace("\u00a0", " ") for cell in row))
        blocks.append(table)
    blocks.append(Text("\n".join(_constants()), style="dim"))
    missing = Titled("Not reproduced", "what", "")
    for what, why in NOT_REPRODUCED.items():
        missing.add_row(what, why)
    return [*blocks, *parting.tables(reports["sdsl"]["parting"]), missing]


def _constants() -> list[str]:
    """Whose the constants are, in full."""
    return [f"{name}: {about}" for name, about in CONSTANTS.items()]


def write_reproduction(path: Path, reports: Mapping[str, Any]) -> Path:
    """The page of both, one file of HTML. Raises ImportError where the extra `report` is missing."""
    sections = [_sdsl(reports["sdsl"]), _scylla(reports["scylla"]), _parting(reports["sdsl"]["parting"]), _missing()]
    facts = [("made", f"by foredraft {__version__}"), ("sources", "arXiv 2603.11053 (SDSL), arXiv 2505.07858 (Scylla)")]
    write_bytes(path, render(_headline(reports), sections, (), facts, None).encode())
    return path


def _headline(reports: Mapping[str, Any]) -> Headline:
    worst, table = reports["sdsl"]["table_5_worst_relative_error"], reports["scylla"]["table_5"]
    stated = [says for each in reports["scylla"]["theorems"] for says in each["stated"]]
    agree = sum(any(says["agrees"] for says in each.get("readings", (each,))) for each in stated)
    errors = " and ".join(f"{100 * table[f'{column}_mean_error']:.0f}" for column in ("eagle2", "scylla"))
    text = (
        f"SDSL's best draft sizes follow from its theory within {100 * worst:.1f}\u00a0%; of what Scylla's theorems state {agree} of "
        f"{len(stated)} values do, and its Table 5 is met within {errors}\u00a0% on average."
    )
    return Headline(text, remarks=(reports["sdsl"]["parting"]["words"][0],), commands=COMMANDS[:1])


def _sdsl(report: Mapping[str, Any]) -> Section:
    lede = "The draft size N* of the most tokens per FLOP: from parameters and training tokens alone, with the paper's own constants."
    table = Table("Published and ours. Deviation: ours over published, less one", HEAD, sdsl_rows(report))
    return Section("sdsl", "SDSL (arXiv 2603.11053)", lede, _pictures(sdsl.FIGURES, sdsl.CAPTIONS), [table])


def _scylla(report: Mapping[str, Any]) -> Section:
    lede = (
        "Tokens per step by pretraining tokens, layers and batch as three theorems, and a table of speeds on 4 × H800."
    )
    table = Table(
        "Published and ours; brackets: 90\u00a0% intervals of our cost law and of τ", HEAD, scylla_rows(report)
    )
    return Section(
        "scylla",
        "Scylla (arXiv 2505.07858)",
        lede,
        _pictures(scylla.painters(report), scylla.CAPTIONS),
        [table],
        [*_constants(), *(f"Assumed: {note}" for note in report["assumes"])],
    )


def _parting(report: Mapping[str, Any]) -> Section:
    lede = "SDSL counts FLOPs and takes one acceptance plane; our laws count seconds on a machine. Each difference is switched by itself."
    picture = Picture(
        "parting",
        "N* by SDSL and by our laws",
        f"{report['assumes']}. No intervals; blue: sizes as good within 1\u00a0%.",
        partial(parting.paint, report=report),
        5.4,
    )
    table = Table(parting.title(report).partition("\n")[0], (*parting.HEAD, *report["causes"]), parting.rows(report))
    return Section("parting", "Where our N* and SDSL's part, and why", lede, [picture], [table], report["words"])


def _missing() -> Section:
    table = Table("What is published and was not reproduced", ("what", "why"), list(NOT_REPRODUCED.items()))
    return Section("missing", "Not reproduced", "What the papers leave out, or what needs their machines.", (), [table])


def _pictures(painters: Mapping[str, Callable[[Any], None]], captions: Mapping[str, tuple[str, str]]) -> list[Picture]:
    return [Picture(name.replace("_", "-"), *captions[name], paint, 4.4) for name, paint in painters.items()]
