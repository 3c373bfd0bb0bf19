"""A draft's greedy chain, its tree or its block by one call of our kernels: between small passes torch and Python take longer than the passes do.

Promises: the tokens that the model's own passes would draft, up to rounding. Refuses to know: who asks, and how many positions are worth drafting.

Shapes: B sequences, M tokens that the draft has not read yet, K positions drafted, W nodes proposed, C the draft's width.
"""

from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from foredraft.models.cache import KVCache
from foredraft.models.kernels import (
    STEP,
    ChainWeights,
    StoredMatrix,
    TreePlan,
    able,
    run_block,
    run_chain,
    run_tree,
    usable,
)
from foredraft.models.linear import Linear


class Entry(NamedTuple):
    """How a token enters a draft's layers: its embedding as it is; or by `fc`, beside what the last pass left (EAGLE); or each of the two by
    a norm of its own (EAGLE-3), what was left, normed or not, being the residual. `leaves_normed`: what a pass leaves is what its LM head reads.
    `before`, `after`: a token's row and the matrix whose product with it is added to the logits behind it (DSpark).
    """

    fc: Linear | None = None
    embed_norm: nn.Module | None = None
    left_norm: nn.Module | None = None
    normed_residual: bool = False
    leaves_normed: bool = False
    before: nn.Embedding | None = None
    after: Linear | None = None


class Drafted(NamedTuple):
    """`ids_KB` in the target's vocabulary, the logit of each, the sum of e^(logit − it) over the draft's words, and what the last pass left."""

    ids_KB: Tensor
    largest_KB: Tensor
    over_largest_KB: Tensor
    left_BC: Tensor


class Chain:
    """A draft's passes. Made once its weights stand where they will."""

    def __init__(self, weights: ChainWeights, model: Any) -> None:
        self.weights, self.rotary, self.dtype = weights, model.rotary, model.dtype
        self.words: int = weights.struct.words

    @classmethod
    def of(cls, model: Any, words: int | None = None) -> Self | None:
        """Of a decoder or a head; None where these kernels do not run it. `words`: the first that may be drafted, all by default."""
        entry: Entry | None = model.entry
        head, table = _head_of(model), model.table.weight
        if entry is None or model.dtype not in model.kernel_dtypes or not able(model.dtype, head.weight.device):
            return None
        norms = [each for each in (entry.embed_norm, entry.left_norm) if each is not None]
        known = all(isinstance(each, nn.RMSNorm) for each in norms)
        known = known and isinstance(model.norm, nn.RMSNorm | nn.LayerNorm | nn.Identity)
        known = known and (entry.after is None or entry.after.in_features % STEP[model.dtype] == 0)
        known = known and type(model.table) is nn.Embedding  # another may scale what it looks up
        learning = any(parameter.requires_grad for parameter in model.parameters())
        if learning or not known or not table.dtype == head.weight.dtype == model.dtype or not table.is_contiguous():
            return None
        return cls(ChainWeights(model, entry, table, head, words), model)

    def takes(self, rows: int) -> bool:
        """Whether so many rows of a pass are few."""
        return usable(rows, self.dtype, torch.device("cpu"))

    def __call__(
        self, tokens_BM: Tensor, left_BMC: Tensor | None, slots_BM: Tensor, last_B: Tensor, cache: KVCache, num: int
    ) -> Drafted:
        """Read M tokens of each sequence at their slots, which are their positions, and draft `num` behind `last_B`. `left_BMC`: what a head
        reads beside each token.
        """
        batch, width = len(tokens_BM), self.weights.struct.hidden
        ids, left = torch.empty(num, batch, dtype=torch.long), torch.empty(batch, width, dtype=self.dtype)
        largest, total = torch.empty(2, num, batch)
        table = self.rotary.table(cache.slots) if self.rotary else None
        run_chain(self.weights, table, cache, (tokens_BM, left_BMC, slots_BM, last_B), (ids, largest, total, left))
        return Drafted(ids, largest, total, left)

    def block(
        self,
        tokens_BT: Tensor,
        slots_BT: Tensor,
        context_BMC: Tensor,
        known_BM: Tensor,
        first: int,
        cache: KVCache,
        num: int,
    ) -> tuple[Tensor, Tensor]:
        """Put a head's context into the cache at its slots, read a block of T tokens and draft `num` from its row `first` on: their ids in
        the target's vocabulary and the logit of each, [K, B].
        """
        ids, (largest, total) = torch.empty(num, len(tokens_BT), dtype=torch.long), torch.empty(2, num, len(tokens_BT))
        table = self.rotary.table(cache.slots) if self.rotary else None
        inputs = tokens_BT, slots_BT, context_BMC, known_BM
        run_block(self.weights, table, cache, inputs, first, (ids, largest, total))
        return ids, largest

    def tree(
        self,
        tokens_BM: Tensor,
        left_BMC: Tensor | None,
        slots_BM: Tensor,
        last_B: Tensor,
        cache: KVCache,
        plan: TreePlan,
    ) -> tuple[Tensor, Tensor] | None:
        """Read as a chain does and draft the tree of a plan: tokens and parents [B, W], parents before their children, −1 the root. None where
        a logit is NaN. Of equal probabilities the first is the larger.
        """
        ids, parents = torch.empty(2, len(tokens_BM), plan.proposed, dtype=torch.long)
        table = self.rotary.table(cache.slots) if self.rotary else None
        inputs = tokens_BM, left_BMC, slots_BM, last_B
        return (ids, parents) if run_tree(self.weights, table, cache, inputs, plan, (ids, parents)) else None


def _head_of(model: Any) -> StoredMatrix:
    """The LM head as it is multiplied: the model's own, or the rows that it borrows."""
    if model.lm_head is not None:
        return model.lm_head.stored
    rows = model.head_weight_VC  # which says what `gathered` holds in eight bits
    return StoredMatrix(rows, model.gathered.eight, None)
