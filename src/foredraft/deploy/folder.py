"""A draft's folder as it lies on disk: its config, its tensors' headers, and what kind of draft it is.

Promises: whatever is in the folder, reading it ends in a `Folder` and findings, never in a traceback. Refuses to know: what
a loader makes of it.
"""

from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from foredraft.deploy.findings import Finding
from foredraft.deploy.key_types import typed
from foredraft.engines import ENGINES, LOADERS, speculators
from foredraft.kinds import CHECKPOINTS, OURS, Kind, of_checkpoint
from foredraft.records import Record, read_json
from foredraft.shapes import unfolded
from foredraft.shapes.absent import INDEX, SINGLE, missing_weights
from foredraft.shapes.tensors import StoredTensor, TensorFolder, canonical

CONFIG, RECORD, SERVE = "config.json", "deploy.json", "serve.sh"
PICKLED = "pytorch_model.bin", "pytorch_model.bin.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKEN_MAP = "token_map.pt"  # no weights: the list of ids that SGLang reads
QUANTISED = "hf_quant_config.json"  # ModelOpt's record of what it quantised


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
    checkpoint: "TensorFolder | PickledTensors"
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
    raw, mistyped = typed(raw)
    config = unfolded(raw)
    if (path / QUANTISED).is_file():
        config = {"quantization_config": QUANTISED} | config
    try:
        checkpoint = _checkpoint(path)
    except ValueError as error:
        kind = of_checkpoint(config)
        if kind.role == "head" and kind.name not in CHECKPOINTS:  # whose files may have names of their own
            return None, [not_judged(kind)]
        return None, [*findings, _unreadable(path, str(error))]
    findings += mistyped
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


class PickledTensors:
    """The tensors of pickles, of which nothing but tensors is read: by torch, which alone can."""

    def __init__(self, folder: Path) -> None:
        from foredraft.models.pickles import PickleCheckpoint

        self._checkpoint = PickleCheckpoint(folder)
        self.stored = self._checkpoint.stored

    def array(self, name: str) -> NDArray[Any]:
        """Its values; of bfloat16 as float32."""
        tensor = self._checkpoint.tensor(name)
        return (tensor.float() if self.stored[name].kind == "BF16" else tensor).numpy()


def _checkpoint(path: Path) -> TensorFolder | PickledTensors:
    """The tensors of safetensors, or where there are none of pickles."""
    if missing_weights(path) and any((path / name).is_file() for name in PICKLED):
        return PickledTensors(path)
    return TensorFolder(path)


def _pickles(path: Path) -> list[Finding]:
    """Files that run code when a loader that falls back on them opens them, if it does not take care."""
    return [
        Finding(
            code="pickle", where=file.name, remedy=f"foredraft convert {path} OUT/, and keep safetensors only", level="warning",
            effect="is pickled: engines read it where they find no safetensors, and loading one can run code",
        )
        for pattern in PICKLES for file in sorted(path.glob(pattern)) if file.name != TOKEN_MAP
    ]  # fmt: skip


def not_judged(kind: Kind, more: str = "", *, served: bool = True) -> Finding:
    """A folder of a kind, or with layers (`more`), whose loader is not known here: no fault of it is, and none is claimed."""
    engines = ", ".join(
        engine.label for name, engine in ENGINES.items() if name in kind.engine_names and not (more and name == OURS)
    )
    where = "" if not served else f" for {engines}" if engines else ", whose loaders are not known here"
    spelt_out = kind.label.split()[0].isupper()  # letter by letter
    article = "an" if kind.label[0] in ("AEFHILMNORSX" if spelt_out else "AEIO") else "a"
    return Finding(
        code="not-judged", where="architectures", level="note", remedy="load it there, and measure it: foredraft measure --endpoint",
        effect=f"not judged: this is {article} {kind.label} head{more}{where}",
    )  # fmt: skip


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


def _names(checkpoint: TensorFolder | PickledTensors, kind: Kind) -> dict[str, str]:
    if kind.role != "head":
        return {name: name for name in checkpoint.stored}
    return {canonical(name): name for name in checkpoint.stored}
