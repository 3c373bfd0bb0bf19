"""The one rule that keeps speculation lossless, with its proof. A drafter cannot break it; only an edit of this file
can.

Promises: whatever was drafted, the tokens that come out follow the target's probabilities p. Refuses to know: models, caches,
how p and q were made, and where its uniforms come from: all are arguments, so the output distribution is checked by exact enumeration
(tests/light/test_verify.py).

**Deterministic drafts** (n-gram, greedy chains, top-k trees: what is drafted does not depend on chance). At a node,
draw t from p; if a child of the node carries t, the child is accepted and the walk goes on there; else t itself is
emitted and the step ends. Proof: every emitted token was drawn from p given what stands before it, and the drafted
tree only decides how many such draws one target pass pays for. This equals, in distribution, EAGLE's rule of trying siblings
in turn with probability p(x), setting p(x) to 0 and renormalising after each refusal (SpecInfer, arXiv 2305.09781):
both accept child x with probability p(x) and otherwise emit from p restricted to the tokens that no child carries. At
temperature 0, p is one-hot and the rule is "accept while the draft says what the target would".

**Sampled chains** (x_i drawn from q_i). Accept x_i with probability min(1, p_i(x_i)/q_i(x_i)); at the first refusal
emit from max(p_i - q_i, 0), renormalised; after no refusal, from p_{k+1}. Proof for one position: P(emit x) =
q(x)·min(1, p(x)/q(x)) + P(refuse)·(p(x) - min(p(x), q(x))) / Σ(p - min(p, q)) = min(p, q)(x) + (p - min(p, q))(x) =
p(x), since P(refuse) = 1 - Σ min(p, q) = Σ(p - min(p, q)) (Leviathan et al., arXiv 2211.17192, appendix A.1).

**Chains of several lengths in one batch.** A chain that ends after L tokens is a chain of length L, and the proof holds for it as it stands, provided
that whether x_i is in the chain was decided without x_i: else x_i, given that it is in, would not be distributed as q_i. `lengths` keeps that.

**Both in one batch** (a sampled chain beside look-ups). Rows are independent given their own prefixes, so each is verified by its own
rule. A look-up could as well be called a chain drawn from a one-hot q, by the same proof: q_i(x_i) = 1, so x_i is accepted with
probability min(1, p_i(x_i)) = p_i(x_i), and after a refusal max(p_i - q_i, 0) is p_i without x_i, renormalised. That is "draw t from
p_i, accept if t = x_i" cut in two draws: t = x_i has probability p_i(x_i), and given that it is not, t is distributed as the
remainder. One rule by row needs no q of a look-up and no padding of chains of two lengths.

Works on numpy arrays (of floats, or of Fractions for the enumeration) and on torch tensors alike; what comes out are
plain lists, since what follows is book-keeping.

Shapes: B sequences, W drafted nodes (root excluded), N = W + 1 nodes with the root, K chain positions, V vocabulary,
D levels of the deepest tree and one more.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

DRAWN_VALUES = 2**23  # probabilities drawn from at once: a launch for many rows, within some hundred megabytes


class Verdict(NamedTuple):
    """For each sequence the accepted drafted nodes in order (`path`, indices w) and the token emitted after them (`bonus`)."""

    path: list[list[int]]
    bonus: list[int]


def verify_greedy(best_BN: Any, tokens_BW: Any, parents: Sequence[Sequence[int]]) -> Verdict:
    """`verify_tree` at temperature 0, where p is one-hot at `best_BN` and whatever is drawn from it is that token."""
    return _walk(_among(best_BN), tokens_BW, parents)


def verify_tree(p_BNV: Any, tokens_BW: Any, parents: Sequence[Sequence[int]], uniforms_BD: Any) -> Verdict:
    """Walk the drafted tree by draws from p, whose row 0 is the root's.

    `parents[b][w]` is the index w' < w of the parent node, -1 for the root, and -2 for padding, which nothing accepts.
    Siblings carry distinct tokens. `uniforms_BD` needs one column more than the tree is deep: one for each level, and
    a walk visits one node of a level.
    """
    uniforms_BN = _by_level(uniforms_BD, np.array([depths(row) for row in parents]))
    batch, nodes, vocabulary = p_BNV.shape
    size, drawn = max(1, DRAWN_VALUES // (nodes * vocabulary)), []
    for start in range(0, batch, size):
        p, uniforms = p_BNV[start : start + size], uniforms_BN[start : start + size]
        drawn += draw(p.reshape(-1, vocabulary), uniforms.reshape(-1)).reshape(-1, nodes).tolist()
    return _checked(_walk(_among(drawn), tokens_BW, parents))


def depths(parents: Sequence[int]) -> list[int]:
    """How far below the root each node stands, the root first; padding counts as the root."""
    levels = [0]
    for parent in parents:
        levels.append(levels[parent + 1] + 1 if parent > -2 else 0)
    return levels


def verify_by_level(
    p_of: Callable[[list[int], list[int]], Any],
    tokens_BW: Any,
    parents: Sequence[Sequence[int]],
    uniforms_BD: Any,
) -> Verdict:
    """`verify_tree` of p that is asked for where the walk comes to, a level at a time: `p_of(rows, nodes)` is p at a node of each of these rows
    [R, V], the root being 0. For where a look at what was drawn costs nothing, and p does.
    """

    def drawn(rows: list[int], nodes: list[int], level: int) -> list[int]:
        return draw(p_of(rows, nodes), uniforms_BD[rows, level]).tolist()

    return _checked(_walk(drawn, tokens_BW, parents))


def _walk(
    drawn: Callable[[list[int], list[int], int], list[int]], tokens_BW: Any, parents: Sequence[Sequence[int]]
) -> Verdict:
    """From the root to a child that carries the token drawn at its parent, until there is none. `drawn` says what is at a node of each of these
    rows, all of one level.
    """
    children = [
        {(parent, token): w for w, (parent, token) in enumerate(zip(above, tokens, strict=True)) if parent > -2}
        for tokens, above in zip(_listed(tokens_BW), parents, strict=True)
    ]
    verdict = Verdict([[] for _ in parents], [-1] * len(parents))
    walking, level = list(range(len(parents))), 0
    while walking:
        nodes = [verdict.path[row][-1] if verdict.path[row] else -1 for row in walking]
        found, going = drawn(walking, [node + 1 for node in nodes], level), []
        for row, node, token in zip(walking, nodes, found, strict=True):
            child = children[row].get((node, token))
            if child is None:
                verdict.bonus[row] = token
            else:
                verdict.path[row].append(child)
                going.append(row)
        walking, level = going, level + 1
    return verdict


def _among(drawn_BN: Any) -> Callable[[list[int], list[int], int], list[int]]:
    """What was drawn at every node beforehand."""
    drawn = _listed(drawn_BN)
    return lambda rows, nodes, level: [drawn[row][node] for row, node in zip(rows, nodes, strict=True)]


def verify_chain(p_BNV: Any, q_BKV: Any, tokens_BK: Any, uniforms_BD: Any) -> Verdict:
    """The rule for chains sampled from q; N = K + 1, and `uniforms_BD` has K + 1 columns: one per test, the last for the emitted token."""
    xp = _library(p_BNV)
    batch, length = tokens_BK.shape
    rows = _arange(xp, batch, p_BNV)
    alive, accepted = rows >= 0, rows * 0
    for i in range(length):
        p_x, q_x = p_BNV[rows, i, tokens_BK[:, i]], q_BKV[rows, i, tokens_BK[:, i]]
        alive = alive & (uniforms_BD[:, i] * q_x < p_x)
        accepted = accepted + xp.where(alive, rows * 0 + 1, rows * 0)
    q_padded = q_BKV[rows, _least(xp, accepted, length - 1)] if length else p_BNV[rows, accepted] * 0
    refused = (accepted < length)[:, None]
    remainder = residual(p_BNV[rows, accepted], xp.where(refused, q_padded, q_padded * 0))
    bonus = draw(remainder, uniforms_BD[:, length])
    return _checked(Verdict([list(range(num)) for num in accepted.tolist()], bonus.tolist()))


def verify_rows(
    p_BNV: Any, q_BKV: Any, tokens_BW: Any, parents: Sequence[Sequence[int]], sampled: Sequence[bool], uniforms_BD: Any
) -> Verdict:
    """Each row by its own rule: `sampled` rows, whose nodes are a chain drawn from q, by `verify_chain` with those of as many nodes; others by
    `verify_tree`.
    """
    verdict = Verdict([[]] * len(parents), [0] * len(parents))
    counts = [
        sum(parent > -2 for parent in above) if drawn else -1 for above, drawn in zip(parents, sampled, strict=True)
    ]
    for num in sorted(set(counts)):
        rows = [row for row, count in enumerate(counts) if count == num]
        p, tokens, uniforms = p_BNV[rows], tokens_BW[rows], uniforms_BD[rows]
        if num < 0:
            part = verify_tree(p, tokens, [parents[row] for row in rows], uniforms)
        else:
            part = verify_chain(p[:, : num + 1], q_BKV[rows, :num], tokens[:, :num], uniforms[:, : num + 1])
        for row, path, bonus in zip(rows, part.path, part.bonus, strict=True):
            verdict.path[row], verdict.bonus[row] = path, bonus
    return verdict


def residual(p_BV: Any, q_BV: Any) -> Any:
    """max(p - q, 0), renormalised; p itself where nothing is left (p = q to rounding: a refusal of probability 0)."""
    xp = _library(p_BV)
    excess = xp.where(p_BV > q_BV, p_BV - q_BV, p_BV * 0)
    total = excess.sum(-1)[:, None]
    return xp.where(total > 0, excess / xp.where(total > 0, total, total * 0 + 1), p_BV)


def draw(p_BV: Any, uniforms_B: Any) -> Any:
    """Tokens by inverse CDF: the first v with u < p(0) + … + p(v), u in [0, 1); never a token of probability 0.

    Rounding may leave the sum below u: the last token of positive probability is drawn then. Where none is positive, as among
    NaN, −1, which no walk accepts and `_checked` refuses. A CPU adds in order, so that sums never fall, and stand still where nothing
    is added.
    """
    xp = _library(p_BV)
    if xp is not np and p_BV.device.type != "cpu":
        return first_reached(p_BV, uniforms_B)
    tokens = [
        min(sums.searchsorted(uniform, "right"), sums.searchsorted(sums[-1])) if sums[-1] > 0 else -1
        for sums, uniform in zip(np.asarray(p_BV.cumsum(-1)), uniforms_B.tolist(), strict=True)
    ]
    return xp.asarray(np.array(tokens, dtype=int))


def first_reached(p_BV: Any, uniforms_B: Any) -> Any:
    """`draw` of tensors whose sums are made in any order, as a GPU makes them: they may fall by a rounding, and rise where nothing is added."""
    reached, positive = (p_BV.cumsum(-1) > uniforms_B[:, None]) & (p_BV > 0), p_BV > 0
    last = p_BV.shape[-1] - 1 - positive.flip(-1).int().argmax(-1)
    last = last.where(positive.any(-1), last * 0 - 1)
    return reached.int().argmax(-1).where(reached.any(-1), last)


def _checked(verdict: Verdict) -> Verdict:
    """The verdict, unless there was nothing to draw from."""
    if min(verdict.bonus, default=0) < 0:
        row = next(row for row, token in enumerate(verdict.bonus) if token < 0)
        raise ValueError(f"the target's probabilities of row {row} are NaN or sum to nothing")
    return verdict


# The few names on which numpy and torch differ.


def _library(array: Any) -> Any:
    return np if isinstance(array, np.ndarray) else sys.modules["torch"]


def _arange(xp: Any, num: int, like: Any) -> Any:
    return np.arange(num) if xp is np else xp.arange(num, device=like.device)


def _by_level(uniforms_BD: Any, levels_BN: np.ndarray) -> Any:
    """Each node's uniform: that of its level."""
    if isinstance(uniforms_BD, np.ndarray):
        return np.take_along_axis(uniforms_BD, levels_BN, 1)
    return uniforms_BD.gather(1, sys.modules["torch"].from_numpy(levels_BN).to(uniforms_BD.device))


def _least(xp: Any, array: Any, most: int) -> Any:
    return np.minimum(array, most) if xp is np else array.clamp(max=most)


def _listed(rows: Any) -> list[list[int]]:
    return rows.tolist() if hasattr(rows, "tolist") else rows
