"""Judge a draft's folder, whoever made it: what each engine's loader would skip, miss or misread.

Promises: every fault has a code, the tensor or key, what would happen, and the remedy; a folder that cannot be read is a fault,
not a traceback. Refuses to know: how a folder is made.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from foredraft.deploy.config_rules import config_rules
from foredraft.deploy.findings import ENGINES, Finding, merged
from foredraft.deploy.folder import Folder, opened
from foredraft.deploy.launch import DEPLOY, FLAGS, METHODS, SPECULATIVE
from foredraft.deploy.target_rules import target_rules
from foredraft.deploy.tensor_rules import tensor_rules


def check(folder: str | Path, target: str | Path | None = None, engine: str | None = None) -> list[Finding]:
    """Everything wrong with a folder, for `engine` or for those it was made for. `target`: the folder of its target, without
    which ids, positions and vocabularies are not compared.

    Raises ValueError where the folder is none, the engine unknown, or the target has no config.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder; name one that holds config.json and model.safetensors")
    if engine is not None and engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    draft, found = opened(path)
    if draft is None:
        return merged(found)
    for name in [engine] if engine else engines_of(draft):
        found += config_rules(draft, name)
        found += tensor_rules(draft, name)
        found += target_rules(draft, target, name) if target is not None else []
    found += launch_rules(draft)
    return merged(found)


def engines_of(folder: Folder) -> Sequence[str]:
    """The engines that a folder is for: those its own record names, else those its architecture can mean."""
    try:
        named = json.loads((folder.path / DEPLOY).read_bytes())["engines"]
        if named and set(named) <= set(ENGINES):
            return named
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if folder.speculators:
        return ("vllm",)
    if folder.kind != "eagle":
        return ENGINES
    return ("sglang",) if folder.config.get("architectures") == ["LlamaForCausalLMEagle"] else ("vllm",)


def launch_rules(folder: Folder) -> Iterator[Finding]:
    """Launch settings that lie beside the draft."""
    settings = _object(folder.path / SPECULATIVE)
    if settings is not None:
        for where, why in _vllm_faults(settings, folder.kind):
            yield Finding(
                code="schedule", where=f"{SPECULATIVE}: {where}", effect=why, remedy="write it with foredraft deploy --plan",
                engine="vllm",
            )  # fmt: skip
    flags = _object(folder.path / FLAGS)
    if flags is not None:
        for where, why in _sglang_faults(flags):
            yield Finding(
                code="flags", where=f"{FLAGS}: {where}", effect=why, remedy="set all three or none; a chain of k has k + 1 draft tokens",
                engine="sglang",
            )  # fmt: skip


def _object(file: Path) -> dict[str, Any] | None:
    """A JSON object, {} for what is none, None where there is no file."""
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return held if isinstance(held, dict) else {}


def _vllm_faults(settings: dict[str, Any], kind: str) -> Iterator[tuple[str, str]]:
    if settings.get("method") != METHODS[kind]:
        yield "method", f"is {settings.get('method')!r}, but this draft is run by {METHODS[kind]!r}"
    most = settings.get("num_speculative_tokens")
    if not (isinstance(most, int) and most > 0):
        yield "num_speculative_tokens", f"is {most!r}, and vLLM wants a positive whole number"
        return
    schedule = settings.get("num_speculative_tokens_per_batch_size")
    if schedule is None:
        return
    end = 0
    for entry in schedule if isinstance(schedule, list) else [schedule]:
        if not (isinstance(entry, list) and len(entry) == 3 and all(isinstance(part, int) for part in entry)):
            yield "num_speculative_tokens_per_batch_size", f"{entry!r} is no [first batch, last batch, tokens]"
            return
        first, last, tokens = entry
        if first <= end or last < first:
            yield "num_speculative_tokens_per_batch_size", f"{entry} begins before {end + 1} or ends before it begins"
        elif end == 0 and first != 1:
            yield "num_speculative_tokens_per_batch_size", f"begins at {first}; vLLM wants a schedule from batch 1 on"
        if not 0 <= tokens <= most:
            yield "num_speculative_tokens_per_batch_size", f"{tokens} tokens are cut to num_speculative_tokens {most}"
        end = last


def _sglang_faults(flags: dict[str, Any]) -> Iterator[tuple[str, str]]:
    names = [f"--speculative-{part}" for part in ("num-steps", "eagle-topk", "num-draft-tokens")]
    given = [name for name in names if name in flags]
    if given and len(given) < len(names):
        yield given[0], f"stands without {', '.join(name for name in names if name not in flags)}, which SGLang refuses"
    elif given:
        steps, topk, tokens = (flags[name] for name in names)
        if topk == 1 and tokens != steps + 1:
            yield names[2], f"is {tokens}, but a chain of {steps} steps has {steps + 1} with its root"
