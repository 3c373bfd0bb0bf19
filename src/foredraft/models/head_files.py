"""The tensors of a draft head's folder by one set of names, whoever wrote it.

Promises: a tensor is called what engines call it inside: without `model.`, layer 0 as `layers.0.`, norms of hidden states as `fc_norm.`.
Refuses to know: what a head's tensors are for.
"""

import re
from pathlib import Path

from torch import Tensor

from foredraft.models.checkpoint import Checkpoint, StoredTensor

# What other trainers and older versions call some tensors.
ALIASES = {
    "midlayer.": "layers.0.", "transformer.": "layers.0.", "fusion_fc.": "fc.", "midlayers.": "layers.",
    "aux_norm_low.": "fc_norm.0.", "aux_norm_mid.": "fc_norm.1.", "aux_norm_high.": "fc_norm.2.",
}  # fmt: skip


def canonical(name: str) -> str:
    """A head's tensor as loaders name it inside."""
    name = name.removeprefix("model.")
    for old, new in ALIASES.items():
        name = re.sub(rf"^{re.escape(old)}", new, name)
    return name


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
