"""A target's own answers as token ids, out of the files that hold them.

Promises: a row is used or stops with its line and the reason. Refuses to know: torch, what is done with the ids.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from foredraft import records
from foredraft.data import tokenizer as tokenizers
from foredraft.records import with_hint

REMEDY = "foredraft data regenerate writes answers with their tokens"


def token_answers(path: Path, target: str) -> Iterator[dict[str, list[int]]]:
    """{prompt, answer} of every answer in JSON lines: `foredraft data regenerate`'s, ids under prompt_ids and answer_ids, or words under
    prompt and completion (or answer), in the tokens of the tokenizer in the folder `target`.
    """
    for i, row in enumerate(records.read_lines(dict[str, Any], path), 1):
        pairs = list(_pairs(row, target))
        if not pairs:
            reason = "neither regenerated tokens, nor prompt_ids and answer_ids, nor prompt and completion"
            raise with_hint(ValueError(f"{path}:{i}: {reason}"), REMEDY)
        for prompt, answer in pairs:
            if not prompt or not answer:
                raise ValueError(f"{path}:{i}: a prompt or its answer has no tokens")
            yield {"prompt": prompt, "answer": answer}


def _pairs(row: dict[str, Any], target: str) -> Iterator[tuple[list[int], list[int]]]:
    regenerated = row.get("regenerated")
    if isinstance(regenerated, dict | list):
        for part in [regenerated] if isinstance(regenerated, dict) else regenerated:
            if part.get("tokenizer_sha256") != _fingerprint(target):
                raise ValueError(f"answers are in the tokens of another tokenizer than that of {target}")
            for start, end in part["answers"]:
                yield part["tokens"][:start], part["tokens"][start:end]
    elif isinstance(row.get("prompt_ids"), list) and isinstance(row.get("answer_ids"), list):
        yield row["prompt_ids"], row["answer_ids"]
    elif isinstance(row.get("prompt"), str) and isinstance(words := row.get("completion", row.get("answer")), str):
        tokenizer = _tokenizer(target)
        yield tokenizer(row["prompt"])["input_ids"], tokenizer(words, add_special_tokens=False)["input_ids"]


_fingerprint, _tokenizer = cache(tokenizers.sha256), cache(tokenizers.load)
