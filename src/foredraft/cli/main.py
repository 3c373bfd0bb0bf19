"""One verb per arrow. Data on stdout, talk on stderr; an error is one line and a hint with what to try next.

Refuses to know: how anything is computed; every verb imports its room when it runs, so that `--help` stays instant.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft import __version__
from foredraft.cli.console import JSON, fail, print_blocks, print_json
from foredraft.cli.data import app as data_app
from foredraft.cli.deploy import app as deploy_app
from foredraft.cli.generate import bench, generate
from foredraft.cli.measure import measure, probe
from foredraft.cli.plan import fit, plan, reproduce, validate
from foredraft.cli.report import report
from foredraft.cli.sweep import sweep
from foredraft.cli.train import train

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Say which draft to train for speculative decoding before training it, with an interval on every number.",
)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
for verb in (train, report, probe, measure, sweep, plan, fit, validate, reproduce, generate, bench):
    app.command()(verb)


def main() -> None:
    """Run the command line; a ValueError or a missing file becomes one line on stderr and exit code 2."""
    try:
        app()
    except (OSError, ValueError, ImportError) as error:
        fail(error)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def tour(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the tour makes.")] = Path("tour"),
    zoo: Annotated[Path, typer.Option(help="Folder of trained models, of the repository.")] = Path("zoo"),
    observations: Annotated[Path, typer.Option(help="What was measured on its target.")] = Path(
        "results/experiment/observations.jsonl"
    ),
) -> None:
    """The whole loop in five minutes: probe, plan, train the planned draft briefly, decode, measure, report."""
    from foredraft.cli.tour import tour as run

    page = run(zoo, observations, out)
    print(f"\nwrote {page}: what was predicted, and what came out", file=sys.stderr)


@app.command("list")
def show(what: Annotated[str, typer.Argument(help="models, machines or laws.")], json: JSON = False) -> None:
    """What is known by name: model shapes, machines, laws."""
    from foredraft.report.terminal import named_things

    things = named_things(what)
    if json:
        print_json(things)
        return
    from foredraft.report.terminal import listing

    print_blocks([listing(what, things)])


if __name__ == "__main__":
    main()
