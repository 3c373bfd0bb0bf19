"""The cost law of a server that only its own rows describe, and what is accepted there by position.

A step of C sequences that draft k tokens takes C·τ / (output tokens/s). Rows without a draft give its fixed part and what a sequence adds;
what a draft's pass and verifying take of those begins at usual shares, and `laws.own_costs` moves all of it as the rows ask for. So no
shape and no machine is needed, and where no row speaks of a setting its interval is as wide as those shares' spread.

Promises: predictions at any load and lookahead with joint draws. Refuses to know: what is done with them.

Shapes: C loads, K lookaheads, S draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from foredraft.laws.acceptance import survival_through
from foredraft.laws.calibration import CostRow, adjusted
from foredraft.laws.cost import Prefill, ServerCost
from foredraft.laws.deviation import slowdown
from foredraft.laws.draws import Lattice, normals
from foredraft.laws.own_costs import CALIBRATION_NOISE, UNEVEN, Measured, OwnCosts, own_costs
from foredraft.laws.passes import PassCost
from foredraft.laws.sampling import sampling_sd
from foredraft.laws.speedup import accept_given_prefix_from_survival
from foredraft.records import Observation, with_hint

Array = NDArray[np.float64]

# Where the search for the multipliers begins, of the part of a plain step that all sequences share: what a draft's pass and speculation
# itself take; and of what a sequence adds: its token's products, a draft's, and a prompt's token. `laws.passes.Efficiency` with heads of one
# layer beside targets of 8 to 70 B gives 0.05 to 0.14 and 0.06 to 0.2 for the first two.
DRAFT_PASS, SPECULATION = 0.09, 0.1
TOKEN, DRAFT_TOKEN, PROMPT_TOKEN = 0.7, 0.1, 0.5
EACH, EACH_SD = (
    1 / 30,
    1.5,
)  # what a sequence adds to a step, of what is shared, and the sd of its logarithm: 1/140 on GPUs, 1/12 on CPUs
BLEND = 1.25  # how nearly reading and products add up; 1 in full
# How much wider the law's prior is than where shapes and machine are known, as where a probe alone stands behind it; and where no row tells
# what a step without a draft takes.
PRIOR_WIDTH, PLAINLESS_WIDTH = 2.0, 3.0
NUM_DRAWS = 1024
DRAFT = "draft"  # the one that the rows are of


@dataclass(frozen=True)
class AcceptedByPosition:
    """P(at least i drafted tokens accepted) [K] as the rows have it, pooled over steps, and the sd of its level (in logits)."""

    survival: Array
    sd: float

    def tokens_per_step(self, lookahead: int) -> float:
        return 1 + float(self.survival[:lookahead].sum())

    def draws(self, lookahead: int, level: Array) -> Array:
        """τ with the logits of acceptance given the prefix moved by `sd` · `level` [S]."""
        if not lookahead:
            return np.ones_like(level)
        given = np.clip(accept_given_prefix_from_survival(self.survival[:lookahead]), 1e-6, 1 - 1e-6)
        moved = expit(logit(given)[:, None] + self.sd * level[None])
        return 1 + np.cumprod(moved, axis=0).sum(axis=0)


@dataclass(frozen=True)
class ServedLaw:
    """`rows`: what was measured; `plain` and `drafted`: the server before calibration. `lookaheads`: those measured, 0 without a draft; `loads`:
    least and most clients.
    """

    rows: tuple[CostRow, ...]
    costs: OwnCosts
    plain: ServerCost
    drafted: ServerCost
    accepted: AcceptedByPosition | None
    lookaheads: tuple[int, ...]
    loads: tuple[int, int]

    @property
    def longest(self) -> int:
        return max(self.lookaheads)

    def tokens_per_step(self, lookahead: int) -> float:
        return self.accepted.tokens_per_step(lookahead) if self.accepted and lookahead else 1.0

    def draws(self, loads: Sequence[int], lookaheads: Sequence[int], num: int = NUM_DRAWS) -> Array:
        """Output tokens/s [C, K, S], without the scatter of a further run."""
        clients, rng = np.array(loads, dtype=float), Lattice(0)
        multipliers = dict(zip(self.costs.multipliers, self.costs.draws(num, rng).T, strict=True))
        level, deviations = normals(num, rng), self.costs.deviation.draws(clients, DRAFT, num, rng)
        uneven = [normals(num, rng) for _ in lookaheads]
        plain = self._modelled(multipliers, clients[:, None], 0.0, 1.0)
        speeds = np.empty((len(loads), len(lookaheads), num))
        for i, k in enumerate(lookaheads):
            if k == 0:
                speeds[:, i] = plain / slowdown(deviations, np.full(plain.shape, np.nan))
                continue
            tau = self.accepted.draws(k, level) if self.accepted else np.ones(num)
            modelled = self._modelled(multipliers, clients[:, None], float(k), tau)
            seen = k in self.lookaheads
            scatter = 0.0 if seen else UNEVEN * uneven[i]
            speeds[:, i] = modelled / slowdown(deviations, modelled / (tau * plain)) * np.exp(scatter)
        return speeds

    def idle_speed(self, loads: Sequence[int]) -> Array:
        """Speed of a schedule's 0, whose draft's pass is made although none of its tokens are verified, over no draft [C]."""
        return adjusted(self.drafted, self.costs.multipliers).idle_speed(loads)

    def _modelled(self, multipliers: dict[str, Array], clients: Array, depth: float, tau: Array | float) -> Array:
        """Output tokens/s under draws of the multipliers about their middle, each held to the mean level of the rows with a draft, or without:
        the draws' covariance knows the law as a straight one, which wide draws are not.
        """
        server = adjusted(self.plain if depth == 0 else self.drafted, self.costs.multipliers)
        rows = np.array([row[:3] for row in self.rows if (row.depth > 0) == (depth > 0)], dtype=float)
        speeds = adjusted(server, multipliers).load(clients, depth, tau).output_tok_s
        if not len(rows):
            return speeds
        at, k, taus = rows.T[:, :, None]
        drawn, middle = (each.load(at, k, taus).output_tok_s for each in (adjusted(server, multipliers), server))
        return speeds / np.exp(np.log(drawn / middle).mean(axis=0))


def served_law(rows: Sequence[Observation]) -> ServedLaw:
    """The law given rows of one server under one load's kind: with tokens/s, clients, and k and τ where they drafted.

    Raises ValueError where no row tells how fast the server is.
    """
    rows = [row for row in rows if is_whole(row)]
    if not rows:
        raise with_hint(ValueError("no row has tokens/s, clients and k"), "measure a load: foredraft calibrate URL")
    plain, drafted = _servers(rows)
    measured = [
        Measured(drafted if row.lookahead else plain, plain, _cost_row(row), DRAFT if row.lookahead else None, "one run")
        for row in rows
    ]  # fmt: skip
    loads = [row.concurrency or 0 for row in rows]
    lookaheads = tuple(sorted({row.lookahead or 0 for row in rows}))
    costs = own_costs(measured, prior_width=PRIOR_WIDTH if 0 in lookaheads else PLAINLESS_WIDTH)
    return ServedLaw(
        tuple(each.row for each in measured),
        costs,
        plain,
        drafted,
        accepted_by_position(rows),
        lookaheads,
        (min(loads), max(loads)),
    )


def is_whole(row: Observation) -> bool:
    """Whether a row has what the law needs: tokens/s, clients and k, and τ where it drafted."""
    return bool(
        row.output_tok_s
        and row.concurrency
        and row.lookahead is not None
        and (row.lookahead == 0 or row.tokens_per_step)
    )


def accepted_by_position(rows: Sequence[Observation]) -> AcceptedByPosition | None:
    """Pooled over the steps of all rows that drafted so far; None where none did."""
    drafted = [row for row in rows if row.lookahead and row.tokens_per_step]
    if not drafted:
        return None
    longest = max(row.lookahead or 0 for row in drafted)
    sums, steps = np.zeros(longest), np.zeros(longest)
    for row in drafted:
        k = row.lookahead or 0
        survival = (row.survival or survival_through({k: min(row.tokens_per_step or 1.0, k + 1.0)}))[:k]
        sums[: len(survival)] += (row.steps or 1) * np.array(survival)
        steps[: len(survival)] += row.steps or 1
    survival = np.minimum.accumulate(np.divide(sums, steps, out=np.zeros(longest), where=steps > 0))
    given = np.asarray(accept_given_prefix_from_survival(survival), dtype=float)
    return AcceptedByPosition(survival, sampling_sd(drafted, given))


def _cost_row(row: Observation) -> CostRow:
    return CostRow(row.concurrency or 0, row.lookahead or 0, row.tokens_per_step or 1.0, row.output_tok_s or 0.0)


def _servers(rows: Sequence[Observation]) -> tuple[ServerCost, ServerCost]:
    """Without and with the draft, before calibration."""
    prompt, answer = (
        float(np.mean([getattr(row, name) or 1.0 for row in rows])) for name in ("input_len", "output_len")
    )
    shared_s, sequence_s = _plain_step(rows)
    sequence_s /= 1 + PROMPT_TOKEN * prompt / answer
    target = PassCost(shared_s / 2, shared_s / 2, TOKEN * sequence_s, (1 - TOKEN) * sequence_s)
    draft = PassCost(DRAFT_PASS * shared_s / 2, DRAFT_PASS * shared_s / 2, DRAFT_TOKEN * sequence_s, 0.0)
    beside_s = PROMPT_TOKEN * sequence_s * prompt
    prefill = Prefill(max(beside_s, shared_s), beside_s)
    common = (prompt, answer, np.inf, SPECULATION * shared_s, prefill, BLEND)
    return ServerCost(target, None, *common), ServerCost(target, draft, *common)


def _plain_step(rows: Sequence[Observation]) -> tuple[float, float]:
    """Seconds of a step that all sequences share, and that each adds: of rows without a draft, else of those that draft at usual shares. Rows of
    one load do not tell the two apart, so that what each adds of the shared lies about `EACH`.
    """
    plain = [row for row in rows if not row.lookahead] or list(rows)
    clients, k, tau, speed = np.array([_cost_row(row)[:4] for row in plain], dtype=float).T
    log_step = np.log(clients * np.where(k > 0, tau, 1.0) / speed)
    ratio = np.geomspace(1e-4, 10, 400)[:, None]
    parts = 1 + np.where(k > 0, SPECULATION + DRAFT_PASS * k, 0.0) + ratio * clients * (1 + (TOKEN + DRAFT_TOKEN) * k)
    shared = (log_step - np.log(parts)).mean(axis=-1)
    misfit = (((log_step - np.log(parts) - shared[:, None]) / CALIBRATION_NOISE) ** 2).sum(axis=-1) + (
        np.log(ratio[:, 0] / EACH) / EACH_SD
    ) ** 2
    best = int(np.argmin(misfit))
    shared_s = float(np.exp(shared[best]))
    return shared_s, shared_s * float(ratio[best, 0])
