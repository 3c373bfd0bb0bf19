"""Scylla against EAGLE-2 and EAGLE-3 from what a sweep measured.

    python recipes/compare.py HINDSIGHT.json OUT MEASUREMENTS.jsonl.gz [--nodes N]

OUT/compared.json holds the tables, OUT/measurements.jsonl.gz those of the measurements that they and the report rest on; given that file
again, the same comes out.

Tokens per step by category and temperature, in trees of N nodes (59 beside the root, as EAGLE-2 and EAGLE-3 were published); Scylla's lead
over both, averaged over categories. Its interval takes the two sides' errors for independent, which on the same prompts they are not: it is
too wide, not too narrow. Then throughput over plain decoding by batch, of that tree and of the measured way of drafting that the cost law
picks when it has seen plain decoding and drafts of at most two tokens (`foredraft validate --target`). Look-ups are left out.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import product
from math import sqrt
from pathlib import Path
from typing import Any

from foredraft import kinds, records
from foredraft.records import Estimate, Hindsight, Measurement

PUBLISHED = 59
RIVAL, OURS = "eagle", "scylla"  # how their drafts' names begin
Z = 1.645  # half of a 90 % interval in standard errors


def heads(rows: Iterable[Measurement]) -> list[Measurement]:
    named = [row for row in rows if row.way == "live" and (row.observation.draft or "").startswith((RIVAL, OURS))]
    return [row for row in named if kinds.role_of(row.observation.method) == "head"]


def name(draft: str | None) -> str:
    return (draft or "").split("/")[0]


def trees(rows: Iterable[Measurement], temperature: float, nodes: int) -> dict[str, dict[str, Estimate]]:
    """τ by draft and category, of single requests in trees of `nodes`; the measurement of the most requests."""
    intervals: dict[str, dict[str, Estimate]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row.observation.num_requests or 0):
        o = row.observation
        if (o.temperature, o.tree_nodes, o.batch_size) == (temperature, nodes, 1) and row.category:
            intervals[name(o.draft)][row.category] = row.intervals["tokens_per_step"]
    return dict(intervals)


def error(estimate: Estimate) -> float:
    return (estimate.high - estimate.low) / 2 / Z


def lead(ours: Mapping[str, Estimate], theirs: Mapping[str, Estimate]) -> dict[str, float]:
    """Mean over categories of the differences, with a 90 % interval."""
    shared = sorted(set(ours) & set(theirs))
    mean = sum(ours[c].value - theirs[c].value for c in shared) / len(shared)
    spread = Z * sqrt(sum(error(ours[c]) ** 2 + error(theirs[c]) ** 2 for c in shared)) / len(shared)
    return {"lead": mean, "low": mean - spread, "high": mean + spread, "categories": len(shared)}


def speeds(rows: Iterable[Measurement], judged: Hindsight, nodes: int) -> dict[str, dict[str, dict[str, Any]]]:
    """By draft and batch: gain of the tree of `nodes`, of the cost law's pick, and of the best that was measured."""
    predicted = {(name(c.draft), c.load, c.lookahead, c.tree_nodes): c.predicted for c in judged.cells}
    timed: dict[tuple[str, int], dict[tuple[int, int], float]] = defaultdict(dict)
    for row in rows:
        o = row.observation
        if row.category is None and o.temperature == 0 and o.speedup and o.batch_size:
            timed[name(o.draft), o.batch_size][o.lookahead or 0, o.tree_nodes or 0] = o.speedup
    speedups: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for (draft, batch), ways in sorted(timed.items()):
        at = {way: predicted.get((draft, batch, *way), gain) for way, gain in ways.items()} | {(0, 0): 1.0}
        gains, pick = ways | {(0, 0): 1.0}, max(at, key=lambda way: at[way])
        best = max(gains, key=lambda way: gains[way])
        published = next((gain for (_, num), gain in ways.items() if num == nodes), None)
        speedups[draft][str(batch)] = {
            "published": published, "planned": gains[pick], "planned_way": pick, "best": gains[best], "best_way": best,
        }  # fmt: skip
    return dict(speedups)


def online_rows(rows: Iterable[Measurement], nodes: int) -> list[Measurement]:
    """Whole cells, and the categories of trees of `nodes`."""
    return [row for row in rows if row.category is None or row.observation.tree_nodes == nodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("hindsight", "out", "measurements"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--nodes", type=int, default=PUBLISHED)
    arguments = parser.parse_args()
    online = online_rows(records.read_lines(Measurement, arguments.measurements), arguments.nodes)
    rows = heads(online)
    report: dict[str, Any] = {"tokens_per_step": {}, "leads": {}}
    for temperature in (0.0, 1.0):
        table = trees(rows, temperature, arguments.nodes)
        key = f"temperature {temperature:g}"
        report["tokens_per_step"][key] = {
            draft: {c: [e.value, e.low, e.high] for c, e in of.items()} for draft, of in table.items()
        }
        report["leads"][key] = {
            f"{draft} over {rival}": lead(table[draft], table[rival])
            for draft, rival in product(table, table)
            if draft.startswith(OURS) and rival.startswith(RIVAL)
        }
    judged = records.read(list[Hindsight], arguments.hindsight)
    greedy = next(judgement for judgement in judged if judgement.temperature == 0)
    report["gain_by_batch"] = speeds(rows, greedy, arguments.nodes)
    records.write(arguments.out / "compared.json", report)
    records.write_lines(arguments.out / "measurements.jsonl.gz", online)
    print(json.dumps(report["leads"], indent=1))


if __name__ == "__main__":
    main()
