"""The verbs `foredraft plan`, `fit`, `validate` and `reproduce`. Refuses to know: how anything is computed; each imports its
room when it runs.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli.console import JSON, print_blocks, print_json
from foredraft.records import with_hint

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from foredraft.laws.held_out import HeldOut
    from foredraft.records import Fit, Machine, Observation, Plan
    from foredraft.shapes import Shape
    from foredraft.validate import Validation

Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Folder for documents and figures; nothing is written without it.")
]
Figures = Annotated[
    bool, typer.Option("--figures/--no-figures", help="Draw figures into --out (needs matplotlib: foredraft[plot]).")
]


def plan(
    target: Annotated[
        str,
        typer.Argument(
            help="A public model (Llama-3.1-70B, Qwen3-32B, …) or the folder of a Hugging Face config.json."
        ),
    ],
    draft: Annotated[
        str | None,
        typer.Option("--draft", "-d", help="Weigh this draft alone: a public name, or the folder of a model or head."),
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
    from foredraft.plan.plan import plan as make
    from foredraft.plan.search import Settings
    from foredraft.records import Workload

    load = Workload(
        input_len=input_len, output_len=output_len, concurrency=_concurrency(concurrency), temperature=temperature
    )
    options = Settings(
        objective=objective, engine=engine, devices=devices, dtype=dtype, kv_dtype=kv_dtype, max_lookahead=max_lookahead,
        horizon_tokens=served_tokens, max_training_gpu_hours=max_gpu_hours, kinds=_names(kinds), always=always, draws=draws, seed=seed,
    )  # fmt: skip
    own, given = _observations(observations or ()), _draft(draft) if draft else None
    made = make(_shape(target), _machine(machine), load, options, own, given)
    if out:
        _write_plan(made, out, figures)
    if json:
        print_json(made)
        return
    from foredraft.report.terminal import plan_tables

    print_blocks(plan_tables(made))


def _draft(name: str) -> "Shape":
    from foredraft import shapes

    return shapes.of_draft(name) if Path(name).exists() else shapes.shape(name)


def _shape(name: str) -> "Shape":
    """A public model's shape, or that of the config.json at a path."""
    from foredraft import shapes

    return shapes.from_config(name) if Path(name).exists() else shapes.shape(name)


def _machine(name: str) -> "Machine":
    """A known accelerator, or a Machine record in a .json file."""
    from foredraft import machines, records

    return records.read(records.Machine, name) if name.endswith(".json") else machines.machine(name)


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


def _names(text: str) -> tuple[str, ...]:
    """head,lm as its words."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _observations(paths: "Iterable[Path]") -> "list[Observation]":
    """Of CSV tables and of JSONL files, one after another."""
    from foredraft import records
    from foredraft.published.tables import read_table

    return [
        row
        for path in paths
        for row in (read_table(path)[0] if path.suffix == ".csv" else records.read_lines(records.Observation, path))
    ]


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
    from foredraft.laws.fit import fit_all
    from foredraft.laws.held_out import DIALS, determined, judge, without_largest

    rows, dials = _observations(runs), DIALS if hold_out == "all" else _names(hold_out)
    kept, held = without_largest(rows, dials)
    if dials and not held:
        raise with_hint(ValueError(f"no run is the largest of at least three in {hold_out}"), "foredraft fit RUNS")
    fits, lacking = fit_all(kept, draws=draws, seed=seed)
    judged = [one for fitted in fits for one in judge(fitted, held)]
    if json:
        r_squared = [determined(fitted, kept) for fitted in fits]
        print_json({"fits": fits, "r_squared": r_squared, "lacking": lacking, "held_out": judged})
    else:
        from foredraft.report.terminal import fit_tables, held_out_table

        print_blocks(fit_tables(fits, lacking) + ([held_out_table(judged)] if judged else []))
    if not fits:
        message = "no law can be fitted to these observations"
        raise with_hint(ValueError(message), "each line above says which dial to vary; foredraft list laws")
    if out:
        _write_fits(fits, judged, rows, out, figures)


def _write_fits(
    fits: "Sequence[Fit]", judged: "list[HeldOut]", rows: "list[Observation]", out: Path, figures: bool
) -> None:
    from foredraft import records

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
    from foredraft.validate import merge

    judged, refused = _judged(files or (), machine)
    whole = merge(judged.values())
    tables = {name: one.summary() | {"lacking": one.lacking, "assumed": one.assumed} for name, one in judged.items()}
    report = {"summary": whole.summary(), "tables": tables, "not_judged": refused}
    if out:
        _write_validation(report, whole, out, figures)
    if json:
        print_json(report | {"points": whole})
        return
    from foredraft.report.terminal import validation_tables

    print_blocks(validation_tables(judged, refused))


def _judged(files: "Sequence[Path]", machine: str | None) -> "tuple[dict[str, Validation], dict[str, str]]":
    """By table: what was predicted beside what was measured; and of tables that allow no prediction why not."""
    from foredraft.published.tables import COLUMNS_HELP
    from foredraft.validate import validate as judge

    tables = {path.name: _observations([path]) for path in files} if files else _shipped_tables()
    judged, refused = {}, {}
    for name, rows in tables.items():
        try:
            judged[name] = judge(rows, machine=machine)
        except ValueError as error:
            refused[name] = str(error)
    if not judged:
        raise with_hint(ValueError("; ".join(f"{name}: {why}" for name, why in refused.items())), COLUMNS_HELP)
    return judged, refused


def _write_validation(report: dict[str, Any], whole: "Validation", out: Path, figures: bool) -> None:
    from foredraft import records

    written = [out / "summary.json", out / "Validation.json"]
    for path, record in zip(written, (report, whole), strict=True):
        records.write(path, record)
    if figures:
        from foredraft.report.validation import draw_validation

        written += draw_validation(whole, out)
    _say_written(written)


def _hindsight(target: str, files: list[Path], machine: str | None, out: Path | None, json: bool) -> None:
    from foredraft import records
    from foredraft.plan.hindsight import judge

    if not (files and machine):
        raise ValueError("--target judges own measurements: give their files and --machine")
    rows, shape, where = _observations(files), _shape(target), _machine(machine)
    classes = {(row.temperature or 0.0) > 0 for row in rows if row.output_tok_s} or {False}
    judged = [judge(shape, where, rows, float(sampled)) for sampled in sorted(classes)]
    if out:
        records.write(out / "hindsight.json", judged)
        _say_written([out / "hindsight.json"])
    if json:
        print_json([{"error": one.error, "hindsight": one} for one in judged])
        return
    from foredraft.report.terminal import hindsight_tables

    print_blocks(hindsight_tables(judged))


def _shipped_tables() -> "dict[str, list[Observation]]":
    """The published observations, table by table."""
    from foredraft.published import observations

    tables: dict[str, list[Observation]] = {}
    for row in observations():
        tables.setdefault(row.run.rsplit(":", 1)[0], []).append(row)
    return tables


def reproduce(
    what: Annotated[str, typer.Argument(help="sdsl: Table 5, Table 9 and the five figures of arXiv 2603.11053.")],
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Reproduce a paper's numbers from its own theory, beside the published ones."""
    if what != "sdsl":
        raise with_hint(ValueError(f"nothing named {what!r} to reproduce"), "foredraft reproduce sdsl")
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
        print_json(report)
        return
    from foredraft.report.terminal import sdsl_tables

    print_blocks(sdsl_tables(report))
