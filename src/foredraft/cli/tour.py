"""The verb `foredraft tour`."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def tour(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the tour makes.")] = Path("tour"),
    zoo: Annotated[Path, typer.Option(help="Folder of trained models, of the repository.")] = Path("zoo"),
    observations: Annotated[
        Path | None, typer.Option(help="What was measured on its target.", show_default="the repository's")
    ] = None,
) -> None:
    """The whole loop in five minutes: probe, plan, train the planned draft briefly, decode, measure, report."""
    from foredraft.tour import ITINERARY
    from foredraft.tour import tour as run

    page = run(zoo, observations or Path(ITINERARY.observations), out)
    print(f"\nwrote {page}: what was predicted, and what came out", file=sys.stderr)
