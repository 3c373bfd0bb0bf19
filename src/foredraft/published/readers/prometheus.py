"""A page of a server's /metrics (vLLM, SGLang): totals since the server's start as one row per model.

vLLM counts drafts, draft tokens and accepted tokens, by position too; SGLang tells its accept length of the moment. A page has no
clock: tokens/s and clients are not in it, mean lengths, TTFT and TPOT are, and how many tokens the KV cache holds.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from foredraft.engines.counters import Counters, PageSample, samples, total
from foredraft.engines.vllm import counters_of

LABEL = "/metrics page"
PREFIX = re.compile(r"^(# (HELP|TYPE) )?(vllm|sglang):", re.M)
TTFT = "time_to_first_token_seconds"
TPOT = ("request_time_per_output_token_seconds", "inter_token_latency_seconds", "time_per_output_token_seconds")
READ = re.compile(
    r"(vllm|sglang):(spec_(decode_num_.*_total|accept_length|num_steps|num_draft_tokens|accept_rate)|generation_tokens_total"
    r"|prompt_tokens_total|request_success_total|num_requests_total|max_total_num_tokens|cache_config_info|"
    rf"({TTFT}|{'|'.join(TPOT)})_(sum|count|bucket|created)|.*_created)"
)


def is_page(text: str) -> bool:
    return bool(PREFIX.search(text[:100_000]))


def records(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A record for each model behind the server."""
    page = samples(text)
    engine = "sglang" if any(sample.name.startswith("sglang:") for sample in page) else "vllm"
    names = dict.fromkeys(sample.labels.get("model_name") for sample in page if sample.name.startswith(f"{engine}:"))
    for name in [name for name in names if name] or [None]:
        lines = [sample for sample in page if sample.labels.get("model_name", name) == name]
        spec = _vllm(lines) if engine == "vllm" else _sglang(lines)
        yield name or "", {"engine": engine, "target": name, **_means(lines, engine), **spec}


def unread(text: str) -> list[str]:
    """Names of the page that no row is made of."""
    return list(dict.fromkeys(sample.name for sample in samples(text) if not READ.fullmatch(sample.name)))


def _means(page: Sequence[PageSample], engine: str) -> dict[str, Any]:
    """Means over requests out of sums and counts, and the KV cache's tokens."""
    finished = total(page, f"{engine}:request_success_total") or total(page, f"{engine}:num_requests_total")
    fields: dict[str, Any] = {"n_requests": finished or None}
    for name, of in (("prompt_tokens_total", "input_len"), ("generation_tokens_total", "output_len")):
        count = total(page, f"{engine}:{name}")
        fields[of] = count / finished if count and finished else None
    fields["ttft_ms"] = _mean_ms(page, f"{engine}:{TTFT}")
    fields["tpot_ms"] = next((mean for name in TPOT if (mean := _mean_ms(page, f"{engine}:{name}"))), None)
    fields["kv_cache_tokens"] = total(page, "sglang:max_total_num_tokens") or _blocks(page)
    return fields


def _mean_ms(page: Sequence[PageSample], name: str) -> float | None:
    seconds, count = total(page, f"{name}_sum"), total(page, f"{name}_count")
    return 1e3 * seconds / count if seconds and count else None


def _blocks(page: Sequence[PageSample]) -> int | None:
    """Tokens of vLLM's KV cache: its blocks, which stand as labels."""
    for sample in page:
        blocks, size = sample.labels.get("num_gpu_blocks", ""), sample.labels.get("block_size", "")
        if sample.name == "vllm:cache_config_info" and blocks.isdigit() and size.isdigit():
            return int(blocks) * int(size)
    return None


def _vllm(page: Sequence[PageSample]) -> dict[str, Any]:
    spec = counters_of(page)
    return {"method": "none", "k": 0} if spec is None or not spec.steps else _counted(spec)


def _counted(spec: Counters) -> dict[str, Any]:
    return {
        "k": spec.lookahead, "steps": spec.steps, "drafted": spec.drafted, "accepted": spec.accepted, "tau": 1 + spec.accepted / spec.steps,
        "per_position_acceptance": list(spec.survival) or None,
    }  # fmt: skip


def _sglang(page: Sequence[PageSample]) -> dict[str, Any]:
    """Gauges, of which ranks repeat the same."""
    gauges = {
        sample.name.removeprefix("sglang:"): sample.value for sample in page if sample.name.startswith("sglang:spec_")
    }
    if not gauges.get("spec_accept_length"):
        return {"method": "none", "k": 0}
    nodes = gauges.get("spec_num_draft_tokens")
    return {
        "tau": gauges["spec_accept_length"],
        "k": gauges.get("spec_num_steps") or None,
        "num_draft_tokens": nodes or None,
    }
