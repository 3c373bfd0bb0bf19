"""The verb `foredraft reproduce`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from foredraft.cli.console import one_at_a_time, print_blocks, print_json, say_written
from foredraft.cli.options import JSON, Figures, Out

PAPERS = ("sdsl", "scylla")


@one_at_a_time
def reproduce(
    what: Annotated[
        str,
        typer.Argument(
            help="sdsl: Table 5, Table 9 and the five figures of arXiv 2603.11053. scylla: theorems 1.1 to 1.3 and Table 5 of arXiv 2505.07858."
        ),
    ],
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Reproduce a paper's numbers beside the published ones: from its own theory, and of its measurements what our laws give."""
    from foredraft import records

    if what not in PAPERS:
        message = f"nothing named {what!r} to reproduce: {' or '.join(PAPERS)}"
        raise records.with_hint(ValueError(message), f"foredraft reproduce {PAPERS[0]}")
    report, tables = _sdsl() if what == "sdsl" else _scylla()
    if out:
        records.write(out / f"{what}.json", report)
        say_written([out / f"{what}.json", *(_drawn(what, out, report) if figures else ())])
    if json:
        print_json(report)
    else:
        print_blocks(tables(report))


def _sdsl() -> tuple[dict[str, Any], Any]:
    """What is reproduced, and what lays it out for people."""
    from foredraft.plan.sdsl import reproduce
    from foredraft.report.terminal import sdsl_tables

    return reproduce(), sdsl_tables


def _scylla() -> tuple[dict[str, Any], Any]:
    from foredraft.plan.scylla import reproduce
    from foredraft.report.scylla import tables

    return reproduce(), tables


def _drawn(what: str, out: Path, report: dict[str, Any]) -> list[Path]:
    """The figures' files; none, and a note on stderr, where matplotlib is not installed."""
    from foredraft.report import scylla, sdsl

    try:
        return sdsl.draw(out) if what == "sdsl" else scylla.draw(out, report)
    except ImportError as error:
        print(f"note: {error}", file=sys.stderr)
        return []
