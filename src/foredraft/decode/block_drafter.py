"""Drafting with a head of blocks (DFlash, DSpark): one pass of the draft proposes all tokens of a step; chains, and trees of its marginals.

The pass is always that of a whole block as it was trained, of which the first `lookahead` places are drafted: mask tokens see one
another, so that a shorter block would be another head's. What the head read of the context stays in its cache; the block's own rows lie
behind it and are overwritten by the next step, accepted or not.

Which q is kept: a chain of sampled requests is drawn, token by token, from the probabilities of a head that `draws` (DSpark), each given
the token drawn before it, under the request's own temperature, top-k and top-p; these probabilities are q. Where all requests are greedy,
in trees, and from a head that does not draw (DFlash, whose places know nothing of one another) tokens are the most probable ones, chance
has no part in them, and verification draws from p alone.

Refuses to know: how a head computes.

Shapes: B running sequences, M tokens not read yet, k places of the block, V the target's vocabulary.
"""

from collections.abc import Sequence as Listed
from typing import NamedTuple

import torch
from torch import Tensor

from foredraft import kinds
from foredraft.decode.batch import Sequence
from foredraft.decode.drafter import over_target, row_probabilities, top_confidence
from foredraft.decode.lengths import StepLengths
from foredraft.decode.proposals import Budget, Proposal, in_line
from foredraft.decode.sampling import first_largest, require_finite
from foredraft.decode.trees import Extend, grow
from foredraft.decode.verify import draw
from foredraft.models.block_head import BlockHead
from foredraft.models.cache import KVCache
from foredraft.models.chain import Chain
from foredraft.models.graphs import Graphed


