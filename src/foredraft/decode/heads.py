"""Drafting with a head on the target's features: EAGLE-1/2, EAGLE-3 and Scylla; chains, EAGLE-2's dynamic tree, static trees.

Promises: proposals are determined (the likeliest tokens, no chance), so they are verified by draws from p alone.
Refuses to know: how a head computes.

The dynamic tree (arXiv 2406.16858, section 4): from each of the k nodes of a level the head's k likeliest children,
all k² kept in a pool; the k of highest cumulative log-probability are extended next; at the end the best `nodes` of
the whole pool are proposed. A static tree names its nodes by their parents and ranks instead.

Shapes: B running sequences, M pairs not read yet, k nodes of a level that are extended, r children of each, P nodes in
the pool, U slots of the nodes extended so far, C the head's width.
"""

from collections.abc import Sequence as Listed
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foredraft.decode.batch import Sequence
from foredraft.decode.drafters import PAD, Budget, Proposal, in_line
from foredraft.decode.sampling import likeliest
from foredraft.decode.verify import depths
from foredraft.models.cache import Cache
from foredraft.models.graphs import Graphed
from foredraft.models.heads import DraftHead
from foredraft.models.placing import Output, causal_mask


class Pool(NamedTuple):
    """All nodes drafted so far: `parents` are indices into the pool, -1 the root; scores are cumulative
    log-probabilities. Each [B, P].
    """

    tokens: Tensor
    parents: Tensor
    scores: Tensor

    def grow(self, *more: Tensor) -> "Pool":
        return Pool(*(torch.cat((had, new.flatten(1)), 1) for had, new in zip(self, more, strict=True)))


class Choice(Protocol):
    """Which nodes a tree extends, and which it proposes. `children`: r of each extended node."""

    children: int

    def extended(self, level: int, scores_BC: Tensor) -> Tensor:
        """Of a level's children, k·r in all, those that get children of their own, [B, k]."""
        ...

    def proposed(self, scores_BP: Tensor) -> Tensor:
        """Of the pool, in rising order, [B, W]."""
        ...


class Likeliest:
    """EAGLE-2's choice."""

    def __init__(self, budget: Budget) -> None:
        self.children, self.nodes = budget.topk, budget.nodes or budget.lookahead * budget.topk

    def extended(self, level: int, scores_BC: Tensor) -> Tensor:
        return scores_BC.topk(self.children).indices

    def proposed(self, scores_BP: Tensor) -> Tensor:
        """A stable sort keeps a parent before an equal, so that ancestors are always in."""
        num = min(self.nodes, scores_BP.shape[1])
        return scores_BP.sort(dim=1, descending=True, stable=True).indices[:, :num].sort(dim=1).values


class Fixed:
    """A tree that is the same in every step: (parent, rank) of each node, parents first."""

    def __init__(self, tree: tuple[tuple[int, int], ...]) -> None:
        levels = depths([parent for parent, _ in tree])[1:]
        above = {parent for parent, _ in tree}
        self.children = 1 + max(rank for _, rank in tree)
        place, start = {-1: 0}, 0  # of an extended node among those of its level
        self.extend: list[list[int]] = []
        self.propose: list[int] = []
        for level in range(1, max(levels) + 1):
            nodes = [w for w in range(len(tree)) if levels[w] == level]
            at = {w: place[tree[w][0]] * self.children + tree[w][1] for w in nodes}
            more = sorted((w for w in nodes if w in above), key=at.__getitem__)
            self.propose += sorted(start + at[w] for w in nodes)
            start += self.children * len(place)
            place = {w: i for i, w in enumerate(more)}
            self.extend.append([at[w] for w in more])

    def extended(self, level: int, scores_BC: Tensor) -> Tensor:
        return torch.tensor(self.extend[level - 1], device=scores_BC.device).expand(len(scores_BC), -1)

    def proposed(self, scores_BP: Tensor) -> Tensor:
        return torch.tensor(self.propose, device=scores_BP.device).expand(len(scores_BP), -1)


