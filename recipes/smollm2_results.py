"""Rows of docs/results.md on SmolLM2-135M-Instruct: laws and plans held to its grid, our engine beside others, drafts on vLLM's server and
on Spec-Bench's questions.

Promises: what has not been measured has no row. Refuses to know: how it was measured (recipes/laws.py, benchmarks/peers/drafted.py,
benchmarks/served.py and `foredraft measure`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from foredraft import records
from foredraft.records import Measurement

Row = tuple[str, str]


def rows(folder: Path) -> list[Row]:
    """Of `folder`, results/smollm2."""
    parts = {"laws": _laws, "peers": _peers, "peers_amx": _peers, "served": _served}
    files = {name: folder / f"{name}.json" for name in parts}
    found = [
        row
        for name, file in files.items()
        if file.is_file()
        for row in parts[name](msgspec.json.decode(file.read_bytes()))
    ]
    questions = folder / "spec_bench.jsonl.gz"
    return [*found, *(_spec_bench(questions) if questions.is_file() else ())]


def _laws(report: dict[str, Any]) -> Iterator[Row]:
    every = [each for each in report["chosen"] if each["family"] is None]
    for outcome, error, name in (
        ("tokens_per_step", "relative_error", "tokens per step"),
        ("accept_prob", "error", "α"),
    ):
        if of := [each for each in every if each["outcome"] == outcome]:
            errors, inside = (
                [_error(each[error], error) for each in of],
                [f"{each['inside_90']} of {each['held_out']}" for each in of],
            )
            what = f"{name} of the largest drafts, deepest heads, longest budgets and widest trees from the others"
            yield f"SmolLM2: {what} ({_heats(of)}); inside 90 % intervals", f"{', '.join(errors)}; {', '.join(inside)}"
    if plans := report.get("plans"):
        yield from _plans(plans)


def _plans(plans: dict[str, Any]) -> Iterator[Row]:
    if choices := plans["choices"]:
        batches = ", ".join(f"{each['batch']}" for each in choices)
        what = f"SmolLM2: speed lost by the planned draft of any kind to the best measured one, batch {batches}"
        yield what, ", ".join(f"{each['regret']:.1%}" for each in choices)
    if last := [each for each in plans["last_budget"] if each["drafts"]]:
        what = f"SmolLM2: tokens per step at the last budget, planned from the first two ({_heats(last)})"
        yield what, ", ".join(f"{each['drafts']['relative_error']:.1%}" for each in last)


def _heats(of: Iterable[dict[str, Any]]) -> str:
    return ", ".join(f"T = {each['temperature']:g}" for each in of)


def _error(value: float, name: str) -> str:
    return f"{value:.1%}" if name == "relative_error" else f"{value:.3f}"


def _peers(report: dict[str, Any]) -> Iterator[Row]:
    tiles = "with" if any("amx" in name for name in report["machine"]["instructions"]) else "without"
    for dtype, race in report["races"].items():
        if race["ours_over"]:
            ours = race["fastest"]["foredraft"]
            over = (f"{name} {_interval(each)}" for name, each in race["ours_over"].items())
            yield (
                f"SmolLM2, {dtype}, batch 1, {tiles} AMX: our fastest ({ours}) over the fastest of each other engine",
                "; ".join(over),
            )


def _interval(ratio: dict[str, float]) -> str:
    ends = f" ({ratio['low']:.2f} to {ratio['high']:.2f})" if "low" in ratio else ""
    return f"{ratio['value']:.2f}×{ends}"


def _served(report: dict[str, Any]) -> Iterator[Row]:
    conditions, speeds = report["conditions"], report["throughput"]
    if report["acceptance"]:
        most = max(draft["most_apart"] for draft in report["acceptance"].values())
        yield "SmolLM2: acceptance by position in vLLM less our engine's, largest difference", f"{most:.3f}"
    for key, other in (("planned_over_none", "no draft"), ("planned_over_published", conditions["published"])):
        if over := speeds.get(key):
            loads = sorted(over, key=int)
            what = f"SmolLM2 on vLLM (CPU): {conditions['planned']} as planned over {other}, {', '.join(loads)} clients"
            yield what, ", ".join(f"{over[load]:.2f}×" for load in loads)


def _spec_bench(file: Path) -> Iterator[Row]:
    """By temperature and width of the tree: all questions together, and the categories that accept least and most."""
    cells: dict[tuple[float, str], dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for row in records.read_lines(Measurement, file):
        o = row.observation
        drafted = f"trees of {o.tree_nodes} nodes" if (o.topk or 1) > 1 else f"chains of {o.lookahead}"
        cells[o.temperature or 0.0, drafted][o.draft or ""].append(row)
    for (temperature, drafted), drafts in sorted(cells.items()):
        what = f"SmolLM2 on Spec-Bench's questions, T = {temperature:g}, {drafted}: tokens per step; least and most of its categories"
        yield what, "; ".join(f"{name} {_of_categories(rows)}" for name, rows in drafts.items())


def _of_categories(rows: list[Measurement]) -> str:
    whole = next(row.intervals["tokens_per_step"] for row in rows if row.category is None)
    of = {str(row.category): row.intervals["tokens_per_step"].value for row in rows if row.category}
    least, most = (
        f"{each.replace('_', ' ')} {of[each]:.2f}"
        for each in (min(of, key=of.__getitem__), max(of, key=of.__getitem__))
    )
    return f"{whole.value:.2f} ({whole.low:.2f} to {whole.high:.2f}), {least}, {most}"
