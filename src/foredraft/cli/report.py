"""The verb `foredraft report`. Refuses to know: how anything is drawn; it imports its room when it runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.console import one_at_a_time


@one_at_a_time
def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR", help="Folders that hold records, searched through.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page, one file of HTML.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder for the page's figures as PNG and SVG; none without it.")
    ] = None,
) -> None:
    """One page of all records in DIR...: what was predicted, what was measured, and how far apart they are.

    Reads Plan.json, Fit*.json, observations.jsonl, measurements.jsonl, machine.json, sweep.json and the runs of train; the page
    says which record would fill a part that it lacks. It opens offline and prints.
    """
    from foredraft.report.page import write_page

    page = write_page(folders, out, figures)
    print(f"wrote {page.path}, {len(page.pictures)} figures", file=sys.stderr)
    if figures:
        print(f"wrote {len(page.figures)} files to {figures}", file=sys.stderr)
