"""The verb `foredraft fit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foredraft.cli.console import drawn, names, one_at_a_time, print_blocks, print_json, rows_by_file, say_written
from foredraft.cli.options import DRAWS, JSON, Figures, Out, Seed, TargetNames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foredraft.laws.held_out import HeldOut
    from foredraft.records import Fit, Observation


@one_at_a_time
def fit(
    runs: Annotated[list[Path], typer.Argument(help="Own measurements, or another benchmark's files.")],
    law: Annotated[
        str | None,
        typer.Option(help="Print all of this law instead of the table of all; foredraft list laws names them."),
    ] = None,
    draws: Annotated[int, typer.Option(help="Bootstrap draws.", callback=DRAWS)] = 200,
    seed: Seed = 0,
    hold_out: Annotated[
        str,
        typer.Option(
            help="Dials whose largest runs the fits must not see and are then held to: draft_params, draft_layers, draft_tokens, tree_nodes, or all."
        ),
    ] = "",
    target_name: TargetNames = None,
    out: Out = None,
    figures: Figures = False,
    json: JSON = False,
) -> None:
    """Fit every law that RUNS can support, choose among rival forms by held-out error, and say what the others lack."""
    from foredraft import api
    from foredraft.laws.held_out import DIALS, judge, r_squared, without_largest
    from foredraft.records import with_hint

    if law is not None:
        _check_law(law)
    if figures and out is None:
        raise ValueError("--figures: name a folder for them with --out")
    dials = DIALS if hold_out == "all" else names(hold_out)
    without_largest((), dials)  # ValueError on an unknown dial, before anything is read
    rows = [row for part in rows_by_file(runs, target_name).values() for row in part]
    shown, largest = without_largest(rows, dials)
    if dials and not largest:
        raise with_hint(
            ValueError(f"--hold-out: no run is the largest of at least three in {hold_out}"), "foredraft fit RUNS"
        )
    fits, lacking = api.fit(shown, draws, seed)
    judged = [row for fitted in fits for row in judge(fitted, largest)]
    if json:
        shares = [r_squared(fitted, shown) for fitted in fits]
        print_json({"fits": fits, "r_squared": shares, "lacking": lacking, "held_out": judged})
    else:
        from foredraft.report.fit_tables import fit_tables, held_out_table, law_tables

        blocks = law_tables(law, fits, lacking) if law else fit_tables(fits, lacking)
        print_blocks(blocks + ([held_out_table(judged)] if judged else []))
    if not fits:
        message = "no law can be fitted to these observations"
        raise with_hint(
            ValueError(message), "foredraft fit RUNS --law NAME says which dial to vary; foredraft list laws"
        )
    if out:
        _write(fits, judged, rows, out, figures)


def _check_law(name: str) -> None:
    from foredraft.laws.forms import laws
    from foredraft.records import with_hint

    if name not in laws():
        raise with_hint(ValueError(f"--law must be one of {', '.join(laws())}; got {name}"), "foredraft list laws")


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

        written += drawn(lambda: [path for fitted in fits for path in draw_fit(fitted, rows, out)])
    say_written(written)
