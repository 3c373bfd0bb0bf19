"""What every engine decodes: random targets, a small draft, an EAGLE-3 head, and prompts that repeat themselves.

Promises: everything comes from one seed and is made once (remove build/peers to make it anew); weights are as fast as trained ones, being as
many. Refuses to know: engines, but for the format that OpenVINO reads.

Greedy text of plain random weights never repeats, and a prompt lookup would have nothing to find. So the embedding is made to outweigh the
layers (what comes next then depends mostly on the last token) and the first FREQUENT rows of the LM head are made larger (as some words are
commoner than others). The draft and the head are random: they are right by chance only, and show what drafting costs.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import torch

from foredraft.models.heads import new_head, save_head
from foredraft.models.load import load
from foredraft.records import write

SIZES: dict[str, dict[str, int]] = {
    "31m": {
        "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4,
    },
    "100m": {
        "vocab_size": 16384, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
        "num_key_value_heads": 4,
    },
}  # fmt: skip
DRAFT = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip
FREQUENT, LOUDER, EMBEDDING = 256, 3.0, 256.0
DRAFTED_VOCABULARY = 4  # the head drafts a quarter of the vocabulary: its first, which holds the frequent tokens
NUM_PROMPTS, RANDOM_TOKENS, PROMPT_TOKENS = 8, 16, 96


class Checkpoints(NamedTuple):
    """Folders, prompts of equal length, and the parameters read for one token: all but the embedding."""

    folder: Path
    prompts: list[list[int]]
    params_read: int

    def of(self, engine: str) -> dict[str, Any]:
        """The folders that an engine loads: target, and drafts by method."""
        at = self.folder / "openvino" if engine == "openvino" else self.folder
        drafts = {"self": at / "target", "random": at / "draft", "eagle3": at / "eagle3"}
        return {"target": str(at / "target"), "drafts": {method: str(path) for method, path in drafts.items()}}


def make(size: str, root: Path, exporter: Path | None) -> Checkpoints:
    """The checkpoints of a size under `root`; `exporter` is a Python with optimum-intel."""
    folder = root / size
    if not (folder / "made.json").exists():
        _make(SIZES[size], folder)
    about = json.loads((folder / "made.json").read_text())
    if exporter and not (folder / "openvino").exists():
        _export(folder, exporter, about["feature_layers"])
    return Checkpoints(folder, about["prompts"], about["params_read"])


def _make(sizes: dict[str, int], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    target = _llama(sizes)
    with torch.no_grad():
        target.model.embed_tokens.weight.mul_(EMBEDDING)
        target.lm_head.weight[:FREQUENT].mul_(LOUDER)
    target.save_pretrained(folder / "target")
    _llama(DRAFT | {"vocab_size": sizes["vocab_size"]}).save_pretrained(folder / "draft")
    head = new_head(load(folder / "target"), draft_vocab=range(sizes["vocab_size"] // DRAFTED_VOCABULARY))
    save_head(head, folder / "eagle3")
    read = target.num_parameters() - target.model.embed_tokens.weight.numel()
    write(
        folder / "made.json", {"prompts": _prompts(target), "params_read": read, "feature_layers": head.feature_layers}
    )


def _llama(sizes: dict[str, int]) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(**sizes, max_position_embeddings=2048, initializer_range=0.05, bos_token_id=None, eos_token_id=None)
    )


def _prompts(target: Any) -> list[list[int]]:
    ids = torch.randint(
        target.config.vocab_size, (NUM_PROMPTS, RANDOM_TOKENS), generator=torch.Generator().manual_seed(0)
    )
    return target.generate(ids, max_new_tokens=PROMPT_TOKENS - RANDOM_TOKENS, do_sample=False).tolist()


def _export(folder: Path, exporter: Path, layers: list[int]) -> None:
    beside = folder / f"openvino.{os.getpid()}"
    for name in ("target", "draft", "eagle3"):
        hidden_layers = [str(i) for i in layers] if name == "eagle3" else []
        command = [
            exporter,
            Path(__file__).with_name("export_openvino.py"),
            folder / name,
            beside / name,
            *hidden_layers,
        ]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        if done.returncode:
            shutil.rmtree(beside, ignore_errors=True)
            raise ValueError(f"{name}: export to OpenVINO failed: {done.stderr.strip().splitlines()[-1]}")
    beside.rename(folder / "openvino")
