"""How often speculative greedy text leaves plain greedy text in bfloat16, and how close the two logits were where it
did.

    python benchmarks/near_ties.py OUT.json

In float32 the tests demand equality. In bfloat16 a pass over several tokens rounds otherwise than a pass over one, so
tokens whose logits nearly tie may swap; with our own kernels on a CPU it does not. Once with them, once without.
Random Llama of 31 M parameters, 32 prompts of 20 tokens, 64 new tokens each.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from foredraft import records, text
from foredraft.decode.batch import Request
from foredraft.models import kernels

PROMPTS, LENGTH, NEW = 32, 20, 64


def main(out: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder), 8, 512)
        _make(Path(folder) / "draft", 2, 256)
        record = {"own kernels": _both(folder)} if kernels.missing() is None else {}
        kernels.FEW_ROWS = {}
        record["torch"] = _both(folder)
    records.write(
        out, {"prompts": PROMPTS, "new_tokens": NEW, "torch": str(torch.__version__), "by_kernels_and_dtype": record}
    )
    print(record)


def _make(folder: Path, layers: int, hidden: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(layers)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=8192, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers, num_attention_heads=8,
            num_key_value_heads=4, max_position_embeddings=512, initializer_range=0.05, bos_token_id=None, eos_token_id=None,
        )
    ).save_pretrained(folder)  # fmt: skip


def _both(folder: str) -> dict[str, Any]:
    return {str(dtype)[6:]: _compare(folder, dtype) for dtype in (torch.float32, torch.bfloat16)}


def _compare(folder: str, dtype: torch.dtype) -> dict[str, dict[str, float | None]]:
    generator = torch.Generator().manual_seed(7)
    prompts = torch.randint(0, 8192, (PROMPTS, LENGTH), generator=generator).tolist()
    requests = [Request(prompt=tuple(prompt), max_tokens=NEW) for prompt in prompts]
    engines = {
        name: text.load_engine(folder, draft, lookahead=4, dtype=dtype, max_batch=batch, max_context=128)
        for name, draft, batch in (
            ("plain", None, 1),
            ("plain, batch 8", None, 8),
            ("ngram", "ngram", 1),
            ("model", f"{folder}/draft", 1),
        )
    }
    answers = {name: [s.answer for s in engine.generate(requests)] for name, engine in engines.items()}
    target = text.load_engine(folder, dtype=torch.float32, max_batch=1, max_context=128).target
    return {
        name: _difference(target, requests, answers["plain"], drafted)
        for name, drafted in answers.items()
        if name != "plain"
    }


@torch.inference_mode()
def _difference(
    target, requests: list[Request], plain: list[list[int]], drafted: list[list[int]]
) -> dict[str, float | None]:
    """Share of answers that differ, tokens per first difference, and the median gap there in float32 logits, in units
    of their sd.
    """
    gaps = []
    for request, a, b in zip(requests, plain, drafted, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), None)
        if at is not None:
            logits = target(torch.tensor([[*request.prompt, *a[:at]]])).logits_BTV[0, -1]
            gaps.append(float((logits[a[at]] - logits[b[at]]).abs() / logits.std()))
    same = sum(len(a) for a, b in zip(plain, drafted, strict=True) if a == b)
    return {
        "answers_that_differ": len(gaps) / len(requests), "tokens_until_a_difference": (same + NEW * len(gaps)) / len(gaps) if gaps else None,
        "median_gap_in_sd": float(torch.tensor(gaps).median()) if gaps else None,
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
