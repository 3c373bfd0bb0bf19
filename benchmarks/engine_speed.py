"""What the engine's own parts cost: against the memory's speed, against one token, against the models' own passes.

    python benchmarks/engine_speed.py OUT.json

Random Llamas of 31 M and 100 M parameters (their speed is that of trained ones), a draft of 2 layers and an EAGLE-3 head. Passes are
timed in turn, round by round; a figure is the median over rounds, its spread the 5th and 95th percentile.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foredraft import records
from foredraft.decode.batch import Request
from foredraft.decode.engine import Engine
from foredraft.decode.head_drafter import HeadDrafter
from foredraft.decode.model_drafter import ModelDrafter
from foredraft.hardware import read_rate
from foredraft.models import kernels
from foredraft.models.forward import causal_mask
from foredraft.models.heads import new_head
from foredraft.models.load import load

ROUNDS, CONTEXT, NEW = 8, 64, 32
ROOM = {"max_batch": 1, "max_context": CONTEXT + NEW}
SIZES = {
    "31M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8, "vocab_size": 8192},
    "100M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 16384},
}  # fmt: skip
DRAFT = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 4}


def main(out: str) -> None:
    record: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, sizes in SIZES.items():
            target, draft = make(Path(folder) / name, sizes), make(Path(folder) / f"{name}-draft", sizes | DRAFT)
            for dtype in (torch.float32, torch.bfloat16):
                record[f"{name} {str(dtype)[6:]}"] = figures(target, draft, dtype)
                print(name, dtype, record[f"{name} {str(dtype)[6:]}"], flush=True)
        started = starting(Path(folder) / "100M")
    conditions = {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "processor": kernels.processor_name(),
        "kernels": kernels.missing() or "own",
    }
    records.write(
        out, {"conditions": conditions, "rounds": ROUNDS, "context": CONTEXT, "models": record, "start": started}
    )


def make(folder: Path, sizes: dict[str, int]) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {
        "num_key_value_heads": sizes["num_attention_heads"] // 2,
        "initializer_range": 0.05,
        "max_position_embeddings": 2048,
    }
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, bos_token_id=None, eos_token_id=None)).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


@torch.inference_mode()
def figures(target_at: Path, draft_at: Path, dtype: torch.dtype) -> dict[str, Any]:
    target, draft = load(target_at, dtype), load(draft_at, dtype)
    head = new_head(target, "eagle3", dtype=dtype).requires_grad_(False).eval()
    hidden = torch.randn(1, 1, target.shape.hidden_size).to(dtype)
    passes: dict[str, Callable[[], object]] = {f"{n} tokens": a_pass(target, 1, n) for n in (1, 2, 5, 8, 16)}
    passes |= {f"batch 8, {n} tokens": a_pass(target, 8, n) for n in (1, 5)}
    passes |= {"draft": a_pass(draft, 1, 1), "head": a_pass(head, 1, 1, hidden)}
    drafters = {
        "self": (ModelDrafter(target, target.new_cache(1, 256)), 4),
        "draft": (ModelDrafter(draft, draft.new_cache(1, 256)), 4),
        "head": (HeadDrafter(head, head.new_cache(1, 256)), 3),
    }
    engines = {name: Engine(target, drafter, lookahead=k, **ROOM) for name, (drafter, k) in drafters.items()}
    engines["plain"] = Engine(target, lookahead=0, **ROOM)
    times = in_turn(passes, engines)
    one_token, read = times["1 tokens"], times["read"]
    gb_s = target.shape.read_bytes(1, str(dtype)[6:]) / one_token / 1e9
    return {
        "read_gb_s": spread(read), "plain_ms": spread(1e3 * one_token), "plain_gb_s": spread(gb_s), "share_of_read": spread(gb_s / read),
        "over_one_token": {name: spread(times[name] / one_token) for name in passes if name.endswith("tokens") and "draft" not in name},
        "engine_step_over_pass": spread(times["plain step"] / one_token),
        "self_draft_step_over_its_passes": spread(times["self step"] / (3 * one_token + times["2 tokens"] + times["5 tokens"])),
        "draft_per_token_over_pass": spread(times["draft draft"] / 4 / times["draft"]),
        "head_per_token_over_pass": spread(times["head draft"] / 3 / times["head"]),
    }  # fmt: skip


def a_pass(model: Any, batch: int, num: int, *inputs: torch.Tensor) -> Callable[[], object]:
    """`num` tokens of each sequence behind a context of CONTEXT."""
    cache, tokens = model.new_cache(batch, 256), torch.randint(0, 8000, (batch, num))
    positions = torch.arange(CONTEXT, CONTEXT + num).expand(batch, -1).contiguous()
    mask = causal_mask(positions, CONTEXT + num)
    return lambda: model(tokens, *inputs, positions, cache, positions, mask)


def in_turn(passes: dict[str, Callable[[], object]], engines: dict[str, Engine]) -> dict[str, np.ndarray]:
    """By round: the memory's read rate in GB/s, seconds of each pass, and of each engine's steps and drafting (their median)."""
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        times["read"].append(read_rate(repeats=2) / 1e9)
        for name, run in passes.items():
            run()
            start = time.perf_counter()
            run()
            run()
            times[name].append((time.perf_counter() - start) / 2)
        for name, engine in engines.items():
            engine.add(Request(prompt=tuple(range(1, CONTEXT + 1)), max_tokens=NEW))
            steps = list(engine.run())[1:-1]
            times[f"{name} draft"].append(float(np.median([s.draft_s for s in steps])))
            times[f"{name} step"].append(float(np.median([s.draft_s + s.target_s + s.other_s for s in steps])))
    return {name: np.array(values) for name, values in times.items()}


def spread(values: np.ndarray) -> dict[str, float]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    return {"median": middle, "low": low, "high": high}


def starting(folder: Path) -> dict[str, float]:
    """Seconds from nothing to an engine that has decoded a token, and what it then holds beyond weights and cache, in a process of its own."""
    code = f"""
import time; start = time.perf_counter()
import os, torch
from pathlib import Path
from foredraft import text
from foredraft.decode.batch import Request
def held(): return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
from foredraft.models import kernels
imported, before = time.perf_counter(), held()
engine = text.load_engine({str(folder)!r}, 'ngram', max_batch=8, max_context=512)
engine.generate([Request(prompt=(1, 2, 3), max_tokens=2)])
done = time.perf_counter()
weights = sum(p.numel() * p.element_size() for p in engine.target.parameters())
print(imported - start, done - imported, held() - before, weights, engine.cache.num_bytes)
"""
    with tempfile.TemporaryDirectory() as fresh:
        runs = {}
        for name in ("first", "later"):
            run = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                env={**os.environ, "XDG_CACHE_HOME": fresh},
                check=True,
            )
            runs[name] = [float(part) for part in run.stdout.split()]
    imported, started, resident, weights, cache = runs["later"]
    return {
        "import_s": imported, "start_s": started, "first_start_s": runs["first"][1], "held_bytes": resident,
        "weights_bytes": weights, "cache_bytes": cache,
        "held_over_weights_and_cache": resident / (weights + cache),
    }  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1])
