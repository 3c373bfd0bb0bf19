"""Does Muon earn its place? The same small Llama trained with AdamW and with Muon at several learning rates, on the same windows in the same order.

For each run: the held-out loss, nats per token, and the median tokens per second. An optimiser earns its place if its best rate gives
the lower loss in the same wall time, not only in the same tokens: `seconds` is there to judge that.

    python benchmarks/train_optimisers.py OUT.json --data DIR --held-out DIR [--tokens 2e6] [--rates 1e-3 2e-3 4e-3 8e-3]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from foredraft import records
from foredraft.data.tokens import TokenFolder
from foredraft.recipe import EvalSchedule, LanguageModel, Recipe, Stage
from foredraft.train.devices import Devices
from foredraft.train.launch import launch

CONFIG = {
    "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 6, "num_attention_heads": 2,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip


def train(optimiser: str, learning_rate: float, arguments: Any, out: Path) -> dict[str, Any]:
    vocab = TokenFolder.open(arguments.data).data.vocab_size
    recipe = Recipe(
        model=LanguageModel(config=CONFIG | {"vocab_size": vocab}),
        stages=(Stage(tokens=arguments.tokens, length=256, batch=16, learning_rate=learning_rate),),
        optimiser=optimiser,
        compile=True,
        watch=EvalSchedule(held_out_every=10**9, save_every=10**9),
    )
    launch(recipe, out, Devices(), data=[arguments.data], held_out=arguments.held_out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = next(line for line in reversed(lines) if "held_out_loss" in line)
    seconds = max(line["seconds"] for line in lines if "seconds" in line)
    return {
        "optimiser": optimiser,
        "learning_rate": learning_rate,
        "held_out_loss": last["held_out_loss"],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--tokens", type=float, default=2e6)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--optimisers", nargs="+", default=["adamw", "muon"])
    arguments = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as root:
        for optimiser in arguments.optimisers:
            for value in arguments.rates:
                runs.append(train(optimiser, value, arguments, Path(root) / f"{optimiser}-{value}"))
                print(runs[-1], flush=True)
    conditions = {
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "tokens": arguments.tokens,
        "config": CONFIG,
    }
    records.write(arguments.out, {"conditions": conditions, "runs": runs})


if __name__ == "__main__":
    main()
