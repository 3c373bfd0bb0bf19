"""The verbs `foredraft probe` and `foredraft measure`. Refuses to know: how anything is computed; they import their room
when they run.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from foredraft.cli.console import (
    JSON,
    Device,
    Dtype,
    Threads,
    dtype_of,
    print_blocks,
    print_json,
    progress_bar,
    set_threads,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foredraft.data.prompts import Prompt, Question
    from foredraft.data.sources import Skips
    from foredraft.measure.endpoint import Settings as Loads
    from foredraft.measure.endpoint_http import Address
    from foredraft.measure.measure import Settings, Subject
    from foredraft.records import Measurement, Provenance


OBSERVATIONS, MEASUREMENTS = "observations.jsonl", "measurements.jsonl"


class Asked(NamedTuple):
    """Prompts to read, what becomes of a broken line, whether a chat template wraps them, and whether an end token ends an answer."""

    file: Path
    num: int | None
    on_error: str
    chat: str
    stop: bool


def probe(
    target: Annotated[
        Path | None, typer.Option("--target", "-t", help="Time this model's own pass instead of a stack of matrices.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the Machine record to this file.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    threads: Threads = None,
    repeats: Annotated[int, typer.Option(help="Times that each figure is measured; the median is told.")] = 7,
    json: JSON = False,
) -> None:
    """Measure this machine: memory, matrix products, the engine's overhead, what verifying 1 to 64 tokens costs."""
    from foredraft import records
    from foredraft.measure.probe import probe as run

    set_threads(threads)
    machine = run(device, target, dtype=dtype_of(dtype), repeats=repeats, command=_command())
    if out:
        records.write(out, machine)
        print(f"wrote {out}", file=sys.stderr)
    if json:
        print_json(machine)
        return
    from foredraft.report.measured import machine_tables

    print_blocks(machine_tables(machine))


