"""The verb `foredraft sweep`. Refuses to know: how anything is computed; it imports its room when it runs."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foredraft.cli.console import print_blocks, print_json
from foredraft.cli.options import JSON, PROCESSES, real, whole

if TYPE_CHECKING:
    from foredraft.sweep.local_runner import Runner
    from foredraft.sweep.run import Driver


def sweep(
    grid: Annotated[Path, typer.Argument(help="A sweep's document (docs/guides/study.md).")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the sweep; one that is there goes on.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, in order, and stop.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            "--ray",
            help="Run on the Ray cluster at this address (or auto), or on one started here (local). Paths must be shared.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Cells at once, here or on --ray local.", callback=whole(1, PROCESSES))
    ] = 1,
    cpus_per_cell: Annotated[
        int | None,
        typer.Option(
            help="Processors of a cell, and its threads; an even share by default, 1 on Ray.",
            callback=whole(1, PROCESSES),
        ),
    ] = None,
    gpus_per_cell: Annotated[
        float, typer.Option(help="Accelerators of a cell; Ray hands them out.", callback=real(least=0, most=PROCESSES))
    ] = 0.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run cells that failed before again.")] = False,
    redo: Annotated[
        list[str] | None, typer.Option("--redo", help="Forget this cell and what depends on it, and run it anew.")
    ] = None,
    json: JSON = False,
) -> None:
    """Run GRID's cells, each verb in a process and a folder of its own; one that fails costs that cell only. Again: goes on.

    Exit code 1 where cells failed, after all the others have run; 130 after an interrupt, with everything saved.
    """
    from foredraft.sweep.cells import ordered
    from foredraft.sweep.expand import expand, grid_of
    from foredraft.sweep.planned import planned
    from foredraft.sweep.run import prepared

    document = grid_of(grid)
    if gpus_per_cell and ray is None:
        raise ValueError(
            "--gpus-per-cell needs --ray, which hands accelerators out; --ray local does so on one machine"
        )
    extra = planned(document)
    cells = ordered([*expand(document), *extra.cells])
    for run, why in extra.left_out.items():
        print(f"left out of the plan's next runs: {run}: {why}", file=sys.stderr)
    folder = prepared(cells, out, Path.cwd(), redo or (), dry=dry_run)
    threads = _threads(cpus_per_cell, workers, ray)
    runner = None if dry_run else _runner(ray, workers, threads, gpus_per_cell)
    from foredraft.sweep.local_runner import LocalRunner
    from foredraft.sweep.run import Driver

    try:
        driver = Driver(
            folder, runner or LocalRunner(), Path.cwd(), threads=threads, retry_failed=retry_failed, environment=_environment(),
            left_out=extra.left_out,
        )  # fmt: skip
        if dry_run:
            _print_plan(driver, json)
            return
        _run(driver, workers, json)
    finally:
        folder.release()
        if runner:
            runner.close()


def _threads(cpus: int | None, workers: int, ray: str | None) -> int | None:
    """Of a cell's process. Processes that share a machine with default threads take each other's processors; one alone need not say."""
    if cpus is not None:
        return cpus
    if ray is not None:
        return 1
    return max(1, (os.cpu_count() or 1) // workers) if workers > 1 else None


def _runner(ray: str | None, workers: int, threads: int | None, gpus: float) -> "Runner":
    if ray is None:
        from foredraft.sweep.local_runner import LocalRunner

        return LocalRunner(workers)
    from foredraft.sweep.ray_runner import RayRunner

    runner = RayRunner(ray, workers, threads or 1, gpus)
    if runner.note:
        print(runner.note, file=sys.stderr)
    return runner


def _environment() -> dict[str, str]:
    """What a process on another machine would not have: where this package was found."""
    return {"PYTHONPATH": os.environ["PYTHONPATH"]} if "PYTHONPATH" in os.environ else {}


def _run(driver: "Driver", workers: int, json: bool) -> None:
    from foredraft.sweep.folder import OBSERVATIONS
    from foredraft.sweep.run import failures
    from foredraft.sweep.table import LiveTable

    out = driver.folder.out
    with LiveTable(driver.folder.cells, driver.runner.slots or workers) as live:
        finished = driver.run(live.show)
    if json:
        print_json(finished)
    else:
        from foredraft.sweep.table import summary, table

        print_blocks([table(driver.rows), summary(driver.rows, None)], width=140)
    if (out / OBSERVATIONS).is_file():
        print(f"wrote {out / OBSERVATIONS}", file=sys.stderr)
    if failed := failures(finished):
        print(f"error: {len(failed)} of {len(finished.cells)} cells failed", file=sys.stderr)
        for line in failed:
            print(f"  {line}", file=sys.stderr)
        print(f"\nhint: {out}/cells/NAME/log.txt; then the same command with --retry-failed", file=sys.stderr)
        raise typer.Exit(1)


def _print_plan(driver: "Driver", json: bool) -> None:
    from foredraft.sweep.expand import short
    from foredraft.sweep.table import plan_of

    states = {name: state.state for name, state in driver.states.items()}
    commands = {name: state.command for name, state in driver.states.items()}
    rows = plan_of(driver.folder.cells, commands, states)
    if json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['state']:8} {row['name']}\n         {row['command']}")
    tokens = sum(row["tokens"] or 0 for row in rows if row["state"] == "waiting")
    print(
        f"{len(rows)} cells, {sum(row['state'] == 'waiting' for row in rows)} to run, {short(tokens, 3)} tokens to train on"
    )
