"""GuideLLM's benchmarks.json: a list of benchmarks, each with a strategy and distributions by status.

Its inter-token latency leaves the first token out, our TPOT; its time per output token counts it in newer versions, and stands in
where there is no other. Output tokens/s are of the whole server. It says nothing of speculation, so that a run stands for plain
decoding unless k stands beside it. The strategy stands in `args` (0.2, 0.3), `scheduler` (0.4) or `config` (0.5).
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from foredraft.published.cells import nested_value

LABEL = "GuideLLM"
KNOWN = re.compile(
    r"type_|id_|run_id|run_index|config|args|scheduler|scheduler_.*|benchmarker|env_args|extras|run_stats|start_time|end_time|duration"
    r"|metrics|request_totals|requests|worker|request_loader|warmup_.*|cooldown_.*"
)


def is_mine(document: Mapping[str, Any]) -> bool:
    return bool(_benchmarks(document))


def _benchmarks(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    benchmarks = document.get("benchmarks")
    return [
        each
        for each in (benchmarks if isinstance(benchmarks, list) else [])
        if isinstance(each, dict) and isinstance(each.get("metrics"), dict)
    ]


def records(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each benchmark, at benchmarks[i]."""
    for number, benchmark in enumerate(_benchmarks(document)):
        yield f"benchmarks[{number}]", _record(document, benchmark)


def _record(document: Mapping[str, Any], benchmark: Mapping[str, Any]) -> dict[str, Any]:
    strategy = nested_value(benchmark, "strategy")
    strategy = strategy if isinstance(strategy, dict) else {}
    extras = benchmark.get("extras")
    itl = _mean(benchmark, "inter_token_latency_ms")
    model = next((name for part in (benchmark, document) for name in _models(part)), None)
    return (extras if isinstance(extras, dict) else {}) | {
        "target": model, "concurrency": _clients(strategy), "output_throughput": _mean(benchmark, "output_tokens_per_second"),
        "input_len": _mean(benchmark, "prompt_token_count"), "output_len": _mean(benchmark, "output_token_count"),
        "ttft_ms": _mean(benchmark, "time_to_first_token_ms"),
        "tpot_ms": _mean(benchmark, "time_per_output_token_ms") if itl is None else itl,
        "n_requests": nested_value(benchmark.get("request_totals") or benchmark["metrics"].get("request_totals") or {}, "successful"),
    }  # fmt: skip


def _models(part: Mapping[str, Any]) -> Iterator[str]:
    for key in ("backend_model", "model"):
        name = nested_value(part, key)
        if isinstance(name, str) and name:
            yield name


def _clients(strategy: Mapping[str, Any]) -> Any:
    """Of strategies that hold so many requests open; none of a rate."""
    if strategy.get("type_") == "synchronous":
        return 1
    return strategy.get("streams") or strategy.get("max_concurrency") if "rate" not in strategy else None


def _mean(benchmark: Mapping[str, Any], name: str) -> Any:
    by_status = benchmark["metrics"].get(name)
    if not isinstance(by_status, dict):
        return None
    for status in ("successful", "total"):
        block = by_status.get(status)
        if isinstance(block, dict) and block.get("mean"):
            return block["mean"]
    return None
