"""The verb `foredraft measure`: our own engine, or a running server with --endpoint."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from foredraft.cli import measure_options as of_measure
from foredraft.cli.console import check_models, command, print_blocks, print_json, progress_bar, refuse, set_threads
from foredraft.cli.options import JSON, Device, Devices, MachineName, Seed, Threads, numbers

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from foredraft.data.sources import Skips
    from foredraft.records import DraftLengths, Measurement

OBSERVATIONS, MEASUREMENTS = "observations.jsonl", "measurements.jsonl"
OF_OURS = "float32", "bfloat16", "float16"  # types that our own engine runs in
OF_ENGINE = "target", "batch", "adaptive", "way", "rounds", "kept", "params", "device", "threads"
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
    target: of_measure.Target = None,
    *,
    prompts: of_measure.Prompts,
    out: of_measure.OutFolder,
    draft: of_measure.Drafts = None,
    num: of_measure.Num = None,
    max_tokens: of_measure.MaxTokens = 128,
    batch: of_measure.Batch = "1",
    temperature: of_measure.Temperatures = "0",
    adaptive: of_measure.Adaptive = False,
    way: of_measure.Way = "both",
    chat: of_measure.Chat = "auto",
    stop: of_measure.Stop = True,
    rounds: of_measure.Rounds = 1,
    seed: Seed = 0,
    width: of_measure.Width = 0.1,
    run: of_measure.RunName = None,
    draft_tokens: of_measure.DraftTokens = None,
    draft_params: of_measure.DraftParams = None,
    family: of_measure.Family = None,
    kept: of_measure.Kept = None,
    params: of_measure.Params = "stored",
    on_error: of_measure.OnError = "stop",
    dtype: of_measure.Types = None,
    device: Device = "cpu",
    threads: Threads = None,
    endpoint: of_measure.Endpoint = None,
    concurrency: of_measure.Clients = None,
    request_rate: of_measure.RequestRate = None,
    model: of_measure.ModelName = None,
    engine: of_measure.ServerEngine = "auto",
    method: of_measure.ServerMethod = None,
    machine: MachineName = None,
    devices: Devices = None,
    prefix_cache: of_measure.PrefixCache = "cold",
    api_key: of_measure.ApiKey = None,
    timeout: of_measure.Timeout = 600,
    json: JSON = False,
) -> None:
    """Measure TARGET alone and with each draft on the same prompts: acceptance, tokens per step, times, with intervals."""
    _check(ctx, target, draft or (), endpoint)
    from foredraft.data.sources import Skips
    from foredraft.records import reserved

    skips = Skips(on_error)
    shared: dict[str, Any] = {
        "max_tokens": max_tokens, "temperatures": numbers(temperature, float), "seed": seed, "width": width,
        "chat": chat, "stop": stop,
    }  # fmt: skip
    facts = {"run": run, "draft_tokens": draft_tokens, "draft_params": draft_params, "family": family}
    if endpoint is not None:
        shared |= {
            "concurrency": numbers(concurrency or ("" if request_rate else "1"), int),
            "rates": numbers(request_rate or "", float), "prefix_cache": prefix_cache,
        }  # fmt: skip
        facts |= {
            "model": model, "engine": engine, "method": method, "machine": machine, "command": command(), "dtype": dtype,
            "devices": devices, "draft": draft[0] if draft else None,
        }  # fmt: skip
        with reserved(out):
            rows = _of_server((endpoint, api_key, timeout), prompts, shared, skips, facts, num, out)
    else:
        set_threads(threads)
        shared |= facts | {
            "batches": numbers(batch, int), "way": way, "rounds": rounds, "params": params, "num": num, "dtype": dtype or "float32",
            "device": device, "cache": kept,
        }  # fmt: skip
        with reserved(out):
            rows = _of_engine(target or "", draft or (), prompts, shared, skips, out, adaptive)
    if json:
        print_json(rows)
        return
    from foredraft.report.measured import measurement_tables

    print_blocks(measurement_tables(rows))


def _of_server(
    where: tuple[str, str | None, float], prompts: Path, settings: dict[str, Any], skips: "Skips", facts: dict[str, Any],
    num: int | None, out: Path,
) -> "list[Measurement]":  # fmt: skip
    """Of a running server; `where`: its URL, its key, and after how many seconds without a word it is given up."""
    from foredraft.serving.endpoint import LoadSettings
    from foredraft.serving.endpoint_http import address_of
    from foredraft.serving.served import measure_server, server_subject_of

    loads = LoadSettings(**settings)
    server = server_subject_of(address_of(*where), prompts, loads, skips, facts, num)
    _say_skipped(skips)
    rows = measure_server(server, loads, lambda measurements, warnings: _write(measurements, warnings, out))
    _say_read(prompts, len(server.questions), out)
    return rows


def _of_engine(
    target: str,
    drafts: "Sequence[str]",
    prompts: Path,
    settings: dict[str, Any],
    skips: "Skips",
    out: Path,
    adaptive: bool,
) -> "list[Measurement]":
    """Of our own engine; where `adaptive`, what lengths by confidence rest on before it."""
    from foredraft.data.prompts import read_questions
    from foredraft.data.sources import Skips

    if prompts.is_file():  # a broken line is told before torch is imported; what a pipe holds is read once
        read_questions(prompts, Skips(skips.on_error), settings["num"])
    from foredraft.measure.lengths import learn_all, work_of_learning
    from foredraft.measure.measure import measure as rows_of
    from foredraft.measure.measure import work
    from foredraft.measure.settings import MeasureSettings
    from foredraft.measure.subject import subject_of

    decoding = MeasureSettings(**settings)
    subject = subject_of(target, drafts, prompts, decoding, skips, command())
    _say_skipped(skips)
    with progress_bar() as bar:
        learning = work_of_learning(subject, decoding) if adaptive else 0
        task = bar.add_task("loading", total=work(subject, decoding) + learning)
        if adaptive:
            measured = learn_all(
                subject,
                decoding,
                lambda what: bar.update(task, advance=1, description=f"how sure {what} is"),
                command(),
            )
            _write_lengths(measured, out)
        rows = rows_of(subject, decoding, lambda done, what: bar.update(task, advance=done, description=what))
    _write(rows, (), out)
    _say_read(prompts, len(subject.prompts), out)
    return rows


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


def _write_lengths(measured: "Mapping[str, DraftLengths]", out: Path) -> None:
    from foredraft import records

    for draft, lengths in measured.items():
        file = out / f"{lengths.draft.replace('/', '-')}-lengths.json"
        records.write(file, lengths)
        print(f"wrote {file}: --draft {draft}~{file}@{lengths.lookahead} follows it", file=sys.stderr)


def _say_skipped(skips: "Skips") -> None:
    if skips.count:
        more = f" and {skips.count - len(skips.named)} more" if skips.count > len(skips.named) else ""
        print(f"skipped {skips.count} of the file's lines: {'; '.join(skips.named)}{more}", file=sys.stderr)


def _say_read(prompts: Path, number: int, out: Path) -> None:
    print(f"{prompts.name}: {number} prompts read", file=sys.stderr)
    print(f"wrote {out / OBSERVATIONS}, {out / MEASUREMENTS}", file=sys.stderr)
