"""What drafters are asked for and what they give.

Promises: a proposal names for every running sequence the drafted tokens, their tree, and the probabilities q they were drawn
from, or that chance had no part in it (q None). Refuses to know: who drafts, and what becomes of it.

Shapes: B running sequences, W drafted nodes, K positions of a chain, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from foredraft.decode.verify import depths

PAD = -2  # parent of a node that stands for nothing


class Budget(NamedTuple):
    """How much to draft in a step: `lookahead` positions (0: nothing). A head drafts a chain where `topk` is 1, else
    EAGLE-2's tree: `topk` children of each of `topk` nodes a level, and of all those the most probable `nodes`; or the static
    `tree`, (parent, rank) of each node, parents first, which sets its own depth. `lookup`: positions at most of a look-up that
    stands before the draft, where its match stands; None: as many levels as the draft's. `fixed`: no length follows the draft's confidence.
    """

    lookahead: int
    topk: int = 1
    nodes: int | None = None
    tree: tuple[tuple[int, int], ...] = ()
    lookup: int | None = None
    fixed: bool = False

    @property
    def branches(self) -> bool:
        return self.topk > 1 or bool(self.tree)

    @property
    def levels(self) -> int:
        return max(depths([parent for parent, _ in self.tree])) if self.tree else self.lookahead

    @property
    def most(self) -> int:
        """Nodes that a step may verify."""
        drafted = self.lookahead if self.topk == 1 else self.nodes or self.lookahead * self.topk
        return max(len(self.tree) if self.tree else drafted, self.lookup or 0)

    @property
    def extended(self) -> int:
        """Nodes of a tree that get children of their own in a step; 0 of a chain."""
        if self.tree:
            return len({parent for parent, _ in self.tree} - {-1})
        return self.topk * max(self.lookahead - 1, 0) if self.topk > 1 else 0

    @property
    def deepest(self) -> int:
        """Positions that a step may accept, drafted or looked up."""
        return max(self.levels, self.lookup or 0)

    def check(self) -> "Budget":
        """Itself, or ValueError on numbers that ask for nothing sensible."""
        if self.lookahead < 0:
            raise ValueError(f"lookahead must be at least 0, got {self.lookahead}")
        if self.lookup is not None and self.lookup < 1:
            raise ValueError(f"a look-up's lookahead must be at least 1, got {self.lookup}")
        if self.topk < 1 or (self.nodes is not None and self.nodes < 1):
            raise ValueError(f"topk and nodes must be at least 1, got {self.topk} and {self.nodes}")
        for w, (parent, rank) in enumerate(self.tree):
            if not -1 <= parent < w or rank < 0 or (parent, rank) in self.tree[:w]:
                raise ValueError(
                    f"tree node {w}: [{parent}, {rank}] must name an earlier node (-1: the root) and a rank that no sibling has"
                )
        return self


class Proposal(NamedTuple):
    """`tokens` [B, W]; `parents[b][w]`, the index of the parent node, -1 the root, -2 padding; `q` [B, K, V] for chains
    drawn by chance, of the first K nodes of each row but those that are looked up. `chain`: every sequence's nodes stand in a
    line, padded at the end or not at all. `looked_up`: which rows are the text's own continuation [B]; (): none.
    """

    tokens: Tensor
    parents: list[list[int]]
    q: Tensor | None = None
    chain: bool = False
    looked_up: tuple[bool, ...] = ()


def in_line(tokens_BK: Tensor, q_BKV: Tensor | None = None) -> Proposal:
    """Chains of full length."""
    line = list(range(-1, tokens_BK.shape[1] - 1))
    return Proposal(tokens_BK, [line] * len(tokens_BK), q_BKV, chain=True)


def shortened(proposal: Proposal, lengths: Sequence[int]) -> Proposal:
    """Chains cut to so many nodes each."""
    width = max(lengths, default=0)
    parents = [
        [parent if i < num else PAD for i, parent in enumerate(row[:width])]
        for row, num in zip(proposal.parents, lengths, strict=True)
    ]
    q = None if proposal.q is None else proposal.q[:, :width]
    return proposal._replace(tokens=proposal.tokens[:, :width], parents=parents, q=q)
