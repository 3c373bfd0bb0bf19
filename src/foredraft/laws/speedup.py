"""Exact combinatorics of speculative decoding: from acceptance to tokens per step, and from tokens per step to speed; and the
way from one definition of acceptance to another.

Promises: every formula is exact under its stated assumption and broadcasts over numpy arrays; survival and τ of a chain also
take `fractions.Fraction` and then answer in fractions. Refuses to know: where acceptance comes from, how long a step takes.

Chains: `accept_given_prefix[i]` is P(draft token i accepted | all before it accepted), on the last axis.
Trees: `parents[i]` is the index of node i's parent, -1 for the root, which is excluded; parents come before children.
Siblings are different tokens in one place, so at most one of them is the target's: their probabilities add to ≤ 1.
Depth and rank count from 0: row 0 of `accept_by_depth_rank` is the first draft token, column 0 the first choice.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # whose `optimize` loads where it is first used: it takes a fifth of a second
from numpy.typing import ArrayLike

Numeric = Any  # a float, or an array in the shape that the inputs broadcast to
ROUNDING = 1e-9  # slack for sums of probabilities that went through floats
TAIL_ACCEPT = (
    0.765  # α of EAGLE-3's chains on Llama-3.1-8B (τ 3.91 at 7 tokens), of whose trees the published tail was read
)


def _within(name: str, values: ArrayLike, low: float, high: float, remedy: str) -> np.ndarray:
    """`values` as an array (fractions stay fractions) with every item in [low, high]; NaN is outside."""
    array = np.asarray(values)
    array = array if array.dtype == object else array.astype(float)
    inside = (array >= low) & (array <= high)
    if not np.all(inside):
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {array[~inside.astype(bool)].flat[0]}: {remedy}")
    return array


def _probability(name: str, values: ArrayLike, remedy: str = "give a probability, not a percentage") -> np.ndarray:
    return _within(name, values, 0, 1, remedy)


def _not_negative(name: str, values: ArrayLike) -> np.ndarray:
    return _within(name, values, 0, math.inf, "give a count or ratio of 0 or more")


def _positive(name: str, values: ArrayLike) -> np.ndarray:
    array = _not_negative(name, values)
    if np.any(array == 0):
        raise ValueError(f"{name} must be positive, got 0: give a count or ratio above 0")
    return array


# Chains


def tokens_per_step_constant(accept_prob: ArrayLike, lookahead: ArrayLike) -> Numeric:
    """τ = (1 − α^{γ+1})/(1 − α), tokens per target step at a constant α (arXiv 2211.17192 eq. 1); γ may be real."""
    alpha, gamma = _probability("accept_prob", accept_prob).astype(float), _not_negative("lookahead", lookahead)
    with np.errstate(divide="ignore", invalid="ignore"):
        tokens = -np.expm1((gamma + 1) * np.log(alpha)) / (1 - alpha)
    return np.where(alpha == 1, gamma + 1, tokens)[()]


# Trees


def node_depths(parents: Sequence[int] | np.ndarray) -> np.ndarray:
    """Depth of each node; the root's children have depth 0."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return np.array(depths, dtype=int)


def _checked_table(accept_by_depth_rank: ArrayLike) -> np.ndarray:
    table = _probability("accept_by_depth_rank", accept_by_depth_rank)
    if table.ndim != 2:
        raise ValueError(f"accept_by_depth_rank must be a table [depth][rank], got {table.ndim} axes")
    if np.any(table.sum(axis=1) > 1 + ROUNDING):
        raise ValueError("accept_by_depth_rank has a row that adds to more than 1: ranks exclude each other")
    return table


@dataclass(frozen=True)
class BestTree:
    """The best static trees of every size, nested: the first w nodes are the best tree of w nodes.

    `parents`, `ranks`, `reach` have one item per node (reach: P(node accepted)); `tokens_per_step[w]` is τ with at most
    w nodes, w = 0..tree_nodes. Nodes that can never be accepted are left out, so there may be fewer than were allowed.
    """

    parents: np.ndarray
    ranks: np.ndarray
    reach: np.ndarray
    tokens_per_step: np.ndarray


