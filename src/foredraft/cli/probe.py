"""The verb `foredraft probe`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from foredraft.cli.console import check_models, command, dtype_of, one_at_a_time, print_blocks, print_json, set_threads
from foredraft.cli.options import JSON, Device, Dtype, Threads, whole


@one_at_a_time
def probe(
    target: Annotated[
        Path | None, typer.Option("--target", "-t", help="Time this model's own pass instead of a stack of matrices.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the Machine record to this file.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    repeats: Annotated[
        int, typer.Option(help="Times that each figure is measured; the median is told.", callback=whole(1, 10000))
    ] = 7,
    json: JSON = False,
) -> None:
    """Measure this machine: memory, matrix products, the engine's overhead, what verifying 1 to 64 tokens costs."""
    if target:
        check_models(target, tokenizer=False)
    from foredraft import records
    from foredraft.measure.probe import probe as run

    set_threads(threads)
    machine = run(
        device, target, dtype=dtype_of(dtype), repeats=repeats, command=command(),
        warn=lambda warning: print(f"warning: {warning}", file=sys.stderr),
    )  # fmt: skip
    if out:
        records.write(out, machine)
        print(f"wrote {out}", file=sys.stderr)
    if json:
        print_json(machine)
        return
    from foredraft.report.measured import machine_tables

    print_blocks(machine_tables(machine))
