"""The verb `foredraft reproduce`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from foredraft.cli.console import one_at_a_time, print_blocks, print_json, say_written
from foredraft.cli.options import JSON, Figures, Out

PAPERS = ("sdsl", "scylla")
BOTH = "papers"  # names the page and the document of both


@one_at_a_time
def reproduce(
    what: Annotated[
        str | None,
        typer.Argument(
            help="sdsl: Table 5, Table 9, the five figures of arXiv 2603.11053, and where our N* parts from it. scylla: theorems 1.1 to 1.3 and "
            "Table 5 of arXiv 2505.07858. Left out: both side by side."
        ),
    ] = None,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Reproduce a paper's numbers beside the published ones: from its own theory, and of its measurements what our laws give."""
    from foredraft import records
    from foredraft.report import reproduced

    if what not in (None, *PAPERS):
        message = f"nothing named {what!r} to reproduce: {' or '.join(PAPERS)}, or nothing for both"
        raise records.with_hint(ValueError(message), f"foredraft reproduce {PAPERS[0]}")
    reports = {name: COMPUTED[name]() for name in PAPERS if what in (None, name)}
    report = reports if what is None else reports[what]
    if out:
        name = what or BOTH
        records.write(out / f"{name}.json", report)
        pages = [reproduced.write_reproduction(out / f"{BOTH}.html", reports)] if what is None and figures else []
        say_written([out / f"{name}.json", *pages, *(_drawn(out, reports) if figures else ())])
    if json:
        print_json(report)
    elif what is None:
        print_blocks(reproduced.tables(reports))
    else:
        print_blocks(_tables(what, report))


def _sdsl() -> dict[str, Any]:
    from foredraft.plan import parting, sdsl

    return sdsl.reproduce() | {"parting": parting.parting()}


def _scylla() -> dict[str, Any]:
    from foredraft.plan.scylla import reproduce

    return reproduce()


COMPUTED: dict[str, Callable[[], dict[str, Any]]] = {"sdsl": _sdsl, "scylla": _scylla}


def _tables(what: str, report: dict[str, Any]) -> list[Any]:
    from foredraft.report import parting, scylla
    from foredraft.report.terminal import sdsl_tables

    return scylla.tables(report) if what == "scylla" else [*sdsl_tables(report), *parting.tables(report["parting"])]


def _drawn(out: Path, reports: dict[str, Any]) -> list[Path]:
    """The figures' files; none, and a note on stderr, where matplotlib is not installed."""
    from foredraft.report import parting, scylla, sdsl

    try:
        paths = [*sdsl.draw(out), *parting.draw(out, reports["sdsl"]["parting"])] if "sdsl" in reports else []
        return [*paths, *(scylla.draw(out, reports["scylla"]) if "scylla" in reports else ())]
    except ImportError as error:
        print(f"note: {error}", file=sys.stderr)
        return []
