"""Own measurements held against what was predicted of them."""

from foredraft.records.measured import Estimate
from foredraft.records.record import Record


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
