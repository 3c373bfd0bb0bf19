"""A plan's schedule in the words of vLLM and SGLang (formats as their sources read, August to October 2026).

Refuses to know: how the schedule was found.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from foredraft.records import DraftChoice, ScheduleStep

VLLM_METHODS = {
    "eagle": "eagle",
    "eagle3": "eagle3",
    "lm": "draft_model",
    "lookup": "ngram",
}  # by a head's method, or kind
SGLANG_ALGORITHMS = {"eagle": "EAGLE", "eagle3": "EAGLE3", "lm": "STANDALONE", "lookup": "NGRAM"}
PLACEHOLDER = "path/to/draft"


def vllm(draft: DraftChoice | None, schedule: Sequence[ScheduleStep], devices: int) -> dict[str, Any]:
    """vLLM's `--speculative-config`: the longest lookahead, and `num_speculative_tokens_per_batch_size` as [start,
    end, K] over running batches.

    vLLM verifies chains only, so a tree's depth stands for it. Empty where nothing is to be speculated.
    """
    if draft is None or not any(step.lookahead for step in schedule):
        return {}
    ranges = batch_ranges(schedule)
    config: dict[str, Any] = {
        "method": VLLM_METHODS[draft.method or draft.kind],
        "num_speculative_tokens": max(k for *_, k in ranges),
        "num_speculative_tokens_per_batch_size": ranges,
    }
    if draft.kind == "lookup":
        config |= {"prompt_lookup_min": 1, "prompt_lookup_max": 3}
    else:
        config |= {"model": PLACEHOLDER, "draft_tensor_parallel_size": devices}
    return config


def batch_ranges(schedule: Sequence[ScheduleStep]) -> list[list[int]]:
    """[first batch, last batch, lookahead], without gaps from 1 up to the largest batch planned for; a change lies
    midway between two plans.
    """
    by_batch: dict[int, int] = {}
    for step in sorted(schedule, key=lambda step: step.running):
        by_batch.setdefault(round(step.running), step.lookahead)
    runs = [(k, [batch for batch, _ in group]) for k, group in groupby(by_batch.items(), key=lambda item: item[1])]
    ranges, start = [], 1
    for i, (k, batches) in enumerate(runs):
        end = batches[-1] if i + 1 == len(runs) else (batches[-1] + runs[i + 1][1][0]) // 2
        ranges.append([start, end, k])
        start = end + 1
    return ranges


def sglang(draft: DraftChoice | None, schedule: Sequence[ScheduleStep]) -> dict[str, Any]:
    """SGLang's flags: steps, branching and verified tokens, root included, one setting for every batch. Empty where
    nothing is to be speculated.
    """
    step = next((step for step in schedule if step.lookahead), None)
    if draft is None or step is None:
        return {}
    flags: dict[str, Any] = {
        "--speculative-algorithm": SGLANG_ALGORITHMS[draft.method or draft.kind],
        "--speculative-num-steps": step.lookahead,
        "--speculative-eagle-topk": step.topk,
        "--speculative-num-draft-tokens": step.tree_nodes + 1,
    }
    return flags if draft.kind == "lookup" else flags | {"--speculative-draft-model-path": PLACEHOLDER}
