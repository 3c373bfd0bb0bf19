"""The verb `foredraft fit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foredraft.cli.console import names, print_blocks, print_json, rows_by_file, say_written
from foredraft.cli.options import DRAWS, JSON, SEED, Figures, Out, TargetNames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foredraft.laws.held_out import HeldOut
    from foredraft.records import Fit, Observation


def fit(
    runs: Annotated[list[Path], typer.Argument(help="Own measurements, or another benchmark's files.")],
    draws: Annotated[int, typer.Option(help="Bootstrap draws.", callback=DRAWS)] = 200,
    seed: Annotated[int, typer.Option(help="Of the draws.", callback=SEED)] = 0,
    hold_out: Annotated[
        str,
        typer.Option(
            help="Dials whose largest runs the fits must not see and are then held to: draft_params, draft_layers, draft_tokens, tree_nodes, or all."
        ),
    ] = "",
    target_name: TargetNames = None,
    out: Out = None,
    figures: Figures = True,
    json: JSON = False,
) -> None:
    """Fit every law that RUNS can support, choose among rival forms by held-out error, and say what the others lack."""
    from foredraft import api
    from foredraft.laws.held_out import DIALS, judge, r_squared, without_largest
    from foredraft.records import with_hint

    rows = [row for part in rows_by_file(runs, target_name).values() for row in part]
    dials = DIALS if hold_out == "all" else names(hold_out)
    shown, largest = without_largest(rows, dials)
    if dials and not largest:
        raise with_hint(ValueError(f"no run is the largest of at least three in {hold_out}"), "foredraft fit RUNS")
    fits, lacking = api.fit(shown, draws, seed)
    judged = [row for fitted in fits for row in judge(fitted, largest)]
    if json:
        shares = [r_squared(fitted, shown) for fitted in fits]
        print_json({"fits": fits, "r_squared": shares, "lacking": lacking, "held_out": judged})
    else:
        from foredraft.report.terminal import fit_tables, held_out_table

        print_blocks(fit_tables(fits, lacking) + ([held_out_table(judged)] if judged else []))
    if not fits:
        message = "no law can be fitted to these observations"
        raise with_hint(ValueError(message), "each line above says which dial to vary; foredraft list laws")
    if out:
        _write(fits, judged, rows, out, figures)


def _write(fits: "Sequence[Fit]", judged: "list[HeldOut]", rows: "list[Observation]", out: Path, figures: bool) -> None:
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
    say_written(written)
