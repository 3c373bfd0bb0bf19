"""One verb per arrow. Data on stdout, talk on stderr; an error is one line and a hint with what to try next.

Refuses to know: how anything is computed; every verb imports its room when it runs, so that `--help` stays instant.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from foredraft import __version__
from foredraft.data_cli import app as data_app
from foredraft.deploy_cli import app as deploy_app
from foredraft.measure_cli import measure, probe
from foredraft.report_cli import report
from foredraft.sweep_cli import sweep
from foredraft.train_cli import train

if TYPE_CHECKING:
    from foredraft.records import Machine, Observation, Plan
    from foredraft.shapes import Shape

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Say which draft to train for speculative decoding before training it, with an interval on every number.",
)
app.add_typer(data_app, name="data")
app.add_typer(deploy_app, name="deploy")
app.command()(train)
app.command()(report)
app.command()(probe)
app.command()(measure)
app.command()(sweep)
JSON = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for documents and figures; nothing is written without it.")
]
Figures = Annotated[
    bool, typer.Option("--figures/--no-figures", help="Draw figures into --out (needs matplotlib: foredraft[plot]).")
]


def main() -> None:
    """Run the command line; a ValueError or a missing file becomes one line on stderr and exit code 2."""
    try:
        app()
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except (ValueError, ImportError) as error:
        _fail(str(error))


def _fail(message: str, hint: str | None = None) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    hint = hint or next((text for word, text in HINTS.items() if word in message), None)
    if hint:
        print(f"\nhint: {hint}", file=sys.stderr)
    raise SystemExit(2)


HINTS = {  # a word of the message -> the next command
    "no shape named": "foredraft list models; or pass the folder of a Hugging Face config.json",
    "machine": "foredraft list machines",
    "KV cache holds": "raise --devices, or lower --dtype, --input-len or --output-len",
    "foredraft[report]": "pip install 'foredraft[report]'",
    "foredraft[plot]": "pip install 'foredraft[plot]', or pass --no-figures",
    "no prediction can be judged": "foredraft validate --help lists the columns of each kind",
    "No such file": "check the path",
    "no outcome column": "foredraft validate --help lists the columns of each kind",
    "another --out": "a run goes on only with its own recipe and data",
    "no token folder": "foredraft data prepare FILES --tokenizer DIR --out DIR",
    "learns from a target": "--target DIR, a Hugging Face folder",
    "no tokenizer": "save the tokenizer into the model's folder",
    "foredraft[sweep]": "pip install 'foredraft[sweep]', or leave out --ray",
    "No module named": "pip install 'foredraft[full]'",
    "exceeds the context": "lower --input-len, --output-len or --max-lookahead",
    "no law can be fitted": "each line above says which dial to vary; foredraft list laws",
}


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def plan(
    target: Annotated[
        str,
        typer.Argument(
            help="A public model (Llama-3.1-70B, Qwen3-32B, …) or the folder of a Hugging Face config.json."
        ),
    ],
    draft: Annotated[
        str | None,
        typer.Option("--draft", "-d", help="Weigh this model alone: a public name or the folder of a config.json."),
    ] = None,
    machine: Annotated[
        str, typer.Option("--machine", "-m", help="Accelerator, e.g. H100, or a Machine record as JSON.")
    ] = "H100",
    devices: Annotated[int, typer.Option("--devices", "-n", help="How many, tensor parallel.")] = 1,
    concurrency: Annotated[
        str,
        typer.Option("--concurrency", "-c", help="Concurrent requests: a list 1,8,64 or a range 1-256 (powers of 2)."),
    ] = "1-64",
    input_len: Annotated[float, typer.Option(help="Mean prompt tokens.")] = 512,
    output_len: Annotated[float, typer.Option(help="Mean answer tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of the load.")] = 0.0,
    objective: Annotated[str, typer.Option(help="throughput, latency (TPOT) or tokens_per_flop.")] = "throughput",
    engine: Annotated[str, typer.Option(help="vllm and sglang (chains), or foredraft (chains and trees).")] = "vllm",
    dtype: Annotated[str, typer.Option(help="Weights: bfloat16, float16, fp8, …")] = "bfloat16",
    kv_dtype: Annotated[str | None, typer.Option(help="KV cache; as --dtype when left out.")] = None,
    max_lookahead: Annotated[int, typer.Option(help="Longest chain to consider.")] = 8,
    served_tokens: Annotated[float, typer.Option(help="Output tokens over which training is paid back.")] = 1e11,
    max_gpu_hours: Annotated[float, typer.Option(help="Most device-hours that training may cost.")] = 1e5,
    kinds: Annotated[
        str, typer.Option(help="Kinds of draft to weigh, of head, lm (an independent model) and lookup (n-gram).")
    ] = "head,lm,lookup",
    always: Annotated[bool, typer.Option("--always", help="Plan the best draft even where none pays.")] = False,
    observations: Annotated[
        list[Path] | None, typer.Option("--observations", help="Own measurements (JSONL or CSV); repeat for more.")
    ] = None,
    draws: Annotated[int, typer.Option(help="Bootstrap draws behind the intervals.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Which draft to train for TARGET, how to run it at each load, what it will gain, and how sure that is."""
    from foredraft import records
    from foredraft.plan.plan import plan as make
    from foredraft.plan.search import Settings

    shape, given = _shape(target), _shape(draft) if draft else None
    load = records.Workload(
        input_len=input_len, output_len=output_len, concurrency=_concurrency(concurrency), temperature=temperature
    )
    options = Settings(
        objective=objective,
        engine=engine,
        devices=devices,
        dtype=dtype,
        kv_dtype=kv_dtype,
        max_lookahead=max_lookahead,
        horizon_tokens=served_tokens,
        max_training_gpu_hours=max_gpu_hours,
        kinds=tuple(kind.strip() for kind in kinds.split(",") if kind.strip()),
        always=always,
        draws=draws,
        seed=seed,
    )
    own = [row for path in observations or [] for row in _observations(path)]
    made = make(shape, _machine(machine), load, options, own, given)
    if out:
        _write_plan(made, out, figures)
    _print_json(made) if json else _print_plan(made)


