"""The verb `foredraft reproduce`."""

from typing import Annotated

import typer

from foredraft.cli.console import print_blocks, print_json, say_written
from foredraft.cli.options import JSON, Figures, Out


def reproduce(
    what: Annotated[str, typer.Argument(help="sdsl: Table 5, Table 9 and the five figures of arXiv 2603.11053.")],
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Reproduce a paper's numbers from its own theory, beside the published ones."""
    from foredraft import records
    from foredraft.plan import sdsl

    if what != "sdsl":
        raise records.with_hint(ValueError(f"nothing named {what!r} to reproduce"), "foredraft reproduce sdsl")
    report = sdsl.reproduce()
    if out:
        records.write(out / "sdsl.json", report)
        written = [out / "sdsl.json"]
        if figures:
            from foredraft.report.sdsl import draw

            written += draw(out)
        say_written(written)
    if json:
        print_json(report)
        return
    from foredraft.report.terminal import sdsl_tables

    print_blocks(sdsl_tables(report))
