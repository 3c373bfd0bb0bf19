"""The verb `foredraft measure`: our own engine, or a running server with --endpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli.console import check_models, command, print_blocks, print_json, progress_bar, refuse, set_threads
from foredraft.cli.options import (
    BATCH,
    JSON,
    TEMPERATURE,
    Device,
    Devices,
    MachineName,
    Seed,
    Threads,
    each,
    number_format,
    numbers,
    one_of,
    real,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foredraft.data.sources import Skips
    from foredraft.records import Measurement

OBSERVATIONS, MEASUREMENTS = "observations.jsonl", "measurements.jsonl"
OF_OURS = "float32", "bfloat16", "float16"  # types that our own engine runs in
OF_ENGINE = "target", "batch", "way", "rounds", "kept", "params", "device", "threads"
OF_ENDPOINT = (
    "concurrency",
    "request_rate",
    "model",
    "engine",
    "method",
    "machine",
    "devices",
    "prefix_cache",
    "api_key",
    "timeout",
)


def measure(
    ctx: typer.Context,
    target: Annotated[
        str | None,
        typer.Argument(
            help="Folder of a Hugging Face checkpoint with its tokenizer, or a GGUF file; none with --endpoint."
        ),
    ] = None,
    *,
    prompts: Annotated[
        Path,
        typer.Option(
            "--prompts", "-p", help="Spec-Bench or ShareGPT JSON, or a text file of a prompt a line; packed or not."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for observations.jsonl and measurements.jsonl.")],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            help="ngram or a folder (dir+ngram: behind a look-up), with @k for its lookahead (dir@5) or a tree "
            "(dir@5,4,16: depth, top-k, nodes); repeat for more arms.",
        ),
    ] = None,
    num: Annotated[int | None, typer.Option(help="Prompts of each category at most.", callback=whole())] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.", callback=whole())] = 128,
    batch: Annotated[
        str, typer.Option(help="Requests decoded together: a list such as 1,8.", callback=each(int, BATCH))
    ] = "1",
    temperature: Annotated[
        str,
        typer.Option(help="Of live decoding, 0 is greedy: a list such as 0,1.", callback=each(float, TEMPERATURE)),
    ] = "0",
    way: Annotated[
        str,
        typer.Option(
            help="live (the engine's steps), forced (one pass over answers), or both.",
            callback=one_of("live", "forced", "both"),
        ),
    ] = "both",
    chat: Annotated[
        str,
        typer.Option(
            help="The tokenizer's chat template: auto (as each prompt says), always or never.",
            callback=one_of("auto", "always", "never"),
        ),
    ] = "auto",
    stop: Annotated[
        bool, typer.Option("--stop/--no-stop", help="Answers end at the end token, or run on to --max-tokens.")
    ] = True,
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up comes before.", callback=whole())] = 1,
    seed: Seed = 0,
    width: Annotated[
        float,
        typer.Option(
            help="Wished width of the interval of tokens per step: says how many requests that takes.",
            callback=real(above=0),
        ),
    ] = 0.1,
    run: Annotated[
        str | None,
        typer.Option(help="Name of the run, which a bootstrap over runs resamples; each draft's by default."),
    ] = None,
    draft_tokens: Annotated[
        float | None,
        typer.Option(
            help="Tokens that the drafts were trained on, where their folder does not say.",
            callback=real(above=0, most=1e18),
        ),
    ] = None,
    draft_params: Annotated[
        float | None,
        typer.Option(help="Parameters of the drafts, instead of their own count.", callback=real(above=0, most=1e15)),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Name of the recipe that the drafts share with others; laws are fitted within a family."),
    ] = None,
    kept: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which what TARGET says of the prompts is kept for the next draft (teacher-forced)."
        ),
    ] = None,
    params: Annotated[
        str,
        typer.Option(
            help="Parameters to count: stored (all, as published rows do) or non_embedding.",
            callback=one_of("stored", "non_embedding"),
        ),
    ] = "stored",
    on_error: Annotated[
        str,
        typer.Option(
            help="Of a broken line, or a prompt too long: stop, or skip and count it.", callback=one_of("stop", "skip")
        ),
    ] = "stop",
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32 (by default), bfloat16 or float16; of --endpoint: the server's weights, where it does not say.",
            callback=number_format,
        ),
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of a running vLLM or SGLang server to measure instead, such as http://localhost:8000."),
    ] = None,
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency",
            "-c",
            help="Of --endpoint: clients at once, a list such as 1,8.",
            callback=each(int, BATCH),
        ),
    ] = None,
    request_rate: Annotated[
        str | None,
        typer.Option(
            help="Of --endpoint: requests per second, a list; their times are random.",
            callback=each(float, real(above=0)),
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of --endpoint: the model's name there; its first by default.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Of --endpoint: auto, vllm or sglang.")] = "auto",
    method: Annotated[
        str | None,
        typer.Option(help="Of --endpoint: eagle, eagle3, draft_model, ngram, where the server does not say."),
    ] = None,
    machine: MachineName = None,
    devices: Devices = None,
    prefix_cache: Annotated[
        str,
        typer.Option(
            help="Of --endpoint: cold (each load under a cache salt of its own) or warm.",
            callback=one_of("cold", "warm"),
        ),
    ] = "cold",
    api_key: Annotated[
        str | None, typer.Option(envvar="FOREDRAFT_API_KEY", help="Of --endpoint: its key, if it asks for one.")
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            help="Of --endpoint: seconds without a word after which it is given up.", callback=real(above=0, most=1e6)
        ),
    ] = 600,
    json: JSON = False,
) -> None:
    """Measure TARGET alone and with each draft on the same prompts: acceptance, tokens per step, times, with intervals."""
    _check(ctx, target, draft or (), endpoint)
    from foredraft.data.sources import Skips

    skips = Skips(on_error)
    shared: dict[str, Any] = {
        "max_tokens": max_tokens, "temperatures": numbers(temperature, float), "seed": seed, "width": width,
        "chat": chat, "stop": stop,
    }  # fmt: skip
    facts = {"run": run, "draft_tokens": draft_tokens, "draft_params": draft_params, "family": family}
    if endpoint is not None:
        from foredraft.measure.endpoint import LoadSettings
        from foredraft.measure.endpoint_http import address_of
        from foredraft.measure.served import measure_server, server_subject_of

        loads: dict[str, Any] = {
            "concurrency": numbers(concurrency or ("" if request_rate else "1"), int),
            "rates": numbers(request_rate or "", float), "prefix_cache": prefix_cache,
        }  # fmt: skip
        facts |= {"model": model, "engine": engine, "method": method, "machine": machine, "command": command()}
        facts |= {"dtype": dtype, "devices": devices}
        facts["draft"] = draft[0] if draft else None
        settings = LoadSettings(**shared, **loads)
        server = server_subject_of(address_of(endpoint, api_key, timeout), prompts, settings, skips, facts, num)
        _say_skipped(skips)
        number = len(server.questions)
        rows = measure_server(server, settings, lambda measurements, warnings: _write(measurements, warnings, out))
    else:
        assert target is not None, "checked"
        from foredraft.measure.measure import measure as rows_of
        from foredraft.measure.measure import work
        from foredraft.measure.settings import MeasureSettings
        from foredraft.measure.subject import subject_of

        set_threads(threads)
        settings = MeasureSettings(
            **shared, batches=numbers(batch, int), way=way, rounds=rounds, params=params, num=num, dtype=dtype or "float32",
            device=device, run=run, family=family, draft_tokens=draft_tokens, draft_params=draft_params, cache=kept,
        )  # fmt: skip
        subject = subject_of(target, draft or (), prompts, settings, skips, command())
        _say_skipped(skips)
        number = len(subject.prompts)
        with progress_bar() as bar:
            task = bar.add_task("loading", total=work(subject, settings))
            rows = rows_of(subject, settings, lambda done, what: bar.update(task, advance=done, description=what))
        _write(rows, (), out)
    print(f"{prompts.name}: {number} prompts read", file=sys.stderr)
    print(f"wrote {out / OBSERVATIONS}, {out / MEASUREMENTS}", file=sys.stderr)
    if json:
        print_json(rows)
        return
    from foredraft.report.measured import measurement_tables

    print_blocks(measurement_tables(rows))


def _check(ctx: typer.Context, target: str | None, drafts: "Sequence[str]", endpoint: str | None) -> None:
    """Refuse what is not used, and folders that are none, before anything is loaded."""
    if endpoint is not None:
        refuse(ctx, OF_ENGINE, "not used with --endpoint, whose server decodes by settings of its own; leave out")
        if len(drafts) > 1:
            raise ValueError(f"draft: a server has one, got {', '.join(drafts)}; name the one that it runs")
        return
    if (dtype := ctx.params.get("dtype")) not in (None, *OF_OURS):
        raise ValueError(f"--dtype must be one of {', '.join(OF_OURS)}, got {dtype}")
    refuse(ctx, OF_ENDPOINT, "used with --endpoint alone; leave out, or name the server's URL")
    if target is None:
        raise ValueError("TARGET is missing: the folder of a checkpoint; or pass --endpoint URL for a running server")
    check_models(target, drafts)


def _write(rows: "Sequence[Measurement]", warnings: "Sequence[str]", out: Path) -> None:
    from foredraft import records

    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    records.write_lines(out / OBSERVATIONS, [row.observation for row in rows if row.category is None])
    records.write_lines(out / MEASUREMENTS, rows)


def _say_skipped(skips: "Skips") -> None:
    if skips.count:
        more = f" and {skips.count - len(skips.named)} more" if skips.count > len(skips.named) else ""
        print(f"skipped {skips.count} of the file's lines: {'; '.join(skips.named)}{more}", file=sys.stderr)
