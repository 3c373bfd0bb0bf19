"""Whether a folder or GGUF file can be a model's, told at a glance.

Promises: what is missing is one line, in a moment. Refuses to know: tensors, tokenizers, the network.
"""

import re
from pathlib import Path

from foredraft.records import with_hint
from foredraft.shapes.config import read_config
from foredraft.shapes.gguf import is_gguf

WEIGHTS = SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_folder(path: str | Path, *, weights: bool = True, tokenizer: bool = False, gguf: bool = True) -> None:
    """Raise ValueError unless `path` is a folder with a config.json that reads, and with weights and a tokenizer where asked for, or a
    GGUF file, which holds all of these, where `gguf` allows one.
    """
    folder = Path(path)
    if is_gguf(path):
        read_config(path)
        if gguf:
            return
        error = ValueError(
            f"{path}: a GGUF file, where a Hugging Face folder is needed, whose files engines load; convert it"
        )
        raise with_hint(error, f"foredraft convert {path} OUT/, then give OUT/")
    if not folder.is_dir():
        raise _no_folder(str(path), folder)
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    if snapshots and not (folder / "config.json").is_file():
        raise with_hint(
            ValueError(f"{path}: a model of the Hub's cache, whose files lie deeper"), f"give {snapshots[0].parent}"
        )
    read_config(folder)
    if weights and (problem := missing_weights(folder)):
        raise ValueError(problem)
    if tokenizer and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        error = ValueError(
            f"{path}: no tokenizer (has none of {', '.join(TOKENIZER_FILES)}); copy tokenizer.json beside config.json"
        )
        raise with_hint(error, "save the tokenizer into the model's folder")


def _no_folder(name: str, path: Path) -> ValueError:
    if path.is_file():
        return ValueError(f"{name}: is a file; give the folder that holds config.json and {SINGLE}")
    error = ValueError(f"{name}: no such folder; give one that holds config.json and {SINGLE}")
    if _HUB_NAME.fullmatch(name):
        return with_hint(error, f"hf download {name} --local-dir {path.name}, then give {path.name}")
    return error


def missing_weights(folder: Path) -> str | None:
    """Why a folder's weights cannot be read: there are none, or only pickles; None where they are there."""
    if any((folder / name).is_file() for name in WEIGHTS):
        return None
    if not folder.is_dir():
        return f"{folder}: no such folder; give one that holds config.json and {SINGLE}"
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        why = "pickled weights are never loaded here, they can run code"
        return f"{folder / pickles[0]}: {why}; convert them to safetensors: foredraft convert {folder} OUT/"
    return f"{folder}: holds neither {SINGLE} nor {INDEX}"
