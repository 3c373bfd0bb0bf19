"""Fit how much is accepted under which conditions on the published rows that ship with the package.

    python recipes/conditions.py [--refit]

Writes src/foredraft/published/conditions.json: the sds of `laws.conditions`, how acceptance fades beyond a head's context
(recipes/published/long_context.csv), and how reports of speed scatter at one τ. Prints how each document is predicted from the others
(with --refit the sds are fitted without it too, which takes half an hour), and the drop from temperature 0 to 1 in EAGLE-3's table 1, each
target from the others. In sight when the effects were chosen: all rows of observations.jsonl, and of single reports those of public_points
and throughput_validation.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np
from scipy.optimize import minimize_scalar

from foredraft import published, records
from foredraft.laws.conditions import (
    EFFECTS,
    SCATTER,
    AcceptanceCell,
    ContextFade,
    Levels,
    Spreads,
    chain_level,
    fit_spreads,
)
from foredraft.laws.speedup import tokens_per_step_constant
from foredraft.plan.cells import SINGLE, USUAL, Conditions, cells, target_key
from foredraft.validate import ladders

HERE = Path(__file__).parent
OUT = HERE.parent / "src/foredraft/published/conditions.json"
NORMAL_90 = 1.645


def judge(measured: dict[AcceptanceCell, float], every: Spreads, refit: bool) -> float:
    """Print how each document's cells are predicted from the other documents', the sds refitted without it or not; return the root mean
    square of documents' mean errors over their sds.
    """
    scores = []
    for document in sorted({cell.document for cell in measured if cell.document}):
        rest = {cell: level for cell, level in measured.items() if cell.document != document}
        spreads = fit_spreads(list(rest), np.array(list(rest.values())), every, (every.size_power,)) if refit else every
        scores.append(judged(document, measured, rest, spreads))
    score = float(np.sqrt(np.mean(np.square(scores))))
    held = np.mean(np.abs(scores) <= NORMAL_90 * score)
    print(
        f"{len(scores)} documents: root mean square of mean errors over their sds {score:.2f}; {held:.0%} in the 90 % interval so widened"
    )
    return score


def judged(
    document: str, measured: dict[AcceptanceCell, float], rest: dict[AcceptanceCell, float], spreads: Spreads
) -> float:
    """Print how the document's cells are predicted from the other documents'; return their mean error over its sd."""
    levels = Levels(tuple(rest), np.array(list(rest.values())), spreads)
    asked = [cell for cell in measured if cell.document == document]
    means, covariance = levels.of(asked)
    off = np.array([measured[cell] for cell in asked]) - means
    sds = np.sqrt(np.diag(covariance) + spreads.sds[SCATTER] ** 2)
    held = np.mean(np.abs(off) <= NORMAL_90 * sds)
    print(
        f"{document[:60]:60} {len(asked):4} cells  mean error {np.abs(off).mean():.2f}  sd {sds.mean():.2f}  in the 90 % interval {held:.0%}"
    )
    return float(off.mean() / np.sqrt(covariance.mean() + spreads.sds[SCATTER] ** 2 / len(asked)))


def drops(measured: dict[AcceptanceCell, float], spreads: Spreads) -> None:
    """Print the drop of τ from temperature 0 to 1 of EAGLE-3's table 1, each target's from the other targets."""
    table = [
        row
        for row in published.observations()
        if "2503.01840 Table 1" in row.provenance.source and row.method == "eagle3"
    ]
    drafting = USUAL["eagle3"]
    taus = defaultdict(dict)
    for row in table:
        taus[row.target, row.dataset][row.temperature] = row.tokens_per_step
    by_target = defaultdict(list)
    for (target, dataset), pair in taus.items():
        if {0.0, 1.0} <= pair.keys() and dataset != "Mean":
            by_target[target].append((dataset, pair[0.0], pair[1.0]))
    errors = []
    for target, rows in by_target.items():
        name, _ = target_key(target)
        rest = {cell: level for cell, level in measured.items() if cell.target != name}
        levels = Levels(tuple(rest), np.array(list(rest.values())), spreads)
        likeness = {
            cell.prompts: cell for cell in measured if cell.target == name and cell.method == "eagle3" and cell.tree
        }
        predicted, actual = [], []
        for dataset, cold, warm in rows:
            cell = likeness[dataset]._replace(head="judged", document="judged", temperature=0.0)
            shift, _ = levels.shift([cell._replace(temperature=1.0)], [cell])
            level = chain_level(cold, drafting.depth + 1)
            predicted.append(float(tokens_per_step_constant(1 / (1 + np.exp(-level - shift)), drafting.depth + 1)))
            actual.append(warm)
        ratio, true = (
            np.mean(predicted) / np.mean([c for _, c, _ in rows]),
            np.mean(actual) / np.mean([c for _, c, _ in rows]),
        )
        errors.append(abs(np.mean(predicted) / np.mean(actual) - 1))
        each = np.mean(np.abs(np.array(predicted) / np.array(actual) - 1))
        print(
            f"{target:32} τ(1)/τ(0) predicted {ratio:.3f} measured {true:.3f}; mean τ off by {errors[-1]:.1%}, rows by {each:.1%}"
        )
    print(f"mean over targets {np.mean(errors):.1%}")


def context_fade() -> ContextFade:
    """Mean over documents of how far the logit falls per e-fold of positions beyond the trained ones, and their spread."""
    points = defaultdict(list)
    with (HERE / "published/long_context.csv").open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            tau = float(row["tokens_per_step"] or 1 + float(row["accept_rate"] or 0))
            beyond = max(np.log(float(row["positions"]) / float(row["trained_positions"])), 0.0)
            points[row["source"]].append((beyond, chain_level(tau, int(row["lookahead"]))))
    slopes = [-float(np.polyfit(*np.array(pairs).T, 1)[0]) for pairs in points.values()]
    return ContextFade(per_efold=float(np.mean(slopes)), sd=float(np.std(slopes, ddof=1)), sources=tuple(points))


def report_sd() -> float:
    """Of log speedup beyond what is drawn of acceptance and costs: of greatest likelihood over single reports that weigh the same, since
    what a user will see is one of them (papers and tables of many rows scatter less), each predicted without its own rows, from names alone
    and, where it states its τ, from that: there no width of acceptance hides how speeds scatter. All are printed; rows that name no
    machine are of papers on an A100.
    """
    off: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    by_document = defaultdict(list)
    for row in published.observations():
        by_document[published.document(row.provenance.source)].append(row)
    for document, rows in by_document.items():
        stating = [row for row in rows if row.method == "none" or row.tokens_per_step]
        judged = {"names alone": ladders.judge(rows, "A100").gains, "its own τ": ladders.judge(stating, "A100").ladders}
        for what, point in ((what, point) for what, points in judged.items() for point in points):
            if point.low and point.high:
                sd = np.log(point.high / point.low) / (2 * NORMAL_90)
                off[document, what].append((np.log(point.predicted / point.measured), sd))
    for (document, what), pairs in off.items():
        mean, sd = np.mean(pairs, axis=0)
        print(f"{document[:60]:60} {len(pairs):4} speedups from {what}  mean log error {mean:+.2f}  sd {sd:.2f}")

    def misfit(more: float) -> float:
        terms = [
            np.mean([error**2 / (sd**2 + more**2) + np.log(sd**2 + more**2) for error, sd in pairs])
            for (document, _), pairs in off.items()
            if SINGLE.search(document)
        ]
        return float(sum(terms))

    return float(minimize_scalar(misfit, bounds=(0, 1), method="bounded").x)


def main(refit: bool) -> None:
    measured = cells(published.observations())
    every = fit_spreads(list(measured), np.array(list(measured.values())))
    every = msgspec.structs.replace(every, widened=judge(measured, every, refit))
    print(
        f"{every.num_cells} cells of {every.num_documents} documents; evidence {every.evidence:.1f}, size^-{every.size_power}; sds of the logit:"
    )
    for name in (*EFFECTS, SCATTER):
        print(f"  {name:24} {every.sds[name]:.3f}")
    drops(measured, every)
    fitted = Conditions(spreads=every, fade=context_fade(), report_sd=0.0)
    records.write(OUT, fitted)  # from which speedups are predicted
    fitted = msgspec.structs.replace(fitted, report_sd=round(report_sd(), 4))
    print(f"reports scatter by {fitted.report_sd:.2f} in log speedup")
    records.write(OUT, fitted)


if __name__ == "__main__":
    main("--refit" in sys.argv)
