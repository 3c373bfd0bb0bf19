"""Inputs for a run in miniature: a tokenizer, a tiny target, prompts, texts and a sweep document, made in a second."""

import random
from pathlib import Path
from typing import Any

import msgspec
import torch
from models import LLAMA_1B, SMALL, random_decoder

from foredraft.data.prepare import prepare
from foredraft.data.tokenizer import train
from foredraft.models.save import save

WORDS = "the a cat dog hat tree sat ran saw and then under over small big red blue sun moon rain wind said went home".split()  # noqa: SIM905
STAGE = {"tokens": 256, "length": 16, "batch": 2, "learning_rate": 1e-3}
GRID = {
    "target": "target", "held_out": "answers-val",
    "recipe": {"stages": [STAGE], "watch": {"held_out_tokens": 64, "held_out_every": 4, "save_every": 10**6, "export_dtype": "bfloat16"}},
    "cells": {
        "eagle2": {"data": ["answers"], "recipe": {"model": {"kind": "eagle", "draft_vocab": 64}}},
        "eagle3": {"data": ["answers"], "recipe": {"model": {"kind": "eagle3", "unroll": 2, "draft_vocab": 64}}},
        "dspark": {"data": ["answers"], "recipe": {"model": {"kind": "dspark", "layers": 1, "rank": 8, "draft_vocab": 64}}},
        "dflash": {"data": ["answers"], "recipe": {"model": {"kind": "dflash", "layers": 1, "block": 5, "draft_vocab": 64}}},
        "scylla": {"data": ["text", "answers"], "recipe": {"model": {"kind": "eagle", "layers": 2}, "stages": [{}, STAGE]}},
        "lm": {"data": ["text", "answers"], "recipe": {"model": {"kind": "lm", "params": 5e4}, "stages": [{}, STAGE]}},
    },
}  # fmt: skip


def miniature(work: Path) -> None:
    """tiny-target, tiny-data and tiny-grid.json in `work`, where they are not there yet."""
    if not (work / "tiny-grid.json").is_file():
        _make(work / "tiny-target", work / "tiny-data")
        (work / "tiny-grid.json").write_bytes(msgspec.json.encode(GRID))


def _make(target: Path, data: Path) -> None:
    chance = random.Random(0)
    texts = [" ".join(chance.choices(WORDS, k=40)) + "." for _ in range(60)]
    data.mkdir(parents=True, exist_ok=True)
    train(texts, SMALL["vocab_size"], target)
    keys = LLAMA_1B | SMALL
    decoder = random_decoder(keys, torch.bfloat16, torch.device("cpu"), std=0.2)
    save(
        decoder.state_dict(),
        decoder.shape,
        decoder.config,
        target,
        dtype=torch.bfloat16,
        more={"eos_token_id": 0, "pad_token_id": 1},
    )
    asked = [{"id": f"p{i}", "messages": [{"role": "user", "content": text[:40]}]} for i, text in enumerate(texts[:6])]
    answered = [
        {"messages": [*row["messages"], {"role": "assistant", "content": text}]}
        for row, text in zip(asked, texts, strict=False)
    ]
    _write(data / "prompts-train.jsonl", asked)
    _tokens(data / "answers-val", answered, target, chat=True)
    _tokens(data / "text", [{"text": text} for text in texts], target, chat=False)


def _tokens(folder: Path, rows: list[dict[str, Any]], target: Path, *, chat: bool) -> None:
    rows_file = folder.with_suffix(".jsonl")
    _write(rows_file, rows)
    prepare([str(rows_file)], folder, target, chat=chat)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
