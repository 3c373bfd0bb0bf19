"""AngelSlim's vllm_spec_benchmark.py (JSON objects one after another) and the analysis of its SpecEngine.

The acceptance length of the first is pooled over steps, that of the second is a mean of requests; both count the bonus token.
Keys as in AngelSlim tools/vllm_spec_benchmark.py and its benchmark_engine.py, 2025 to 2026.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

LABEL = "AngelSlim"
KNOWN = re.compile(
    r"timestamp|num_benchmarks|output_len|top_p|top_k|latency_seconds|request_throughput_per_sec|avg_time_per_sample"
    r"|total_num_(in|out)put_tokens|eagle_file|baseline_file|acceptance_rate_pos_\d+"
)
NAMES = {
    "model_dir": "target", "eagle_dir": "draft", "method": "method", "dataset": "dataset", "temperature": "temperature",
    "num_prompts": "n_requests", "output_throughput_tokens_per_sec": "output_throughput", "avg_input_tokens": "input_len",
    "avg_output_tokens": "output_len", "mean_acceptance_length": "tau", "num_drafts": "steps", "num_draft_tokens": "drafted",
    "num_accepted_tokens": "accepted",
}  # fmt: skip


def is_mine(document: Mapping[str, Any]) -> bool:
    return document.keys() >= {"model_dir", "num_spec_tokens"} or document.keys() >= {"acceptance_length", "eagle_file"}


def records(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The benchmark's row; none of the mean of benchmarks, whose rows stand beside it."""
    if "model_dir" not in document:
        yield "", dict(document) | {"draft": document["eagle_file"]}
        return
    if document.get("dataset") == "AVERAGE":
        return
    record = {NAMES.get(key, key): value for key, value in document.items() if not KNOWN.fullmatch(key)}
    record["engine"], plain = "vllm", document.get("method") == "ar"
    record["k"] = 0 if plain else record.pop("num_spec_tokens")
    places = [value for key, value in document.items() if key.startswith("acceptance_rate_pos_")]
    if plain:
        record |= {
            "method": "none",
            "tau": None,
            "steps": None,
            "drafted": None,
            "accepted": None,
            "num_spec_tokens": None,
        }
    else:
        record["per_position_acceptance"] = places
    yield "", record


def left_out(document: Mapping[str, Any]) -> str | None:
    """Why a document of ours has no row."""
    return "the mean of the benchmarks beside it" if document.get("dataset") == "AVERAGE" else None
