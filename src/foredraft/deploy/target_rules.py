"""What in a draft's folder does not fit its target.

Refuses to know: how a loader names tensors.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from foredraft.data.tokenizer import WORD_FILES, vocabulary
from foredraft.deploy.findings import Finding
from foredraft.deploy.folder import CONFIG, DraftFolder
from foredraft.deploy.key_types import COUNTS, MOST
from foredraft.engines.engine import ServingEngine
from foredraft.kinds import AUX_LAYER_IDS, aux_layer_ids, block_keys
from foredraft.records import is_file
from foredraft.shapes import from_config, read_config, unfolded
from foredraft.shapes.blocks import MOST_LAYERS
from foredraft.shapes.config import text_part
from foredraft.shapes.families import FAMILIES, ModelFamily
from foredraft.shapes.folder import other_words
from foredraft.shapes.rope import Rope, rope_from_config
from foredraft.shapes.tensors import FLOATS, TensorFolder, table_name

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def config_of(target: str | Path) -> dict[str, Any]:
    """A target's config.json, of a multimodal one the language model's part; token ids that it lacks as generation_config.json has them."""
    file = Path(target) / CONFIG
    config = unfolded(read_config(file))
    config = config | text_part(config)
    for key in COUNTS:
        most = MOST_LAYERS if key == "num_hidden_layers" else MOST
        if isinstance(value := config.get(key), int) and value > most:
            raise ValueError(f"{file}: {key} must be at most {most:,}, got {value:,}")
    generation = Path(target) / "generation_config.json"
    generated = read_config(generation) if is_file(generation) else {}
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
        yield from _range(config, other, folder, engine)
        yield from _embedding(folder, Path(target), engine)


def _vocabulary(
    config: dict[str, Any], other: dict[str, Any], folder: DraftFolder, engine: ServingEngine
) -> Iterator[Finding]:  # fmt: skip
    if config.get("vocab_size") != other.get("vocab_size"):
        mapped = folder.kind.own_lm_head and _maps_into(folder, other.get("vocab_size"))
        does = (
            f"{engine.label} refuses a draft model of another size" if folder.kind.role == "lm" and engine.equal_vocab
            else "what it drafts are the target's ids all the same" if mapped else "ids of one are not ids of the other"
        )  # fmt: skip
        yield Finding(
            code="vocab-differs", where="vocab_size", engine=engine.name,
            effect=f"is {config.get('vocab_size')}, the target's {other.get('vocab_size')}: {does}",
            remedy="export it with foredraft deploy, which pads a model's rows; a head must be trained on its target's",
            level="warning" if mapped else "error",
        )  # fmt: skip


def _maps_into(folder: DraftFolder, vocab_size: Any) -> bool:
    """Whether a head drafts ids of a vocabulary of that size alone, and reads no table of its own."""
    if "d2t" not in folder.names or "embed_tokens.weight" in folder.names or not isinstance(vocab_size, int):
        return False
    offsets = folder.checkpoint.array(folder.names["d2t"]).ravel().astype(np.int64)
    ids = offsets + np.arange(len(offsets))
    return bool(((ids >= 0) & (ids < vocab_size)).all())


def _positions(config: dict[str, Any], other: dict[str, Any], folder: DraftFolder) -> Iterator[Finding]:
    """vLLM raises that of EAGLE heads since #48894 (0.32 has it); of heads of blocks it does not."""
    length, longest = config.get("max_position_embeddings"), other.get("max_position_embeddings")
    if isinstance(longest, int) and (length is None or (isinstance(length, int) and length < longest)):
        head = folder.kind.role == "head"
        yield Finding(
            code="positions", where="max_position_embeddings", level="warning",
            effect=f"is {length}, the target's {longest}: "
            + (
                "in engines that do not raise it, positions beyond it leave the head's rotary table" if head
                else "longer sequences are served without drafts or worse"
            ),
            remedy=(
                f"write {longest}, or serve with --max-model-len {length}" if head
                else "serve with --max-model-len of the draft, or use a draft with a longer context"
            ),
        )  # fmt: skip


