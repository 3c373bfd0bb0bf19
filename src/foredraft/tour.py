"""The engine's half of the tour: a small model, and its text decoded with and without a draft.

Promises: everything is made on the spot, from text that every Python installation carries (the language's own manual).
Refuses to know: plans.
"""

import json
import pydoc_data.topics
import time
from pathlib import Path
from typing import Any

from foredraft import records, text
from foredraft.decode.batch import Request
from foredraft.train import prepare, tokenizer
from foredraft.train.devices import started
from foredraft.train.launch import launch
from foredraft.train.loop import FINAL
from foredraft.train.recipe import Recipe

VOCABULARY, PROMPT, NEW, ROUNDS = 768, "The statement", 160, 3
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 352, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "stages": [{"tokens": 250_000, "length": 128, "batch": 8, "learning_rate": 3e-3}],
    "watch": {"held_out_every": 100_000, "save_every": 100_000},
}


def small_model(out: Path) -> Path:
    """A Llama of 0.7 M parameters with its tokenizer, trained for half a minute; kept in `out` and found there again."""
    final = out / "run" / FINAL
    if final.exists():
        return final
    pages = out / "manual.jsonl"
    records.write_bytes(
        pages, b"".join(json.dumps({"text": page}).encode() + b"\n" for page in pydoc_data.topics.topics.values())
    )
    if not (out / "tokenizer").exists():
        size = tokenizer.train(pydoc_data.topics.topics.values(), VOCABULARY, out / "tokenizer")
    else:
        size = tokenizer.num_ids(tokenizer.load(out / "tokenizer"))
    if not (out / "tokens").exists():
        prepare.prepare([str(pages)], out / "tokens", out / "tokenizer")
    model = {"kind": "lm", "config": CONFIG | {"vocab_size": size}}
    recipe = records.decode(Recipe, json.dumps(RECIPE | {"model": model}))
    with started("cpu") as devices:
        launch(recipe, out / "run", devices, data=[out / "tokens"])
    return final


def decode(model: Path) -> dict[str, Any]:
    """The same prompt decoded plainly and with prompt look-up, in turn: the text, whether it is one, tokens/s and tokens per step."""
    words = text.tokenizer_of(model)
    request = Request(prompt=tuple(text.encode(words, PROMPT, False)), max_tokens=NEW)
    arms = {"plain": None, "ngram": "ngram"}
    engines = {name: text.load_engine(model, draft, max_batch=1, max_context=512) for name, draft in arms.items()}
    found: dict[str, Any] = {name: {"tokens_per_s": 0.0} for name in arms}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            start = time.perf_counter()
            (sequence,) = engine.generate([request])
            speed = len(sequence.answer) / (time.perf_counter() - start)
            steps = len(sequence.answer) / sequence.steps
            found[name] = {
                "tokens_per_s": max(speed, found[name]["tokens_per_s"]),
                "tokens_per_step": steps,
                "tokens": sequence.answer,
            }
    answers = [arm.pop("tokens") for arm in found.values()]
    return {"prompt": PROMPT, "text": words.decode(answers[0]), "identical": answers[0] == answers[1], "arms": found}
