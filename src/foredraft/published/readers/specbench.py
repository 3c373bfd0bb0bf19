"""Answers of Spec-Bench and its kin (EAGLE, AngelSlim's SpecEngine): a JSON object a line and question, with its steps and seconds.

`accept_lengths` (Spec-Bench) count the bonus token of each step, `accept_length` (AngelSlim) does not. One row per model and category,
MT-bench's eight as one, as Spec-Bench's own evaluation has them; tokens/s are all tokens over all seconds, at batch 1.
`model_id` says target, method, dtype and temperature where it is written as Spec-Bench's scripts do.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

LABEL = "Spec-Bench answers"
KNOWN = re.compile(r"question_id|answer_id|tstamp|choices|model_id|category")
MT_BENCH = {"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"}
MODEL_ID = re.compile(
    r"(?P<target>.+?)(-(?P<method>[a-zA-Z]\w*))?(-(?P<dtype>float16|float32|bfloat16))?-temp(erature)?-(?P<temperature>\d+(\.\d+)?)"
)


def is_mine(document: Mapping[str, Any]) -> bool:
    choices = document.get("choices")
    return "model_id" in document and isinstance(choices, list) and bool(choices) and "wall_time" in choices[0]


def pooled(documents: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """A record for each model and category of all answers of a file."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for document in documents:
        category = str(document.get("category") or "")
        category = "mt_bench" if category in MT_BENCH else category
        groups.setdefault((str(document["model_id"]), category), []).extend(document["choices"])
    for (model, category), choices in groups.items():
        yield f"{model}/{category}" if category else model, _record(model, category, choices)


def _record(model: str, category: str, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    match = MODEL_ID.fullmatch(model)
    named = match.groupdict() if match else {"target": model}
    tokens, seconds = (sum(sum(choice.get(name) or ()) for choice in choices) for name in ("new_tokens", "wall_time"))
    turns = sum(len(choice.get("wall_time") or ()) for choice in choices)
    steps = [length for choice in choices for length in choice.get("accept_lengths") or ()]
    steps += [length + 1 for choice in choices for length in choice.get("accept_length") or ()]
    speculates = any(length > 1 for length in steps)
    record = {"dataset": category or None, "batch_size": 1, "n_requests": turns, **named}
    record |= {
        "output_len": tokens / turns if turns else None,
        "output_throughput": tokens / seconds if seconds else None,
    }
    if not speculates:
        return record | {"method": record.get("method") if steps == [] else "none"}
    return record | {"tau": sum(steps) / len(steps), "steps": len(steps)}
