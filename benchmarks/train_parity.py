"""The same Llama trained twice from the same weights on the same windows in the same order: by our loop, and by transformers' model.

Theirs is LlamaForCausalLM under torch's AdamW in a loop of a few lines, with our schedule; both held-out losses are computed with
transformers' model on the same windows, so that neither side judges itself.

    python benchmarks/train_parity.py OUT.json --data DIR --held-out DIR [--tokens 4e6] [--config config.json] [--compile]

Without --config a Llama of 8 layers, width 320, as in train_speed.py, with the folder's vocabulary.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from foredraft import records
from foredraft.data.tokens import Packing, TokenFolder
from foredraft.recipe import EvalSchedule, LanguageModel, Recipe, Stage
from foredraft.train.devices import Devices
from foredraft.train.launch import launch, open_data
from foredraft.train.objectives import trainee_of
from foredraft.train.optimiser import rate

CONFIG = {
    "model_type": "llama", "hidden_size": 320, "intermediate_size": 896, "num_hidden_layers": 8, "num_attention_heads": 5,
    "num_key_value_heads": 5, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
HELD_OUT = 256  # windows
POINTS = 20  # of the curve that is kept


def precise(recipe: Recipe) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if recipe.precision == "bfloat16" else nullcontext()


def theirs(recipe: Recipe, start: Path, packing: Packing) -> tuple[Any, list[float]]:
    """Transformers' model trained on the recipe's only stage, and its losses."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).train()
    called = torch.compile(model) if recipe.compile else model
    wide, narrow = ([p for p in model.parameters() if (p.dim() > 1) == flag] for flag in (True, False))
    groups = [{"params": wide, "weight_decay": recipe.weight_decay}, {"params": narrow, "weight_decay": 0.0}]
    adam, stage, losses = torch.optim.AdamW(groups, betas=recipe.betas, fused=True), recipe.stages[0], []
    for step in range(stage.steps):
        batch = packing.batch(step * stage.batch, stage.batch)
        with precise(recipe):
            loss = called(input_ids=batch.tokens_BT, labels=batch.tokens_BT.masked_fill(~batch.mask_BT, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for group in adam.param_groups:
            group["lr"] = rate(stage, step)
        adam.step()
        adam.zero_grad()
        losses.append(float(loss.detach()))
    return model.eval(), losses


@torch.no_grad()
def held_out(model: Any, packing: Packing) -> float:
    """Mean loss per predicted token over the first windows, float32."""
    total, count = 0.0, 0
    for first in range(0, min(HELD_OUT, len(packing)), 16):
        batch = packing.batch(first, min(16, len(packing) - first))
        labels = batch.tokens_BT.masked_fill(~batch.mask_BT, -100)
        counted = int((labels[:, 1:] != -100).sum())
        total += float(model(input_ids=batch.tokens_BT, labels=labels).loss) * counted
        count += counted
    return total / count


def thinned(ours: list[float], other: list[float]) -> list[dict[str, float]]:
    """About POINTS steps of both curves at even distances, the first and the last among them; steps count from 1."""
    last = len(ours) - 1
    steps = sorted({round(i * last / (POINTS - 1)) for i in range(POINTS)})
    return [{"step": step + 1, "foredraft": ours[step], "transformers": other[step]} for step in steps]


def main() -> None:
    from transformers import AutoModelForCausalLM

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--config", type=Path)
    parser.add_argument("--tokens", type=float, default=4e6)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    config = json.loads(arguments.config.read_bytes()) if arguments.config else CONFIG
    config = {"vocab_size": TokenFolder.open(arguments.data).data.vocab_size} | config
    stage = Stage(tokens=arguments.tokens, length=arguments.length, batch=arguments.batch, learning_rate=arguments.rate)
    recipe = Recipe(
        model=LanguageModel(config=config), stages=(stage,), precision=arguments.precision, compile=arguments.compile,
        watch=EvalSchedule(log_every=1, held_out_every=10**9, save_every=10**9),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = open_data(recipe, [arguments.data], arguments.held_out)
        assert data.held_out is not None
        objective = trainee_of(recipe, None).objective(data, Devices())
        objective.save(root / "start", objective.trained.state_dict())
        state = launch(recipe, root / "run", Devices(), data=[arguments.data])
        lines = [json.loads(line) for line in (root / "run/metrics.jsonl").read_text().splitlines()]
        our_loss = held_out(
            AutoModelForCausalLM.from_pretrained(root / "run/final", dtype=torch.float32).eval(), data.held_out
        )
        other, losses = theirs(recipe, root / "start", data.stages[0])
        peer = held_out(other, data.held_out)
    curve = [line["loss"] for line in lines if "loss" in line]
    record = {
        "tokens": state.tokens, "steps": state.step, "params": sum(p.numel() for p in other.parameters()),
        "held_out_loss": {"foredraft": our_loss, "transformers": peer, "difference": our_loss - peer},
        "largest_step_difference": max(abs(a - b) for a, b in zip(curve, losses, strict=True)),
        "losses": thinned(curve, losses), "recipe": recipe,
    }  # fmt: skip
    records.write(arguments.out, record)
    print(
        f"held-out loss after {state.tokens:,} tokens: ours {our_loss:.4f}, transformers {peer:.4f}, difference {our_loss - peer:+.4f}"
    )


if __name__ == "__main__":
    main()
