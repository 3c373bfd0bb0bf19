"""Our own engine on a tiny target, for comparison: texts, what its steps accepted, and near-ties of its logits.

Both engines count a step's accepted tokens before the answer's length cuts them. vLLM's first token comes out of the prompt's own pass,
undrafted, where our first step already drafts: `steps` starts our engine behind that token, so that the steps stand side by side.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tiny_zoo import foredraft  # noqa: F401  # the command line, for all that stands here

from foredraft import text
from foredraft.data.prompts import Encoding, read_prompts
from foredraft.data.sources import Skips
from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.models.decoder import Decoder

FOLDER = tempfile.TemporaryDirectory(prefix="foredraft-zoo-")  # until this process ends
ZOO = Path(FOLDER.name)  # which conftest.py fills
TARGET, PROMPTS = ZOO / "target", ZOO / "prompts.jsonl"
LOOKAHEAD, NEW, LONG, BATCH, CONTEXT = 4, 64, 128, 4, 512
NEAR = 1e-4  # between the logits of two tokens that float32 kernels may order either way

Ids = Sequence[int]


def prompt_ids() -> list[list[int]]:
    """The prompts, chats in their template."""
    return [list(prompt.ids) for prompt in read_prompts(PROMPTS, Encoding(text.tokenizer_of(TARGET)), Skips("stop"))]


def engine(target: Decoder, draft: Path | None) -> Engine:
    return text.engine_on(
        target, str(draft) if draft else None, lookahead=LOOKAHEAD, max_batch=BATCH, max_context=CONTEXT
    )


def answers(
    target: Decoder, prompts: Sequence[Ids], max_tokens: int = NEW, stop_ids: frozenset[int] = frozenset()
) -> list[list[int]]:
    """Greedy answers of the target alone."""
    requests = [Request(prompt=tuple(ids), max_tokens=max_tokens, stop_ids=stop_ids) for ids in prompts]
    return [sequence.answer for sequence in engine(target, None).generate(requests)]


def steps(target: Decoder, draft: Path, prompts: Sequence[Ids], plain_answers: Sequence[Ids]) -> list[list[int]]:
    """Tokens that each step of each request accepted, behind what was `said` of its answer of NEW tokens already."""
    requests = [
        Request(prompt=(*ids, *answer), max_tokens=NEW - len(answer))
        for ids, answer in zip(prompts, plain_answers, strict=True)
    ]
    return [sequence.accepted_at for sequence in engine(target, draft).generate(requests)]


def survival(accepted: Sequence[Sequence[int]]) -> list[float]:
    """The share of all steps that accepted more than i tokens, by i."""
    pooled = [num for request in accepted for num in request]
    return [sum(num > i for num in pooled) / len(pooled) for i in range(LOOKAHEAD)]


@torch.inference_mode()
def gap(target: Decoder, prompt: Ids, first: Ids, second: Ids) -> float | None:
    """How far apart the target's logits are where two answers part; None where they do not. Raises where one is longer."""
    at = next((i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a != b), None)
    if at is None:
        return None
    logits = target(torch.tensor([[*prompt, *first[:at]]])).logits_BTV
    assert logits is not None
    return float((logits[0, -1, first[at]] - logits[0, -1, second[at]]).abs())