def best_tree(
    accept_by_depth_rank: ArrayLike, tree_nodes: int, max_depth: int | None = None, topk: int | None = None
) -> BestTree:
    """The static tree of at most `tree_nodes` nodes with the most expected tokens, and τ(w) for all smaller sizes.

    Taking the most probable path next is exact, because a child is never more probable than its parent. Limits:
    `max_depth` draft tokens deep, `topk` children per node; without them the table's own shape.
    """
    table = _checked_table(accept_by_depth_rank)[:max_depth].astype(float)
    if not tree_nodes >= 0:
        raise ValueError(f"tree_nodes must not be negative, got {tree_nodes}")
    order = np.argsort(-table, axis=1, kind="stable")[:, :topk]  # a measured table need not fall with rank
    parents, ranks, reach = _grow(np.take_along_axis(table, order, axis=1), tree_nodes)
    tokens = np.full(tree_nodes + 1, 1 + sum(reach))
    tokens[: len(reach) + 1] = 1 + np.concatenate([[0.0], np.cumsum(reach)])
    ranks_given = order[node_depths(parents), ranks] if parents else np.array([], dtype=int)
    return BestTree(np.array(parents, dtype=int), ranks_given, np.array(reach), tokens)


def _grow(table: np.ndarray, tree_nodes: int) -> tuple[list[int], list[int], list[float]]:
    """Best-first growth over rows that fall with rank: a node taken offers its first child and its next sibling."""
    parents: list[int] = []
    ranks: list[int] = []
    reach: list[float] = []
    heap: list[tuple[float, int, int, int, float]] = []  # -P(node), depth, rank, parent, P(parent): shallow ties first

    def offer(depth: int, rank: int, parent: int, above: float) -> None:
        if depth < table.shape[0] and rank < table.shape[1] and above * table[depth, rank] > 0:
            heapq.heappush(heap, (-above * table[depth, rank], depth, rank, parent, above))

    offer(0, 0, -1, 1.0)
    while heap and len(parents) < tree_nodes:
        negative, depth, rank, parent, above = heapq.heappop(heap)
        parents.append(parent)
        ranks.append(rank)
        reach.append(-float(negative))
        offer(depth, rank + 1, parent, above)
        offer(depth + 1, 0, len(parents) - 1, reach[-1])
    return parents, ranks, reach


def rank_acceptance(accept_prob: ArrayLike, topk: int, tail: ArrayLike) -> np.ndarray:
    """P(the target's token is the draft's r-th choice), r = 1..topk on a new last axis.

    Further choices are further tries, each worth less than the one before: P(beyond the first r) = (1 − α)^(1 + c·ln r), with c such that at
    α = `TAIL_ACCEPT` what the first choice misses falls as r^(−tail). A law, not a theorem. Given α by depth it is the table `accept_by_depth_rank`.
    """
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    alpha, power = _probability("accept_prob", accept_prob), _not_negative("tail", tail)
    tries = 1 + power[..., None] * np.log(np.arange(1.0, topk + 1)) / -math.log(1 - TAIL_ACCEPT)
    missed = (1 - alpha)[..., None] ** tries
    first = np.broadcast_to(alpha[..., None], (*missed.shape[:-1], 1))
    return np.concatenate([first, -np.diff(missed, axis=-1)], axis=-1)


# Definitions of acceptance, of chains: a rate is accepted over drafted tokens, joint acceptance is survival (vLLM's rates by
# position), conditional acceptance is given that all before were accepted.


def survival(accept_given_prefix: ArrayLike) -> Numeric:
    """S_i = Π_{j≤i} α_j, P(at least i draft tokens accepted), i = 1..γ on the last axis."""
    return np.cumprod(_probability("accept_given_prefix", accept_given_prefix), axis=-1)


def accept_given_prefix_from_survival(joint: ArrayLike) -> Numeric:
    """α_i = S_i / S_{i−1}; NaN where S_{i−1} is 0, for nothing was seen there."""
    joint = _checked_survival(joint).astype(float)
    before = np.concatenate([np.ones_like(joint[..., :1]), joint[..., :-1]], axis=-1)
    return np.divide(joint, before, out=np.full(joint.shape, np.nan), where=before > 0)


def tokens_per_step_from_survival(joint: ArrayLike) -> Numeric:
    """τ = 1 + Σ_i S_i, tokens per target step with the bonus token; exact for any chain."""
    return 1 + _checked_survival(joint).sum(axis=-1)


def _checked_survival(joint: ArrayLike) -> np.ndarray:
    values = _probability("survival", joint)
    if np.any(np.diff(values, axis=-1) > ROUNDING):
        raise ValueError("survival must not rise along positions: conditional rates belong in accept_given_prefix")
    return values


