"""A trained draft out of its folder, whole, ready to be written in another form.

Promises: a head is held against its target's sizes without the target's weights. Refuses to know: engines.
"""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from foredraft import shapes
from foredraft.kinds import LM, Kind, of_checkpoint, of_shape
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.decoder import Decoder
from foredraft.models.draft_head import DraftHead
from foredraft.models.heads import load_head
from foredraft.models.layers import ModelConfig
from foredraft.models.load import load
from foredraft.models.target import Target
from foredraft.shapes import Shape
from foredraft.shapes.config import text_part
from foredraft.shapes.families import HEAD_FAMILY
from foredraft.shapes.rope import Rope, rope_from_config
from foredraft.shapes.tensors import table_name

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
    kinds_stored = [stored.kind for stored in checkpoint.stored.values() if stored.kind in TYPES]
    dtype = TYPES[max(set(kinds_stored), key=kinds_stored.count)] if kinds_stored else torch.float32
    if of_checkpoint(shapes.unfolded(shapes.read_config(path)), checkpoint.stored).role != "head":
        return TrainedDraft(path, LM, load(path, dtype), dtype)
    head = as_llama(load_head(path, TargetSizes(target), dtype))
    return TrainedDraft(path, of_shape(head.shape), head, dtype)


class TargetSizes(Target):
    """A target's sizes and no weights, which is all that a head's file needs of it: of any family, in any number format."""

    def __init__(self, target: str | Path) -> None:
        super().__init__()
        self.shape = shapes.from_config(Path(target))
        try:
            rope = rope_from_config(text_part(shapes.read_config(target)))
        except ValueError:  # of another kind of positions: a head's own config says its
            rope = Rope()
        self.config = ModelConfig(norm_eps=1e-6, activation="silu", rope=rope)
        self.norm = nn.Identity()
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(self.shape.vocab_size, self.shape.embed_width)

    @property
    def head_weight_VC(self) -> torch.Tensor:
        return self.embed_tokens.weight


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
        zeros = {f"layers.{i}.self_attn.o_proj.bias": torch.zeros(shape.hidden_size, dtype=head.dtype) for i in range(shape.num_layers)}  # fmt: skip
        state |= zeros
    return head.with_weights(state, shape).requires_grad_(False).eval()


def target_lm_head(target: str | Path) -> torch.Tensor | None:
    """The target's LM head, its embedding where these are one, or None where its folder holds no weights."""
    table = _table(target, "lm_head.weight")
    return target_embedding(target) if table is None else table


def target_embedding(target: str | Path) -> torch.Tensor | None:
    """The target's table of embeddings, or None where its folder holds no weights, or none of a number format that is read here."""
    return _table(target, "embed_tokens.weight")


def _table(target: str | Path, name: str) -> torch.Tensor | None:
    """The language model's table of that name, wherever its checkpoint hangs it; the outermost of several."""
    try:
        checkpoint = Checkpoint(target)
    except ValueError:
        return None
    on_file = table_name(checkpoint.stored, name, shapes.from_config(Path(target)).vocab_size)
    return checkpoint.tensor(on_file) if on_file else None


def token_keys(config: dict[str, Any]) -> dict[str, Any]:
    """A target's token ids and context, which its draft's config repeats."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    return {key: config[key] for key in keys if config.get(key) is not None}
