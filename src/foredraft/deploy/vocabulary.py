"""Vocabularies: whether two folders share one, and a model's tables fitted to another number of rows.

Refuses to know: how text becomes tokens.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "chat_template.json",
    "vocab.json", "merges.txt", "tokenizer.model", "spiece.model",
)  # fmt: skip

WORDS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")  # one of which a tokenizer needs


def vocabulary(folder: str | Path) -> dict[str, int] | None:
    """Words and their ids in a folder's tokenizer.json, or None where there is none that lists them."""
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_bytes())
        words = held["model"]["vocab"]
        found = dict(words) if isinstance(words, dict) else {entry[0]: i for i, entry in enumerate(words)}
        return found | {entry["content"]: entry["id"] for entry in held.get("added_tokens") or ()}
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def copy_tokenizer(source: str | Path, folder: Path) -> list[str]:
    """The tokenizer's files of `source` into `folder`; give their names."""
    names = [name for name in FILES if (Path(source) / name).is_file()]
    for name in names:
        shutil.copyfile(Path(source) / name, folder / name)
    return names


def fitted(table_VC: Tensor, rows: int) -> Tensor:
    """A table of `rows` rows: cut, or filled up with its mean row, whose logit is the mean of the others and so never the largest."""
    have = len(table_VC)
    if rows <= have:
        return table_VC[:rows].clone()
    mean = table_VC.float().mean(0, keepdim=True).to(table_VC.dtype)
    return torch.cat((table_VC, mean.expand(rows - have, -1)))
