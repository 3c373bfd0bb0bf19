"""The verb `foredraft plan`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foredraft.cli.console import names, print_blocks, print_json, rows_by_file, say_written
from foredraft.cli.options import (
    DRAWS,
    JSON,
    PROCESSES,
    SEED,
    TEMPERATURE,
    Figures,
    Out,
    TargetNames,
    concurrencies,
    number_format,
    one_of,
    real,
    task_word,
    whole,
)

if TYPE_CHECKING:
    from foredraft.records import Plan


def plan(
    target: Annotated[
        str,
        typer.Argument(
            help="A public model (Llama-3.1-70B, Qwen3-30B-A3B-FP8, …), the folder of a Hugging Face config.json, or a Shape as JSON."
        ),
    ],
    shape_file: Annotated[
        Path | None,
        typer.Option(
            "--shape",
            help="TARGET's sizes as JSON, where its config cannot be read; foredraft list models NAME --json prints one.",
        ),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option("--draft", "-d", help="Weigh this draft alone: a public name, or the folder of a model or head."),
    ] = None,
    machine: Annotated[
        str, typer.Option("--machine", "-m", help="Accelerator, e.g. H100 or 8xH100, or a Machine record as JSON.")
    ] = "H100",
    devices: Annotated[
        int | None,
        typer.Option(
            "--devices",
            "-n",
            help="How many, tensor parallel but for --data-parallel; as --machine says (8xH100) or 1 by default.",
            callback=whole(1, PROCESSES),
        ),
    ] = None,
    data_parallel: Annotated[
        int, typer.Option(help="Replicas that the devices make.", callback=whole(1, PROCESSES))
    ] = 1,
    expert_parallel: Annotated[
        bool, typer.Option("--expert-parallel", help="Experts whole on all devices together.")
    ] = False,
    concurrency: Annotated[
        str,
        typer.Option(
            "--concurrency",
            "-c",
            help="Concurrent requests: a list 1,8,64 or a range 1-256 (powers of 2).",
            callback=concurrencies,
        ),
    ] = "1-64",
    input_len: Annotated[float, typer.Option(help="Mean prompt tokens.", callback=real(above=0))] = 512,
    output_len: Annotated[float, typer.Option(help="Mean answer tokens.", callback=real(above=0))] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of the load.", callback=TEMPERATURE)] = 0.0,
    task: Annotated[
        str | None,
        typer.Option(
            help="What the prompts are of: chat, code, math, rag, summarisation, translation, qa, …; a mix when left out.",
            callback=task_word,
        ),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="throughput, latency (TPOT) or tokens_per_flop.",
            callback=one_of("throughput", "latency", "tokens_per_flop"),
        ),
    ] = "throughput",
    engine: Annotated[
        str, typer.Option(help="vllm, sglang and tensorrt-llm (chains), or foredraft (chains and trees).")
    ] = "vllm",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="Weights: bfloat16, fp8, int4, nvfp4, …; as the checkpoint has them when left out.",
            callback=number_format,
        ),
    ] = None,
    kv_dtype: Annotated[
        str | None, typer.Option(help="KV cache; the model's 16-bit type when left out.", callback=number_format)
    ] = None,
    max_lookahead: Annotated[int, typer.Option(help="Longest chain to consider.", callback=whole(1, 16))] = 8,
    served_tokens: Annotated[
        float, typer.Option(help="Output tokens over which training is paid back.", callback=real(above=0, most=1e24))
    ] = 1e11,
    max_gpu_hours: Annotated[
        float, typer.Option(help="Most device-hours that training may cost.", callback=real(above=0))
    ] = 1e5,
    kinds: Annotated[
        str, typer.Option(help="Kinds of draft to weigh, of head, lm (an independent model) and lookup (n-gram).")
    ] = "head,lm,lookup",
    always: Annotated[bool, typer.Option("--always", help="Plan the best draft even where none pays.")] = False,
    observations: Annotated[
        list[Path] | None,
        typer.Option("--observations", help="Own measurements, or another benchmark's file; repeat for more."),
    ] = None,
    target_name: TargetNames = None,
    draws: Annotated[
        int, typer.Option(help="Joint draws behind gains, intervals and choices; rounded up to a power of 2.", callback=DRAWS)
    ] = 4096,
    seed: Annotated[int, typer.Option(help="Of the draws.", callback=SEED)] = 0,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Which draft to train for TARGET, how to run it at each load, what it will gain, and how sure that is."""
    from foredraft import api, machines, shapes
    from foredraft import kinds as draft_kinds

    shape = (
        shapes.stated(shapes.read_config(shape_file), str(shape_file), target) if shape_file else shapes.named(target)
    )
    place, num_devices = machines.placed(machine, devices)
    draft_shape = draft_kinds.shape_named(draft) if draft else None
    from foredraft.plan.search import PlanSettings
    from foredraft.records import Workload, concurrency_of

    load = Workload(
        input_len=input_len,
        output_len=output_len,
        concurrency=concurrency_of(concurrency),
        temperature=temperature,
        task=task,
    )
    settings = PlanSettings(
        objective=objective, engine=engine, devices=num_devices, data_parallel=data_parallel, expert_parallel=expert_parallel,
        dtype=dtype, kv_dtype=kv_dtype, max_lookahead=max_lookahead,
        horizon_tokens=served_tokens, max_training_gpu_hours=max_gpu_hours, kinds=names(kinds), always=always, draws=draws, seed=seed,
    )  # fmt: skip
    rows = [row for part in rows_by_file(observations or (), target_name, shape.name).values() for row in part]
    best = api.plan(shape, place, load, settings, rows, draft_shape)
    if out:
        _write(best, out, figures)
    if json:
        print_json(best)
        return
    from foredraft.report.terminal import plan_tables

    print_blocks(plan_tables(best))


def _write(plan: "Plan", out: Path, figures: bool) -> None:
    from foredraft import records
    from foredraft.engines import ENGINES

    written = [out / "Plan.json"]
    records.write(written[0], plan)
    for engine, settings in plan.settings.items():
        written.append(out / ENGINES[engine].plan_file)
        records.write(written[-1], settings)
    if figures:
        from foredraft.report.plan import draw_plan

        written += draw_plan(plan, out)
    say_written(written)
