"""Own measurements held against what was predicted of them."""

from typing import Literal

from foredraft.records.measured import Estimate
from foredraft.records.record import Record

TIE = 0.02  # of a ratio: nearer to 1 than that is neither gain nor loss


class JudgedCell(Record, frozen=True):
    """An own measured cell: its speedup over plain decoding, and the one that the cost law predicts from other cells."""

    draft: str
    load: int
    lookahead: int
    tree_nodes: int
    measured: float
    predicted: float


class HeldOutPrediction(Record, frozen=True):
    """A draft of a study whose tokens per step the others predict; `kind` lm or head, chains of `lookahead`."""

    draft: str
    kind: str
    lookahead: int
    predicted: Estimate
    measured: float


class DraftRegret(Record, frozen=True):
    """The independent draft that is picked of those timed at one load, the best measured one, and the share of throughput
    lost between them. Parameters and training tokens. `by`: the planner's "cost law", or "SDSL", which picks the draft nearest to
    its N*, `optimum`.
    """

    by: str
    load: int
    params: float
    tokens: float
    best_params: float
    best_tokens: float
    regret: float
    optimum: float | None = None


class Hindsight(Record, frozen=True):
    """An own study against its predictions: cells beyond lookahead `known_lookahead` from `calibration_rows` plain and smaller
    ones, whose own mean relative error is `calibration_error`. `lacking` says what could not be judged, and why.
    """

    target: str
    machine: str
    temperature: float
    known_lookahead: int
    calibration_rows: int
    calibration_error: float
    cells: tuple[JudgedCell, ...] = ()
    choices: tuple[DraftRegret, ...] = ()
    drafts: tuple[HeldOutPrediction, ...] = ()
    lacking: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """Mean relative error of the cells' speedups; None without cells."""
        errors = [abs(cell.predicted / cell.measured - 1) for cell in self.cells]
        return sum(errors) / len(errors) if errors else None


class LengthCase(Record, frozen=True):
    """A published comparison of lengths of a draft at one load: tokens/s without speculation, at the fixed `lookahead`, and of a length
    that adapts up to it for each "sequence" or for the whole "batch"; or only the last two's `ratio`. τ and survival are of the fixed
    length. `document`: what is left out together when the law of adaptive lengths is judged.
    """

    document: str
    target: str
    method: str
    load: int
    lookahead: int
    source: str
    draft: str | None = None
    engine: str | None = None
    machine: str | None = None
    devices: int | None = None
    dataset: str | None = None
    temperature: float | None = None
    adapts: Literal["sequence", "batch"] | None = None
    plain_tok_s: float | None = None
    fixed_tok_s: float | None = None
    adaptive_tok_s: float | None = None
    ratio: float | None = None
    tokens_per_step: float | None = None
    adaptive_tokens_per_step: float | None = None
    survival: tuple[float, ...] | None = None
    note: str | None = None

    @property
    def measured(self) -> float | None:
        """Tokens/s of the adaptive length over the fixed one; None where only fixed lengths were measured."""
        if self.adaptive_tok_s is not None and self.fixed_tok_s is not None:
            return self.adaptive_tok_s / self.fixed_tok_s
        return self.ratio


class JudgedLength(Record, frozen=True):
    """An adaptive length over a fixed one of `lookahead` tokens, the longest or the one that is best over all loads: measured, and
    predicted with its 90 % interval by the law without the case's document; `costs` says where the step's cost comes from, the
    document's "rows" or "names".
    """

    setting: str
    document: str
    load: int
    lookahead: int
    measured: float
    predicted: float
    low: float
    high: float
    costs: str

    @property
    def covered(self) -> bool:
        """Whether the interval holds what was measured."""
        return self.low <= self.measured <= self.high

    @property
    def agrees(self) -> bool | None:
        """Whether the prediction says rightly that it gains or loses; None where it does neither by more than TIE."""
        if abs(self.measured - 1) <= TIE:
            return None
        return (self.predicted > 1) == (self.measured > 1)


class JudgedSchedule(Record, frozen=True):
    """Of one server: the lookahead that is best at all loads together, what it and the predicted schedule lose on average to the best
    lookahead of each load, and the predicted schedule.
    """

    setting: str
    fixed: int
    fixed_regret: float
    schedule_regret: float
    schedule: tuple[tuple[int, int], ...]


class JudgedLengths(Record, frozen=True):
    """Lengths judged on published cases; `lacking` says what kept others from being judged, and how many."""

    adaptive: tuple[JudgedLength, ...] = ()
    schedules: tuple[JudgedSchedule, ...] = ()
    lacking: dict[str, int] = {}
