"""A trained draft out of its folder, whole, ready to be written in another form.

Promises: a head is held against its target's sizes without the target's weights. Refuses to know: engines.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from foredraft import shapes
from foredraft.kinds import LM, Kind, of_shape
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.heads import load_head
from foredraft.models.load import load, read_config
from foredraft.shapes import Shape
from foredraft.shapes.families import HEAD_FAMILY, prefixes

TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class TrainedDraft(NamedTuple):
    """`dtype`: of the stored weights."""

    folder: Path
    kind: Kind
    model: Decoder | DraftHead
    dtype: torch.dtype

    @property
    def shape(self) -> Shape:
        return self.model.shape


def read_draft(folder: str | Path, target: str | Path) -> TrainedDraft:
    """The draft in a folder; a head beside its target. Raises ValueError, one line, on one that is no draft of it."""
    path = Path(folder)
    checkpoint = Checkpoint(path)
    fc = checkpoint.stored.get("fc.weight")
    if fc is None:
        kinds = [stored.kind for stored in checkpoint.stored.values() if stored.kind in TYPES]
        dtype = TYPES[kinds[0]] if kinds else torch.float32
        return TrainedDraft(path, LM, load(path, dtype), dtype)
    dtype = TYPES.get(fc.kind, torch.float32)
    head = as_llama(load_head(path, hollow(target), dtype))
    return TrainedDraft(path, of_shape(head.shape), head, dtype)


def hollow(target: str | Path) -> Decoder:
    """A decoder of the target's shape without weights, which is all that a head's file needs of it."""
    shape, model_config = read_config(target)
    with torch.device("meta"):
        return Decoder(shape, model_config)


def as_llama(head: DraftHead) -> DraftHead:
    """A head whose q, k and v have biases and o none (Qwen2's) as one of Llama's classes, which have all four: o's is zeros.

    Others as they are; norms of queries and keys (Qwen3's) stay a family of their own.
    """
    shape = head.shape
    if shape.qk_norm or (shape.family == HEAD_FAMILY and shape.qkv_bias == shape.o_bias):
        return head
    shape = msgspec.structs.replace(shape, family=HEAD_FAMILY, o_bias=shape.qkv_bias)
    state = dict(head.state_dict())
    if shape.o_bias and not head.shape.o_bias:
        zeros = {f"layers.{i}.self_attn.o_proj.bias": head.fc.weight.new_zeros(shape.hidden_size) for i in range(shape.num_layers)}  # fmt: skip
        state |= zeros
    return head.with_weights(state, shape).requires_grad_(False).eval()


def target_lm_head(target: str | Path) -> torch.Tensor | None:
    """The target's LM head, its embedding where these are one, or None where its folder holds no weights."""
    try:
        checkpoint = Checkpoint(target)
    except ValueError:
        return None
    return checkpoint.tensor("lm_head.weight") if "lm_head.weight" in checkpoint.stored else target_embedding(target)


def target_embedding(target: str | Path) -> torch.Tensor | None:
    """The target's table of embeddings, or None where its folder holds no weights."""
    try:
        checkpoint = Checkpoint(target)
    except ValueError:
        return None
    family = shapes.read_config(target).get("model_type", "")
    names = [f"{prefix}embed_tokens.weight" for prefix in prefixes(family)]
    return next((checkpoint.tensor(name) for name in names if name in checkpoint.stored), None)


def token_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A target's token ids and context, which its draft's config repeats."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    return {key: config[key] for key in keys if config.get(key) is not None}