class BlockDrafter:
    """A head of blocks with its cache: a chain, or the tree that the budget asks for, of at most a block's tokens deep."""

    trees = True

    def __init__(self, head: BlockHead, cache: KVCache) -> None:
        self.head, self.run, self.cache, self.kernel = head, Graphed(head), cache, Chain.of(head)
        self._title = f"draft {head.shape.name}"
        self.name, self.reads = kinds.of_shape(head.shape).name, head.feature_layers

    def admit(self, row: int, sequence: Sequence) -> None:
        """Read the prompt's hidden states."""
        if sequence.fresh is not None:
            self._read(sequence.fresh[None], [sequence.cached], [len(sequence.fresh)], self.cache.rows(row, row + 1))
            sequence.fresh = None

    def move(self, source: int, row: int, num: int) -> None:
        self.cache.copy_row(source, row, num)

    def propose(self, running: Listed[Sequence], budget: Budget, lengths: StepLengths | None = None) -> Proposal:
        """Read the hidden states that came since, then draft. Raises ValueError where more is asked for than a block has."""
        if budget.levels > self.head.block:
            raise ValueError(
                f"{self._title} drafts blocks of {self.head.block} tokens; lower lookahead ({budget.levels}) to that"
            )
        cache, known = self.cache.rows(0, len(running)), [sequence.cached for sequence in running]
        drawn = self.head.draws and any(sequence.request.sampling.temperature for sequence in running)
        by_kernels = (
            None if lengths or budget.branches or drawn else self._by_kernels(running, known, cache, budget.lookahead)
        )
        if by_kernels:
            return by_kernels
        self._read_fresh(running, known, cache)
        logits_BkV, final_BkC = self._block(running, known, cache, budget.levels)
        anchors_B1 = torch.tensor([[sequence.tokens[-1]] for sequence in running], device=cache.kv.device)
        if budget.branches:
            root, base_B1 = self.head.corrected(logits_BkV[:, :1], anchors_B1), anchors_B1 * 0
            return grow(root, base_B1, budget, self._extending(logits_BkV), self.head.target_ids, model=self._title)
        told = None if lengths is None else _Told(self.head, lengths, final_BkC)
        if drawn:
            return self._drawn(running, logits_BkV, anchors_B1[:, 0], told)
        return self._most_probable(logits_BkV, anchors_B1[:, 0], told)

    def _by_kernels(self, running: Listed[Sequence], known: list[int], cache: KVCache, num: int) -> Proposal | None:
        """A chain of the most probable tokens by one call of our kernels; None where there are none, or a pass has more rows than these take."""
        rows, longest = self.head.rows, max(0 if each.fresh is None else len(each.fresh) for each in running)
        if self.kernel is None or not self.kernel.takes(len(running) * max(rows, longest)):
            return None
        features_BMF, counts = self._fresh(running)
        slots_BM = _slots(known, counts, features_BMF.shape[1])
        context_BMC = self.head.combine(features_BMF)
        tokens_BT = self.head.blocks(torch.tensor([[sequence.tokens[-1]] for sequence in running]))
        slots_BT = torch.tensor(known)[:, None] + torch.arange(rows)
        ids_KB, largest_KB = self.kernel.block(
            tokens_BT, slots_BT, context_BMC, slots_BM, self.head.first_row, cache, num
        )
        require_finite(largest_KB.T, self._title)
        return in_line(ids_KB.T)

    def _read_fresh(self, running: Listed[Sequence], known: list[int], cache: KVCache) -> None:
        """What all sequences gained; one that gained nothing writes where its block will."""
        features_BMF, counts = self._fresh(running)
        if features_BMF.shape[1]:
            self._read(features_BMF, known, counts, cache)

    def _fresh(self, running: Listed[Sequence]) -> tuple[Tensor, list[int]]:
        """The hidden states that came since, padded on the right by each sequence's last, and how many; then there are none left."""
        counts = [0 if sequence.fresh is None else len(sequence.fresh) for sequence in running]
        width = max(counts)
        features = self.cache.kv.new_zeros(len(running), width, len(self.reads) * self.head.target.shape.hidden_size)
        for row, sequence in enumerate(running):
            if sequence.fresh is not None:
                fresh = sequence.fresh.to(features)
                features[row, : len(fresh)], features[row, len(fresh) :] = fresh, fresh[-1]
                sequence.fresh = None
        return features, counts

    def _read(self, features_BMF: Tensor, known: list[int], counts: list[int], cache: KVCache) -> None:
        """The last `counts` of the `known` tokens' hidden states into the cache."""
        slots_BM = _slots(known, counts, features_BMF.shape[1], features_BMF.device)
        self.head.read(self.head.combine(features_BMF), slots_BM, cache, slots_BM)

    def _block(self, running: Listed[Sequence], known: list[int], cache: KVCache, num: int) -> tuple[Tensor, Tensor]:
        """The pass: logits of the first `num` places, before any correction, over the head's vocabulary, and the states that they are of."""
        device, head = cache.kv.device, self.head
        tokens = head.blocks(torch.tensor([[sequence.tokens[-1]] for sequence in running], device=device))
        known_B1 = torch.tensor(known, device=device)[:, None]
        slots = known_B1 + torch.arange(head.rows, device=device)
        seen_BS = torch.arange(max(known) + head.rows, device=device) < known_B1 + head.rows
        mask = seen_BS[:, None].expand(-1, head.rows, -1)
        rows = torch.arange(head.first_row, head.first_row + num, device=device).expand(len(running), -1)
        output = self.run(tokens, slots, cache=cache, slots_BT=slots, mask_BTS=mask, logits=rows.contiguous())
        assert output.logits_BTV is not None
        return output.logits_BTV, output.final_BTC[:, head.first_row : head.first_row + num]

    def _most_probable(self, logits_BkV: Tensor, previous_B: Tensor, told: "_Told | None") -> Proposal:
        if not self.head.reads_drafts:
            if told is not None:
                logits_BkV = logits_BkV[:, : told.places(logits_BkV)]
            largest, ids = first_largest(logits_BkV)
            require_finite(largest, self._title)
            return in_line(self.head.target_ids(ids))
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        for place in range(logits_BkV.shape[1]):
            logits = self.head.corrected(logits_BkV[:, place], previous_B)
            more = told is None or told.goes_on(place, logits, previous_B)
            largest, ids = first_largest(logits)
            previous_B = self.head.target_ids(ids)
            tokens.append(previous_B)
            scores.append(largest)
            if not more:
                break
        require_finite(torch.stack(scores, 1), self._title)  # once, since every look waits for the device
        return in_line(torch.stack(tokens, 1))

    def _drawn(
        self, running: Listed[Sequence], logits_BkV: Tensor, previous_B: Tensor, told: "_Told | None"
    ) -> Proposal:
        samplings = [sequence.request.sampling for sequence in running]
        tokens: list[Tensor] = []
        probs: list[Tensor] = []
        for place in range(logits_BkV.shape[1]):
            logits = self.head.corrected(logits_BkV[:, place], previous_B)
            more = told is None or told.goes_on(place, logits, previous_B)
            probs.append(row_probabilities(logits, samplings, self._title))
            uniforms = torch.stack([sequence.uniforms(1) for sequence in running]).to(logits.device)[:, 0]
            previous_B = self.head.target_ids(draw(probs[-1].double(), uniforms))
            tokens.append(previous_B)
            if not more:
                break
        q_BKV = over_target(torch.stack(probs, 1), self.head.draft_ids, self.head.target.shape.vocab_size)
        return in_line(torch.stack(tokens, 1), q_BKV)

    def _extending(self, logits_BkV: Tensor) -> Extend:
        """Below a node stand the tokens of the block's next place, corrected by the node's own token; no pass is run."""
        level = 0

        def extend(tokens: Tensor, source: Tensor, positions: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
            nonlocal level
            level += 1
            place = logits_BkV[:, level : level + 1].expand(-1, tokens.shape[1], -1)
            return self.head.corrected(place, tokens)

        return extend


def _slots(known: list[int], counts: list[int], width: int, device: torch.device | None = None) -> Tensor:
    """Of the last `counts` of so many known tokens, padded on the right by each last one's, [B, width]."""
    known_B1, counts_B1 = torch.tensor([known, counts], device=device)[..., None]
    places_BM = torch.arange(width, device=device).minimum((counts_B1 - 1).clamp(min=0))
    return known_B1 - counts_B1 + places_BM


class _Told(NamedTuple):
    """A step's lengths, and where a block's confidence comes from: its confidence head, which reads a place's state and the token before
    it, or the probabilities that the place's tokens have.
    """

    head: BlockHead
    lengths: StepLengths
    final_BkC: Tensor

    def goes_on(self, place: int, logits_BV: Tensor, previous_B: Tensor) -> bool:
        stated = self.head.acceptance(self.final_BkC[:, place : place + 1], previous_B[:, None])
        return self.lengths.tell(top_confidence(logits_BV) if stated is None else stated[:, 0].float().tolist())

    def places(self, logits_BkV: Tensor) -> int:
        """How many places of a block whose tokens know nothing of one another."""
        places = logits_BkV.unbind(1)
        return next((i for i, each in enumerate(places, 1) if not self.lengths.tell(top_confidence(each))), len(places))
