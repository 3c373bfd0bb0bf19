"""A draft's folder as it lies on disk: its config, its tensors' headers, and what kind of draft it is.

Promises: whatever is in the folder, reading it ends in a `Folder` and findings, never in a traceback. Refuses to know: what
a loader makes of it.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from foredraft.deploy.findings import Finding
from foredraft.deploy.key_types import typed
from foredraft.deploy.launch import SPECULATIVE
from foredraft.models.checkpoint import Checkpoint, StoredTensor
from foredraft.shapes import unfolded
from foredraft.shapes.folder import INDEX, SINGLE

CONFIG = "config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SPECULATORS = ("speculators_model_type", "speculators_config", "transformer_layer_config")
# What older heads call some tensors.
_ALIASES = {"midlayer.": "layers.0.", "aux_norm_low.": "fc_norm.0.", "aux_norm_mid.": "fc_norm.1.", "aux_norm_high.": "fc_norm.2."}  # fmt: skip


class Folder(NamedTuple):
    """`config` is unfolded, `raw` as it stands. `kind`: lm, eagle or eagle3. `names`: of each tensor on file, by the name that it
    has in a loader (layer 0 as `layers.0.`), without `model.` where a head has it.
    """

    path: Path
    raw: dict[str, Any]
    config: dict[str, Any]
    checkpoint: Checkpoint
    kind: str
    names: dict[str, str]

    @property
    def speculators(self) -> bool:
        return any(key in self.raw for key in SPECULATORS)

    def stored(self, name: str) -> StoredTensor | None:
        """The header of a tensor by its name in a loader."""
        return self.checkpoint.stored[self.names[name]] if name in self.names else None


def opened(path: str | Path) -> tuple[Folder | None, list[Finding]]:
    """A folder with what is wrong with its files; None where config or weights cannot be read at all."""
    path = Path(path)
    found = _pickles(path)
    raw, why = _config(path)
    if raw is None:
        return None, [*found, why] if why else found
    try:
        checkpoint = Checkpoint(path)
    except ValueError as error:
        return None, [*found, _unreadable(path, str(error))]
    raw, wrong = typed(raw)
    found += wrong
    config = unfolded(raw)
    kind = kind_of(config, checkpoint)
    kind = kind if kind != "lm" else _launched_as(path) or kind
    return Folder(path, raw, config, checkpoint, kind, _names(checkpoint, kind)), found


def _config(path: Path) -> tuple[dict[str, Any] | None, Finding | None]:
    file = path / CONFIG
    try:
        raw = json.loads(file.read_bytes())
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except ValueError as error:
        why = f"is not JSON ({error})"
    else:
        if isinstance(raw, dict):
            return raw, None
        why = "is no JSON object"
    return None, Finding(
        code="config", where=CONFIG, effect=f"{why}, so that no loader starts", remedy="export or download it again"
    )


def _unreadable(path: Path, why: str) -> Finding:
    """Weights that no loader can open, told apart by what lies there."""
    truncated = (path / SINGLE).is_file() or (path / INDEX).is_file()
    short = why.removeprefix(f"{path}/")
    if "truncated or corrupt" in why:
        return Finding(code="truncated", where=SINGLE, effect=short, remedy="export or copy the file again")
    code = "shards" if truncated else "weights"
    return Finding(code=code, where=INDEX if truncated else SINGLE, effect=short, remedy="export or download it again")


def _pickles(path: Path) -> list[Finding]:
    """Files that run code when a loader that falls back on them opens them."""
    return [
        Finding(
            code="pickle", where=file.name, remedy="delete it; keep safetensors only",
            effect="a pickled file can run code when loaded, and loaders fall back on it where they find no safetensors",
        )
        for pattern in PICKLES for file in sorted(path.glob(pattern))
    ]  # fmt: skip


def kind_of(config: dict[str, Any], checkpoint: Checkpoint) -> str:
    """What the tensors make it, and where they do not say, what `architectures` calls it."""
    names = [name.removeprefix("model.") for name in checkpoint.stored]
    architectures = [str(one) for one in config.get("architectures") or ()]
    fused = any(".hidden_norm." in name or name in ("d2t", "t2d", "norm.weight") for name in names)
    if "fc.weight" in names:
        return "eagle3" if fused else "eagle"
    if any("Eagle3" in one for one in architectures) or any(name.startswith("midlayer.") for name in names):
        return "eagle3"
    return "eagle" if any("Eagle" in one for one in architectures) else "lm"


def _launched_as(path: Path) -> str | None:
    """The head that the folder's own settings start it as, since one whose `fc` is missing looks like a model."""
    try:
        method = json.loads((path / SPECULATIVE).read_bytes())["method"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none, or broken, which `launch` judges
    return method if method in ("eagle", "eagle3") else None


def _names(checkpoint: Checkpoint, kind: str) -> dict[str, str]:
    if kind == "lm":
        return {name: name for name in checkpoint.stored}
    return {canonical(name): name for name in checkpoint.stored}


def canonical(name: str) -> str:
    """A head's tensor as loaders name it inside: no `model.`, layer 0 as `layers.0.`."""
    name = name.removeprefix("model.")
    for old, new in _ALIASES.items():
        name = re.sub(rf"^{re.escape(old)}", new, name)
    return name
