"""Drafting trees of a model's most probable tokens: EAGLE-2's dynamic tree, and static ones.

Promises: drafts are deterministic (no chance), siblings distinct, parents before their children. Refuses to know: what
kind of model says what is likely.

The dynamic tree (arXiv 2406.16858, section 4): from each of the k nodes of a level the model's k most probable children,
all k² put into a pool; the k of highest cumulative log-probability are extended next; at the end the best `nodes` of
the whole pool are proposed. A static tree names its nodes by their parents and ranks instead.

Shapes: B running sequences, k nodes of a level that are extended, r children of each, P nodes in the pool, U slots of
the nodes extended so far.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foredraft.decode.proposals import Budget, Proposal
from foredraft.decode.verify import depths
from foredraft.models.kernels import TreePlan

# Tokens of k nodes, the place of each one's parent among those extended last, positions, slots, mask: logits [B, k, V].
Extend = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor | None]


class Pool(NamedTuple):
    """All nodes drafted so far: `parents` are indices into the pool, -1 the root; scores are cumulative log-probabilities. Each [B, P]."""

    tokens: Tensor
    parents: Tensor
    scores: Tensor

    def grow(self, *more: Tensor) -> "Pool":
        return Pool(*(torch.cat((old, new.flatten(1)), 1) for old, new in zip(self, more, strict=True)))


class TreePolicy(Protocol):
    """Which nodes a tree extends, and which it proposes. `children`: r of each extended node."""

    children: int

    def extended(self, level: int, scores_BC: Tensor) -> Tensor:
        """Of a level's children, k·r in all, those that get children of their own, [B, k]."""
        ...

    def proposed(self, scores_BP: Tensor) -> Tensor:
        """Of the pool, in rising order, [B, W]."""
        ...


class DynamicTree:
    """EAGLE-2's tree."""

    def __init__(self, budget: Budget) -> None:
        self.children, self.nodes = budget.topk, budget.nodes or budget.lookahead * budget.topk

    def extended(self, level: int, scores_BC: Tensor) -> Tensor:
        return scores_BC.topk(self.children).indices

    def proposed(self, scores_BP: Tensor) -> Tensor:
        """A stable sort keeps a parent before an equal, so that ancestors are always in."""
        num = min(self.nodes, scores_BP.shape[1])
        return scores_BP.sort(dim=1, descending=True, stable=True).indices[:, :num].sort(dim=1).values


class StaticTree:
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


@lru_cache
def plan_of(budget: Budget, words: int, model: str) -> TreePlan:
    """What our kernels draft the budget's tree by. Raises ValueError where a node has more children than the draft has `words`."""
    policy = _policy(budget)
    _require_words(policy.children, words, model)
    if isinstance(policy, StaticTree):
        extended, places = tuple(map(tuple, policy.extend[: budget.levels - 1])), tuple(policy.propose)
        return TreePlan(budget.levels, policy.children, len(places), extended, places)
    pool = policy.children * (1 + policy.children * (budget.levels - 1))
    return TreePlan(budget.levels, policy.children, min(policy.nodes, pool))


def _policy(budget: Budget) -> "StaticTree | DynamicTree":
    return StaticTree(budget.tree) if budget.tree else DynamicTree(budget)


def _require_words(children: int, words: int, model: str) -> None:
    if children > words:
        raise ValueError(
            f"tree: {children} children of a node are more than the {words} tokens that {model} knows; lower TOPK"
        )


def broken(model: str) -> ValueError:
    return ValueError(f"{model}: the logits of a drafted tree are NaN: its weights or its input are broken")


def grow(
    logits_B1V: Tensor | None, base_B1: Tensor, budget: Budget, extend: Extend,
    target_ids: Callable[[Tensor], Tensor] = lambda ids: ids, *, model: str,
) -> Proposal:  # fmt: skip
    """The budget's tree below the place that `logits_B1V` are of; its nodes' slots begin at `base_B1`.

    Raises ValueError, which names `model`, where a score is NaN.
    """
    policy: TreePolicy = _policy(budget)
    batch, device, r, logits = len(base_B1), base_B1.device, policy.children, logits_B1V
    ids, scores = torch.empty(batch, 0, dtype=torch.long, device=device), torch.empty(batch, 0, device=device)
    pool, used, longest = Pool(ids, ids, scores), 0, int(base_B1.max())
    above_Bk, score_Bk = torch.full((batch, 1), -1, device=device), torch.zeros(batch, 1, device=device)
    sees_BkU = torch.zeros(batch, 1, 0, dtype=torch.bool, device=device)
    for level in range(1, budget.levels + 1):
        assert logits is not None
        _require_words(r, logits.shape[-1], model)
        scores, ids = logits.float().log_softmax(-1).topk(r)
        scores, tokens = (scores + score_Bk[..., None]).flatten(1), target_ids(ids).flatten(1)
        first = pool.tokens.shape[1]
        pool = pool.grow(tokens, above_Bk[..., None].expand(ids.shape), scores)
        if level == budget.levels:
            break
        chosen = policy.extended(level, scores)
        above_Bk, score_Bk, source = first + chosen, scores.gather(1, chosen), chosen // r
        itself = torch.eye(chosen.shape[1], dtype=torch.bool, device=device).expand(batch, -1, -1)
        sees_BkU = torch.cat((rows(sees_BkU, source), itself), -1)
        slots = base_B1 + used + torch.arange(chosen.shape[1], device=device)
        used += chosen.shape[1]
        positions = (base_B1 + level - 1).expand(slots.shape)
        logits = extend(tokens.gather(1, chosen), source, positions, slots, _mask(sees_BkU, base_B1, longest + used))
    if pool.scores.isnan().any():
        raise broken(model)
    proposed = policy.proposed(pool.scores).contiguous()
    parents = pool.parents.gather(1, proposed)
    parents = torch.where(parents < 0, -1, torch.searchsorted(proposed, parents.clamp(min=0)))
    return Proposal(pool.tokens.gather(1, proposed), parents.tolist())


def _mask(sees_BkU: Tensor, base_B1: Tensor, width: int) -> Tensor:
    """Everything before the drafted slots, and of those what `sees` says, [B, k, S] of `width` slots."""
    mask = (torch.arange(width, device=base_B1.device) < base_B1)[:, None].repeat(1, sees_BkU.shape[1], 1)
    slots = base_B1 + torch.arange(sees_BkU.shape[-1], device=base_B1.device)
    return mask.scatter(2, slots[:, None].expand(sees_BkU.shape), sees_BkU)


def rows(x_BkC: Tensor, source_Bk: Tensor) -> Tensor:
    """Row `source[b, i]` of each sequence."""
    return x_BkC.gather(1, source_Bk[..., None].expand(-1, -1, x_BkC.shape[-1]))
