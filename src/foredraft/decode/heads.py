"""Drafting with a head on the target's features: EAGLE-1/2, EAGLE-3 and Scylla; chains, and EAGLE-2's dynamic tree.

Promises: proposals are determined (the likeliest tokens, no chance), so they are verified by draws from p alone.
Refuses to know: how a head computes.

The dynamic tree (arXiv 2406.16858, section 4): from each of the k nodes of a level the head's k likeliest children,
all k² kept in a pool; the k of highest cumulative log-probability are extended next; at the end the best `nodes` of
the whole pool are proposed. A chain is k = 1.

Shapes: B running sequences, M pairs not read yet, k nodes of a level, P nodes in the pool, U slots of the drafted
nodes, C the head's width.
"""

from collections.abc import Sequence as Listed
from typing import NamedTuple

import torch
from torch import Tensor

from foredraft.decode.batch import Sequence
from foredraft.decode.drafters import PAD, Proposal
from foredraft.models.cache import Cache
from foredraft.models.heads import DraftHead
from foredraft.models.placing import causal_mask


class Pool(NamedTuple):
    """All nodes drafted so far: `parents` are indices into the pool, -1 the root; scores are cumulative
    log-probabilities. Each [B, P].
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor


class Head:
    """A draft head with its cache. `topk` 1 drafts a chain of the lookahead; more, a dynamic tree of at most `nodes`
    nodes and as many levels.
    """

    def __init__(self, head: DraftHead, cache: Cache, *, topk: int = 1, nodes: int | None = None) -> None:
        if topk < 1 or (nodes is not None and nodes < 1):
            raise ValueError(f"topk and nodes must be at least 1, got {topk} and {nodes}")
        self.head, self.cache, self.topk, self.nodes = head, cache, topk, nodes
        self.name, self.reads = str(head.shape.draft_head), head.feature_layers

    def admit(self, row: int, sequence: Sequence) -> None:
        """Read the prompt's pairs but for the last, which the first proposal reads."""
        if sequence.fresh is None or sequence.cached < 2:
            return
        features, sequence.fresh = sequence.fresh[:-1], sequence.fresh[-1:]
        tokens = torch.tensor([sequence.tokens[1:-1]], device=features.device)
        positions = torch.arange(tokens.shape[1], device=features.device)[None]
        mask = causal_mask(positions, tokens.shape[1])
        hidden = self.head.combine(features[None])
        self.head(tokens, hidden, positions, self.cache.rows(row, row + 1), mask_BTS=mask, logits="none")

    def move(self, source: int, row: int) -> None:
        self.cache.kv[:, :, row] = self.cache.kv[:, :, source]

    def propose(self, running: Listed[Sequence], lookahead: int) -> Proposal:
        """Read the pairs that came since, then grow `lookahead` levels; a sequence without features yet proposes
        nothing.
        """
        cache = self.cache.rows(0, len(running))
        logits_BkV, hidden_BkC, base_B = self._read(running, cache)
        pool, beam, sees = self._root(logits_BkV)
        hidden_BkC = hidden_BkC.expand(-1, self.topk, -1)
        for level in range(1, lookahead):
            sees, slots = self._sight(sees, beam, level)
            width = int(base_B.max()) + level * self.topk
            positions = (base_B + level - 1)[:, None].expand(-1, self.topk)
            output = self.head(
                pool.tokens.gather(1, beam),
                hidden_BkC,
                positions,
                cache,
                base_B[:, None] + slots,
                self._mask(sees, base_B, width),
            )
            pool, beam, chosen = self._grow(pool, beam, output.logits_BTV)
            hidden_BkC = output.pre_norm_BTC.gather(1, chosen[..., None].expand(-1, -1, output.pre_norm_BTC.shape[-1]))
            sees = sees.gather(1, chosen[..., None].expand(-1, -1, sees.shape[-1]))
        return self._proposal(pool, lookahead, running)

    def _read(self, running: Listed[Sequence], cache: Cache) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and hidden state after the last pair, [B, 1, …], and the slot of the next [B]; `fresh` is used up."""
        device, width = cache.kv.device, max(1 if s.fresh is None else len(s.fresh) for s in running)
        size = len(self.reads) * self.head.target.shape.hidden_size
        features = torch.zeros(len(running), width, size, device=device, dtype=self.head.target.dtype)
        tokens = torch.zeros(len(running), width, dtype=torch.long, device=device)
        last = torch.zeros(len(running), dtype=torch.long, device=device)
        base = torch.tensor([max(s.cached, 1) for s in running], device=device)
        for row, s in enumerate(running):
            if s.fresh is not None:
                num = len(s.fresh)
                features[row, :num], features[row, num:] = s.fresh, s.fresh[-1]
                tokens[row, :num], tokens[row, num:] = torch.tensor(s.tokens[-num:], device=device), s.tokens[-1]
                last[row] = num - 1
        offsets = torch.arange(width, device=device).minimum(last[:, None])
        positions = (base - 1 - last)[:, None] + offsets
        mask = causal_mask(positions, int(base.max()))
        output = self.head(tokens, self.head.combine(features), positions, cache, mask_BTS=mask, logits=last[:, None])
        hidden = output.pre_norm_BTC[torch.arange(len(running), device=device), last][:, None]
        return output.logits_BTV, hidden, base

    def _root(self, logits_B1V: Tensor) -> tuple[Pool, Tensor, Tensor]:
        scores, ids = logits_B1V[:, 0].float().log_softmax(-1).topk(self.topk)
        pool = Pool(self.head.target_ids(ids), torch.full_like(ids, -1), scores)
        beam = torch.arange(self.topk, device=ids.device).expand(ids.shape)
        return pool, beam, torch.zeros(*ids.shape, 0, dtype=torch.bool, device=ids.device)

    def _sight(self, sees_BkU: Tensor, beam: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """What a level's nodes see of the drafted slots once they stand in theirs, and those slots' offsets."""
        own = torch.eye(self.topk, dtype=torch.bool, device=beam.device).expand(len(beam), -1, -1)
        slots = (level - 1) * self.topk + torch.arange(self.topk, device=beam.device)
        return torch.cat((sees_BkU, own), -1), slots

    def _mask(self, sees_BkU: Tensor, base_B: Tensor, width: int) -> Tensor:
        """Everything before the drafted slots, and of those what `sees` says, [B, k, width]."""
        mask = (torch.arange(width, device=base_B.device) < base_B[:, None])[:, None].repeat(1, sees_BkU.shape[1], 1)
        slots = base_B[:, None] + torch.arange(sees_BkU.shape[2], device=base_B.device)
        return mask.scatter(2, slots[:, None].expand(sees_BkU.shape), sees_BkU)

    def _grow(self, pool: Pool, beam: Tensor, logits_BkV: Tensor | None) -> tuple[Pool, Tensor, Tensor]:
        """Pool the k² children; give the next beam (indices into the pool) and which of the k nodes each came from."""
        assert logits_BkV is not None
        scores, ids = logits_BkV.float().log_softmax(-1).topk(self.topk)
        scores = (scores + pool.scores.gather(1, beam)[..., None]).flatten(1)
        parents = beam[..., None].expand(ids.shape).flatten(1)
        best = scores.topk(self.topk).indices
        grown = Pool(
            torch.cat((pool.tokens, self.head.target_ids(ids).flatten(1)), 1),
            torch.cat((pool.parents, parents), 1),
            torch.cat((pool.scores, scores), 1),
        )
        return grown, pool.tokens.shape[1] + best, best // self.topk

    def _proposal(self, pool: Pool, lookahead: int, running: Listed[Sequence]) -> Proposal:
        """The best nodes of the pool, in its order, so that parents stand before their children (a stable sort keeps
        a parent before an equal).
        """
        num = min(self.nodes or lookahead * self.topk, pool.tokens.shape[1])
        chosen = pool.scores.sort(dim=1, descending=True, stable=True).indices[:, :num].sort(dim=1).values
        above = pool.parents.gather(1, chosen)
        parents = torch.where(above < 0, -1, torch.searchsorted(chosen, above.clamp(min=0)))
        silent = torch.tensor([s.fresh is None for s in running], device=parents.device)
        for sequence in running:
            sequence.fresh = None
        return Proposal(pool.tokens.gather(1, chosen), torch.where(silent[:, None], PAD, parents))
