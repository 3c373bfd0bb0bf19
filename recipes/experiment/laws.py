"""The laws on what a sweep of grid.json measured: how each fits, and how far off it predicted what it was not shown.

    python recipes/experiment/laws.py OBSERVATIONS.jsonl.gz OUT.json

Held out are, of each target and recipe, the largest draft, the deepest head and the longest budget; of the laws in width the widest
tree. By law, target,
recipe and temperature: rows held out, mean error absolute and relative, how many lay inside the 90 % interval of one further run; and
the range of R² over the fits to the rest.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from foredraft import records
from foredraft.laws.fit import by_range, fit_all
from foredraft.laws.forms import law_named
from foredraft.laws.held_out import HeldOut, judge, r_squared, without_largest
from foredraft.records import Observation

Key = tuple[str, str, str, float | None]


def place(law: str, row: Observation) -> Key:
    return law, row.target.removesuffix("/final"), row.family or row.method, row.temperature


def summary(judgements: list[HeldOut], r_squared: list[float]) -> dict[str, Any]:
    off = np.array([abs(judgement.predicted.value - judgement.measured) for judgement in judgements])
    measured = np.array([judgement.measured for judgement in judgements])
    return {
        "held_out": len(judgements),
        "error": float(off.mean()) if judgements else None,
        "relative_error": float((off / measured).mean()) if judgements else None,
        "inside_90": sum(judgement.predicted.covers(judgement.measured) for judgement in judgements),
        "r_squared": [min(r_squared), max(r_squared)] if r_squared else None,
    }


def main(observations: Path, out: Path) -> None:
    rows = records.read_lines(Observation, observations)
    judged: dict[Key, list[HeldOut]] = defaultdict(list)
    fitted: dict[Key, list[float]] = defaultdict(list)
    for dials, wide in ((("draft_params", "draft_layers", "draft_tokens"), False), (("tree_nodes",), True)):
        training_rows, away = without_largest(rows, dials)
        for fit in fit_all(training_rows)[0]:
            if (law_named(fit.law).leading == "tree_nodes") is not wide:
                continue
            for judgement in judge(fit, away):
                judged[place(fit.law, judgement.row)].append(judgement)
            inside = by_range(fit, training_rows)[0]
            if inside and (value := r_squared(fit, training_rows)) is not None:
                fitted[place(fit.law, inside[0])].append(value)
    table = [
        {"law": law, "target": target, "family": family, "temperature": heat} | summary(judged[key], fitted[key])
        for key in sorted({*judged, *fitted}, key=str)
        for law, target, family, heat in [key]
    ]
    records.write(out, table)
    every_judgement = [judgement for method_judgements in judged.values() for judgement in method_judgements]
    inside = sum(judgement.predicted.covers(judgement.measured) for judgement in every_judgement)
    print(f"{inside} of {len(every_judgement)} inside their 90 % intervals")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
