"""Judge a draft's folder, whoever made it: what each engine's loader would skip, miss or misread.

Promises: every fault has a code, the tensor or key, what would happen, and the remedy; a folder that cannot be read is a fault,
not a traceback. Refuses to know: how a folder is made.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foredraft.deploy.config_rules import config_rules
from foredraft.deploy.findings import Finding, finding, merged
from foredraft.deploy.folder import QUANTISED, RECORD, DraftFolder, not_judged, opened, read_settings
from foredraft.deploy.target_rules import target_rules
from foredraft.deploy.tensor_rules import SPARE, tensor_rules
from foredraft.engines import ENGINES, LOADERS, USUAL
from foredraft.engines.engine import ServingEngine
from foredraft.engines.loading import head_tensors, lacking, sizes_of
from foredraft.kinds import CHECKPOINTS, parts_of
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
        findings += _judged(draft, LOADERS[name], target)
    findings += [*launch_rules(draft), *_unreadable_files(draft)]
    return merged(findings)


def _judged(draft: DraftFolder, engine: ServingEngine, target: str | Path | None) -> list[Finding]:
    """What one engine's loader makes of a folder."""
    kind, named = draft.kind, engine.name in draft.kind.engine_names
    known = kind.name in CHECKPOINTS and kind.name not in engine.unjudged
    if not engine.loads(kind) and (known or (kind.engine_names and not named)):
        return [_no_class(draft, engine)]
    if _of_no_engine(draft):
        return [
            not_judged(kind, f" of class {draft.config['architectures'][0]}, which no engine here has", served=False)
        ]
    if (more := _other_layers(draft, engine)) is not None:
        return [not_judged(draft.kind, more)]
    if fault := engine.refusal(draft):
        return [finding(fault, engine.name)]
    findings = [*config_rules(draft, engine), *tensor_rules(draft, engine)]
    return findings + (list(target_rules(draft, target, engine)) if target is not None else [])


_LAYERS = {".self_attn.kv_a_proj": "multi-head latent attention", ".mlp.experts.": "experts"}


def _other_layers(draft: DraftFolder, engine: ServingEngine) -> str | None:
    """What a folder has that is not known of the engine's loader, in words; None where it is judged."""
    kind = draft.kind
    judged = kind.name in CHECKPOINTS and kind.name not in engine.unjudged and engine.loads(kind)
    if kind.role != "head" or kind.name not in CHECKPOINTS:
        return None if judged else ""
    layers = next((words for part, words in _LAYERS.items() if any(part in name for name in draft.names)), None)
    if layers:
        return f" with {layers}"
    names = draft.config.get("architectures") or [None]
    others = engine.heads[kind.name].unjudged if kind.name in engine.heads else ()
    if not draft.speculators and names[0] in others:
        return f" of class {names[0]}"
    return None if judged else ""


def _of_no_engine(draft: DraftFolder) -> bool:
    """Whether a head's class is one that no engine here has, and its tensors are of no head that they load: a design of its own."""
    loaders = [engine.heads[draft.kind.name] for engine in LOADERS.values() if draft.kind.name in engine.heads]
    classes = [loader for engine in LOADERS.values() for loader in engine.heads.values()]
    if (
        not loaders
        or draft.speculators
        or not draft.config.get("architectures")
        or lacking(draft.config)
        or any(loader.takes(draft.config) for loader in classes)
    ):
        return False
    sizes = sizes_of(draft.config)
    expected = [
        head_tensors(sizes, draft.kind, loader, draft.config | {"architectures": [name]})
        for loader in loaders
        for name in (loader.architectures[0], *loader.qk_normed[:1])
    ]
    known = {name for tensors in expected for name in (*tensors.needed, *tensors.optional)}
    return any(name not in known and not SPARE.search(name) for name in draft.names)


def engines_of(folder: DraftFolder) -> Sequence[str]:
    """The engines that a folder is for: those its own record names, else those that have a class of its name, else all that serve its kind."""
    try:
        names = read_json(folder.path / RECORD)["engines"]
        if names and set(names) <= set(LOADERS):
            return names
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if folder.speculators:
        return [name for name, engine in LOADERS.items() if "speculators" in engine.formats]
    kind = folder.kind
    serving = [name for name, engine in LOADERS.items() if engine.loads(kind) or name in kind.engine_names]
    meant = [
        name
        for name in serving
        if kind.name in LOADERS[name].heads and LOADERS[name].heads[kind.name].takes(folder.config)
    ]
    return meant or serving or [USUAL.name]


def _no_class(folder: DraftFolder, engine: ServingEngine) -> Finding:
    able = (
        ", ".join(other.label for other in ENGINES.values() if other.name in folder.kind.engine_names)
        or "none that is known here"
    )
    return Finding(
        code="architecture", where="architectures", engine=engine.name, remedy=f"engines that serve it: {able}",
        effect=f"it is a head of kind {folder.kind.label}, for which {engine.label} has no class",
    )  # fmt: skip


def _unreadable_files(folder: DraftFolder) -> Iterator[Finding]:
    """Files of JSON beside config and weights that are none; those that an engine reads stop it."""
    read_by_engines = {QUANTISED, *(engine.launch_file for engine in LOADERS.values())}
    for file in sorted(folder.path.glob("*.json")):
        try:
            read_json(file)
        except (OSError, ValueError) as error:
            stops = file.name in read_by_engines
            yield Finding(
                code="json", where=file.name, level="error" if stops else "warning",
                effect=f"cannot be read: {str(error).removeprefix(f'{file}: ')}", remedy="export or download it again",
            )  # fmt: skip


def launch_rules(folder: DraftFolder) -> Iterator[Finding]:
    """Launch settings that lie beside the draft."""
    for name, engine in LOADERS.items():
        settings = read_settings(folder.path / engine.launch_file)
        for fault in engine.settings_faults(settings, folder.kind) if settings is not None else ():
            yield finding(fault, name)
        yield from _long(folder, engine, settings or {})
        file = (settings or {}).get(engine.token_map_flag)
        if file is not None and not (folder.path / str(file)).is_file():
            yield Finding(
                code="token-map", where=f"{engine.launch_file}: {engine.token_map_flag}", engine=name,
                effect=f"names {file}, which is not there: the server stops", remedy="export again, or leave the flag out",
            )  # fmt: skip


def _long(folder: DraftFolder, engine: ServingEngine, settings: Mapping[str, Any]) -> Iterator[Finding]:
    """More drafted tokens than a block was trained on."""
    parts = parts_of(folder.config, folder.kind, folder.checkpoint.stored)
    try:
        lookahead = engine.lookahead(settings)
    except (KeyError, TypeError):
        return
    if parts and parts.block and isinstance(lookahead, int) and lookahead > parts.block:
        yield Finding(
            code="lookahead", where=engine.launch_file, engine=engine.name, level="warning", remedy=f"draft {parts.block}",
            effect=f"drafts {lookahead} tokens, of which the block has {parts.block}: the others are hardly ever accepted",
        )  # fmt: skip
