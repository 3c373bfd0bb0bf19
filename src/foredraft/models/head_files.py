"""The tensors of a draft head's folder by one set of names, whoever wrote it.

Promises: a tensor is called what engines call it inside: without `model.`, layer 0 as `layers.0.`, norms of hidden states as `fc_norm.`.
Refuses to know: what a head's tensors are for.
"""

from pathlib import Path

from torch import Tensor

from foredraft.models.checkpoint import Checkpoint
from foredraft.shapes.tensors import StoredTensor, canonical


class HeadCheckpoint(Checkpoint):
    """A folder's tensors by their canonical names. Raises ValueError where two of them have the same."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._on_file: dict[str, str] = {}
        stored: dict[str, StoredTensor] = {}
        for name, tensor in self.stored.items():
            inside = canonical(name)
            if inside in self._on_file:
                raise self.fail(name, f"and {self._on_file[inside]} are the same to a loader; leave one out")
            self._on_file[inside], stored[inside] = name, tensor
        self.stored = stored

    def tensor(self, name: str) -> Tensor:
        return self.read(name, self._on_file[name])

    def spelled(self, name: str) -> str:
        return self._on_file.get(name, name)
