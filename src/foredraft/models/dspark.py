"""DSpark (arXiv 2607.05147) as a draft head: DFlash's block, and a chain that lets each drafted token read the one before it.

The Markov head adds W2 · W1[x] to a place's logits, x being the token before it: low in rank, so that a chain of them costs little once
the block's pass is done. The confidence head says from a place's state and the token before it how probable it is that the token
drafted there is accepted; it never reads that token, so that stopping by it is lossless.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foredraft import kinds
from foredraft.models.block_head import BlockHead
from foredraft.models.chain import Entry
from foredraft.models.checkpoint import Checkpoint
from foredraft.models.draft_head import HeadLayout, no_options
from foredraft.models.layers import ModelConfig
from foredraft.models.linear import Linear
from foredraft.models.target import Target
from foredraft.shapes import Shape


class MarkovHead(nn.Module):
    """W1 [V, r], a row for each of the target's tokens, and W2 [head's V, r]."""

    def __init__(self, shape: Shape, rank: int) -> None:
        super().__init__()
        self.markov_w1 = nn.Embedding(shape.vocab_size, rank)
        self.markov_w2 = Linear(rank, shape.draft_vocab_size or shape.vocab_size, bias=False)


class ConfidenceHead(nn.Module):
    """The logit of a place's acceptance, from its state beside the row of the token before it."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.proj = Linear(inputs, 1)


class DSparkHead(BlockHead):
    """A `BlockHead` whose drafted tokens read one another; sampled requests get draws from q."""

    kind: ClassVar[kinds.Kind] = kinds.DSPARK
    layout = HeadLayout("Qwen3DSparkModel")
    draws: ClassVar[bool] = True
    reads_drafts: ClassVar[bool] = True

    def __init__(
        self, shape: Shape, config: ModelConfig, target: Target, feature_layers: tuple[int, ...], mask_token: int,
        d2t: Tensor | None = None, *, from_anchor: bool | None = None, own_tables: tuple[str, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(
            shape, config, target, feature_layers, mask_token, d2t, from_anchor=from_anchor, own_tables=own_tables
        )
        assert shape.head is not None
        rank, chain = shape.head.rank, {part.name for part in shape.head.chain}
        self.markov_head = MarkovHead(shape, rank) if rank else None
        self.confidence_head = ConfidenceHead(shape.hidden_size + rank) if "confidence_head.proj" in chain else None

    @classmethod
    def part_fields(
        cls, hidden_states: int, block: int | None = None, *, rank: int | None = None, **options: Any
    ) -> dict[str, Any]:
        no_options(options)
        return super().part_fields(hidden_states, block) | ({} if rank is None else {"rank": rank})

    @classmethod
    def from_checkpoint(
        cls, shape: Shape, config: ModelConfig, target: Target, config_keys: Mapping[str, Any], checkpoint: Checkpoint
    ) -> Self:
        keys = kinds.block_keys(config_keys)
        kind = keys.get("markov_head_type", "vanilla")
        if kind != "vanilla" and keys.get("markov_rank"):
            raise ValueError(f"markov_head_type {kind!r} is not supported (have 'vanilla')")
        return super().from_checkpoint(shape, config, target, config_keys, checkpoint)

    @property
    def entry(self) -> Entry:
        if self.markov_head is None:
            return Entry()
        return Entry(before=self.markov_head.markov_w1, after=self.markov_head.markov_w2)

    def corrected(self, logits_BkV: Tensor, previous_Bk: Tensor) -> Tensor:
        """With the Markov head's share."""
        if self.markov_head is None:
            return logits_BkV
        return logits_BkV + self.markov_head.markov_w2(self.markov_head.markov_w1(previous_Bk))

    def correction(self, previous_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        if self.markov_head is None:
            return None
        return self.markov_head.markov_w1(previous_BT), self.markov_head.markov_w2.weight

    def acceptance(self, final_BkC: Tensor, previous_Bk: Tensor) -> Tensor | None:
        """By the confidence head, where it has one."""
        if self.confidence_head is None:
            return None
        parts = [final_BkC] if self.markov_head is None else [final_BkC, self.markov_head.markov_w1(previous_Bk)]
        return self.confidence_head.proj(torch.cat(parts, -1))[..., 0]

    def keys_on_file(self) -> dict[str, Any]:
        """DeepSpec's, all at the top."""
        assert self.shape.head is not None
        confident = self.confidence_head is not None
        return self.shared_keys() | self.block_config() | {
            "markov_rank": self.shape.head.rank, "markov_head_type": "vanilla", "enable_confidence_head": confident,
            "confidence_head_with_markov": confident and self.markov_head is not None,
        }  # fmt: skip