def _token_ids(config: dict[str, Any], other: dict[str, Any]) -> Iterator[Finding]:
    for key in TOKEN_IDS:
        draft_ids, target_ids, size = config.get(key), other.get(key), other.get("vocab_size")
        if draft_ids is not None and isinstance(size, int) and any(not 0 <= i < size for i in _listed(draft_ids)):
            yield Finding(
                code="token-ids", where=key, effect=f"is {draft_ids}, beyond a vocabulary of {size}: no answer ever meets it", level="warning",
                remedy="write the target's" if target_ids is None else f"write {target_ids}",
            )  # fmt: skip
        elif draft_ids is not None and target_ids is not None and _listed(draft_ids) != _listed(target_ids):
            yield Finding(
                code="token-ids", where=key, effect=f"is {draft_ids}, the target's {target_ids}; engines read the target's", level="warning",
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
            level="error" if other_words(target, folder.path) else "warning",
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
    alike = all(config.get(key) == other.get(key) for key in ROPE_KEYS)  # whether or not their kind is known here
    if alike or not FAMILIES.get(str(other.get("model_type")), ModelFamily()).rotary:
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


def _range(
    config: dict[str, Any], other: dict[str, Any], folder: DraftFolder, engine: ServingEngine
) -> Iterator[Finding]:
    """Hidden states that the target does not have, as the engine counts them; and the mask token of a block."""
    depth, vocab_size, keys = other.get("num_hidden_layers"), other.get("vocab_size"), block_keys(config)
    if not isinstance(depth, int):
        return
    entering, leaving = aux_layer_ids(config)
    named = list(entering) or [i + (not engine.counts_entered) for i in leaving]
    where = AUX_LAYER_IDS
    if folder.kind.passes == "block" and isinstance(left := keys.get("target_layer_ids"), list):
        named, where = [i + 1 for i in left if isinstance(i, int)], "target_layer_ids"
    if depth in named and folder.kind.own_lm_head:
        yield Finding(
            code="stream-last", where=where, level="warning", effect=f"names hidden state {depth}, the last: vLLM hands on what the last layer left, "
            "transformers and foredraft what the final norm made of it",
            remedy="measure it where it is to be served: foredraft measure --endpoint",
        )  # fmt: skip
    if any(not 0 <= i <= depth for i in named):
        yield Finding(
            code="stream-range", where=where, engine=engine.name,
            effect=f"{named}, by the layer entered, are not all hidden states of a target of {depth} layers",
            remedy=f"name hidden states from 0 to {depth}, as the head was trained on",
        )  # fmt: skip
    mask = keys.get("mask_token_id")
    if (
        folder.kind.passes == "block"
        and isinstance(vocab_size, int)
        and not (isinstance(mask, int) and 0 <= mask < vocab_size)
    ):
        yield Finding(
            code="mask-token", where="mask_token_id", engine=engine.name,
            effect=f"is {mask!r}, no token of a vocabulary of {vocab_size}: no block can be drafted",
            remedy="write the id that stood for unknown tokens in training",
        )  # fmt: skip


def _target_table(target: Path) -> NDArray[Any] | None:
    """The target's embeddings; None where its folder holds no weights, or none of a number format that is read here."""
    try:
        tensors = TensorFolder(target)
    except ValueError:
        return None
    name = table_name(tensors.stored, "embed_tokens.weight", from_config(target).vocab_size)
    return tensors.array(name) if name else None


ROWS = 1024  # of two tables that are compared
ALIKE = 0.5  # mean cosine of their rows, above which one grew out of the other; of random or foreign ones it is near 0


def _embedding(folder: DraftFolder, target: Path, engine: ServingEngine) -> Iterator[Finding]:
    """A table as wide as its target's that is not its target's: some trainers save one that they never filled (TorchSpec #38)."""
    if "embed_tokens.weight" not in folder.names or (table := _target_table(target)) is None:
        return
    header = folder.stored("embed_tokens.weight")
    if header is None or header.shape != table.shape or header.kind not in FLOATS:
        return
    rows = np.linspace(0, len(table) - 1, min(ROWS, len(table))).astype(int)
    own, others = (
        part[rows].astype(np.float32) for part in (folder.checkpoint.array(folder.names["embed_tokens.weight"]), table)
    )
    if np.allclose(own, others, rtol=0.02, atol=1e-6):
        return
    lengths = np.linalg.norm(own, axis=-1) * np.linalg.norm(others, axis=-1)
    alike = float(((own * others).sum(axis=-1) / np.maximum(lengths, 1e-8)).mean())
    does = "drafts by it" if engine.keeps_embedding else "puts the target's in its place"
    yield Finding(
        code="embedding-differs", where=folder.names["embed_tokens.weight"], engine=engine.name, level="warning",
        effect=f"{'is near' if alike >= ALIKE else 'is random or of another model, not'} the target's (mean cosine of rows {alike:.2f}); "
        f"{engine.label} {does}",
        remedy="leave it out, unless the head was trained on it",
    )  # fmt: skip
