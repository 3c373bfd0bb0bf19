"""What in a draft's folder does not fit its target.

Refuses to know: how a loader names tensors.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foredraft.data.tokenizer import WORD_FILES, vocabulary
from foredraft.deploy.findings import Finding
from foredraft.deploy.folder import CONFIG, DraftFolder
from foredraft.engines.engine import ServingEngine
from foredraft.kinds import AUX_LAYER_IDS, aux_layer_ids
from foredraft.models.rope import Rope, rope_from_config
from foredraft.shapes import read_config, unfolded
from foredraft.shapes.families import FAMILIES, ModelFamily

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def config_of(target: str | Path) -> dict[str, Any]:
    """A target's config.json, of a multimodal one the language model's part; token ids that it lacks as generation_config.json has them."""
    file = Path(target) / CONFIG
    config = unfolded(read_config(file))
    inner = config.get("text_config")
    config = config | inner if isinstance(inner, dict) else config
    generation = Path(target) / "generation_config.json"
    generated = read_config(generation) if generation.is_file() else {}
    return config | {
        key: generated[key] for key in TOKEN_IDS if config.get(key) is None and generated.get(key) is not None
    }


def target_rules(folder: DraftFolder, target: str | Path, engine: ServingEngine) -> Iterator[Finding]:
    """Findings of a draft beside its target."""
    config, other = folder.config, config_of(target)
    yield from _vocabulary(config, other, folder, engine)
    yield from _positions(config, other, folder)
    yield from _token_ids(folder.raw | config, other)
    yield from _tokenizer(folder, Path(target))
    if folder.kind.role == "head":
        yield from _widths(config, other, folder)
        yield from _rope(config, other)
        yield from _range(config, other)


def _vocabulary(
    config: dict[str, Any], other: dict[str, Any], folder: DraftFolder, engine: ServingEngine
) -> Iterator[Finding]:  # fmt: skip
    if config.get("vocab_size") != other.get("vocab_size"):
        does = (
            f"{engine.label} refuses a draft model of another size" if folder.kind.role == "lm" and engine.equal_vocab
            else "ids of one are not ids of the other"
        )  # fmt: skip
        yield Finding(
            code="vocab-differs", where="vocab_size", engine=engine.name,
            effect=f"is {config.get('vocab_size')}, the target's {other.get('vocab_size')}: {does}",
            remedy="export it with foredraft deploy, which pads a model's rows; a head must be trained on its target's",
        )  # fmt: skip


def _positions(config: dict[str, Any], other: dict[str, Any], folder: DraftFolder) -> Iterator[Finding]:
    length, longest = config.get("max_position_embeddings"), other.get("max_position_embeddings")
    if isinstance(longest, int) and (length is None or (isinstance(length, int) and length < longest)):
        head = folder.kind.role == "head"
        yield Finding(
            code="positions", where="max_position_embeddings", level="error" if head else "warning",
            effect=f"is {length}, the target's {longest}: "
            + ("positions beyond it leave the head's rotary table" if head else "longer sequences are served without drafts or worse"),
            remedy=f"write {longest}" if head else "serve with --max-model-len of the draft, or use a draft with a longer context",
        )  # fmt: skip


def _token_ids(config: dict[str, Any], other: dict[str, Any]) -> Iterator[Finding]:
    for key in TOKEN_IDS:
        draft_ids, target_ids, size = config.get(key), other.get(key), other.get("vocab_size")
        if draft_ids is not None and isinstance(size, int) and any(not 0 <= i < size for i in _listed(draft_ids)):
            yield Finding(
                code="token-ids", where=key, effect=f"is {draft_ids}, beyond a vocabulary of {size}: no answer ever meets it",
                remedy="write the target's" if target_ids is None else f"write {target_ids}",
            )  # fmt: skip
        elif draft_ids is not None and target_ids is not None and _listed(draft_ids) != _listed(target_ids):
            yield Finding(
                code="token-ids", where=key, effect=f"is {draft_ids}, the target's {target_ids}: an engine that reads it ends or pads elsewhere",
                remedy=f"write {target_ids}",
            )  # fmt: skip


def _listed(value: Any) -> set[int]:
    return set(value) if isinstance(value, list) else {value}


def _tokenizer(folder: DraftFolder, target: Path) -> Iterator[Finding]:
    words, target_words = vocabulary(folder.path), vocabulary(target)
    present = [name for name in WORD_FILES if (folder.path / name).is_file()]
    if target_words is not None and words is not None and words != target_words:
        differ = len(dict(words.items() ^ target_words.items()))
        yield Finding(
            code="tokenizer", where="tokenizer.json", effect=f"differs from the target's in {differ} words: their ids mean other texts",
            remedy="use a draft trained on the target's tokenizer, and copy the target's files",
        )  # fmt: skip
    elif folder.kind.role == "lm" and not present:
        yield Finding(
            code="tokenizer-missing", where="tokenizer.json", level="warning",
            effect="is missing: transformers and some engines load no draft without one",
            remedy="copy the target's tokenizer files",
        )  # fmt: skip


def _widths(config: dict[str, Any], other: dict[str, Any], folder: DraftFolder) -> Iterator[Finding]:
    width = other.get("hidden_size")
    read = config.get("target_hidden_size") or config.get("hidden_size")
    where = "target_hidden_size" if config.get("target_hidden_size") else "hidden_size"
    if not folder.kind.own_lm_head:
        read, where = config.get("hidden_size"), "hidden_size"
    if read != width:
        yield Finding(
            code="target-size", where=where, effect=f"is {read}, but the target's states are {width} wide",
            remedy="use a head that was trained for this target",
        )  # fmt: skip


def _rope(config: dict[str, Any], other: dict[str, Any]) -> Iterator[Finding]:
    """A head stands in its target's positions, and is nearly always trained on its rotation."""
    if not FAMILIES.get(str(other.get("model_type")), ModelFamily()).rotary:
        return
    try:
        rope, target_rope = rope_from_config(config), rope_from_config(other)
    except ValueError as error:
        yield Finding(
            code="rope", where="rope_scaling", effect=f"cannot be read ({error})", remedy="copy the target's",
            level="warning",
        )  # fmt: skip
        return
    if rope != target_rope:
        yield Finding(
            code="rope", where="rope_theta", level="warning", remedy="copy the target's rope_theta and rope_scaling, unless it was trained otherwise",
            effect=f"{_in_words(rope)}; the target's is {_in_words(target_rope)}",
        )  # fmt: skip


def _in_words(rope: Rope) -> str:
    return f"{rope.kind}, theta {rope.theta:g}, factor {rope.factor:g}"


def _range(config: dict[str, Any], other: dict[str, Any]) -> Iterator[Finding]:
    depth = other.get("num_hidden_layers")
    entering, leaving = aux_layer_ids(config)
    entering = entering or [i + 1 for i in leaving]
    if isinstance(depth, int) and any(not 0 <= i <= depth for i in entering):
        yield Finding(
            code="stream-range", where=AUX_LAYER_IDS, effect=f"{entering} are not all hidden states of a target of {depth} layers",
            remedy=f"name hidden states from 0 to {depth}, as the head was trained on",
        )  # fmt: skip
