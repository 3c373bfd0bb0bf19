"""What in a draft's folder does not fit its target.

Refuses to know: how a loader names tensors.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foredraft.deploy.findings import Finding
from foredraft.deploy.folder import CONFIG, Folder
from foredraft.deploy.loaders import IDS
from foredraft.deploy.vocabulary import WORDS, vocabulary
from foredraft.models.rope import Rope, rope_from_config
from foredraft.shapes import unfolded

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def config_of(target: str | Path) -> dict[str, Any]:
    """A target's config.json, of a multimodal one the language model's part; token ids that it lacks as generation_config.json has them."""
    file = Path(target) / CONFIG
    if not file.is_file():
        raise ValueError(f"{file}: no such file; --target is the folder of the target's Hugging Face checkpoint")
    config = unfolded(json.loads(file.read_bytes()))
    inner = config.get("text_config")
    config = config | inner if isinstance(inner, dict) else config
    generation = Path(target) / "generation_config.json"
    said = json.loads(generation.read_bytes()) if generation.is_file() else {}
    return config | {key: said[key] for key in TOKEN_IDS if config.get(key) is None and said.get(key) is not None}


def target_rules(folder: Folder, target: str | Path, engine: str) -> Iterator[Finding]:
    """Findings of a draft beside its target."""
    config, wanted = folder.config, config_of(target)
    yield from _vocabulary(config, wanted, folder, engine)
    yield from _positions(config, wanted, folder)
    yield from _token_ids(folder.raw | config, wanted)
    yield from _tokenizer(folder, Path(target))
    if folder.kind != "lm":
        yield from _widths(config, wanted, folder)
        yield from _rope(config, wanted)
        yield from _range(config, wanted)


def _vocabulary(
    config: dict[str, Any], wanted: dict[str, Any], folder: Folder, engine: str
) -> Iterator[Finding]:  # fmt: skip
    if config.get("vocab_size") != wanted.get("vocab_size"):
        does = (
            "vLLM refuses a draft model of another size" if folder.kind == "lm" and engine == "vllm" else "ids of one are not ids of the other"
        )  # fmt: skip
        yield Finding(
            code="vocab-differs", where="vocab_size", engine=engine,
            effect=f"is {config.get('vocab_size')}, the target's {wanted.get('vocab_size')}: {does}",
            remedy="export it with foredraft deploy, which pads a model's rows; a head must be trained on its target's",
        )  # fmt: skip


def _positions(config: dict[str, Any], wanted: dict[str, Any], folder: Folder) -> Iterator[Finding]:
    own, longest = config.get("max_position_embeddings"), wanted.get("max_position_embeddings")
    if isinstance(longest, int) and (own is None or (isinstance(own, int) and own < longest)):
        head = folder.kind != "lm"
        yield Finding(
            code="positions", where="max_position_embeddings", level="error" if head else "warning",
            effect=f"is {own}, the target's {longest}: "
            + ("positions beyond it leave the head's rotary table" if head else "longer sequences are served without drafts or worse"),
            remedy=f"write {longest}" if head else "serve with --max-model-len of the draft, or use a draft with a longer context",
        )  # fmt: skip


def _token_ids(config: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Finding]:
    for key in TOKEN_IDS:
        own, theirs, size = config.get(key), wanted.get(key), wanted.get("vocab_size")
        if own is not None and isinstance(size, int) and any(not 0 <= one < size for one in _listed(own)):
            yield Finding(
                code="token-ids", where=key, effect=f"is {own}, beyond a vocabulary of {size}: no answer ever meets it",
                remedy="write the target's" if theirs is None else f"write {theirs}",
            )  # fmt: skip
        elif own is not None and theirs is not None and _listed(own) != _listed(theirs):
            yield Finding(
                code="token-ids", where=key, effect=f"is {own}, the target's {theirs}: an engine that reads it ends or pads elsewhere",
                remedy=f"write {theirs}",
            )  # fmt: skip


def _listed(value: Any) -> set[int]:
    return set(value) if isinstance(value, list) else {value}


def _tokenizer(folder: Folder, target: Path) -> Iterator[Finding]:
    own, theirs = vocabulary(folder.path), vocabulary(target)
    present = [name for name in WORDS if (folder.path / name).is_file()]
    if theirs is not None and own is not None and own != theirs:
        differ = len(dict(own.items() ^ theirs.items()))
        yield Finding(
            code="tokenizer", where="tokenizer.json", effect=f"differs from the target's in {differ} words: their ids mean other texts",
            remedy="use a draft trained on the target's tokenizer, and copy the target's files",
        )  # fmt: skip
    elif folder.kind == "lm" and not present:
        yield Finding(
            code="tokenizer-missing", where="tokenizer.json", level="warning", effect="is missing: SGLang and transformers load no draft without one",
            remedy="copy the target's tokenizer files",
        )  # fmt: skip


def _widths(config: dict[str, Any], wanted: dict[str, Any], folder: Folder) -> Iterator[Finding]:
    width = wanted.get("hidden_size")
    read = config.get("target_hidden_size") or config.get("hidden_size")
    where = "target_hidden_size" if config.get("target_hidden_size") else "hidden_size"
    if folder.kind == "eagle":
        read, where = config.get("hidden_size"), "hidden_size"
    if read != width:
        yield Finding(
            code="target-size", where=where, effect=f"is {read}, but the target's states are {width} wide",
            remedy="use a head that was trained for this target",
        )  # fmt: skip


def _rope(config: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Finding]:
    """A head stands in its target's positions, and is nearly always trained on its rotation."""
    if wanted.get("model_type") == "opt":
        return
    try:
        own, theirs = rope_from_config(config), rope_from_config(wanted)
    except ValueError as error:
        yield Finding(
            code="rope",
            where="rope_scaling",
            effect=f"cannot be read ({error})",
            remedy="copy the target's",
            level="warning",
        )
        return
    if own != theirs:
        yield Finding(
            code="rope", where="rope_theta", level="warning", remedy="copy the target's rope_theta and rope_scaling, unless it was trained otherwise",
            effect=f"{_told(own)}; the target's is {_told(theirs)}",
        )  # fmt: skip


def _told(rope: Rope) -> str:
    return f"{rope.kind}, theta {rope.theta:g}, factor {rope.factor:g}"


def _range(config: dict[str, Any], wanted: dict[str, Any]) -> Iterator[Finding]:
    depth = wanted.get("num_hidden_layers")
    eagle = config.get("eagle_config") or {}
    entering = config.get(IDS) or [i + 1 for i in eagle.get(IDS) or ()]
    if isinstance(depth, int) and any(not 0 <= i <= depth for i in entering):
        yield Finding(
            code="stream-range", where=IDS, effect=f"{entering} are not all streams of a target of {depth} layers",
            remedy=f"name streams from 0 to {depth}, as the head was trained on",
        )  # fmt: skip
