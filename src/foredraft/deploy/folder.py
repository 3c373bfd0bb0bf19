"""A draft's folder as it lies on disk: its config, its tensors' headers, and what kind of draft it is.

Promises: whatever is in the folder, reading it ends in a `Folder` and findings, never in a traceback. Refuses to know: what
a loader makes of it.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from foredraft.deploy.findings import Finding
from foredraft.deploy.key_types import typed
from foredraft.engines import LOADERS, speculators
from foredraft.kinds import CHECKPOINTS, Kind, of_checkpoint
from foredraft.models.checkpoint import Checkpoint, StoredTensor
from foredraft.records import Record, read_json
from foredraft.shapes import unfolded
from foredraft.shapes.absent import INDEX, SINGLE

CONFIG, RECORD, SERVE = "config.json", "deploy.json", "serve.sh"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKEN_MAP = "token_map.pt"  # no weights: the list of ids that SGLang reads
# What older heads call some tensors.
_ALIASES = {"midlayer.": "layers.0.", "aux_norm_low.": "fc_norm.0.", "aux_norm_mid.": "fc_norm.1.", "aux_norm_high.": "fc_norm.2."}  # fmt: skip


class Deployed(Record, frozen=True):
    """What `deploy.json` says of the folder it lies in. `kind`: a checkpoint's, by name; `target`, `draft`: their names."""

    kind: str
    format: str
    engines: tuple[str, ...]
    dtype: str
    target: str
    draft: str
    planned: bool


class DraftFolder(NamedTuple):
    """`config` is unfolded, `raw` as it stands. `names`: of each tensor on file, by the name that it
    has in a loader (layer 0 as `layers.0.`), without `model.` where a head has it.
    """

    path: Path
    raw: dict[str, Any]
    config: dict[str, Any]
    checkpoint: Checkpoint
    kind: Kind
    names: dict[str, str]

    @property
    def speculators(self) -> bool:
        return speculators.is_one(self.raw)

    def stored(self, name: str) -> StoredTensor | None:
        """The header of a tensor by its name in a loader."""
        return self.checkpoint.stored[self.names[name]] if name in self.names else None


def opened(path: str | Path) -> tuple[DraftFolder | None, list[Finding]]:
    """A folder with what is wrong with its files; None where config or weights cannot be read at all."""
    path = Path(path)
    findings = _pickles(path)
    raw, unreadable = _config(path)
    if raw is None:
        return None, [*findings, unreadable] if unreadable else findings
    try:
        checkpoint = Checkpoint(path)
    except ValueError as error:
        return None, [*findings, _unreadable(path, str(error))]
    raw, mistyped = typed(raw)
    findings += mistyped
    config = unfolded(raw)
    kind = of_checkpoint(config, checkpoint.stored)
    kind = kind if kind.role == "head" else _launched_as(path) or kind
    return DraftFolder(path, raw, config, checkpoint, kind, _names(checkpoint, kind)), findings


def _config(path: Path) -> tuple[dict[str, Any] | None, Finding | None]:
    file = path / CONFIG
    try:
        raw = read_json(file)
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except ValueError as error:
        why = str(error).removeprefix(f"{file}: ")
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
        for pattern in PICKLES for file in sorted(path.glob(pattern)) if file.name != TOKEN_MAP
    ]  # fmt: skip


def _launched_as(path: Path) -> Kind | None:
    """The head that the folder's own settings start it as, since one whose `fc` is missing looks like a model."""
    heads = [kind for kind in CHECKPOINTS.values() if kind.role == "head"]
    for name, engine in LOADERS.items():
        settings = read_settings(path / engine.launch_file)
        for kind in heads:
            if name in kind.engine_names and kind.engine_names[name] in (settings or {}).values():
                return kind
    return None


def read_settings(file: Path) -> dict[str, Any] | None:
    """The JSON object of launch settings; {} for what is none, None where there is no file."""
    if not file.is_file():
        return None
    try:
        settings = read_json(file)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _names(checkpoint: Checkpoint, kind: Kind) -> dict[str, str]:
    if kind.role != "head":
        return {name: name for name in checkpoint.stored}
    return {canonical(name): name for name in checkpoint.stored}


def canonical(name: str) -> str:
    """A head's tensor as loaders name it inside: no `model.`, layer 0 as `layers.0.`."""
    name = name.removeprefix("model.")
    for old, new in _ALIASES.items():
        name = re.sub(rf"^{re.escape(old)}", new, name)
    return name
