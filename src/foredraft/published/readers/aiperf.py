"""AIPerf's profile_export_aiperf.json (and GenAI-Perf's, its elder): a JSON object with a block of statistics per metric.

Its inter-token latency is (request latency - TTFT) / (tokens - 1), our TPOT. It says nothing of speculation, so that a run stands for
plain decoding unless its options or `k` beside the metrics say otherwise. Keys as in docs.nvidia.com/aiperf "JSON Export Schema".
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from foredraft.published.cells import nested_value

LABEL = "AIPerf"
KNOWN = re.compile(
    r".*_(latency|throughput|throughput_per_user|count|duration|sequence_length|token_count)|time_to_.*|inter_.*|schema_version"
    r"|aiperf_version|benchmark_id|input_config|start_time|end_time|was_cancelled|error_summary|min_.*|max_.*|good_.*|goodput|total_.*"
    r"|records|telemetry_data|server_metrics|e2e_.*|prefill_.*|http_.*|usage_.*|.*_timestamp|metadata|.*_power.*|.*_energy.*"
)
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}


def is_mine(document: Mapping[str, Any]) -> bool:
    return any(
        isinstance(document.get(name), dict) and "avg" in document[name]
        for name in ("output_token_throughput", "time_to_first_token", "inter_token_latency")
    )


def records(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The run under the names of our columns."""
    config = document.get("input_config") or {}
    models = nested_value(config, "model_names") or nested_value(config, "models")
    temperature = nested_value(config, "temperature")
    yield "", {key: value for key, value in document.items() if not isinstance(value, dict)} | {
        "target": models[0] if isinstance(models, list) and models else models,
        "concurrency": nested_value(config, "concurrency"), "temperature": temperature if isinstance(temperature, int | float) else None,
        "output_throughput": _mean(document, "output_token_throughput"), "n_requests": _mean(document, "request_count"),
        "input_len": _mean(document, "input_sequence_length"), "output_len": _mean(document, "output_sequence_length"),
        "ttft_ms": _milliseconds(document, "time_to_first_token"), "tpot_ms": _milliseconds(document, "inter_token_latency"),
    }  # fmt: skip


def _mean(document: Mapping[str, Any], name: str) -> Any:
    block = document.get(name)
    return block.get("avg") if isinstance(block, dict) else None


def _milliseconds(document: Mapping[str, Any], name: str) -> float | None:
    """A metric's mean by its unit. Raises ValueError on a unit that is none of time."""
    mean, block = _mean(document, name), document.get(name)
    if mean is None or not isinstance(block, dict):
        return None
    unit = str(block.get("unit", "ms"))
    if unit not in SECONDS:
        raise ValueError(f"{name}: unit {unit!r} is none of {', '.join(SECONDS)}")
    return mean * SECONDS[unit] * 1e3