class Head:
    """A draft head with its cache: a chain, or the tree that the budget asks for."""

    trees = True

    def __init__(self, head: DraftHead, cache: Cache) -> None:
        self.head, self.run, self.cache = head, Graphed(head), cache
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

    def propose(self, running: Listed[Sequence], budget: Budget) -> Proposal:
        """Read the pairs that came since, then draft; a sequence without features yet proposes nothing."""
        cache, silent = self.cache.rows(0, len(running)), [sequence.fresh is None for sequence in running]
        output, hidden_B1C, base_B1 = self._read(running, cache)
        for sequence in running:
            sequence.fresh = None
        if budget.topk == 1 and not budget.tree:
            proposal = self._chain(output, hidden_B1C, base_B1, cache, budget.lookahead)
        else:
            choice = Fixed(budget.tree) if budget.tree else Likeliest(budget)
            depth = max(depths([parent for parent, _ in budget.tree])) if budget.tree else budget.lookahead
            proposal = self._tree(output, hidden_B1C, base_B1, cache, choice, depth)
        none = [PAD] * proposal.tokens.shape[1]
        parents = [none if quiet else row for quiet, row in zip(silent, proposal.parents, strict=True)]
        return proposal._replace(parents=parents)

    def _read(self, running: Listed[Sequence], cache: Cache) -> tuple[Output, Tensor, Tensor]:
        """The head's output at the last pair, the hidden state it leaves [B, 1, C], and the next slot [B, 1]."""
        device, counts = cache.kv.device, [1 if s.fresh is None else len(s.fresh) for s in running]
        width, size = max(counts), len(self.reads) * self.head.target.shape.hidden_size
        none = torch.zeros(1, size, device=device, dtype=self.head.target.dtype)
        features = [none if s.fresh is None else s.fresh for s in running]
        padded = torch.stack([torch.cat((f, f[-1:].expand(width - len(f), -1))) for f in features])
        tokens = [s.tokens[-n:] + s.tokens[-1:] * (width - n) for s, n in zip(running, counts, strict=True)]
        base = [max(s.cached, 1) for s in running]
        base_B1, last_B1 = torch.tensor([base, [n - 1 for n in counts]], device=device)[..., None]
        positions_BM = base_B1 - 1 - last_B1 + torch.arange(width, device=device).minimum(last_B1)
        mask = causal_mask(positions_BM, max(base))
        ids = torch.tensor(tokens, device=device)
        hidden = self.head.combine(padded)
        output = self.run(ids, hidden, positions_BM, cache=cache, slots_BT=positions_BM, mask_BTS=mask, logits=last_B1)
        hidden_B1C = output.pre_norm_BTC.gather(1, last_B1[..., None].expand(-1, -1, output.pre_norm_BTC.shape[-1]))
        return output, hidden_B1C, base_B1

    def _chain(self, output: Output, hidden_B1C: Tensor, base_B1: Tensor, cache: Cache, lookahead: int) -> Proposal:
        tokens: list[Tensor] = []
        width = int(base_B1.max()) + lookahead - 1
        for depth in range(lookahead):
            assert output.logits_BTV is not None
            tokens.append(self.head.target_ids(likeliest(output.logits_BTV)))
            if depth + 1 < lookahead:
                positions = base_B1 + depth
                mask = causal_mask(positions, width)
                output = self.run(tokens[-1], hidden_B1C, positions, cache=cache, slots_BT=positions, mask_BTS=mask)
                hidden_B1C = output.pre_norm_BTC
        return in_line(torch.cat(tokens, 1))

    def _tree(
        self, output: Output, hidden_BkC: Tensor, base_B1: Tensor, cache: Cache, choice: Choice, depth: int
    ) -> Proposal:
        batch, device, r = len(base_B1), base_B1.device, choice.children
        ids, scores = torch.empty(batch, 0, dtype=torch.long, device=device), torch.empty(batch, 0, device=device)
        pool, used = Pool(ids, ids, scores), 0
        above_Bk, score_Bk = torch.full((batch, 1), -1, device=device), torch.zeros(batch, 1, device=device)
        sees_BkU = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
        for level in range(1, depth + 1):
            assert output.logits_BTV is not None
            scores, ids = output.logits_BTV.float().log_softmax(-1).topk(r)
            scores, tokens = (scores + score_Bk[..., None]).flatten(1), self.head.target_ids(ids).flatten(1)
            first = pool.tokens.shape[1]
            pool = pool.grow(tokens, above_Bk[..., None].expand(ids.shape), scores)
            if level == depth:
                break
            chosen = choice.extended(level, scores)
            above_Bk, score_Bk, source = first + chosen, scores.gather(1, chosen), chosen // r
            hidden_BkC = _rows(output.pre_norm_BTC if level > 1 else hidden_BkC, source)
            own = torch.eye(chosen.shape[1], dtype=torch.bool, device=device).expand(batch, -1, -1)
            sees_BkU = torch.cat((_rows(sees_BkU, source), own), -1)
            slots = base_B1 + used + torch.arange(chosen.shape[1], device=device)
            used += chosen.shape[1]
            positions = (base_B1 + level - 1).expand(slots.shape)
            mask = self._mask(sees_BkU, base_B1, used)
            more = tokens.gather(1, chosen)
            output = self.run(more, hidden_BkC, positions, cache=cache, slots_BT=slots, mask_BTS=mask)
        kept = choice.proposed(pool.scores)
        parents = pool.parents.gather(1, kept)
        parents = torch.where(parents < 0, -1, torch.searchsorted(kept.contiguous(), parents.clamp(min=0)))
        return Proposal(pool.tokens.gather(1, kept), parents.tolist())

    def _mask(self, sees_BkU: Tensor, base_B1: Tensor, used: int) -> Tensor:
        """Everything before the drafted slots, and of those what `sees` says, [B, k, S]."""
        width = int(base_B1.max()) + used
        mask = (torch.arange(width, device=base_B1.device) < base_B1)[:, None].repeat(1, sees_BkU.shape[1], 1)
        slots = base_B1 + torch.arange(used, device=base_B1.device)
        return mask.scatter(2, slots[:, None].expand(sees_BkU.shape), sees_BkU)


def _rows(x_BkC: Tensor, source_Bk: Tensor) -> Tensor:
    """Row `source[b, i]` of each sequence."""
    return x_BkC.gather(1, source_Bk[..., None].expand(-1, -1, x_BkC.shape[-1]))
