"""What `foredraft calibrate` concludes of a running server."""

from typing import Any

from foredraft.records.measured import Estimate, Provenance
from foredraft.records.record import Record


class CalibratedLoad(Record, frozen=True):
    """At `concurrency` requests at once: tokens/s as `measured` and as `predicted`, by lookahead (0: no draft); the lookahead that is
    `scheduled`, what it gains over no draft, and the share of the draws in which it gains; `idle`: tokens/s of a schedule's 0, whose draft runs
    although nothing is drafted, as the middle draw has it.
    """

    concurrency: int
    predicted: dict[int, Estimate]
    scheduled: int
    gain: Estimate
    sure: float
    measured: dict[int, float] = {}
    weight: float | None = None
    idle: float | None = None


class ServerCalibration(Record, frozen=True):
    """A server's law, its schedule, and when to switch off.

    `path`: what it serves, as it is given to the server. `lookaheads` and `loads`: those measured, 0 without a draft; `survival`: P(at least i
    drafted tokens accepted) by position; `error`: mean relative error of the law on its own rows. `off_above`: the most requests at once at
    which a draft gains; None where it gains at the largest load measured, 0 where it gains at none. `gain`: of the schedule over no draft,
    weighted over the loads; `best_fixed`: the one lookahead that is best over the loads, and its gain. `break_even`: tokens per step below
    which the scheduled lookahead of the usual load loses. `settings`: the schedule in the engine's words. `missing`: what was not measured, a
    clause each.
    """

    server: str
    engine: str
    target: str
    path: str
    lookaheads: tuple[int, ...]
    rows: int
    error: float
    loads: tuple[CalibratedLoad, ...]
    gain: Estimate
    best_fixed: int
    fixed_gain: Estimate
    provenance: Provenance
    version: str | None = None
    draft: str | None = None
    method: str | None = None
    survival: tuple[float, ...] = ()
    off_above: int | None = None
    break_even: float | None = None
    usual_load: int | None = None
    settings: dict[str, Any] = {}
    missing: tuple[str, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether runs without a draft and with one were both measured."""
        return 0 in self.lookaheads and len(self.lookaheads) > 1

    @property
    def tokens_per_step(self) -> dict[int, float]:
        """τ by lookahead, as far as positions were measured."""
        return {k: 1 + sum(self.survival[:k]) for k in range(1, len(self.survival) + 1)}
