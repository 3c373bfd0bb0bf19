"""SpecForge's bench_eagle3.py: one JSON object, by benchmark a list of runs at (batch_size, steps, topk, num_draft_tokens).

`steps` are SGLang's draft passes, the lookahead; `num_draft_tokens` counts the tree's root; 0 steps are plain decoding. `model` is the
path of the draft; the script starts the server as EAGLE3. Keys as in SpecForge benchmarks/bench_eagle3.py, 2025 to 2026.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

LABEL = "SpecForge"
KNOWN = re.compile(r"latency|accuracy|num_valid_predictions|categorical_performance|num_samples")
SETTINGS = ("batch_size", "steps", "topk", "num_draft_tokens")


def is_mine(document: Mapping[str, Any]) -> bool:
    return any(_runs(value) for value in document.values())


def _runs(value: Any) -> list[Mapping[str, Any]]:
    """The runs of a benchmark; none of another value."""
    runs = value if isinstance(value, list) else []
    return [run for run in runs if isinstance(run, dict) and isinstance(run.get("metrics"), list) and "steps" in run]


def records(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each measurement of each run, at benchmark[run]."""
    for benchmark, value in document.items():
        for number, run in enumerate(_runs(value)):
            for metrics in run["metrics"]:
                yield f"{benchmark}[{number}]", _record(document, benchmark, run, metrics)


def _record(
    document: Mapping[str, Any], benchmark: str, run: Mapping[str, Any], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    steps = run.get("steps")
    record = {"engine": "sglang", "dataset": benchmark, "batch_size": run.get("batch_size"), **metrics}
    record |= {key: value for key, value in run.items() if key not in (*SETTINGS, "metrics")}
    requests = metrics.get("num_questions") or run.get("num_samples")
    if requests and metrics.get("latency") and metrics.get("output_throughput"):
        record["output_len"] = metrics["output_throughput"] * metrics["latency"] / requests
    record["n_requests"] = record.pop("num_questions", None) or requests
    if steps == 0:
        return record | {"method": "none", "k": 0, "accept_length": None}
    if steps is not None:
        record |= {
            "method": "eagle3",
            "k": steps,
            "topk": run.get("topk"),
            "num_draft_tokens": run.get("num_draft_tokens"),
        }
    named = document.get("model")
    return record | {"draft": named if isinstance(named, str) else None}