def measure(
    target: Annotated[
        str | None,
        typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer; none with --endpoint."),
    ] = None,
    *,
    prompts: Annotated[
        Path, typer.Option("--prompts", "-p", help="Spec-Bench JSONL, or a text file of a prompt a line.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for observations.jsonl and measurements.jsonl.")],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            help="ngram or a folder, with @k for its lookahead (dir@5) or a tree (dir@5,4,16: depth, top-k, nodes); repeat for more arms.",
        ),
    ] = None,
    num: Annotated[int | None, typer.Option(help="Prompts of each category at most.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 128,
    batch: Annotated[str, typer.Option(help="Requests decoded together: a list such as 1,8.")] = "1",
    temperature: Annotated[str, typer.Option(help="Of live decoding, 0 is greedy: a list such as 0,1.")] = "0",
    way: Annotated[
        str, typer.Option(help="live (the engine's steps), forced (one pass over answers), or both.")
    ] = "both",
    chat: Annotated[
        str, typer.Option(help="The tokenizer's chat template: auto (as each prompt says), always or never.")
    ] = "auto",
    stop: Annotated[
        bool, typer.Option("--stop/--no-stop", help="Answers end at the end token, or run on to --max-tokens.")
    ] = True,
    rounds: Annotated[int, typer.Option(help="Timed rounds; a warm-up comes before.")] = 1,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    width: Annotated[
        float, typer.Option(help="Wished width of the interval of tokens per step: says how many requests that takes.")
    ] = 0.1,
    run: Annotated[
        str | None,
        typer.Option(help="Name of the run, which a bootstrap over runs resamples; each draft's by default."),
    ] = None,
    draft_tokens: Annotated[
        float | None, typer.Option(help="Tokens that the drafts were trained on, where their folder does not say.")
    ] = None,
    draft_params: Annotated[
        float | None, typer.Option(help="Parameters of the drafts, instead of their own count.")
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
        str, typer.Option(help="Parameters to count: stored (all, as published rows do) or non_embedding.")
    ] = "stored",
    on_error: Annotated[
        str, typer.Option(help="Of a broken line, or a prompt too long: stop, or skip and count it.")
    ] = "stop",
    dtype: Dtype = "float32",
    device: Device = "cpu",
    threads: Threads = None,
    endpoint: Annotated[
        str | None,
        typer.Option(help="URL of a running vLLM or SGLang server to measure instead, such as http://localhost:8000."),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option("--concurrency", "-c", help="Of --endpoint: clients at once, a list such as 1,8.")
    ] = None,
    request_rate: Annotated[
        str | None, typer.Option(help="Of --endpoint: requests per second, a list; their times are random.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Of --endpoint: the model's name there; its first by default.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Of --endpoint: auto, vllm or sglang.")] = "auto",
    method: Annotated[
        str | None,
        typer.Option(help="Of --endpoint: eagle, eagle3, draft_model, ngram, where the server does not say."),
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Of --endpoint: what the server runs on, such as H100.")] = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="FOREDRAFT_API_KEY", help="Of --endpoint: its key, if it asks for one.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(help="Of --endpoint: seconds without a word after which it is given up.")
    ] = 600,
    json: JSON = False,
) -> None:
    """Measure TARGET alone and with each draft on the same prompts: acceptance, tokens per step, times, with intervals."""
    asked = Asked(prompts, num, on_error, chat, stop)
    given = {"run": run, "draft_tokens": draft_tokens, "draft_params": draft_params, "family": family, "kept": kept}
    decoding: dict[str, Any] = {
        "max_tokens": max_tokens, "temperatures": _list("temperature", temperature, float), "seed": seed, "width": width,
    }  # fmt: skip
    if endpoint is not None:
        from foredraft.measure.endpoint_http import address_of

        decoding["concurrency"] = _list("concurrency", concurrency or ("" if request_rate else "1"), int)
        decoding["rates"] = _list("request-rate", request_rate or "", float)
        given |= {"model": model, "engine": engine, "method": method, "machine": machine, "draft": draft or []}
        rows = _of_server(address_of(endpoint, api_key, timeout), asked, out, given, decoding)
    elif target is not None:
        from foredraft.measure.measure import Settings

        set_threads(threads)
        settings = Settings(batches=_list("batch", batch, int), way=way, rounds=rounds, params=params, **decoding)
        rows = _with_progress(*_prepared(target, draft or [], asked, settings, device, given | {"dtype": dtype}))
        _write(rows, out)
    else:
        raise ValueError("TARGET is missing: the folder of a checkpoint; or pass --endpoint URL for a running server")
    print(f"wrote {out / OBSERVATIONS}, {out / MEASUREMENTS}", file=sys.stderr)
    if json:
        print_json(rows)
        return
    from foredraft.report.measured import measurement_tables

    print_blocks(measurement_tables(rows))


def _write(rows: "Sequence[Measurement]", out: Path) -> None:
    from foredraft import records

    records.write_lines(out / OBSERVATIONS, [row.observation for row in rows if row.category is None])
    records.write_lines(out / MEASUREMENTS, rows)


def _of_server(
    address: "Address", asked: Asked, out: Path, given: dict[str, Any], decoding: dict[str, Any]
) -> "list[Measurement]":
    """A running server, load by load; what is measured is on disk before the next load begins."""
    import asyncio

    from foredraft.data.prompts import read_questions
    from foredraft.data.sources import Skips
    from foredraft.measure.endpoint import Settings

    if len(given["draft"]) > 1:
        raise ValueError(f"draft: a server has one, got {', '.join(given['draft'])}; name the one that it runs")
    given = given | _folder_fields(given)
    skips = Skips(asked.on_error)
    settings = Settings(chat=asked.chat, stop=asked.stop, **decoding)
    questions = read_questions(asked.file, skips, asked.num)
    _say_skipped(skips)
    note = (
        f"{asked.file.name}: {len(questions)} prompts, {skips.count} lines skipped; "
        f"answers of at most {settings.max_tokens} tokens"
    )
    given = given | {"note": note, "dataset": asked.file.stem, "command": _command()}
    return asyncio.run(_loads(address, questions, settings, out, given))


def _folder_fields(given: dict[str, Any]) -> dict[str, Any]:
    """What the folder of a server's draft says of it, where --draft names one that is here; the server says nothing of that."""
    folder = given["draft"][0] if given["draft"] else ""
    if not (Path(folder) / "config.json").is_file():
        return {}
    from foredraft.models.load import read_config
    from foredraft.runs import name_of, trained_tokens

    tokens = given["draft_tokens"] or trained_tokens(folder)
    return {"draft": [name_of(folder)], "draft_layers": read_config(folder)[0].num_layers, "draft_tokens": tokens}


async def _loads(
    address: "Address", questions: "Sequence[Question]", settings: "Loads", out: Path, given: dict[str, Any]
) -> "list[Measurement]":
    from foredraft.measure.endpoint import rounds, started
    from foredraft.measure.endpoint_rows import base_of, rows_of

    running = await started(address, questions, settings, given["model"], given["engine"])
    found: list[Measurement] = []
    async for one in rounds(running, settings):
        base = base_of(running.server, one, given)
        rows, warnings = rows_of(one, base, settings.width)
        found += rows
        for warning in warnings:
            print(f"warning: {one.load}: {warning}", file=sys.stderr)
        _write(found, out)
    return found


def _prepared(
    target: str, drafts: list[str], asked: Asked, settings: "Settings", device: str, given: dict[str, Any]
) -> "tuple[Subject, Settings]":
    """Everything loaded and checked, before anything is decoded."""
    import msgspec

    from foredraft import text
    from foredraft.data.prompts import Encoding, read_prompts
    from foredraft.data.sources import Skips
    from foredraft.measure.arms import arms_on, longest, spec_of
    from foredraft.measure.measure import Subject, by_category
    from foredraft.models.load import load

    kind, skips = dtype_of(given["dtype"]), Skips(asked.on_error)
    specs, tokenizer = [spec_of(one) for one in drafts], text.tokenizer_of(target)
    model = load(target, kind, device)
    encoding = Encoding(tokenizer, asked.chat, settings.max_tokens, longest(model))
    prompts = by_category(read_prompts(asked.file, encoding, skips, asked.num))
    _say_skipped(skips)
    context = max(len(prompt.ids) for prompt in prompts) + settings.max_tokens
    arms = arms_on(model, specs, settings.together, context)
    ends = text.stop_ids(target, tokenizer) if asked.stop else frozenset()
    settings = msgspec.structs.replace(settings, stop_ids=ends)
    fields = _fields(target, asked.file, prompts, settings, device, given, skips.count)
    by_draft = {spec.draft: _draft_fields(spec.draft, given) for spec in specs if spec.draft}
    return Subject(model, arms, prompts, fields, by_draft, given["kept"]), settings


def _fields(
    target: str,
    file: Path,
    prompts: "list[Prompt]",
    settings: "Settings",
    device: str,
    given: dict[str, Any],
    skipped: int,
) -> dict[str, Any]:
    """What all rows share."""
    import torch

    from foredraft.measure.arms import tokenizer_name
    from foredraft.measure.probe import device_name
    from foredraft.runs import name_of, trained_tokens

    references = sum(bool(prompt.reference) for prompt in prompts)
    note = (
        f"{file.name}: {len(prompts)} prompts, {skipped} lines skipped; seed {settings.seed}, answers of at most "
        f"{settings.max_tokens} tokens{', ending at the end token' if settings.stop_ids else ''}; {settings.rounds} timed rounds; "
        f"{torch.get_num_threads()} threads; parameters {settings.params}; perplexities over {references} references and "
        f"{len(prompts) - references} prompts"
    )
    return {
        "run": given["run"] or name_of(target), "target": name_of(target), "target_tokens": trained_tokens(target),
        "dataset": file.stem, "engine": "foredraft", "machine": device_name(torch.device(device)), "dtype": given["dtype"],
        "target_tokenizer": tokenizer_name(target), "provenance": _provenance(note),
    }  # fmt: skip


def _draft_fields(folder: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the rows of one draft have of their own; what neither its folder nor an option says stays unknown."""
    from foredraft.runs import name_of, run_name, trained_tokens

    if folder == "ngram":
        return {"draft": "ngram"} | ({} if given["run"] else {"run": "ngram"})
    tokens = trained_tokens(folder)
    fields = {"draft": name_of(folder), "draft_tokens": given["draft_tokens"] if tokens is None else tokens}
    fields |= {name: given[name] for name in ("draft_params", "family") if given[name]}
    return fields | ({} if given["run"] else {"run": run_name(folder)})


def _provenance(note: str) -> "Provenance":
    from foredraft.measure.probe import provenance

    return provenance("foredraft measure", _command(), note)


def _with_progress(subject: "Subject", settings: "Settings") -> "list[Measurement]":
    from foredraft.measure.measure import measure as run
    from foredraft.measure.measure import work

    with progress_bar() as bar:
        task = bar.add_task("loading", total=work(subject, settings))
        return run(subject, settings, lambda done, what: bar.update(task, advance=done, description=what))


def _say_skipped(skips: "Skips") -> None:
    if skips.count:
        more = f" and {skips.count - len(skips.named)} more" if skips.count > len(skips.named) else ""
        print(f"skipped {skips.count} of the file's lines: {'; '.join(skips.named)}{more}", file=sys.stderr)


def _list(name: str, text: str, kind: type) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise ValueError(f"{name} must be a number or a list such as 1,8, got {text!r}") from None


def _command() -> str:
    import shlex

    return shlex.join(["foredraft", *sys.argv[1:]])
