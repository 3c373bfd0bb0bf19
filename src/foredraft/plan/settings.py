"""A plan's schedule in the words of vLLM and SGLang (formats as their sources read, August to October 2026).

Refuses to know: how the schedule was found.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from foredraft.plan.drafts import EAGLE_NAME
from foredraft.records import DraftChoice, ScheduleStep

VLLM_METHODS = {"head": "eagle3", "lm": "draft_model", "lookup": "ngram"}
SGLANG_ALGORITHMS = {"head": "EAGLE3", "lm": "STANDALONE", "lookup": "NGRAM"}
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
        "method": "eagle" if _borrows(draft) else VLLM_METHODS[draft.kind],
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
        "--speculative-algorithm": "EAGLE" if _borrows(draft) else SGLANG_ALGORITHMS[draft.kind],
        "--speculative-num-steps": step.lookahead,
        "--speculative-eagle-topk": step.topk,
        "--speculative-num-draft-tokens": step.tree_nodes + 1,
    }
    return flags if draft.kind == "lookup" else flags | {"--speculative-draft-model-path": PLACEHOLDER}


def _borrows(draft: DraftChoice) -> bool:
    """Whether it is an EAGLE-1/2 head, which drafts with its target's tables."""
    return draft.name.startswith(EAGLE_NAME)
