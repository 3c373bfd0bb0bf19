"""Tokens per second of training a draft head against those of training its target, in turn, in one run.

A random Llama of 12 M parameters (8 layers, width 320, vocabulary 8,192), windows of 16 × 256 tokens, bfloat16 products,
AdamW. Heads: EAGLE-3 with 3 steps of training-time test over the whole vocabulary and over a quarter of it, Scylla of
2 layers, EAGLE-1/2. Memory: of a process for each configuration, the peak beyond what it held before the configuration was built, beside
what must be held (target, weights, gradients and two moments of what is trained).

python benchmarks/head_speed.py OUT.json [--steps 5] [--compile]
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from foredraft import records
from foredraft.data.tokens import Batch
from foredraft.models.decoder import Decoder, new_decoder
from foredraft.models.heads import new_head
from foredraft.models.layers import ModelConfig
from foredraft.shapes import from_config
from foredraft.shapes.rope import rope_from_config
from foredraft.train.heads import EAGLE, EAGLE3, HeadObjective
from foredraft.train.language_model import LanguageModelObjective
from foredraft.train.objective import Objective

CONFIG = {
    "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 320, "num_attention_heads": 5, "num_key_value_heads": 5,
    "intermediate_size": 896, "vocab_size": 8192, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": True,
}  # fmt: skip
ROWS, LENGTH = 16, 256


def new_target() -> Decoder:
    shape = from_config(CONFIG, name="12M")
    return new_decoder(shape, ModelConfig(norm_eps=1e-5, activation="silu", rope=rope_from_config(CONFIG)), 0)


def head(kind: str, layers: int = 1, draft_vocab: int | None = None) -> Objective:
    target = new_target().to(torch.bfloat16).requires_grad_(False).eval()
    draft_head = new_head(target, kind, layers, range(draft_vocab) if draft_vocab else None)
    return HeadObjective(target, draft_head, EAGLE3._replace(unroll=3) if kind == "eagle3" else EAGLE, length=LENGTH)


CONFIGURATIONS: dict[str, Callable[[], Objective]] = {
    "lm": lambda: LanguageModelObjective(new_target(), {"ce": 1.0}, length=LENGTH),
    "eagle3": lambda: head("eagle3"),
    "eagle3, quarter vocabulary": lambda: head("eagle3", draft_vocab=2048),
    "scylla, 2 layers": lambda: head("eagle3", 2),
    "eagle": lambda: head("eagle"),
}


class Configuration:
    def __init__(self, objective: Objective, compiled: bool) -> None:
        self.objective = objective
        if compiled:
            objective.compile()
        self.optimiser = torch.optim.AdamW(objective.trained.parameters(), lr=1e-4, fused=True)

    def step(self, number: int) -> float:
        tokens = torch.randint(0, CONFIG["vocab_size"], (ROWS, LENGTH), generator=torch.Generator().manual_seed(number))
        batch = Batch(tokens, torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.int32))
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.objective.loss(batch, number)
        (loss.total / loss.weight).backward()
        torch.nn.utils.clip_grad_norm_(self.objective.trained.parameters(), 1.0, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return ROWS * LENGTH / (time.perf_counter() - start)

    def held_bytes(self) -> int:
        """Target, and of what is trained weights, gradients and moments."""
        frozen = self.objective.frozen
        trained = sum(p.numel() * p.element_size() for p in self.objective.trained.parameters())
        return 4 * trained + (sum(p.numel() * p.element_size() for p in frozen.parameters()) if frozen else 0)


def memory(name: str, compiled: bool) -> dict[str, int]:
    """In a process of its own: bytes."""
    command = [sys.executable, __file__, "-", "--memory", name, *(["--compile"] if compiled else [])]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_bytes(name: str, compiled: bool) -> dict[str, int]:
    before = high_water()
    configuration = Configuration(CONFIGURATIONS[name](), compiled)
    for number in range(3):
        configuration.step(number)
    return {"peak_bytes": high_water() - before, "held_bytes": configuration.held_bytes()}


def high_water() -> int:
    """Most bytes this process has had resident (Linux; a child's rusage would begin at its parent's)."""
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def gemm_flops_per_s(size: int = 2048, repeats: int = 8) -> float:
    x, y = torch.randn(4096, size).bfloat16(), torch.randn(size, size).bfloat16()
    best = 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        torch.mm(x, y)
        best = max(best, 2 * 4096 * size * size / (time.perf_counter() - start))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of training heads beside their target")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--memory", help="print one configuration's memory and stop")
    arguments = parser.parse_args()
    if arguments.memory:
        print(json.dumps(peak_bytes(arguments.memory, arguments.compile)))
        return
    configurations = {
        name: Configuration(make(), arguments.compile)
        for name, make in CONFIGURATIONS.items()
        if not arguments.only or name in arguments.only
    }
    rates: dict[str, list[float]] = {name: [] for name in configurations}
    for number in range(arguments.steps + 2):
        for name, configuration in configurations.items():
            rate = configuration.step(number)
            if number >= 2:
                rates[name].append(rate)
        gc.collect()
    ceiling = gemm_flops_per_s()
    rows = {
        name: {
            "tokens_per_s": statistics.median(figures), "least": min(figures), "most": max(figures),
            "flops_per_token": configurations[name].objective.flops_per_token,
            "mfu": statistics.median(figures) * configurations[name].objective.flops_per_token / ceiling,
            **memory(name, arguments.compile),
            "over_lm": statistics.median(a / b for a, b in zip(figures, rates["lm"], strict=True)) if "lm" in rates else None,
        }
        for name, figures in rates.items()
    }  # fmt: skip
    for name, row in rows.items():
        print(name, row)
    threads, version = torch.get_num_threads(), str(torch.__version__)
    records.write(
        arguments.out,
        {
            "config": CONFIG, "batch": ROWS, "length": LENGTH, "unroll": 3, "dtype": "bfloat16", "compiled": arguments.compile,
            "threads": threads, "torch": version, "gemm_flops_per_s": ceiling, "steps": arguments.steps, "arms": rows,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