def _shape(name: str) -> "Shape":
    """A public model's shape, or that of the config.json at a path."""
    from foredraft import shapes

    return shapes.from_config(name) if Path(name).exists() else shapes.shape(name)


def _concurrency(text: str) -> tuple[int, ...]:
    """1,8,64 as it stands; 1-256 as the powers of 2 between."""
    try:
        if "-" in text:
            low, high = map(int, text.split("-"))
            if not 0 < low <= high:
                raise ValueError
            return (low, *(n for n in (2**i for i in range(31)) if low < n < high), *((high,) if high > low else ()))
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"concurrency must be a list such as 1,8,64 or a range such as 1-256, got {text!r}") from None


def _observations(path: Path) -> "list[Observation]":
    from foredraft import records
    from foredraft.published.tables import read_table

    return read_table(path)[0] if path.suffix == ".csv" else records.read_lines(records.Observation, path)


def _write_plan(made: "Plan", out: Path, figures: bool) -> None:
    from foredraft import records

    written = [out / "Plan.json"]
    records.write(written[0], made)
    for name, config in (("vllm_speculative_config.json", made.vllm), ("sglang_flags.json", made.sglang)):
        if config:
            records.write(out / name, config)
            written.append(out / name)
    if figures:
        from foredraft.report.plan import draw_plan

        written += draw_plan(made, out)
    _say_written(written)


def _say_written(paths: list[Path]) -> None:
    print("wrote " + ", ".join(str(path) for path in paths if path.suffix != ".svg"), file=sys.stderr)


def _print_json(record: Any) -> None:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(record), indent=1).decode())


def _print_plan(made: "Plan") -> None:
    from foredraft.report.terminal import plan_tables

    _print_blocks(plan_tables(made))


def _print_blocks(blocks: Any) -> None:
    """To the terminal's width, or to 110 columns into a pipe or file."""
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
    for block in blocks:
        console.print(block)


