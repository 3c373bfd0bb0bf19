"""`python -m sglang.bench_serving --output-file`: a JSON object a line and run.

Its accept length counts the bonus token. `concurrency` is the measured mean, `max_concurrency` the clients. `server_info`, in newer
versions, says the model, its type and the settings of speculation. Keys as in sglang/bench_serving.py, 2025 to 2026.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

LABEL = "SGLang bench_serving"
MARKS = {"sharegpt_output_len", "random_input_len", "duration", "completed"}
KNOWN = re.compile(
    r"tag|backend|request_rate|sharegpt_output_len|random_(input_len|output_len|range_ratio)|duration|total_throughput"
    r"|total_output_tokens_retokenized|total_input_(text|vision)_tokens|request_throughput|input_throughput|concurrency"
    r"|(mean|median|std|max|p\d+)_(e2e_latency|ttft|tpot|itl)_ms|input_lens|output_lens|ttfts|itls|generated_texts|errors"
    r"|max_output_tokens_per_s|max_concurrent_requests|server_info"
)
SERVER = {  # what `server_info` calls our columns
    "model_path": "target", "tp_size": "tp", "dtype": "dtype", "speculative_algorithm": "method",
    "speculative_draft_model_path": "draft", "speculative_num_steps": "k", "speculative_eagle_topk": "topk",
    "speculative_num_draft_tokens": "num_draft_tokens",
}  # fmt: skip


def is_mine(document: Mapping[str, Any]) -> bool:
    return document.keys() >= MARKS


def records(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The run under the names of our columns."""
    record = {key: value for key, value in document.items() if key != "concurrency"}
    info = document.get("server_info")
    if isinstance(info, dict):
        settings = {ours: info[theirs] for theirs, ours in SERVER.items() if info.get(theirs) not in (None, "", "auto")}
        settings.setdefault("method", "none")
        record = settings | record
    if str(document.get("backend")).startswith("sglang"):
        record.setdefault("engine", "sglang")
    if not document.get("accept_length"):  # null, or 0 in some versions, of a server that does not speculate
        record.pop("accept_length", None)
    yield "", record
