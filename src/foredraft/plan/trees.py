"""What a tree gains over a chain: how far a draft's further choices cover what its first misses.

P(the target's token is beyond the draft's r-th choice) falls as r^-tail for a draft of usual acceptance, and by less for a lesser one
(`laws.speedup.rank_acceptance`). Promises: where own trees were measured beside
chains of the same draft, the tail is theirs. Refuses to know: drafts, costs.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy  # whose `optimize` loads where it is first used: it takes a fifth of a second
from numpy.typing import NDArray

from foredraft.kinds import USUAL_HEAD
from foredraft.laws.speedup import BestTree, best_tree, node_depths, rank_acceptance

Array = NDArray[np.float64]
RANGE = (0.02, 8.0)  # tails looked for: next to nothing covered, next to all
LEAST_SD = 0.05  # of its logarithm, however well a few trees agree


class Tail(NamedTuple):
    """Its middle, the sd of its logarithm, and what it was read off."""

    middle: float
    sd: float
    source: str


# EAGLE-3 on Llama-3.1-8B, trees of 59 nodes (paper) against chains of 7 (SpecForge), asks for 1.8 on MT-bench and 2.7 on
# HumanEval; its trees adapt to the context, which a static one does not. The sd: the two differ by this and more.
PUBLISHED = Tail(1.8, 0.3, f"{USUAL_HEAD.label}'s trees on Llama-3.1-8B")


class Tree(NamedTuple):
    """A measured tree: its dials and τ."""

    depth: int
    topk: int
    nodes: int
    tokens_per_step: float


def grown(accept: Array, topk: int, tail: float, sizes: Sequence[int]) -> list[float]:
    """τ of the best static trees of `sizes` nodes, as deep as `accept` [K], accept_given_prefix."""
    curve = static(accept, topk, tail, max(sizes)).tokens_per_step
    return [float(curve[min(w, len(curve) - 1)]) for w in sizes]


def static(accept: Array, topk: int, tail: float, nodes: int) -> BestTree:
    """The best static tree of at most `nodes` nodes, as deep as `accept` [K], accept_given_prefix; of its first w nodes the best of w."""
    return best_tree(rank_acceptance(accept, topk, tail), nodes, max_depth=len(accept), topk=topk)


def tokens_per_step_in(trees: Sequence[BestTree], accept: Array, tails: Array) -> list[Array]:
    """τ of each tree's first w nodes, w = 0 …, under every draw [w, S] of accept_given_prefix [S, K] and tail [S]: the acceptance of nodes
    adds up, each that of its parent times its rank's share.
    """
    starts = np.cumsum([0, *(len(tree.parents) for tree in trees)])
    parents = np.concatenate([tree.parents + start for tree, start in zip(trees, starts, strict=False)])
    ranks, depths = (
        np.concatenate([tree.ranks for tree in trees]),
        np.concatenate([node_depths(tree.parents) for tree in trees]),
    )
    reach = np.empty((len(depths), len(tails)))
    for depth in range(depths.max() + 1):
        level = np.flatnonzero(depths == depth)
        shares = rank_acceptance(accept[:, depth], int(ranks[level].max()) + 1, tails).T[ranks[level]]
        reach[level] = shares * reach[parents[level]] if depth else shares
    none = np.ones((1, len(tails)))
    return [np.cumsum(np.concatenate([none, reach[start:stop]]), axis=0) for start, stop in pairwise(starts)]


def fitted(measured: Mapping[str, tuple[Array, Sequence[Tree]]], source: str) -> Tail | None:
    """The tail under which static trees gain what the measured ones of each draft gained, given its acceptance in chains
    [K]; None where no tree was measured that is no deeper than those.
    """
    tails = [
        _tail(accept[: tree.depth], tree)
        for accept, trees in measured.values()
        for tree in trees
        if tree.depth <= len(accept)
    ]
    if not tails:
        return None
    logs = np.log(tails)
    return Tail(float(np.exp(logs.mean())), max(float(logs.std()), LEAST_SD), source)


def _tail(accept: Array, tree: Tree) -> float:
    """The tail that gives the tree's τ; the end of the range where none does."""

    def gap(log_tail: float) -> float:
        return grown(accept, tree.topk, float(np.exp(log_tail)), [tree.nodes])[0] - tree.tokens_per_step

    low, high = np.log(RANGE)
    if gap(low) >= 0:
        return RANGE[0]
    if gap(high) <= 0:
        return RANGE[1]
    return float(np.exp(scipy.optimize.brentq(gap, low, high, xtol=1e-3)))  # pyright: ignore[reportCallIssue, reportArgumentType]