@app.command()
def fit(
    runs: Annotated[list[Path], typer.Argument(help="Own measurements: observations as JSONL, or a CSV.")],
    draws: Annotated[int, typer.Option(help="Bootstrap draws.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    hold_out: Annotated[
        str,
        typer.Option(
            help="Dials whose largest runs the fits must not see and are then held to: draft_params, draft_layers, draft_tokens, tree_nodes, or all."
        ),
    ] = "",
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Fit every law that RUNS can support, choose among rival forms by held-out error, and say what the others lack."""
    from foredraft import records
    from foredraft.laws.fit import fit_all
    from foredraft.laws.held_out import DIALS, determined, judge, without_largest

    rows = [row for path in runs for row in _observations(path)]
    dials = DIALS if hold_out == "all" else tuple(name.strip() for name in hold_out.split(",") if name.strip())
    kept, held = without_largest(rows, dials)
    if dials and not held:
        _fail(f"no run is the largest of at least three in {hold_out}", "foredraft fit RUNS")
    fits, lacking = fit_all(kept, draws=draws, seed=seed)
    judged = [one for fitted in fits for one in judge(fitted, held)]
    if json:
        r_squared = [determined(fitted, kept) for fitted in fits]
        _print_json({"fits": fits, "r_squared": r_squared, "lacking": lacking, "held_out": judged})
    else:
        from foredraft.report.terminal import fit_tables, held_out_table

        _print_blocks(fit_tables(fits, lacking) + ([held_out_table(judged)] if judged else []))
    if not fits:
        _fail("no law can be fitted to these observations")
    if out:
        written = [out / f"Fit.{i}.{fitted.law}.json" for i, fitted in enumerate(fits)]
        for path, fitted in zip(written, fits, strict=True):
            records.write(path, fitted)
        if judged:
            written.append(out / "held_out.json")
            records.write(written[-1], judged)
        if figures:
            from foredraft.report.fit import draw_fit

            written += [path for fitted in fits for path in draw_fit(fitted, rows, out)]
        _say_written(written)


@app.command()
def validate(
    files: Annotated[
        list[Path] | None, typer.Argument(help="CSV tables; the published measurements of the package when left out.")
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(
            "--machine", "-m", help="Stands in for rows that state no machine; with --target a Machine record too."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", help="FILES are own measurements of this model: judge the planner on them."),
    ] = None,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Predict published measurements from what a quick run would show, and report the errors.

    AL(k) curves (k, mean_acceptance_length or per-position acceptance): τ at larger k from k ≤ 2. Throughput tables
    (concurrency or batch_size, k, throughput): the ratio to no draft and the best k, from the no-draft rows and k ≤
    2. Batch ladders (batch_size, speedup, τ or chain length): the ratio from shape and machine. With --target: every own
    cell's speedup from plain rows and k ≤ 2, and what the planned independent draft loses against the best measured one.
    """
    if target:
        _hindsight(target, files or [], machine, out, json)
        return
    from foredraft import records
    from foredraft.validate import merge
    from foredraft.validate import validate as judge

    tables = {path.name: _observations(path) for path in files} if files else _shipped_tables()
    judged, refused = {}, {}
    for name, rows in tables.items():
        try:
            judged[name] = judge(rows, machine=machine)
        except ValueError as error:
            refused[name] = str(error)
    if not judged:
        _fail("; ".join(f"{name}: {why}" for name, why in refused.items()))
    whole = merge(judged.values())
    report = {
        "summary": whole.summary(),
        "tables": {
            name: found.summary() | {"lacking": found.lacking, "assumed": found.assumed}
            for name, found in judged.items()
        },
        "not_judged": refused,
    }
    if out:
        records.write(out / "summary.json", report)
        records.write(out / "Validation.json", whole)
        written = [out / "summary.json", out / "Validation.json"]
        if figures:
            from foredraft.report.validation import draw_validation

            written += draw_validation(whole, out)
        _say_written(written)
    if json:
        _print_json(report | {"points": whole})
        return
    from foredraft.report.terminal import validation_tables

    _print_blocks(validation_tables(judged, refused))


def _hindsight(target: str, files: list[Path], machine: str | None, out: Path | None, json: bool) -> None:
    from foredraft import records
    from foredraft.plan.hindsight import judge

    if not (files and machine):
        raise ValueError("--target judges own measurements: give their files and --machine")
    rows, shape, where = [row for path in files for row in _observations(path)], _shape(target), _machine(machine)
    classes = {(row.temperature or 0.0) > 0 for row in rows if row.output_tok_s} or {False}
    judged = [judge(shape, where, rows, float(sampled)) for sampled in sorted(classes)]
    if out:
        records.write(out / "hindsight.json", judged)
        _say_written([out / "hindsight.json"])
    if json:
        _print_json([{"error": one.error, "hindsight": one} for one in judged])
        return
    from foredraft.report.terminal import hindsight_tables

    _print_blocks(hindsight_tables(judged))


def _machine(name: str) -> "Machine":
    """A known accelerator, or a Machine record in a .json file."""
    from foredraft import machines, records

    return records.read(records.Machine, name) if name.endswith(".json") else machines.machine(name)


def _shipped_tables() -> "dict[str, list[Observation]]":
    """The published observations, table by table."""
    from foredraft.published import observations

    tables: dict[str, list[Observation]] = {}
    for row in observations():
        tables.setdefault(row.run.rsplit(":", 1)[0], []).append(row)
    return tables


@app.command()
def reproduce(
    what: Annotated[str, typer.Argument(help="sdsl: Table 5, Table 9 and the five figures of arXiv 2603.11053.")],
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Reproduce a paper's numbers from its own theory, beside the published ones."""
    if what != "sdsl":
        _fail(f"nothing named {what!r} to reproduce", "foredraft reproduce sdsl")
    from foredraft import records
    from foredraft.plan.sdsl import reproduce as run

    report = run()
    if out:
        records.write(out / "sdsl.json", report)
        written = [out / "sdsl.json"]
        if figures:
            from foredraft.report.sdsl import draw

            written += draw(out)
        _say_written(written)
    if json:
        _print_json(report)
        return
    from foredraft.report.terminal import sdsl_tables

    _print_blocks(sdsl_tables(report))


@app.command()
def generate(
    target: Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer.")],
    prompt: Annotated[str | None, typer.Argument(help="What to continue; left out, --file or stdin.")] = None,
    file: Annotated[Path | None, typer.Option("--file", "-f", help="A prompt per line, answered together.")] = None,
    draft: Annotated[
        str | None, typer.Option("--draft", "-d", help="ngram, or the folder of a smaller model or a draft head.")
    ] = None,
    lookahead: Annotated[int, typer.Option("--lookahead", "-k", help="Draft tokens per step.")] = 4,
    plan: Annotated[
        Path | None, typer.Option("--plan", help="A Plan.json, whose schedule sets the lookahead by running requests.")
    ] = None,
    tree: Annotated[
        str | None,
        typer.Option(
            help="TOPK,NODES: EAGLE-2's dynamic tree with a head, e.g. 4,16, --lookahead levels deep; or a JSON file of [parent, rank]."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Smallest set of this mass.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Likeliest tokens only; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the answer; repeat for more.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    batch: Annotated[int, typer.Option(help="Requests decoded together.")] = 8,
    context: Annotated[int | None, typer.Option(help="Most tokens per request; the model's own by default.")] = None,
    cache_gb: Annotated[float | None, typer.Option(help="Refuse a KV cache larger than this many GB.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print the text as it comes (one prompt).")
    ] = True,
    stats: Annotated[bool, typer.Option("--stats", help="Show drafted text in colour, and the counts.")] = False,
    json: JSON = False,
) -> None:
    """Decode losslessly with any drafter: the text is the target's own, only sooner."""
    from foredraft import records, text
    from foredraft.decode.sampling import Sampling

    kind = _dtype(dtype)
    prompts = _prompts(prompt, file)
    sampling = Sampling(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
    tokenizer = text.tokenizer_of(target)
    budget = text.schedule_of(records.read(records.Plan, plan)) if plan else text.budget_of(lookahead, tree)
    engine = text.load_engine(
        target, draft, lookahead=budget, dtype=kind, device=device, max_batch=min(batch, len(prompts)),
        max_context=context, cache_bytes=None if cache_gb is None else int(cache_gb * 1e9),
    )  # fmt: skip
    show = _streamer(stats) if stream and not json and len(prompts) == 1 else None
    steps: list[Any] = []
    made = text.generate(
        engine, tokenizer, prompts, max_tokens=max_tokens, sampling=sampling, ends=text.stop_ids(target, tokenizer),
        stops=tuple(stop or ()), chat=chat, on_text=show, on_step=steps.append,
    )  # fmt: skip
    if json:
        _print_json(
            [text.report(prompt, answer, sequence) for prompt, (answer, sequence) in zip(prompts, made, strict=True)]
        )
        return
    if show:
        print()
    else:
        print("\n\n".join(answer.text for answer, _ in made))
    if stats:
        print(text.summary(steps), file=sys.stderr)


@app.command()
def bench(
    target: Annotated[str, typer.Argument(help="Folder of a Hugging Face checkpoint with its tokenizer.")],
    draft: Annotated[
        list[str] | None,
        typer.Option(
            "--draft",
            "-d",
            help="ngram or a folder, with @k for its lookahead (dir@5) or a head's tree (dir@5,4,16); repeat for more arms.",
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Prompts: a line each, or Spec-Bench JSONL.")
    ] = None,
    num: Annotated[int, typer.Option(help="Prompts to take.")] = 16,
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer.")] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    batch: Annotated[int, typer.Option(help="Requests decoded together.")] = 1,
    rounds: Annotated[int, typer.Option(help="Counted rounds; one more warms up.")] = 3,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[int | None, typer.Option(help="Torch threads; torch's own choice by default.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write bench.json there.")] = None,
    json: JSON = False,
) -> None:
    """Time plain decoding and every draft on the same prompts, in turn, in one run."""
    import torch
    from rich.progress import Progress

    from foredraft import records, text
    from foredraft.decode.batch import Request
    from foredraft.decode.sampling import Sampling
    from foredraft.measure.arms import spec_of
    from foredraft.measure.bench import bench as run
    from foredraft.measure.bench import conditions, spec_bench_prompts

    if threads:
        torch.set_num_threads(threads)
    kind = _dtype(dtype)
    prompts = spec_bench_prompts(file)[:num] if file and file.suffix == ".jsonl" else _prompts(None, file)[:num]
    tokenizer = text.tokenizer_of(target)
    requests = [
        Request(
            prompt=tuple(text.encode(tokenizer, prompt, False)),
            max_tokens=max_tokens,
            sampling=Sampling(temperature=temperature, seed=i),
        )
        for i, prompt in enumerate(prompts)
    ]
    context = max(len(request.prompt) for request in requests) + max_tokens

    def arm(given: str | None) -> Any:
        spec = spec_of(given)
        return lambda: text.load_engine(
            target, spec.draft, lookahead=spec.budget, dtype=kind, device=device, max_batch=batch, max_context=context
        )

    arms = {"plain": arm(None)} | {spec: arm(spec) for spec in draft or ["ngram"]}
    groups = -(-len(requests) // batch)
    with Progress(disable=not sys.stderr.isatty(), transient=True) as bar:
        task = bar.add_task("decoding", total=(rounds + 1) * groups * len(arms))
        found = run(arms, requests, rounds=rounds, progress=lambda: bar.advance(task))
    report = {"conditions": conditions(target, len(prompts), max_tokens, batch, rounds, dtype, device), "arms": found}
    if out:
        records.write(out / "bench.json", report)
    if json:
        _print_json(report)
        return
    from foredraft.report.terminal import bench_tables

    _print_blocks(bench_tables(found, report["conditions"]))


def _dtype(name: str) -> Any:
    import torch

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in kinds:
        raise ValueError(f"dtype must be one of {', '.join(kinds)}, got {name}")
    return kinds[name]


def _prompts(prompt: str | None, file: Path | None) -> list[str]:
    if prompt is not None and file is not None:
        raise ValueError("prompt and --file: give one of them")
    if file is not None:
        lines = [line for line in file.read_text().splitlines() if line.strip()]
        if not lines:
            raise ValueError(f"{file}: no prompts in the file")
        return lines
    given = prompt if prompt is not None else "" if sys.stdin.isatty() else sys.stdin.read()
    if not given.strip():
        raise ValueError("prompt: give one as an argument, with --file or on stdin")
    return [given]


def _streamer(stats: bool) -> Any:
    """Prints pieces as they come; with --stats on a terminal, what a draft had right in green."""
    colour = stats and sys.stdout.isatty()

    def show(_: int, piece: str, drafted: bool) -> None:
        print(f"\033[32m{piece}\033[0m" if colour and drafted else piece, end="", flush=True)

    return show


@app.command()
def tour(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the tour makes.")] = Path("tour"),
    zoo: Annotated[Path, typer.Option(help="Folder of trained models, of the repository.")] = Path("zoo"),
    observations: Annotated[Path, typer.Option(help="What was measured on its target.")] = Path(
        "results/experiment/observations.jsonl"
    ),
) -> None:
    """The whole loop in five minutes: probe, plan, train the planned draft briefly, decode, measure, report."""
    from foredraft.tour import tour as run

    page = run(zoo, observations, out)
    print(f"\nwrote {page}: what was predicted, and what came out", file=sys.stderr)


@app.command("list")
def show(what: Annotated[str, typer.Argument(help="models, machines or laws.")], json: JSON = False) -> None:
    """What is known by name: model shapes, machines, laws."""
    from foredraft.report.terminal import named_things

    things = named_things(what)
    if json:
        _print_json(things)
        return
    from foredraft.report.terminal import listing

    _print_blocks([listing(what, things)])


if __name__ == "__main__":
    main()
