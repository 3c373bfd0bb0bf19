"""From a server's observations to the figures of served.py: acceptance side by side, tokens/s, predictions and regret.

Promises: a cell that is judged was not calibrated on; what was not measured is absent. Refuses to know: how a server is run.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from foredraft.laws.passes import Layout
from foredraft.plan.matching import match
from foredraft.plan.served import Place, calibrated, load, timed
from foredraft.records import Machine, Observation, Plan
from foredraft.shapes import Shape

Rows = Mapping[str, Sequence[Observation]]


def acceptance(our_rows: Rows, served: Rows) -> dict[str, Any]:
    """By draft: survival by position in vLLM and in our engine, where they differ most, and τ of vLLM's chain and of our trees.

    They are not one measurement: vLLM does not draft for an answer's first token, and counts a step's accepted tokens beyond the
    answer's end, where ours asks what was still the answer's.
    """
    figures = {}
    for name, rows in our_rows.items():
        for row in served.get(f"accept-{name}", ()):
            chain = next(
                candidate for candidate in rows if candidate.lookahead == row.lookahead and (candidate.topk or 1) == 1
            )
            ours, theirs = chain.survival or (), row.survival or ()
            trees = [candidate for candidate in rows if (candidate.topk or 1) > 1]
            taus = {
                f"{candidate.lookahead},{candidate.topk},{candidate.tree_nodes}": candidate.tokens_per_step
                for candidate in trees
            }
            figures[name] = {
                "lookahead": row.lookahead, "vllm": theirs, "ours": ours,
                "most_apart": max(abs(a - b) for a, b in zip(ours, theirs, strict=True)),
                "tokens_per_step_vllm": row.tokens_per_step, "tokens_per_step_ours": chain.tokens_per_step, "tokens_per_step_of_trees": taus,
                "chain_over_tree": {key: (row.tokens_per_step or 1.0) / tau for key, tau in taus.items() if tau},
            }  # fmt: skip
    return figures


def speeds(rows: Sequence[Observation]) -> dict[int, float]:
    """Tokens/s by load, the mean of rounds."""
    by_load: dict[int, list[float]] = {}
    for row in rows:
        if row.output_tok_s:
            by_load.setdefault(load(row), []).append(row.output_tok_s)
    return {at: float(np.mean(values)) for at, values in sorted(by_load.items())}


def throughput(rows: Rows, published: str, planned: str) -> dict[str, Any]:
    """Tokens/s of every setting by load, the spread of rounds, and the planned schedule over others."""
    table = {name: speeds(of) for name, of in rows.items()}
    figures: dict[str, Any] = {"tokens_per_s": table, "spread": {name: _spread(of) for name, of in rows.items()}}
    for name, other in (("planned_over_published", published), ("planned_over_none", "none")):
        if planned in table and other in table:
            figures[name] = {at: speed / table[other][at] for at, speed in table[planned].items() if at in table[other]}
    return figures


def _spread(rows: Sequence[Observation]) -> float | None:
    """The greatest ratio less 1 between two rounds of one load; None of one round."""
    by_load: dict[int, list[float]] = {}
    for row in rows:
        by_load.setdefault(load(row), []).append(row.output_tok_s or np.nan)
    ratios = [max(values) / min(values) - 1 for values in by_load.values() if len(values) > 1]
    return max(ratios, default=None)


def _means(rows: Sequence[Observation]) -> list[Observation]:
    """A row for each load, with the mean tokens/s of its rounds."""
    first = {load(row): row for row in reversed(rows)}
    return [msgspec.structs.replace(first[at], output_tok_s=speed) for at, speed in speeds(rows).items()]


def prediction(
    target: Shape, machine: Machine, dtype: str, rows: Rows, known_names: Sequence[str], our_rows: Sequence[Observation]
) -> dict[str, Any]:
    """The cost law calibrated on the settings `known`, against the others: tokens/s with the τ that was served there, which judges
    costs alone, and with our engine's τ, which is what a planner knows. `error_of_all`: what the law misses when it saw every cell.
    """
    place = Place(target, machine, "vllm", Layout(), dtype)
    fit = calibrated(place, timed(place, match(place, [row for name in known_names for row in rows[name]], 0.0).rows))
    if fit is None:
        raise ValueError(
            f"no row of {' and '.join(known_names)} can be calibrated on: each needs a throughput, a load and lengths"
        )
    chain = max((row for row in our_rows if (row.topk or 1) == 1), key=lambda row: row.lookahead or 0)
    cells = []
    for name in (name for name in rows if name not in known_names):
        for cell in timed(place, match(place, _means(rows[name]), 0.0).rows):
            tau = 1 + sum((chain.survival or ())[: int(cell.cost.depth)])
            calibration, foreseen = (
                float(fit.output_tok_s([cell.measured._replace(row=row)])[0][0])
                for row in (cell.cost, cell.cost._replace(tokens_per_step=tau))
            )
            cells.append(
                {"setting": name, "load": load(cell.observation), "measured": cell.cost.output_tok_s, "predicted": calibration, "foreseen": foreseen}
            )  # fmt: skip
    every = calibrated(place, timed(place, match(place, [row for of in rows.values() for row in of], 0.0).rows))
    figures = {
        "calibrated_on": list(known_names),
        "error_of_all": every.error if every else None,
        "rows": fit.num_rows,
        "own_error": fit.error,
        "knobs": fit.multipliers,
        "cells": cells,
    }
    return figures | (
        {"error": _error(cells, "predicted"), "error_foreseen": _error(cells, "foreseen")} if cells else {}
    )


def _error(cells: Sequence[Mapping[str, Any]], key: str) -> dict[str, float]:
    """Mean and worst relative error of tokens/s."""
    errors = [abs(cell[key] / cell["measured"] - 1) for cell in cells]
    return {"mean": float(np.mean(errors)), "worst": max(errors)}


def schedule(plan: Plan, rows: Rows, planned: str, prefix: str) -> dict[str, Any]:
    """The planned schedule against no speculation and each fixed lookahead of its draft: tokens/s lost to the best of them at each load
    (below 0: it won), and what each fixed one loses to the best at every load.
    """
    table = {name: speeds(of) for name, of in rows.items()}
    fixed = {name: of for name, of in table.items() if name == "none" or name.startswith(prefix)}
    at = sorted(set(table[planned]).intersection(*fixed.values()))
    best = {load: max(of[load] for of in fixed.values()) for load in at}
    lost = {load: 1 - table[planned][load] / best[load] for load in at}
    return {
        "lookahead": {step.concurrency: step.lookahead for step in plan.schedule},
        "vllm": msgspec.to_builtins(plan.settings.get("vllm", {})),
        "best_fixed": {load: max(fixed, key=lambda name: fixed[name][load]) for load in at},
        "regret": lost,
        "regret_mean": float(np.mean(list(lost.values()))),
        "regret_worst": max(lost.values()),
        "regret_of_fixed": {
            name: float(np.mean([1 - of[load] / best[load] for load in at])) for name, of in fixed.items()
        },
    }  # fmt: skip
