"""The verb `foredraft calibrate`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli import measure_options as of_measure
from foredraft.cli.console import command, print_blocks, print_json, refuse, say_written
from foredraft.cli.options import (
    JSON,
    TEMPERATURE,
    Devices,
    MachineName,
    Seed,
    concurrencies,
    histogram,
    loads,
    real,
    whole,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foredraft.calibrate.conclude import KnownServer
    from foredraft.records import Observation, ServerCalibration

URLs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Running vLLM or SGLang servers of one target: with a draft, without; each says itself what it runs."
    ),
]
Watch = Annotated[
    str | None,
    typer.Option(help="Ask nothing: read the server's counters for so long while others use it, such as 5m or 90s."),
]
Every = Annotated[
    float, typer.Option(help="With --watch: seconds between two readings.", callback=real(least=0.05, most=3600))
]
Loads = Annotated[
    str,
    typer.Option(
        "--concurrency", "-c", help="Requests at once: a list 1,8,32 or a range 1-64.", callback=concurrencies
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts", "-p", help="Your users' prompts, as foredraft measure reads them; built-in ones when left out."
    ),
]
Histogram = Annotated[
    str | None,
    typer.Option(
        "--load",
        help="Requests at once with the share of the time, 1:0.2,8:0.5; as watched, or alike, when left out.",
        callback=loads,
    ),
]
PerClient = Annotated[
    int, typer.Option("--requests", help="Requests of each client at a load.", callback=whole(1, 10_000))
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft", "-d", help="The draft that the server runs: a folder or its id, for launch files and Plan.json."
    ),
]
Target = Annotated[
    str | None,
    typer.Option("--target", "-t", help="Folder or public name of the target, for Plan.json; as the server says."),
]
Measured = Annotated[
    list[Path] | None,
    typer.Option(
        "--observations",
        help="In the place of a server, what was measured of it before: rows of ours or another benchmark's file; repeat for more.",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder that runs add to: rows, the schedule, launch files, alerts.")
]
Again = Annotated[bool, typer.Option("--again", help="Measure anew what the folder has of these servers' settings.")]

# What is asked of a server.
ASKING = ("concurrency", "prompts", "requests", "rounds", "max_tokens", "stop", "chat", "again")


def calibrate(
    ctx: typer.Context,
    urls: URLs = None,
    *,
    out: Out = Path("calibration"),
    observations: Measured = None,
    watch: Watch = None,
    every: Every = 5.0,
    concurrency: Loads = "1,8,32",
    prompts: Prompts = None,
    requests: PerClient = 4,
    rounds: of_measure.Rounds = 1,
    max_tokens: of_measure.MaxTokens = 128,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature of the requests.", callback=TEMPERATURE)
    ] = 0.0,
    stop: of_measure.Stop = True,
    chat: of_measure.Chat = "auto",
    load: Histogram = None,
    draft: Draft = None,
    method: of_measure.ServerMethod = None,
    target: Target = None,
    model: of_measure.ModelName = None,
    engine: of_measure.ServerEngine = "auto",
    machine: MachineName = None,
    devices: Devices = None,
    on_error: of_measure.OnError = "stop",
    again: Again = False,
    api_key: of_measure.ApiKey = None,
    timeout: of_measure.Timeout = 600,
    seed: Seed = 0,
    json: JSON = False,
) -> None:
    """Measure a running server with and without its draft, or watch it: which lookahead at which load, what it gains, when to switch off.

    With --observations nothing is asked: the same is concluded of what was measured before.
    """
    from foredraft.calibrate.conclude import KnownServer
    from foredraft.records import reserved

    if bool(urls) == bool(observations):
        raise ValueError("give the URLs of servers, or --observations FILE of what was measured of one")
    addresses = []
    if urls:
        from foredraft.serving.endpoint_http import address_of

        addresses = [address_of(url, api_key, timeout) for url in urls]
    facts: dict[str, Any] = {
        "model": model, "engine": engine, "method": method, "machine": machine, "devices": devices, "draft": draft, "command": command(),
    }  # fmt: skip
    weights = dict(zip(*histogram(load), strict=True)) if load else None
    with reserved(out):
        if observations:
            refuse(ctx, ("watch", "every", *ASKING), "not used with --observations")
            rows = _measured(observations, out)
        elif watch is not None:
            refuse(ctx, ASKING, "not used with --watch")
            rows, shares = _watched(addresses, watch, every, facts, out)
            weights = weights or shares
        else:
            refuse(ctx, ("every",), "used with --watch alone")
            from foredraft.calibrate.runs import CalibrationSettings
            from foredraft.records import concurrency_of

            settings = CalibrationSettings(
                loads=tuple(sorted(set(concurrency_of(concurrency)))), rounds=rounds, requests_per_client=requests, max_tokens=max_tokens,
                temperature=temperature, stop=stop, chat=chat, seed=seed, again=again,
            )  # fmt: skip
            rows = _asked(addresses, prompts, on_error, settings, facts, out)
        server, path = (urls[0], _served(out)) if urls else ("URL", rows[-1].target)
        known = KnownServer(server, path, draft, method, machine, devices or 1, command())
        _conclude(rows, known, target, weights, out, json)


def _measured(files: "Sequence[Path]", out: Path) -> "list[Observation]":
    """Rows of one target with at most one draft, written to `out` as those of a server are. Raises ValueError where they are of more."""
    from foredraft import records
    from foredraft.calibrate.law import is_whole
    from foredraft.cli.console import rows_by_file

    rows = [row for rows in rows_by_file(files).values() for row in rows if is_whole(row)]
    for name, values in (
        ("target", [row.target for row in rows]),
        ("draft", [row.draft for row in rows if row.lookahead]),
    ):
        if len(of := list(dict.fromkeys(values))) > 1:
            raise ValueError(
                f"--observations: rows of {len(of)} {name}s ({', '.join(map(str, of))}): give those of one"
            )
    if not rows:
        raise ValueError("--observations: no row has tokens/s, clients, k and, where it drafted, tokens per step")
    records.write_lines(out / "observations.jsonl", rows)
    return rows


def _served(out: Path) -> str:
    from foredraft.calibrate.runs import served_path

    return served_path(out)


def _watched(
    addresses: "Sequence[Any]", watch: str, every: float, facts: dict[str, Any], out: Path
) -> "tuple[list[Observation], dict[int, float]]":
    import asyncio

    from foredraft.calibrate.runs import RunConditions, add_watched, label
    from foredraft.serving.watch import seconds_of, watched

    if len(addresses) > 1:
        raise ValueError("--watch: reads one server; watch the others after it, into the same --out")
    result = asyncio.run(watched(addresses[0], seconds_of(watch), every, facts))
    server = result.server
    for warning in result.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if not result.rows:
        raise ValueError(
            f"{addresses[0]}: nothing ran in {watch} of watching; watch longer, or leave out --watch to have it asked"
        )
    for row in result.rows:
        print(_line(row), file=sys.stderr)
    conditions = RunConditions(target=server.root or server.model, engine=server.engine.name, watched=True)
    rows = add_watched(out, conditions, result.rows)
    print(f"watched: {', '.join(dict.fromkeys(label(row.lookahead) for row in result.rows))}", file=sys.stderr)
    return rows, result.shares


def _asked(
    addresses: "Sequence[Any]", prompts: Path | None, on_error: str, settings: Any, facts: dict[str, Any], out: Path
) -> "list[Observation]":
    from foredraft.calibrate.runs import measure_runs
    from foredraft.data.prompts import read_questions
    from foredraft.data.sources import Skips
    from foredraft.serving.builtin import questions

    num = settings.num_requests(max(settings.loads))
    if prompts is None:
        asked, name = questions(num), "built-in"
    else:
        given, name = read_questions(prompts, Skips(on_error)), prompts.stem
        asked = [given[i % len(given)] for i in range(num)]
        if len(given) < num:
            print(
                f"warning: {prompts.name}: {len(given)} prompts for {num} requests: they are asked again, out of the prefix cache",
                file=sys.stderr,
            )

    def on_row(row: "Observation", warnings: "Sequence[str]") -> None:
        print(_line(row), file=sys.stderr)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)

    return measure_runs(
        addresses, asked, settings, out, {**facts, "dataset": name}, on_row, lambda words: print(words, file=sys.stderr)
    )  # fmt: skip


def _line(row: "Observation") -> str:
    """One load, as it is measured."""
    from foredraft.calibrate.runs import label
    from foredraft.report.calibrated import form_of

    tau = f", {row.tokens_per_step:.2f} tokens per step" if row.tokens_per_step and row.lookahead else ""
    speed = f"{row.output_tok_s:{form_of(row.output_tok_s)}} tokens/s" if row.output_tok_s else "tokens/s not told"
    return f"{label(row.lookahead)}, {row.concurrency} at once: {speed}{tau}"


def _conclude(
    rows: "Sequence[Observation]", known: "KnownServer", target: str | None, weights: dict[int, float] | None, out: Path, json: bool
) -> None:  # fmt: skip
    from foredraft.calibrate.conclude import conclude
    from foredraft.calibrate.files import write_files

    calibration = conclude(rows, known, weights)
    say_written([out / "observations.jsonl", *write_files(calibration, out, _plan(calibration, rows, known, target))])
    if json:
        print_json(calibration)
        return
    from foredraft.report.calibrated import calibration_tables

    print_blocks(calibration_tables(calibration))
    print_blocks(_next(calibration, known, out))


def _plan(
    calibration: "ServerCalibration", rows: "Sequence[Observation]", known: "KnownServer", target: str | None
) -> Any:
    """The schedule as a plan; None where the target's or the draft's shape cannot be known."""
    if not known.draft:
        return None
    from foredraft import shapes
    from foredraft.calibrate.conclude import plan_of
    from foredraft.plan.at_hand import draft_at_hand

    try:
        shape = shapes.named(target or calibration.path)
        at_hand = draft_at_hand(known.draft, shape)
    except ValueError as error:
        print(f"no Plan.json: {error}", file=sys.stderr)
        return None
    return plan_of(calibration, rows, known, shape, at_hand.shape) if at_hand and at_hand.shape else None


def _next(calibration: "ServerCalibration", known: "KnownServer", out: Path) -> list[str]:
    """The next command: the run that is missing, or what starts the server by its schedule."""
    from foredraft.calibrate.conclude import drafting, next_lookahead
    from foredraft.engines import ENGINES
    from foredraft.engines.operations import launch_words

    engine, lookahead = ENGINES[calibration.engine], next_lookahead(calibration)
    again = f"foredraft calibrate {known.server} --out {out}"
    if lookahead is not None:
        settings = drafting(engine, engine.chain(lookahead), calibration.method, calibration.draft) if lookahead else {}
        what = f"with a lookahead of {lookahead}" if lookahead else "without a draft"
        return [
            f"\nNext: start the server {what}, then measure it as before:",
            f"  {launch_words(engine, calibration.path, settings)}",
            f"  {again}",
        ]
    return [f"\nNext: sh {out / 'serve.sh'}", f"  then check it: {again} --again"]
