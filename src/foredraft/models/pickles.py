"""The tensors of `pytorch_model.bin`, one file or parts with an index.

Promises: nothing but tensors is unpickled (`torch.load(weights_only=True)`), so that no code of the file runs. Refuses to know: what the
tensors mean. Used by `foredraft convert` and `deploy check` alone.
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foredraft.models.checkpoint import Checkpoint
from foredraft.shapes.absent import WEIGHTS
from foredraft.shapes.tensors import StoredTensor, sharded

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_KINDS = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class PickleCheckpoint(Checkpoint):
    """The tensors of a folder's pickles by name, in memory mapped from the files."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.where = next((file for name in (SINGLE, INDEX) if (file := self.folder / name).is_file()), self.folder)
        if any((self.folder / name).is_file() for name in WEIGHTS):
            raise ValueError(f"{folder}: holds safetensors already; there is nothing to convert")
        if self.where == self.folder:
            raise ValueError(
                f"{folder}: holds neither {SINGLE} nor {INDEX}; give a GGUF file or a folder with one of them"
            )
        self._tensors: dict[str, Tensor] = {}
        self.stored = sharded(self.where, self._read) if self.where.name == INDEX else self._read(self.where)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def _read(self, file: Path) -> dict[str, StoredTensor]:
        tensors = _unpickled(file)
        self._tensors |= tensors
        return {
            name: StoredTensor(file, _KINDS.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape))
            for name, tensor in tensors.items()
        }


def _unpickled(file: Path) -> dict[str, Tensor]:
    """The tensors of one file. Raises ValueError where it holds anything else."""
    try:
        tensors = _loaded(file)
    except pickle.UnpicklingError as error:
        if "weights" in str(error).lower():
            why = "holds more than tensors, and unpickling that can run code, so it is never loaded"
            raise ValueError(f"{file}: {why}; ask for safetensors") from None
        raise ValueError(f"{file}: truncated or corrupt; download it again") from None
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{file}: truncated or corrupt ({reason}); download it again") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(
            f"{file}: holds no plain table of tensors by name, but a checkpoint of a training run; export the weights alone"
        )
    return tensors


def _loaded(file: Path) -> Any:
    """Mapped where the file is a zip, as torch has written it since 1.6."""
    with file.open("rb") as opened:
        zipped = opened.read(2) == b"PK"
    return torch.load(file, map_location="cpu", weights_only=True, mmap=zipped)
