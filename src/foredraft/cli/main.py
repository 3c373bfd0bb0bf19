"""One verb per arrow. Data on stdout, talk on stderr; an error is one line and a hint with what to try next.

A file per verb, which holds its options and how its result is shown. Refuses to know: how anything is computed; every verb imports
its room when it runs, so that `--help` stays instant.
"""

import os
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from foredraft import __version__
from foredraft.cli.bench import bench
from foredraft.cli.calibrate import calibrate
from foredraft.cli.chat import chat
from foredraft.cli.console import command_of, fail, fail_bug, fail_memory, fail_usage, is_out_of_memory, options_of
from foredraft.cli.convert import convert
from foredraft.cli.data import app as data_app
from foredraft.cli.deploy import app as deploy_app
from foredraft.cli.fit import fit
from foredraft.cli.generate import generate
from foredraft.cli.interrupted import interruption, verb_of
from foredraft.cli.list import show
from foredraft.cli.measure import measure
from foredraft.cli.page import page
from foredraft.cli.plan import plan
from foredraft.cli.probe import probe
from foredraft.cli.report import report
from foredraft.cli.reproduce import reproduce
from foredraft.cli.sweep import sweep
from foredraft.cli.tour import tour
from foredraft.cli.train import train
from foredraft.cli.validate import validate

STOPPED = 130  # a shell's exit code of what Ctrl-C ended

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Say which draft to train for speculative decoding before training it, with an interval on every number.",
)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
for verb in (
    train,
    report,
    probe,
    measure,
    calibrate,
    sweep,
    plan,
    page,
    fit,
    validate,
    reproduce,
    generate,
    chat,
    bench,
    tour,
    convert,
):
    app.command()(verb)
app.command("list")(show)


def main() -> None:
    """Run the command line; whatever stops it becomes one line on stderr: exit code 2 where the user can mend it, 1 where it is a bug.

    With --debug, anywhere on the line, the traceback stands before it.
    """
    words = sys.argv[1:]
    debug = "--debug" in (words[: words.index("--")] if "--" in words else words)
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False) or 0
        if code == STOPPED:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        raise SystemExit(code)
    except (typer.Abort, KeyboardInterrupt):
        groups = [group.name or "" for group in app.registered_groups]
        print(interruption(verb_of(sys.argv[1:], groups)), file=sys.stderr)
        raise SystemExit(STOPPED) from None
    except BrokenPipeError:  # whoever read our output has had enough of it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    if is_out_of_memory(error):
        fail_memory(error)
    if isinstance(error, OSError | ValueError | ImportError):
        fail(error, options_of(app, sys.argv[1:]))
    if hasattr(error, "format_message"):  # typer's own complaints, whose class moves from version to version
        fail_usage(error)
    fail_bug(error, command_of(app, sys.argv[1:]))


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; anywhere on the line.")
    ] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


if __name__ == "__main__":
    main()
