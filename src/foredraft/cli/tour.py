"""The verb `foredraft tour`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.console import check_models, one_at_a_time


@one_at_a_time
def tour(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the tour makes.")] = Path("tour"),
    zoo: Annotated[Path, typer.Option(help="Folder of trained drafts, of the repository.")] = Path("zoo"),
    observations: Annotated[
        Path | None, typer.Option(help="What was measured on the target.", show_default="the repository's")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the target, where it is there; else it is fetched.", show_default="SmolLM2-135M-Instruct"
        ),
    ] = None,
    cache: Annotated[Path, typer.Option(help="Folder in which what is fetched stays.")] = Path("build/smollm2"),
) -> None:
    """The whole loop in minutes: fetch, convert, probe, plan, decode, train for a minute, measure, report."""
    from foredraft.tour import ITINERARY
    from foredraft.tour import tour as run

    if target is not None:
        check_models(f"{target}", ())
    page = run(zoo, observations or Path(ITINERARY.observations), out, cache=cache, target=target)
    print(f"\nwrote {page}: what was predicted, and what came out", file=sys.stderr)
