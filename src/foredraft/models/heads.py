"""Draft heads by the name of their kind: a new one for a target, one out of a folder, and its folder in the flat format of
vLLM and SGLang (config.json and model.safetensors).

Promises: what is written can be read back to the same numbers, has the names and shapes of the published formats and no null
in its config. Refuses to know: how one kind differs from another, how a head was trained.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from foredraft import kinds, shapes
from foredraft.models.block_head import BlockHead
from foredraft.models.checkpoint import Checkpoint, TensorError, fill
from foredraft.models.decoder import INIT_STD
from foredraft.models.draft_head import DraftHead, HeadLayout
from foredraft.models.dspark import DSparkHead
from foredraft.models.eagle import EagleHead
from foredraft.models.eagle3 import Eagle3Head
from foredraft.models.eight_bits import config_keys, stored
from foredraft.models.head_files import HeadCheckpoint
from foredraft.models.load import parse_config
from foredraft.models.target import Target
from foredraft.records import write, write_bytes
from foredraft.shapes import Shape
from foredraft.shapes.absent import SINGLE
from foredraft.shapes.counts import MOST_SIZES
from foredraft.shapes.families import FAMILIES, HEAD_FAMILY, NORMED_HEAD_FAMILY
from foredraft.shapes.rope import Rope, rope_to_config

HEADS: dict[str, type[DraftHead]] = {
    kinds.EAGLE3.name: Eagle3Head, kinds.EAGLE.name: EagleHead, kinds.DFLASH.name: BlockHead, kinds.DSPARK.name: DSparkHead,
}  # fmt: skip

FILLED_UP = 2  # times its target's vocabulary: more than rows that fill it up for some kernel


def new_head(
    target: Target, kind: str = kinds.EAGLE3.name, num_layers: int = 1, draft_vocab: Iterable[int] | None = None, *,
    seed: int = 0, feature_layers: tuple[int, ...] | None = None, dtype: torch.dtype = torch.float32,
    **options: Any,
) -> DraftHead:  # fmt: skip
    """An untrained head for `target` in its widths and rope: normal weights of deviation 0.02, norms of one.

    `kind` is a name of `HEADS`. `draft_vocab` are the target ids it may draft, all by default. `options` are the kind's own (`new`).
    """
    if kind not in HEADS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, HEADS))}, got {kind!r}")
    head = HEADS[kind].new(target, num_layers, draft_vocab, feature_layers, **options)
    head.initialise(seed)
    return head.to(device=target.device, dtype=dtype)


def load_head(
    folder: str | Path, target: Target, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> DraftHead:
    """The draft head in a folder, frozen, beside the target whose embedding (and, EAGLE-1/2, LM head) it borrows."""
    checkpoint, file = HeadCheckpoint(folder), Path(folder) / "config.json"
    keys = shapes.unfolded(shapes.read_config(folder))
    kind = kinds.of_checkpoint(keys, checkpoint.stored)
    if kind.role == "head" and kind.name not in HEADS:
        raise ValueError(
            f"{file}: a head of kind {kind.label}, which foredraft does not run; it runs {', '.join(HEADS)}"
        )
    if kind.parts is None:
        raise ValueError(f"{file}: not a draft head: architectures names none, and there is no tensor fc.weight")
    keys = _in_own_family(keys, checkpoint)
    keys = _in_own_sizes(keys, checkpoint, target) if kind.passes == "token" else keys
    shape, config = parse_config(keys, folder)
    checkpoint.check_depth(shape.num_layers)
    try:
        shape = shapes.as_head(shape, kinds.parts_of(keys, kind, checkpoint.stored) or kind.parts, keys)
        _check_fit(shape, target, checkpoint)
        head = HEADS[kind.name].from_checkpoint(shape, config, target, keys, checkpoint)
    except TensorError:
        raise
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    names = head.names_on_file(checkpoint)
    fill(head, checkpoint, names.of_parameter, names.is_spare, dtype, device)
    names.check()
    return head.to(device).requires_grad_(False).eval()


def _in_own_family(keys: dict[str, Any], checkpoint: HeadCheckpoint) -> dict[str, Any]:
    """A head's config where `model_type` is a target's that is not run here: its layers are Llama's, or Qwen3's where they norm queries."""
    family = FAMILIES.get(str(keys.get("model_type")))
    if family is not None and family.architecture is not None and family.traits is None:
        return keys
    normed = "layers.0.self_attn.q_norm.weight" in checkpoint.stored
    return keys | {
        "model_type": NORMED_HEAD_FAMILY if normed else HEAD_FAMILY,
        "num_key_value_heads": keys.get("num_key_value_heads") or keys.get("num_attention_heads"),
    }


def _in_own_sizes(keys: dict[str, Any], checkpoint: HeadCheckpoint, target: Target) -> dict[str, Any]:
    """The config of a head that drafts token by token as its tensors have it: the width of the MLP, and how many tokens it drafts. A
    vocabulary that is only filled up is the target's. What no model has is left as it stands, to be refused.
    """
    stored, keys = checkpoint.stored, dict(keys)
    gate, d2t = stored.get("layers.0.mlp.gate_proj.weight"), stored.get("d2t")
    inner, words, rows = keys.get("intermediate_size"), keys.get("vocab_size"), target.shape.vocab_size
    if gate is not None and not (isinstance(inner, int) and inner > MOST_SIZES["intermediate_size"]):
        keys["intermediate_size"] = gate.shape[0]
    if d2t is not None:
        keys["draft_vocab_size"] = keys.get("draft_vocab_size") or d2t.shape[0]
        if "embed_tokens.weight" not in stored and not (isinstance(words, int) and words > FILLED_UP * rows):
            keys["vocab_size"] = rows
    return keys


def _check_fit(shape: Shape, target: Target, checkpoint: Checkpoint) -> None:
    """The head was made for this target."""
    width, hidden = target.shape.hidden_size, shape.target_hidden_size or shape.hidden_size
    if hidden != width:
        raise ValueError(f"made for a target of hidden_size {hidden}, but {target.shape.name} has {width}")
    if shape.vocab_size != target.shape.vocab_size:
        raise ValueError(f"vocab_size {shape.vocab_size}, but {target.shape.name} has {target.shape.vocab_size}")
    for table in ("embed_tokens.weight", "lm_head.weight"):
        borrowed = table not in checkpoint.stored and not (
            table == "lm_head.weight" and shape.head and shape.head.own_lm_head
        )
        if borrowed and shape.hidden_size != target.shape.embed_width:
            raise ValueError(f"hidden_size {shape.hidden_size}, not the target's {width}, needs tensor {table}")


def save_head(
    head: DraftHead, folder: str | Path, *, dtype: torch.dtype | None = None, layout: HeadLayout | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write config.json and model.safetensors, weights as `dtype` (the head's own by default; int8, int4: matrices in so few bits).

    `layout`: what the engine wants that is to load it, its kind's own by default. `more` adds config keys, such as
    bos_token_id and eos_token_id.
    """
    dtype, folder, layout = dtype or head.dtype, Path(folder), layout or head.layout
    tensors = stored(head.tensors_on_file(layout), dtype)
    keys = head_config(head, dtype, layout) | {key: value for key, value in (more or {}).items() if value is not None}
    write_bytes(folder / SINGLE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    write(folder / "config.json", keys)


def head_config(head: DraftHead, dtype: torch.dtype, layout: HeadLayout) -> dict[str, Any]:
    """The config.json of the flat format."""
    shape, config = head.shape, head.config
    keys = {
        "architectures": [layout.architecture], "model_type": shape.family, "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim,
        "hidden_act": config.activation, "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": shape.max_position_embeddings, "attention_bias": shape.qkv_bias,
        "mlp_bias": shape.mlp_bias, "vocab_size": shape.vocab_size, "tie_word_embeddings": False,
        "use_cache": True, **config_keys(dtype, "torch_dtype"), "initializer_range": INIT_STD,
    }  # fmt: skip
    keys |= rope_to_config(config.rope or Rope()) | head.keys_on_file()
    return {key: value for key, value in keys.items() if value is not None} | dict.fromkeys(head.null_keys)
