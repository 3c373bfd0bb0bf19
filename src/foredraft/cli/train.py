"""The verb `foredraft train`. Refuses to know: how anything is computed; it imports its room when it runs."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli.console import check_models, print_json, set_threads
from foredraft.cli.options import JSON, Device, Threads, each, numbers, whole

if TYPE_CHECKING:
    from foredraft.recipe import Recipe
    from foredraft.train.checkpoints import State
    from foredraft.train.needs import Needs
    from foredraft.train.sizes import TeacherChoice


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe, or a Plan.json whose draft is to be trained.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the run; one that is there goes on.")
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option("--target", "-t", help="Folder of the target's checkpoint, or a GGUF file, where one is needed."),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option("--data", "-d", help="Token folder; repeat for one per stage, in order.")
    ] = None,
    held_out: Annotated[Path | None, typer.Option("--held-out", help="Token folder for the held-out figures.")] = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", help="Folder to cache a head's hidden states in; their size is told first."),
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher",
            help="What computes the target's hidden states for a head: foredraft (families that it decodes), transformers (any causal LM "
            "that it knows), or a FOLDER of files that a serving engine wrote.",
        ),
    ] = "foredraft",
    state_layers: Annotated[
        str | None,
        typer.Option(
            "--state-layers",
            callback=each(int, whole(least=0)),
            help="The states in FOLDER's files, such as 2,16,29,32 (the default of 32 layers).",
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    shard: Annotated[
        bool,
        typer.Option("--shard", help="Under torchrun: spread weights and optimiser (FSDP2) instead of copies (DDP)."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what the run needs and what to expect of it, and stop.")
    ] = False,
    json: JSON = False,
) -> None:
    """Train a draft or a target as RECIPE says, to its budget of tokens; a run that was stopped goes on.

    Under torchrun, or any launcher that sets RANK and WORLD_SIZE, one process per device.
    """
    training = _recipe(recipe, len(data or ()))
    if target:
        check_models(target, tokenizer=False, weights=not dry_run)
    from foredraft.data.tokens import TokenFolder

    for folder in (*(data or ()), *([held_out] if held_out else [])):
        TokenFolder.open(folder)
    from foredraft.train.sizes import OURS, TeacherChoice

    choice = TeacherChoice(teacher, numbers(state_layers or "", int) or None)
    if shard and teacher != OURS:
        raise ValueError("--shard spreads targets of our own decoder: leave it or --teacher out")
    if dry_run:
        _say_needs(training, target, choice, data or (), device=device, threads=threads, shard=shard, json=json)
        return
    if out is None:
        raise ValueError("--out is missing: name the folder of the run, or pass --dry-run")
    from foredraft.train.devices import started

    set_threads(threads)
    with started(device, shard) as devices:
        from foredraft.train.launch import launch

        state = launch(
            training, out, devices, target=target, data=data or (), held_out=held_out, features=features, teacher=choice
        )
        if devices.first:
            _print_end(out, state, json)


def _say_needs(
    recipe: "Recipe", target: Path | None, teacher: "TeacherChoice", data: "Sequence[Path]", *, device: str, threads: int | None,
    shard: bool, json: bool,
) -> None:  # fmt: skip
    """What a run needs, told by the first of the processes that a launcher started; torch is not needed."""
    from foredraft.train.batches import Process
    from foredraft.train.needs import needs

    if threads is not None:
        set_threads(threads)
    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    estimate = needs(recipe, Process(rank, world, device.partition(":")[0], shard), target, teacher, data)
    if rank == 0:
        _print(estimate, json)


def _recipe(path: Path, num_folders: int) -> "Recipe":
    """A recipe as it stands; of a plan, that of its draft."""
    import msgspec

    from foredraft import records
    from foredraft.recipe import Recipe
    from foredraft.train.from_plan import from_plan

    document = records.read(dict[str, Any], path)
    if "objective" in document and "schedule" in document:
        return from_plan(records.read(records.Plan, path), num_folders)
    return records.decode(Recipe, msgspec.json.encode(document), name=str(path))


def _print(estimate: "Needs", json: bool) -> None:
    if json:
        print_json(estimate)
        return
    hours = [seconds / 3600 for seconds in (estimate.time_s.value, estimate.time_s.low, estimate.time_s.high)]
    rows = {
        "parameters": f"{estimate.params:,}"
        + (f" beside a target of {estimate.frozen_params:,}" if estimate.frozen_params else ""),
        "tokens": f"{estimate.tokens:,} in {estimate.steps:,} steps",
        "FLOPs": f"{estimate.flops:.3g} ({estimate.flops_per_token:.3g} per token)",
        "memory": f"{estimate.memory_bytes / 1e9:.2f} GB per device",
        "disk": f"{estimate.disk_bytes / 1e9:.2f} GB",
        "time": f"{hours[0]:.3g} h ({hours[1]:.3g} to {hours[2]:.3g}) on {estimate.devices} × {estimate.ceiling_flops_per_s / 1e9:,.0f} GFLOP/s",
    }
    for path, passes in estimate.passes:
        rows["passes" if len(estimate.passes) == 1 else f"passes, {Path(path).name}"] = (
            f"{passes:.3g} over the tokens of {path}"
        )
    if estimate.predicted:
        tau = estimate.predicted.tokens_per_step
        rows["tokens per step"] = (
            f"{tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f}, {tau.level:.0%}) at lookahead {estimate.predicted.lookahead}"
        )
    for name, text in rows.items():
        print(f"{name:16} {text}")
    for note in estimate.notes:
        print(f"warning: {note}", file=sys.stderr)


def _print_end(out: Path, state: "State", json: bool) -> None:
    import msgspec

    from foredraft.train.loop import FINAL

    summary = {
        "model": str(out / FINAL), "steps": state.step, "tokens": state.tokens, "seconds": state.seconds,
        "best": msgspec.to_builtins(state.best),
    }  # fmt: skip
    if json:
        print_json(summary)
        return
    best = f"; held-out loss {state.best.loss:.4f} at step {state.best.step}, the best" if state.best else ""
    print(f"{state.tokens:,} tokens in {state.step:,} steps{best}")
    print(f"wrote {out / FINAL}", file=sys.stderr)
