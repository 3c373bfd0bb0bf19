"""The laws on what a sweep of grid.json measured: how each fits, and how far off it foretold what it was not shown.

    python recipes/experiment/laws.py OBSERVATIONS.jsonl OUT.json

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
from foredraft.laws.held_out import HeldOut, determined, judge, without_largest
from foredraft.records import Observation

Key = tuple[str, str, str, float | None]


def place(law: str, row: Observation) -> Key:
    return law, row.target.removesuffix("/final"), row.family or row.method, row.temperature


def summary(held: list[HeldOut], r_squared: list[float]) -> dict[str, Any]:
    off = np.array([abs(one.predicted.value - one.measured) for one in held])
    measured = np.array([one.measured for one in held])
    return {
        "held_out": len(held),
        "error": float(off.mean()) if held else None,
        "relative_error": float((off / measured).mean()) if held else None,
        "inside_90": sum(one.predicted.covers(one.measured) for one in held),
        "r_squared": [min(r_squared), max(r_squared)] if r_squared else None,
    }


def main(observations: Path, out: Path) -> None:
    rows = records.read_lines(Observation, observations)
    judged: dict[Key, list[HeldOut]] = defaultdict(list)
    fitted: dict[Key, list[float]] = defaultdict(list)
    for dials, wide in ((("draft_params", "draft_layers", "draft_tokens"), False), (("tree_nodes",), True)):
        kept, away = without_largest(rows, dials)
        for fit in fit_all(kept)[0]:
            if (law_named(fit.law).leading == "tree_nodes") is not wide:
                continue
            for one in judge(fit, away):
                judged[place(fit.law, one.row)].append(one)
            inside = by_range(fit, kept)[0]
            if inside and (value := determined(fit, kept)) is not None:
                fitted[place(fit.law, inside[0])].append(value)
    made = [
        {"law": law, "target": target, "family": family, "temperature": heat} | summary(judged[key], fitted[key])
        for key in sorted({*judged, *fitted}, key=str)
        for law, target, family, heat in [key]
    ]
    records.write(out, made)
    whole = [one for held in judged.values() for one in held]
    print(f"{sum(one.predicted.covers(one.measured) for one in whole)} of {len(whole)} inside their 90 % intervals")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
