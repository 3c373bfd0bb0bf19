"""Judge a draft's folder, whoever made it: what each engine's loader would skip, miss or misread.

Promises: every fault has a code, the tensor or key, what would happen, and the remedy; a folder that cannot be read is a fault,
not a traceback. Refuses to know: how a folder is made.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from foredraft.deploy.config_rules import config_rules
from foredraft.deploy.findings import Finding, finding, merged
from foredraft.deploy.folder import RECORD, DraftFolder, opened, read_settings
from foredraft.deploy.target_rules import target_rules
from foredraft.deploy.tensor_rules import tensor_rules
from foredraft.engines import LOADERS, USUAL
from foredraft.engines.engine import ServingEngine
from foredraft.kinds import CHECKPOINTS
from foredraft.records import read_json


def check(folder: str | Path, target: str | Path | None = None, engine: str | None = None) -> list[Finding]:
    """Everything wrong with a folder, for `engine` or for those it was made for. `target`: the folder of its target, without
    which ids, positions and vocabularies are not compared.

    Raises ValueError where the folder is none, the engine unknown, or the target has no config.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; name one that holds config.json and model.safetensors")
    if engine is not None and engine not in LOADERS:
        raise ValueError(f"engine must be one of {', '.join(LOADERS)}, got {engine!r}")
    draft, findings = opened(path)
    if draft is None:
        return merged(findings)
    for name in [engine] if engine else engines_of(draft):
        loader = LOADERS[name]
        if not loader.loads(draft.kind):
            served = name in draft.kind.engine_names and (
                draft.kind.name not in CHECKPOINTS or draft.kind.name in loader.unjudged
            )
            findings.append((_unjudged if served else _no_class)(draft, loader))
            continue
        findings += config_rules(draft, loader)
        findings += tensor_rules(draft, loader)
        findings += target_rules(draft, target, loader) if target is not None else []
    findings += launch_rules(draft)
    return merged(findings)


def engines_of(folder: DraftFolder) -> Sequence[str]:
    """The engines that a folder is for: those its own record names, else those its architecture can mean."""
    try:
        names = read_json(folder.path / RECORD)["engines"]
        if names and set(names) <= set(LOADERS):
            return names
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if folder.speculators:
        return [name for name, engine in LOADERS.items() if "speculators" in engine.formats]
    written = {
        name: engine.heads[folder.kind.name].architectures[:1]
        for name, engine in LOADERS.items()
        if folder.kind.role == "head" and engine.loads(folder.kind)
    }
    if len(set(written.values())) < 2:
        return list(written) or list(LOADERS)
    stated = tuple(folder.config.get("architectures") or ())
    return [name for name, names in written.items() if names == stated] or [USUAL.name]


def _no_class(folder: DraftFolder, engine: ServingEngine) -> Finding:
    able = ", ".join(other.label for other in LOADERS.values() if other.loads(folder.kind)) or "none that is known here"
    return Finding(
        code="architecture", where="architectures", engine=engine.name, remedy=f"engines that serve it: {able}",
        effect=f"it is a head of kind {folder.kind.label}, for which {engine.label} has no class",
    )  # fmt: skip


def _unjudged(folder: DraftFolder, engine: ServingEngine) -> Finding:
    method = folder.kind.engine_names[engine.name]
    return Finding(
        code="unjudged", where="architectures", engine=engine.name, level="warning", remedy="load it there",
        effect=f"{engine.label} serves it by method {method}, but what its loader asks of such a head is not known here",
    )  # fmt: skip


def launch_rules(folder: DraftFolder) -> Iterator[Finding]:
    """Launch settings that lie beside the draft."""
    for name, engine in LOADERS.items():
        settings = read_settings(folder.path / engine.launch_file)
        for fault in engine.settings_faults(settings, folder.kind) if settings is not None else ():
            yield finding(fault, name)
        file = (settings or {}).get(engine.token_map_flag)
        if file is not None and not (folder.path / str(file)).is_file():
            yield Finding(
                code="token-map", where=f"{engine.launch_file}: {engine.token_map_flag}", engine=name,
                effect=f"names {file}, which is not there: the server stops", remedy="export again, or leave the flag out",
            )  # fmt: skip