def rate_from_tokens_per_step(tokens_per_step: ArrayLike, lookahead: ArrayLike) -> Numeric:
    """Acceptance rate accepted/drafted = (τ − 1)/γ of a chain; not α, which is conditional on the prefix."""
    tau = _within("tokens_per_step", tokens_per_step, 1, math.inf, "add 1 if the bonus token was left out")
    rate = np.asarray((tau - 1) / _positive("lookahead", lookahead))
    if np.any(rate > 1 + ROUNDING):
        raise ValueError(f"tokens_per_step must not exceed lookahead + 1, got an acceptance rate of {rate.max():.4g}")
    return np.minimum(rate, 1.0)[()]


def tokens_per_step_from_rate(rate: ArrayLike, lookahead: ArrayLike) -> Numeric:
    """τ = 1 + γ·rate of a chain from the acceptance rate accepted/drafted."""
    return 1 + _positive("lookahead", lookahead) * _probability("rate", rate, "rate is accepted / drafted")


def accept_prob_from_rate(rate: ArrayLike, lookahead: ArrayLike) -> Numeric:
    """The constant α at which a chain accepts `rate` = accepted/drafted: (1/γ)·Σ_{i=1..γ} α^i = rate (2603.11053)."""
    checked = _probability("rate", rate, "rate is accepted / drafted")
    return np.vectorize(_solve_accept_prob, otypes=[float])(checked, _positive("lookahead", lookahead))[()]


def _solve_accept_prob(rate: float, lookahead: float) -> float:
    """Root of the rate, which rises with α from 0 to 1."""
    if rate in (0, 1):
        return float(rate)

    def excess(alpha: float) -> float:
        return (tokens_per_step_constant(alpha, lookahead) - 1) / lookahead - rate

    return float(scipy.optimize.brentq(excess, 0.0, 1.0))  # pyright: ignore[reportArgumentType]


# Speed


def speedup_leviathan(accept_prob: ArrayLike, lookahead: ArrayLike, cost_ratio: ArrayLike) -> Numeric:
    """Walltime speedup (1 − α^{γ+1})/((1 − α)(γc + 1)), c = draft step / target step (arXiv 2211.17192 Theorem 3.8)."""
    cost = 1 + np.asarray(lookahead) * _not_negative("cost_ratio", cost_ratio)
    return tokens_per_step_constant(accept_prob, lookahead) / cost


def tokens_per_flop(
    accept_prob: ArrayLike, lookahead: ArrayLike, draft_params: ArrayLike, target_params: ArrayLike
) -> Numeric:
    """T(N, γ) = (1 − α^{γ+1})/((1 − α)(2Nγ + 2M)), tokens per FLOP (arXiv 2603.11053).

    A forward pass costs 2 FLOPs per parameter and token, and a verification counts as one target token.
    """
    params = _positive("draft_params", draft_params) * np.asarray(lookahead) + _positive("target_params", target_params)
    return tokens_per_step_constant(accept_prob, lookahead) / (2 * params)


def optimal_lookahead(accept_prob: ArrayLike, params_ratio: ArrayLike) -> Numeric:
    """γ* = argmax_γ T(N, γ) over real γ ≥ 0, r = M/N (or 1/c for `speedup_leviathan`); ∞ at α = 1 and r > 1.

    Closed form γ* = (1 + W)/ln α − r with W = W₋₁(−α^{r−1}/e) (arXiv 2603.11053). The definition of W turns it into
    γ* = ln(−W)/(−ln α) − 1, which does not cancel at large r; W comes from logs, since α^{r−1} underflows.
    """
    alpha = _probability("accept_prob", accept_prob)
    alpha, ratio = np.broadcast_arrays(alpha, _positive("params_ratio", params_ratio))
    gains = (alpha > 0) & (ratio > 1)  # otherwise drafting never pays
    inside = gains & (alpha < 1)
    drop = -np.log(np.where(inside, alpha, 0.5))
    gamma = np.log1p(_lambert_excess(np.where(inside, ratio - 1, 1.0) * drop)) / drop - 1
    return np.where(inside, np.maximum(gamma, 0.0), np.where(gains, np.inf, 0.0))[()]


def _lambert_excess(depth: np.ndarray) -> np.ndarray:
    """δ = −W₋₁(−e^{−1−s}) − 1 for s > 0: the root of δ − ln(1 + δ) = s, by Newton from the upper bound s + √(2s).

    It is an upper bound because e^x ≥ 1 + x + x²/2 at x = √(2s); the function is convex, so every step falls.
    """
    excess = depth + np.sqrt(2 * depth)
    for _ in range(8):
        excess = excess - (excess - np.log1p(excess) - depth) * (1 + excess) / excess
    return excess
