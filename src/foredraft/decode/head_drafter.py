"""Drafting with a head on the target's hidden states: EAGLE-1/2, EAGLE-3 and Scylla; chains and trees.

Promises: drafts are deterministic (the most probable tokens, no chance), so they are verified by draws from p alone.
Refuses to know: how a head computes.

Shapes: B running sequences, M pairs not read yet, k nodes that are extended together, C the head's width.
"""

from collections.abc import Sequence as Listed

import torch
from torch import Tensor

from foredraft import kinds
from foredraft.decode.batch import Sequence
from foredraft.decode.drafter import Pairs, by_kernels, goes_on
from foredraft.decode.lengths import StepLengths
from foredraft.decode.proposals import PAD, Budget, Proposal, in_line
from foredraft.decode.sampling import first_largest, require_finite
from foredraft.decode.trees import Extend, grow, rows
from foredraft.models.cache import KVCache
from foredraft.models.chain import Chain
from foredraft.models.draft_head import TokenHead
from foredraft.models.forward import Output, causal_mask
from foredraft.models.graphs import Graphed
from foredraft.models.kernels import chunk


class HeadDrafter:
    """A draft head with its cache: a chain, or the tree that the budget asks for."""

    trees = True

    def __init__(self, head: TokenHead, cache: KVCache) -> None:
        self.head, self.run, self.cache, self.kernel = head, Graphed(head), cache, Chain.of(head)
        self._title = f"draft {head.shape.name}"
        self.name, self.reads = kinds.of_shape(head.shape).name, head.feature_layers

    def admit(self, row: int, sequence: Sequence) -> None:
        """Read the prompt's pairs but for the last, which the first proposal reads."""
        if sequence.fresh is None or sequence.cached < 2:
            return
        features, sequence.fresh = sequence.fresh[:-1], sequence.fresh[-1:]
        tokens = torch.tensor([sequence.tokens[1:-1]], device=features.device)
        positions, into = torch.arange(len(features), device=features.device)[None], self.cache.rows(row, row + 1)
        size = chunk(len(features), self.head.dtype, features.device)
        for start in range(0, len(features), size):
            part = slice(start, start + size)
            hidden, some = self.head.combine(features[None, part]), positions[:, part]
            mask = causal_mask(some, min(start + size, len(features)))
            self.head(tokens[:, part], hidden, some, into, mask_BTS=mask, logits="none")

    def move(self, source: int, row: int, num: int) -> None:
        self.cache.copy_row(source, row, num)

    def propose(self, running: Listed[Sequence], budget: Budget, lengths: StepLengths | None = None) -> Proposal:
        """Read the pairs that came since, then draft; a sequence without features yet proposes nothing."""
        cache, silent = self.cache.rows(0, len(running)), [sequence.fresh is None for sequence in running]
        pairs = self._pairs(running)
        for sequence in running:
            sequence.fresh = None
        proposal = by_kernels(self.kernel, pairs, cache, budget, lengths, self._title)
        proposal = proposal or self._by_passes(pairs, cache, budget, lengths)
        none = [PAD] * proposal.tokens.shape[1]
        parents = [none if quiet else row for quiet, row in zip(silent, proposal.parents, strict=True)]
        return proposal._replace(parents=parents)

    def _pairs(self, running: Listed[Sequence]) -> Pairs:
        """Each token that came since the last proposal beside the hidden state of the one before it."""
        device, features = self.cache.kv.device, [self._unread(sequence) for sequence in running]
        counts = [len(each) for each in features]
        width, joined = max(counts), torch.cat(features)
        if min(counts) < width:  # the last one's over again, which writes what is there
            first = [sum(counts[:row]) for row in range(len(counts))]
            order = [start + min(i, n - 1) for start, n in zip(first, counts, strict=True) for i in range(width)]
            joined = joined[torch.tensor(order, device=device)]
        hidden = self.head.combine(joined.unflatten(0, (len(running), width)))
        tokens = [s.tokens[-n:] + s.tokens[-1:] * (width - n) for s, n in zip(running, counts, strict=True)]
        base = [max(s.cached, 1) for s in running]
        places = [[start - n + min(i, n - 1) for i in range(width)] for start, n in zip(base, counts, strict=True)]
        ids, positions_BM = torch.tensor([tokens, places], device=device)
        return Pairs(ids, hidden, positions_BM, torch.tensor([n - 1 for n in counts], device=device), max(base))

    def _by_passes(self, pairs: Pairs, cache: KVCache, budget: Budget, lengths: StepLengths | None) -> Proposal:
        """A chain or a tree by the head's own passes."""
        ids_BM, read_BMC, slots_BM, last_B, seen = pairs
        assert read_BMC is not None, "a head reads hidden states"
        last_B1 = last_B[:, None]
        base_B1 = slots_BM.gather(1, last_B1) + 1
        mask = causal_mask(slots_BM, seen)
        output = self.run(ids_BM, read_BMC, slots_BM, cache=cache, slots_BT=slots_BM, mask_BTS=mask, logits=last_B1)
        hidden_B1C = output.pre_norm_BTC.gather(1, last_B1[..., None].expand(-1, -1, output.pre_norm_BTC.shape[-1]))
        if budget.branches:
            extend = self._extending(hidden_B1C, cache)
            return grow(output.logits_BTV, base_B1, budget, extend, self.head.target_ids, model=self._title)
        return self._chain(output, hidden_B1C, base_B1, cache, budget.lookahead, lengths)

    def _unread(self, sequence: Sequence) -> Tensor:
        """Features of its tokens that the head has not read, [M, F]; zeros where none came yet."""
        if sequence.fresh is not None:
            return sequence.fresh
        size = len(self.reads) * self.head.target.shape.hidden_size
        return torch.zeros(1, size, device=self.cache.kv.device, dtype=self.head.target.dtype)

    def _chain(
        self, output: Output, hidden_B1C: Tensor, base_B1: Tensor, cache: KVCache, lookahead: int, lengths: StepLengths | None
    ) -> Proposal:  # fmt: skip
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        width = int(base_B1.max()) + lookahead - 1
        for depth in range(lookahead):
            assert output.logits_BTV is not None
            more = goes_on(lengths, output.logits_BTV[:, 0], depth, lookahead)
            largest, ids = first_largest(output.logits_BTV)
            scores.append(largest)
            tokens.append(self.head.target_ids(ids))
            if not more:
                break
            positions = base_B1 + depth
            mask = causal_mask(positions, width)
            output = self.run(tokens[-1], hidden_B1C, positions, cache=cache, slots_BT=positions, mask_BTS=mask)
            hidden_B1C = output.pre_norm_BTC
        require_finite(torch.cat(scores, 1), self._title)  # once, since every look waits for the device
        return in_line(torch.cat(tokens, 1))

    def _extending(self, hidden_BkC: Tensor, cache: KVCache) -> Extend:
        """Every node reads the hidden state that its parent left."""

        def extend(tokens: Tensor, source: Tensor, positions: Tensor, slots: Tensor, mask: Tensor) -> Tensor | None:
            nonlocal hidden_BkC
            output = self.run(tokens, rows(hidden_BkC, source), positions, cache=cache, slots_BT=slots, mask_BTS=mask)
            hidden_BkC = output.pre_norm_BTC
            return output.logits_BTV

        return extend
