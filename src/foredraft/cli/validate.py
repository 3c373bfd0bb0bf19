"""The verb `foredraft validate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foredraft.cli.console import one_at_a_time, print_blocks, print_json, progress_bar, rows_by_file, say_written
from foredraft.cli.options import JSON, Figures, Out, TargetNames

if TYPE_CHECKING:
    from foredraft.validate import Validation


@one_at_a_time
def validate(
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Tables, or other benchmarks' files; the published measurements of the package when left out."
        ),
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
    target_name: TargetNames = None,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Predict published measurements from what a quick run would show, and report the errors.

    AL(k) curves (k, mean_acceptance_length or per-position acceptance): τ at larger k from k ≤ 2. Throughput tables
    (concurrency or batch_size, k, throughput): the ratio to no draft (without such rows, to the smallest k) and the best k, from
    the no-draft rows and k ≤ 2, beside a straight line in k by hand; trees with their τ. Batch ladders and single reports
    (batch_size or concurrency, speedup or gain, τ or chain length): the ratio from shape and machine. Without a draft (target,
    machine, throughput or plain_tok_s, ttft_ms, kv_cache_tokens): each figure from names alone. With --target: every own
    cell's speedup from plain rows and k ≤ 2, and what the planned independent draft loses against the best measured one.
    """
    if target:
        _hindsight(target, files or [], machine, target_name, out, json)
        return
    from foredraft import published
    from foredraft.validate import STAGES, lengths, merge, validate_tables

    tables = rows_by_file(files, target_name) if files else published.observations_by_table()
    with progress_bar() as bar:
        task = bar.add_task("judging rows", total=STAGES * sum(map(len, tables.values())))
        judged, refused = validate_tables(tables, machine=machine, advance=lambda rows: bar.advance(task, rows))
    total = merge(judged.values())
    adaptive = None if files else lengths.judge(published.length_cases())
    by_table = {
        name: each.summary() | {"lacking": each.lacking, "assumed": each.assumed} for name, each in judged.items()
    }
    report = {"summary": total.summary(), "tables": by_table, "not_judged": refused} | (
        {"lengths": adaptive} if adaptive else {}
    )
    if out:
        _write(report, total, out, figures)
    if json:
        print_json(report | {"points": total})
        return
    from foredraft.report.judged import validation_tables
    from foredraft.report.lengths import judged_length_tables

    print_blocks([*validation_tables(judged, refused), *(judged_length_tables(adaptive) if adaptive else [])])


def _write(report: dict[str, Any], total: "Validation", out: Path, figures: bool) -> None:
    from foredraft import records

    written = [out / "summary.json", out / "Validation.json"]
    for path, record in zip(written, (report, total), strict=True):
        records.write(path, record)
    if figures:
        from foredraft.report.validation import draw_validation

        written += draw_validation(total, out)
    say_written(written)


def _hindsight(
    target: str, files: list[Path], machine: str | None, target_names: list[str] | None, out: Path | None, json: bool
) -> None:
    from foredraft import machines, records, shapes
    from foredraft.plan.hindsight import judge_by_class

    if not (files and machine):
        raise ValueError("--target judges own measurements: give their files and --machine")
    shape, place = shapes.named(target), machines.named(machine)
    rows = [row for part in rows_by_file(files, target_names, shape.name).values() for row in part]
    judged = judge_by_class(shape, place, rows)
    if out:
        records.write(out / "hindsight.json", judged)
        say_written([out / "hindsight.json"])
    if json:
        print_json([{"error": each.error, "hindsight": each} for each in judged])
        return
    from foredraft.report.judged import hindsight_tables

    print_blocks(hindsight_tables(judged))
