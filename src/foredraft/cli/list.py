"""The verb `foredraft list`."""

from typing import Annotated

import typer

from foredraft.cli.console import print_blocks, print_json
from foredraft.cli.options import JSON


def show(what: Annotated[str, typer.Argument(help="models, machines or laws.")], json: JSON = False) -> None:
    """What is known by name: model shapes, machines, laws."""
    from foredraft.report.terminal import named_things

    things = named_things(what)
    if json:
        print_json(things)
        return
    from foredraft.report.terminal import listing

    print_blocks([listing(what, things)])
