"""The verb `foredraft page`. Refuses to know: what the page looks like; how anything is planned."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli.options import ObservationFiles, TargetNames, whole

if TYPE_CHECKING:
    from foredraft.plan.session import PlanArguments
    from foredraft.records import Observation

PAGE = "pip install 'foredraft[page]'"


def page(
    target: Annotated[
        str | None,
        typer.Argument(help="What the page starts with: a public model, a folder of yours with a config.json, or a Shape as JSON."),
    ] = None,
    machine: Annotated[
        list[str] | None, typer.Option("--machine", "-m", help="Start with this machine, or Machine record (a .json file); repeat to offer more.")
    ] = None,
    observations: ObservationFiles = None,
    target_name: TargetNames = None,
    plan: Annotated[Path | None, typer.Option("--plan", help="Write the page of this Plan.json to --out, and serve none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="With --plan: the page, one file of HTML that stands alone.")] = None,
    port: Annotated[int, typer.Option(help="Port on this machine.", callback=whole(1, 65535))] = 8765,
) -> None:  # fmt: skip
    """The planner as a page on this machine: change the load, the machine or the prices, and see which draft to take.

    It serves http://127.0.0.1:8765 until Ctrl-C, asks nothing of the network, and works offline. With --plan it writes one plan's page as a
    file instead.
    """
    if (plan is None) != (out is None):
        raise ValueError("--plan and --out: both are needed to write the page of a plan; none to serve it")
    if plan and out:
        _write(plan, out, _rows(observations, target_name, None))
        return
    _need()
    from foredraft.page.planner import Planner
    from foredraft.page.server import application, serve

    targets, machines = _targets(target), _machines(machine or ())
    defaults = ({"target": target} if target else {}) | ({"machine": next(iter(machines))} if machines else {})
    rows = _rows(observations, target_name, _name(targets.get(target or ""), target))
    files = [str(file) for file in observations or ()]
    app = application(Planner(_reader(targets, machines, rows), rows, files), defaults, list(targets), list(machines))
    print(f"http://127.0.0.1:{port}/", flush=True)
    print("Ctrl-C stops it", file=sys.stderr)
    serve(app, port)


def _need() -> None:
    """Raise ImportError, one line with the remedy, where the extra is missing."""
    from foredraft.records import with_hint

    try:
        import jinja2  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise with_hint(ImportError(f"foredraft page needs {error.name}: {PAGE}"), PAGE) from None


def _write(plan: Path, out: Path, rows: "list[Observation]") -> None:
    from foredraft.page.html import plan_page
    from foredraft.records import Plan, read, write_bytes

    write_bytes(out, plan_page(read(Plan, plan), rows).encode())
    print(f"wrote {out}", file=sys.stderr)


def _rows(files: list[Path] | None, names: list[str] | None, target: str | None) -> "list[Observation]":
    from foredraft.cli.console import rows_by_file

    return [row for part in rows_by_file(files or (), names, target).values() for row in part]


def _targets(target: str | None) -> dict[str, Path]:
    """The user's own target, by its path as typed; none of a public one. Raises ValueError where it is no model."""
    if target is None or not os.path.exists(target):
        return {}
    from foredraft import shapes

    shapes.named(target)
    return {target: Path(target)}


def _name(path: Path | None, target: str | None) -> str | None:
    """By which the user's rows may know the target."""
    if path is None:
        return target
    from foredraft import shapes

    return shapes.named(str(path)).name


def _machines(names: "list[str] | tuple[str, ...]") -> dict[str, str]:
    """Machines that the page offers first: files of records as typed, or known ones by name."""
    from foredraft import machines

    records = {name: machines.named(name) for name in names}
    return {name if name.lower().endswith(".json") else record.name: name for name, record in records.items()}


def _reader(
    targets: Mapping[str, Path], machines: Mapping[str, str], rows: "list[Observation]"
) -> "Callable[[Mapping[str, str]], PlanArguments]":
    """From the page's inputs to the planner's arguments, through the options of `foredraft plan`, each judged by itself first. No input
    names a file: what the user gave at the start goes by its name.
    """
    from foredraft import shapes
    from foredraft.cli.plan import plan, plan_arguments
    from foredraft.page import inputs as of_page
    from foredraft.page.planner import BadInput, blamed

    app = typer.Typer(add_completion=False)
    app.command()(plan)
    command = typer.main.get_command(app)

    def read(inputs: Mapping[str, str]) -> "PlanArguments":
        faults = {}
        for name, value in inputs.items():
            if name in ("machine", "train_machine") and value.lower().endswith(".json") and value not in machines:
                faults[name] = "must be a name; a record's file is given when the page is started"
            elif name != of_page.VERSION and (
                why := _fault(command, name, value, of_page.FIELDS[name].kind == "check")
            ):
                faults[name] = why
        if faults:
            raise BadInput(faults)
        options = _parsed(command, of_page.words(inputs))
        options["machine"] = machines.get(options["machine"], options["machine"])
        try:
            name = options["target"]
            shape = shapes.named(str(targets[name])) if name in targets else shapes.shape(name)
        except ValueError as error:
            raise BadInput({"target": str(error)}) from None
        try:
            asked = plan_arguments(options, shape)
        except ValueError as error:
            raise BadInput(blamed(error)) from None
        return asked._replace(observations=rows)

    return read


def _parsed(command: Any, words: list[str]) -> dict[str, Any]:
    return command.make_context("plan", words).params


def _fault(command: Any, name: str, value: str, is_flag: bool) -> str:
    """Why one option cannot be so, in the command line's words without the option; "" where it can."""
    flag = f"--{name.replace('_', '-')}"
    words = [value] if name == "target" else ["x", flag] if is_flag else ["x", flag, value]
    try:
        _parsed(command, words)
    except Exception as error:
        usage = getattr(
            error, "format_message", None
        )  # typer's own complaints, whose class moves from version to version
        if usage is None and not isinstance(error, ValueError):
            raise
        words_of_it = usage() if usage else str(error)
        return words_of_it.partition(f"{flag} ")[2] or words_of_it.rpartition(": ")[2]
    return ""
