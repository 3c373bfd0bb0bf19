"""A target and its drafts, made in seconds where a test needs models that speak and drafts that are accepted in part.

A Llama of seven narrow layers learns a grammar of a few hundred words, and an independent model, an EAGLE-2 and an EAGLE-3 head and Scylla's
two layers learn from it. Promises: the same folders from the same seed and threads, by the verbs that a user types. Refuses to know: what is tested.
"""

import json
import random
from pathlib import Path
from typing import Any

from foredraft import records
from foredraft.cli import main as cli

VOCAB, WIDTH, LENGTH = 320, 64, 64
WIDTHS = {"head_dim": 32, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
TARGET = WIDTHS | {
    "model_type": "llama", "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 128, "num_hidden_layers": 7, "num_attention_heads": 2,
    "num_key_value_heads": 2,
}  # fmt: skip
DRAFT = TARGET | {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}
TARGET_TOKENS, DRAFT_TOKENS = 120e3, 80e3
DRAFTS = {
    "lm": {"kind": "lm", "config": DRAFT}, "eagle2": {"kind": "eagle", "token_weight": 1.0}, "eagle3": {"kind": "eagle3", "unroll": 3},
    "scylla-L2": {"kind": "eagle", "layers": 2, "token_weight": 1.0},
}  # fmt: skip

WHO = ("the hen", "the goat", "my sister", "an old man", "the captain", "a small boy", "the jackal", "her teacher")
DID = ("found", "carried", "painted", "sold", "lost", "washed", "hid", "mended")
WHAT = ("a red kite", "the boat", "two eggs", "a white stone", "the bread", "seven coins", "a lamp", "the gate")
WHERE = ("by the river", "on the hill", "near the forest", "in the market", "at the station", "under the bridge")
WHEN = ("In the morning", "At noon", "One day", "After the rain", "Before dinner", "On Sunday")


def sentence(rng: random.Random) -> str:
    who, did, what, where, when = map(rng.choice, (WHO, DID, WHAT, WHERE, WHEN))
    return f"{when} {who} {did} {what} {where}."


def story(rng: random.Random, sentences: int) -> str:
    return " ".join(sentence(rng) for _ in range(sentences))


def chat(rng: random.Random) -> tuple[str, str]:
    """A question, and the answer that stands in it."""
    who, did, what, where, when = map(rng.choice, (WHO, DID, WHAT, WHERE, WHEN))
    question = f"{when} {who} {did} {what} {where}. What was {did} {where}?"
    return question, f"{what[0].upper()}{what[1:]} was {did} {where} by {who}. {story(rng, 3)}"


def prompts(rng: random.Random) -> list[dict[str, Any]]:
    """Twenty-one prompts of seven categories, of which three are chats."""
    rows = []
    for number, category in enumerate(
        name for name in ("story", "book", "news", "letter", "qa", "ask", "tell") for _ in range(3)
    ):
        is_chat = category in ("qa", "ask", "tell")
        turn = chat(rng)[0] if is_chat else f"{story(rng, 2)} {rng.choice(WHEN)} {rng.choice(WHO)}"
        rows.append(
            {"question_id": number, "category": category, "turns": [turn], "format": "chat" if is_chat else "raw"}
        )
    return rows


def foredraft(*words: object) -> None:
    """The command line in this process; what it refuses is raised."""
    cli.app([str(word) for word in words], standalone_mode=False)


def recipe(model: dict[str, Any], tokens: float, rate: float, optimiser: str) -> dict[str, Any]:
    return {
        "model": model, "stages": [{"tokens": tokens, "length": LENGTH, "batch": 8, "learning_rate": rate}], "optimiser": optimiser,
        "clip": 0.5, "precision": "float32",
    }  # fmt: skip


def make(folder: Path) -> Path:
    """`folder` with target, lm, eagle2, eagle3, scylla-L2 and prompts.jsonl in it."""
    rng, work = random.Random(0), folder / "work"
    work.mkdir(parents=True)
    texts = [story(rng, 6) for _ in range(300)] + ["User: {}\nAssistant: {}".format(*chat(rng)) for _ in range(300)]
    rng.shuffle(texts)
    records.write_lines(work / "texts.jsonl", [{"text": text} for text in texts])
    records.write_lines(folder / "prompts.jsonl", prompts(rng))
    foredraft("data", "tokenizer", work / "texts.jsonl", "--out", work / "tokenizer", "--vocab", VOCAB)
    foredraft("data", "prepare", work / "texts.jsonl", "--out", work / "texts", "--tokenizer", work / "tokenizer")
    train(folder, "target", recipe({"kind": "lm", "config": TARGET}, TARGET_TOKENS, 5e-3, "adamw"))
    for name, model in DRAFTS.items():
        rate, optimiser = (1e-2 if name == "lm" else 4e-3), "adamw"
        train(folder, name, recipe(model, DRAFT_TOKENS, rate, optimiser), "--target", folder / "target")
    return folder


def train(folder: Path, name: str, document: dict[str, Any], *options: object) -> None:
    work = folder / "work"
    (work / f"{name}.json").write_text(json.dumps(document))
    foredraft("train", work / f"{name}.json", "--data", work / "texts", "--out", work / name, *options)
    (work / name / "final").rename(folder / name)
