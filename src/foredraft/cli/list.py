"""The verb `foredraft list`."""

from typing import Annotated

import typer

from foredraft.cli.console import print_blocks, print_json
from foredraft.cli.options import JSON


def show(
    what: Annotated[str, typer.Argument(help="models, machines, laws, kinds (of draft) or heads (public ones).")],
    name: Annotated[
        str | None, typer.Argument(help="Of models: one by name or folder; with --json as plan --shape reads it.")
    ] = None,
    json: JSON = False,
) -> None:
    """What is known by name: model shapes, machines, laws, kinds of draft, public heads; or one model's parameters, formats and cache."""
    from foredraft.report.shapes import shape_facts
    from foredraft.report.terminal import listing, named_things

    if name and what == "models":
        from foredraft.shapes import named

        shape = named(name)
        things, record = shape_facts(shape), shape
    else:
        things = record = named_things(what, name)
    if json:
        print_json(record)
    else:
        print_blocks([listing(name or what, things)])
