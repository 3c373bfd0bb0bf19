"""The table of what benchmarks/gpu/run.py measured, from results/gpu; without such files, that it has not run.

Promises: every figure stands with its device; a step that was not done says why. Refuses to know: how it was measured.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

NOT_RUN = "Not run: `benchmarks/gpu/run.py` awaits a machine with an NVIDIA GPU.\n"
STEPS = "rates", "checks", "decode", "train", "answers", "grid", "more"


def table(folder: Path) -> str:
    """Markdown."""
    records = {
        step: msgspec.json.decode(path.read_bytes()) for step in STEPS if (path := folder / f"{step}.json").is_file()
    }
    if not records:
        return NOT_RUN
    rows = [row for step, record in records.items() for row in ROWS[step](record["figures"])]
    lines = [f"| {what} | {figure} |" for what, figure in (*_conditions(records), *rows, *_undone(records))]
    return "\n".join(("| on a GPU | measured |", "|---|---|", *lines)) + "\n"


def _conditions(records: dict[str, Any]) -> Iterator[tuple[str, str]]:
    machine = records.get("rates", {}).get("figures", {}).get("machine")
    if machine:
        versions = f"torch {machine['torch']}, CUDA {machine['cuda']}, transformers {machine['transformers']}"
        yield "device", f"{machine['device']}; {versions}"


def _rates(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if memory := figures.get("memory"):
        both = (memory[f"{name}_bytes_per_s"] / 1e12 for name in ("copy", "triad"))
        yield "memory, copy and triad, bytes read and written", ", ".join(f"{rate:.2f} TB/s" for rate in both)
    products = {name: figures.get(f"matrix products {name}") for name in ("bfloat16", "float32")}
    if any(products.values()):
        rates = (f"{rate['flops_per_s'] / 1e12:,.0f} TFLOP/s {name}" for name, rate in products.items() if rate)
        yield "matrix products of random data", ", ".join(rates)


def _checks(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if tests := figures.get("tests"):
        yield (
            "tests/gpu",
            ", ".join(f"{tests[name]} {name}" for name in ("passed", "failed", "skipped", "error") if tests.get(name)),
        )


def _decode(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, row in figures.items():
        if isinstance(row, dict) and "tokens_per_s" in row:
            parts = [f"{row['tokens_per_s']:,.0f} tokens/s", f"{row['step_ms']:.2f} ms a step"]
            if "bandwidth_share" in row:
                parts.append(f"{row['bandwidth_share']:.0%} of the copy's bandwidth")
            elif "tokens_per_step" in row:
                parts.append(f"{row['tokens_per_step']:.2f} tokens a step")
            yield name, ", ".join(parts)
    if equal := figures.get("equal texts float32"):
        answers = equal["answers"]
        shares = ", ".join(f"{name} {share:.0%}" for name, share in equal.items() if name != "answers")
        yield f"float32 answers equal to plain decoding's, of {answers}", shares
    if ties := figures.get("near ties bfloat16"):
        parted = ", ".join(
            f"{name} {row['parted']} of {row['answers']}" + (f" (logits within {max(row['gaps_in_logits']):.2g})" if row["parted"] else "")
            for name, row in ties.items()
        )  # fmt: skip
        yield "bfloat16 answers that leave plain decoding's", parted


def _train(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, row in figures.items():
        if "mfu" in row:
            yield (
                f"training: {name}",
                f"{row['tokens_per_s']:,.0f} tokens/s, {row['mfu']:.0%} of the matrix products' rate",
            )


def _answers(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if row := figures.get("answers"):
        where = f"{row['processes']} processes of batch {row['batch']}"
        yield "the target's answers", f"{row['answer_tokens']:,} tokens at {row['tokens_per_s']:,.0f} tokens/s, {where}"


def _grid(figures: dict[str, Any]) -> Iterator[tuple[str, str]]:
    drafts = {name: row for name, row in figures.items() if isinstance(row, dict) and row.get("held_out")}
    for name, row in sorted(drafts.items(), key=lambda item: -item[1]["held_out"]["tokens_per_step"]):
        value, low, high = (row["held_out"][f"tokens_per_step{end}"] for end in ("", "_low", "_high"))
        yield (
            f"draft {name}",
            f"{row['tokens']:,} tokens in {row['seconds']:,.0f} s, {value:.2f} ({low:.2f} to {high:.2f}) tokens a step held out",
        )


def _undone(records: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for step, record in records.items():
        if record["state"] != "done":
            yield f"{step}: not done", f"{record['state']}{': ' + record['error'][-1] if record['error'] else ''}"
        if record["left"]:
            yield f"{step}: left", "; ".join(f"{name} ({why})" for name, why in record["left"].items())


ROWS = {
    "rates": _rates,
    "checks": _checks,
    "decode": _decode,
    "train": _train,
    "answers": _answers,
    "grid": _grid,
    "more": _grid,
}
