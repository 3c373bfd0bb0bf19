"""`vllm bench serve --save-result`: a JSON object per run, appended ones (`--append-result`), or the same keys as a flat CSV.

Its acceptance length counts the bonus token; its acceptance by position is joint. What `--metadata KEY=VALUE` adds (k=3, gpu=H100,
method=eagle3, tp=2) is read under our usual names. Keys as in vllm/benchmarks/serve.py, 2025 to 2026.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from foredraft.engines.counters import chain_length

LABEL = "vLLM bench serve"
MARKS = {"total_output_tokens", "output_throughput", "request_throughput", "tokenizer_id"}
# Columns of its flat CSV that a table leaves unread.
FLAT = {"tokenizer_id", "request_throughput", "burstiness"}
# Of a run's identity and spread: no law here reads them.
KNOWN = re.compile(
    r"date|endpoint_type|backend|label|tokenizer_id|num_prompts|request_rate|burstiness|duration|failed|request_goodput(:.*)?"
    r"|request_throughput|total_token_throughput|max_output_tokens_per_s|max_concurrent_requests|rtfx|spec_decode_acceptance_rate"
    r"|(mean|median|std|p\d+(\.\d+)?)_(e2el|ttft|tpot|itl)_ms|input_lens|output_lens|ttfts|itls|start_times|generated_texts|errors"
    r"|ramp_up_.*|rps_change_events"
)


def is_mine(document: Mapping[str, Any]) -> bool:
    return document.keys() >= MARKS


def records(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The run under the names of our columns, at no place within its document."""
    record = dict(document)
    steps, drafted = (document.get(f"spec_decode_{name}") for name in ("num_drafts", "draft_tokens"))
    if steps:
        record.setdefault("engine", "vllm")  # whose counters they are
        if not record.keys() & {"k", "num_speculative_tokens", "num_spec_tokens"}:
            record["k"] = chain_length(steps, drafted)
    yield "", record
