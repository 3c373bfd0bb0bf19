"""What a length that follows the draft's confidence gains over a fixed one: acceptance scattered about its mean curve, the budget of
verified tokens that such a policy spends, and what deciding costs.

Promises: the mean survival curve is preserved exactly; without spread the best budget is the best fixed length, with none it is
better; a budget is the best there is for its cost curve (every assignment of lengths is weighed, since the most probable tokens
are taken first). Refuses to know: where a curve, a cost or a case comes from; files.

The model: at position i of one step, logit α = m_i + u + v_i, with u ~ N(0, shared variance) the level of the request and step that
its positions share and v_i ~ N(0, the rest) the position's own. Only spread that a confidence sees counts, and a calibrated
confidence of AUC A has logits of a spread that A determines (`seen_sd`); unseen spread is part of the mean. Taking tokens by
descending survival while tokens over time rise is DSpark's algorithm 1 (arXiv 2607.05147) and vLLM's rule (#47808).

Shapes: S draws, P equally likely steps, K positions.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtri, stdtrit

from foredraft.records import Record

Array = NDArray[np.float64]

STEPS = 64  # equally likely steps that stand for all
ANCHOR = 0.75  # mean acceptance at which a confidence's AUC is read as a spread: that of a head's first positions
TAIL = 4  # degrees of freedom of what sets cases apart: a few engines and tables are far off
BUDGETS = 32  # budgets weighed where stopping early saves passes
NEWTON = 60  # most rounds; five or six do at usual spreads
CAPTURED = 1024  # tokens of a step for which graphs were captured in the published cases (vLLM #47808); beyond, steps took 1 to 5 times as long
ROUNDS = 12  # of the search for the best ratio
SHOWN = 64  # sequences whose steps are put together at most


class AdaptiveLaw(Record, frozen=True):
    """Hyperparameters: the confidence's `auc` and its sd between heads, the share of its spread that a step's positions have in common,
    and `request_sd` of the logit level between requests; what share of the logarithm of the ideal gain engines realise (budgets are
    sized on a step before, steps padded to captured sizes), and what deciding adds to a step, as a share of it. `_sd`: between
    cases.
    """

    auc: float
    auc_sd: float
    shared: float
    request_sd: float
    realised: float
    realised_sd: float
    overhead: float
    overhead_sd: float
    num_cases: int


class Spent(NamedTuple):
    """Of the best policy: tokens per step, drafted tokens verified per sequence, and seconds per step; [S] each."""

    tokens: Array
    verified: Array
    seconds: Array


def seen_survival(survival: Array, shared_sd: ArrayLike, single_sd: ArrayLike, steps: int = STEPS) -> Array:
    """Survival as a confidence sees it on `steps` equally likely steps, [S, P, K], whose mean is `survival` [S, K] exactly.

    `shared_sd`, `single_sd`: of the logit level that a step's positions share, and of each position's own; [S] or one for all.
    """
    survival = np.atleast_2d(np.asarray(survival, dtype=float))
    draws, places = survival.shape
    normal = _normals(steps, places + 1)
    shared, single = (np.broadcast_to(np.asarray(sd, dtype=float), (draws,))[:, None] for sd in (shared_sd, single_sd))
    reached, mean = np.ones((draws, steps)), np.ones(draws)
    out = np.empty((draws, steps, places))
    for i in range(places):
        offsets = shared * normal[:, 0] + single * normal[:, i + 1]
        accept = np.clip(survival[:, i] / mean, 1e-9, 1 - 1e-9)
        reached = reached * expit(_centre(reached, offsets, accept)[:, None] + offsets)
        out[:, :, i], mean = reached, reached.mean(axis=1)
    return out


def _centre(weights: Array, offsets: Array, accept: Array) -> Array:
    """m [S] for which the mean of expit(m + offsets) under `weights` [S, P] is `accept` [S]: Newton on the logit of that mean, which
    is nearly straight in m, halving where it leaves the bracket.
    """
    share, target = weights / weights.sum(axis=1, keepdims=True), logit(accept)
    reach = np.abs(offsets).max(axis=1) + 1e-6
    low, centre, high = target - reach, target, target + reach
    for _ in range(NEWTON):
        each = expit(centre[:, None] + offsets)
        mean = np.clip((share * each).sum(axis=1), 1e-12, 1 - 1e-12)
        off = logit(mean) - target
        if np.abs(off).max() < 1e-11:
            break
        low, high = np.where(off < 0, centre, low), np.where(off > 0, centre, high)
        slope = (share * each * (1 - each)).sum(axis=1) / (mean * (1 - mean))
        ahead = centre - off / np.maximum(slope, 1e-9)
        centre = np.where((ahead > low) & (ahead < high), ahead, (low + high) / 2)
    return centre


@cache
def _normals(steps: int, places: int) -> Array:
    """Standard normals [P, places] that fill the space evenly: strata in the first place, multiples of the roots of a generalised
    golden ratio in the others (Kronecker sequence); no chance.
    """
    root = 2.0
    for _ in range(64):
        root = (1 + root) ** (1 / places)
    turns = np.arange(1, steps + 1)[:, None] * root ** -np.arange(1.0, places)
    uniform = np.concatenate([(np.arange(steps)[:, None] + 0.5) / steps, (0.5 + turns) % 1], axis=1)
    return ndtri(np.clip(uniform, 1e-6, 1 - 1e-6))


def seen_sd(auc: ArrayLike) -> Array:
    """Sd of the logits of a calibrated confidence that ranks accepted above rejected tokens with probability `auc` (0.5: none sees
    anything), at a mean acceptance of ANCHOR.
    """
    aucs, sds = _auc_table()
    return np.interp(np.asarray(auc, dtype=float), aucs, sds)


@cache
def _auc_table() -> tuple[Array, Array]:
    sds = np.linspace(0.0, 5.0, 101)
    normal = ndtri((np.arange(400) + 0.5) / 400)
    offsets = sds[:, None] * normal
    centre = _centre(np.ones_like(offsets), offsets, np.full(len(sds), ANCHOR))
    accept = expit(centre[:, None] + offsets)
    below = np.cumsum(1 - accept, axis=1) - 0.5 * (1 - accept)
    return (accept * below).sum(axis=1) / (accept.sum(axis=1) * (1 - accept).sum(axis=1)), sds


class Budgets(NamedTuple):
    """Tokens per step [S, B] of the best assignment of lengths to a large batch, by drafted tokens verified per sequence [B]."""

    tokens: Array
    verified: Array

    def best(self, step_s: Array) -> Spent:
        """The budget with the most tokens per second. `step_s` [S, K + 1]: seconds of a step in which every sequence verifies so many
        drafted tokens; a batch of mixed lengths costs what lies between on a straight line.
        """
        return _most(self.tokens, self.verified, _between(step_s, self.verified))


def budgets(seen: Array) -> Budgets:
    """Every budget of verified tokens, shared out by survival; `seen` [S, P, K] as `seen_survival`."""
    draws, steps, places = seen.shape
    ordered = -np.sort(-seen.reshape(draws, -1), axis=1)
    tokens = 1 + np.concatenate([np.zeros((draws, 1)), np.cumsum(ordered, axis=1)], axis=1) / steps
    return Budgets(tokens, np.arange(steps * places + 1) / steps)


def in_common(seen: Array, batch: float) -> Array:
    """What a batch shows together, whose sequences' steps have nothing in common: means over `batch` of the steps [S, P, K], put together at
    random; of more than SHOWN there is nothing left to see.
    """
    rng, num = np.random.default_rng(0), min(max(round(float(batch)), 1), SHOWN)
    return seen if num == 1 else np.mean([seen[:, rng.permutation(seen.shape[1])] for _ in range(num)], axis=0)


def best_common(seen: Array, step_s: Array) -> Spent:
    """The best where all sequences of a step verify equally many, and each step costs its own: `seen` is what the whole batch shows."""
    tokens = 1 + np.concatenate([np.zeros((*seen.shape[:2], 1)), np.cumsum(seen, axis=2)], axis=2)
    mean = tokens.mean(axis=1)
    fixed = (mean / step_s).argmax(axis=1)
    rows = np.arange(len(mean))
    best = Spent(mean[rows, fixed], fixed.astype(float), step_s[rows, fixed])
    for _ in range(ROUNDS):
        rate = best.tokens / best.seconds
        lengths = (tokens - rate[:, None, None] * step_s[:, None, :]).argmax(axis=2)
        gained = np.take_along_axis(tokens, lengths[:, :, None], axis=2)[:, :, 0].mean(axis=1)
        best = Spent(gained, lengths.mean(axis=1), np.take_along_axis(step_s, lengths, axis=1).mean(axis=1))
    return best


def best_stopping(seen: Array, verify_s: Array, pass_s: Array, batch: float) -> Spent:
    """The best budget of a draft that spends `pass_s` [S] a position and stops once no sequence of the `batch` goes on.

    A position is drafted before its confidence is seen, so stopping after i costs i + 1 passes, unless i is the longest length
    allowed, which is chosen too. `verify_s` [S, K + 1] leaves the passes out.
    """
    draws, steps, places = seen.shape
    best = Spent(np.ones(draws), np.zeros(draws), verify_s[:, 0] + pass_s)
    for most in range(1, places + 1):
        slots = seen[:, :, :most].reshape(draws, -1)
        order = np.argsort(-slots, axis=1, kind="stable")
        tokens = 1 + np.cumsum(np.take_along_axis(slots, order, axis=1), axis=1) / steps
        sizes = np.union1d(np.linspace(1, steps * most, BUDGETS).astype(int), steps * np.arange(1, most + 1))
        place = order % most
        passes = np.ones((draws, len(sizes)))
        for i in range(most - 1):
            passes += 1 - np.clip(1 - np.cumsum(place == i, axis=1)[:, sizes - 1] / steps, 0.0, 1.0) ** batch
        verified = sizes / steps
        seconds = _between(verify_s[:, : most + 1], verified) + pass_s[:, None] * passes
        here = _most(tokens[:, sizes - 1], verified, seconds)
        better = here.tokens / here.seconds > best.tokens / best.seconds
        best = Spent(*(np.where(better, new, old) for new, old in zip(here, best, strict=True)))
    return best


def _between(step_s: Array, verified: Array) -> Array:
    """`step_s` [S, K + 1] at fractional lengths, on straight lines."""
    low = np.minimum(verified.astype(int), step_s.shape[1] - 2)
    share = verified - low
    return step_s[:, low] * (1 - share) + step_s[:, low + 1] * share


def _most(tokens: Array, verified: Array, seconds: Array) -> Spent:
    pick = (tokens / seconds).argmax(axis=1)
    rows = np.arange(len(pick))
    return Spent(tokens[rows, pick], verified[pick], seconds[rows, pick])


def spreads(law: AdaptiveLaw, quantiles: Array) -> tuple[Array, Array]:
    """(shared sd, each position's own sd) under the law's AUC at `quantiles` [S] of its spread between heads."""
    total = seen_sd(np.clip(law.auc + law.auc_sd * ndtri(quantiles), 0.5, 0.99))
    return total * np.sqrt(law.shared), total * np.sqrt(1 - law.shared)


def batch_sd(law: AdaptiveLaw, batch: float) -> float:
    """Sd of the mean level of so many requests of a batch: all that a length common to them can follow."""
    return law.request_sd / max(float(batch), 1.0) ** 0.5


def realised(law: AdaptiveLaw, log_gain: Array, gain_quantiles: Array, cost_quantiles: Array) -> Array:
    """Speed of an engine's adaptive length over the fixed one [S], of `log_gain` [S] for the ideal one, at quantiles [S] of the spread
    between cases of the share that is realised and of what deciding costs.
    """
    share = law.realised + law.realised_sd * stdtrit(TAIL, gain_quantiles)
    return np.exp(share * log_gain) / (1 + overheads(law, cost_quantiles))


def overheads(law: AdaptiveLaw, quantiles: Array) -> Array:
    """What deciding adds to a step, as a share of it, at `quantiles` [S] of its spread between cases; never less than nothing."""
    return np.maximum(law.overhead + law.overhead_sd * stdtrit(TAIL, quantiles), 0.0)
