"""Training a 12.8 M-parameter Llama: our loop against transformers' Trainer, step by step in turn in one process.

Both: batch 16×256, bfloat16 autocast over float32 weights, AdamW (fused), gradients clipped at 1, the same tokens. The Trainer's
steps are timed from on_step_begin to on_step_end, ours as whole steps with their data. Medians over the counted steps. The
ceiling is the best rate of a 1024³ matrix product in the same type, measured before each pair. FLOPs: 3 × forward, attention
over half the window.

    python benchmarks/train_speed.py results/train_speed.json [--steps 12] [--device cpu]
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foredraft import records
from foredraft.data.tokens import TokenData
from foredraft.hardware import matmul_rate
from foredraft.recipe import LanguageModel, Recipe, Stage
from foredraft.train.devices import Devices
from foredraft.train.launch import open_data
from foredraft.train.loop import TrainingRun
from foredraft.train.objectives import trainee_of
from foredraft.train.progress import Meter

BATCH, LENGTH, VOCAB, WARM = 16, 256, 8192, 3
CONFIG = {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 8,
    "num_attention_heads": 5, "num_key_value_heads": 5, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def write_tokens(path: Path, count: int) -> Path:
    """Random tokens: speed does not depend on what they say."""
    path.mkdir(parents=True)
    np.random.default_rng(0).integers(1, VOCAB, count).astype("<u2").tofile(path / "tokens.bin")
    np.ones(count, dtype="u1").tofile(path / "mask.bin")
    np.array([0, count]).astype("<i8").tofile(path / "documents.bin")
    data = TokenData(
        version=1, vocab_size=VOCAB, eos_id=0, tokenizer_sha256="none", dtype="uint16", num_tokens=count, num_documents=1,
        raw_tokens=count, regenerated_tokens=0, predicted_tokens=count, sources=(),
    )  # fmt: skip
    records.write(path / "data.json", data)
    return path


def pair(compile: bool, steps: int, device: str, root: Path) -> dict[str, Any]:
    """Seconds of each configuration's steps, compiled or not."""
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

    tokens = write_tokens(root / f"tokens-{compile}", 2 * BATCH * LENGTH * (steps + WARM))
    stage = Stage(tokens=(steps + WARM) * BATCH * LENGTH, length=LENGTH, batch=BATCH)
    recipe = Recipe(model=LanguageModel(config=CONFIG), stages=(stage,), compile=compile)
    devices = Devices(device=device)
    data = open_data(recipe, [tokens], None)
    objective = trainee_of(recipe, None).objective(data, devices)
    run = TrainingRun(recipe, objective, data, root / f"run-{compile}", devices)
    run.begin_stage()
    top, took = matmul_rate(devices.device, "bfloat16"), {"foredraft": [], "transformers": []}
    meter = Meter(objective.flops_per_token, top)

    class Turns(TrainerCallback):
        """After each of the Trainer's steps, one of ours."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = _clock(device)

        def on_step_end(self, *_: Any, **__: Any) -> None:
            took["transformers"].append(_clock(device) - self.began)
            began = _clock(device)
            run.step(meter)
            took["foredraft"].append(_clock(device) - began)

    rows = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in _windows(data)]
    arguments = TrainingArguments(
        str(root / "trainer"), per_device_train_batch_size=BATCH, max_steps=steps + WARM, bf16=True, max_grad_norm=1.0,
        optim="adamw_torch_fused", torch_compile=compile, use_cpu=device == "cpu", save_strategy="no", report_to=[],
        logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    Trainer(model, arguments, train_dataset=rows, callbacks=[Turns()]).train()  # pyright: ignore[reportArgumentType]
    medians = {name: statistics.median(times[WARM:]) for name, times in took.items()}
    configurations = {
        name: configuration(seconds, objective.flops_per_token, top, took[name][WARM:])
        for name, seconds in medians.items()
    }
    ratio = medians["transformers"] / medians["foredraft"]
    return {
        "ceiling_gflop_s": top / 1e9,
        "ratio": ratio,
        "transformers": transformers.__version__,
        "arms": configurations,
    }


def configuration(seconds: float, flops_per_token: float, top: float, took: list[float]) -> dict[str, float]:
    rate = BATCH * LENGTH / seconds
    return {
        "tokens_per_s": rate, "gflop_s": rate * flops_per_token / 1e9, "share_of_ceiling": rate * flops_per_token / top,
        "fastest_tokens_per_s": BATCH * LENGTH / min(took), "slowest_tokens_per_s": BATCH * LENGTH / max(took),
    }  # fmt: skip


def _windows(data: Any) -> list[np.ndarray]:
    folder = data.stages[0].folder
    count = len(folder.tokens) // LENGTH
    return list(np.asarray(folder.tokens[: count * LENGTH]).reshape(count, LENGTH).astype(np.int64))


def _clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        record = {
            name: pair(compile, arguments.steps, arguments.device, Path(root))
            for name, compile in (("eager", False), ("compiled", True))
        }
    conditions = {
        "threads": torch.get_num_threads(), "torch": str(torch.__version__), "machine": platform.processor() or platform.machine(),
        "batch": BATCH, "length": LENGTH, "dtype": "bfloat16 autocast", "device": arguments.device, "steps": arguments.steps,
        "config": CONFIG,
    }  # fmt: skip
    best = {
        name: max(record[kind]["arms"][name]["tokens_per_s"] for kind in record)
        for name in ("foredraft", "transformers")
    }
    records.write(
        arguments.out,
        {"conditions": conditions, **record, "best_of_each_ratio": best["foredraft"] / best["transformers"]},
    )
    for kind, result in record.items():
        for name, figures in result["arms"].items():
            print(
                f"{kind:9} {name:13} {figures['tokens_per_s']:8,.0f} tokens/s {figures['share_of_ceiling']:6.1%} of the ceiling"
            )
    print(f"best of each: {best['foredraft'] / best['transformers']:.2f}×")


if __name__ == "__main__":
    main()
