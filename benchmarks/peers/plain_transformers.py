"""Plain greedy decoding, ours against transformers' generate: same checkpoint, prompt, dtype and threads, in turn, in one run.

    python benchmarks/peers/plain_transformers.py OUT.json

The checkpoint is a random Llama of 31 M parameters (8 layers, width 512, vocabulary 8,192): its speed is that of a trained one.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from foredraft import records, text
from foredraft.decode.batch import Request

PROMPT, NEW, ROUNDS = tuple(range(10, 60)), 100, 9


def main(out: str) -> None:
    import transformers

    with tempfile.TemporaryDirectory() as folder:
        _make(Path(folder))
        found = {str(dtype)[6:]: _race(folder, dtype) for dtype in (torch.float32, torch.bfloat16)}
    records.write(out, {"threads": torch.get_num_threads(), "torch": str(torch.__version__), "transformers": transformers.__version__,
                        "new_tokens": NEW, "rounds": ROUNDS, "by_dtype": found})  # fmt: skip
    print(found)


def _make(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=512, intermediate_size=1408, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=2048, initializer_range=0.05, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def _race(folder: str, dtype: torch.dtype) -> dict[str, Any]:
    """Median ms per token of both, and the ratio by round with its spread."""
    from transformers import LlamaForCausalLM

    peer: Any = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
    engine = text.load_engine(folder, dtype=dtype, max_batch=1, max_context=256)
    ids = torch.tensor([PROMPT])

    def theirs() -> list[int]:
        with torch.no_grad():
            return peer.generate(ids, max_new_tokens=NEW, do_sample=False)[0, len(PROMPT) :].tolist()

    def ours() -> list[int]:
        return engine.generate([Request(prompt=PROMPT, max_tokens=NEW)])[0].answer

    times: dict[str, list[float]] = {"transformers": [], "foredraft": []}
    same = theirs() == ours()
    for _ in range(ROUNDS):
        for name, run in (("transformers", theirs), ("foredraft", ours)):
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / NEW * 1e3)
    ratios = sorted(a / b for a, b in zip(times["transformers"], times["foredraft"], strict=True))
    return {
        "transformers_ms": statistics.median(times["transformers"]), "foredraft_ms": statistics.median(times["foredraft"]),
        "ratio": statistics.median(ratios), "ratio_least": ratios[0], "ratio_most": ratios[-1], "same_tokens": same,
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
