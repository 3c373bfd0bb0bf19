"""What a length that follows a draft's confidence rests on: the file `lengths.json` of `foredraft measure --adaptive`."""

from foredraft.records.measured import Provenance
from foredraft.records.record import Record, require

# Of a gain over the best fixed length, what the rule must promise to be used: races fell short of smaller promises, once by a tenth (docs/log.md).
LEAST_PROMISE = 0.03


class StepCosts(Record, frozen=True):
    """Seconds of a step's parts on one machine: `pass_s`, the target's pass with verifying and committing, by tokens in it; `draft_s`,
    drafting, by running sequences: what it takes whatever is drafted, and for each position.
    """

    pass_s: dict[int, float]
    draft_s: dict[int, tuple[float, float]]

    def __post_init__(self) -> None:
        if not self.pass_s or not self.draft_s:
            raise ValueError("pass_s and draft_s must hold at least one time each")


class Confidence(Record, frozen=True):
    """What a draft's confidence says at one `temperature`. Weights of the logit of acceptance, of a token whose confidence is seen (`here`)
    and of the one behind it (`ahead`); of `num` judged tokens, with `auc` on requests that were left out of the fit (None: all were
    accepted, or none).

    `survival`: P(at least i accepted) of chains of full length. `shared_sd` and `single_sd`: spread of the logits about their means by
    position, of what a step's positions have in common, and of each position's own. `rates`: tokens/s of the rule by running
    sequences, `fixed` of chains of 0, 1, … tokens, both replayed on the measured steps under the measured costs.
    """

    temperature: float
    here: tuple[float, float, float, float]
    ahead: tuple[float, float, float, float]
    num: int
    survival: tuple[float, ...]
    shared_sd: float
    single_sd: float
    rates: dict[int, float] = {}
    fixed: dict[int, tuple[float, ...]] = {}
    auc: float | None = None

    def __post_init__(self) -> None:
        require(self, non_negative=("temperature", "shared_sd", "single_sd"), positive=("num",))


class DraftLengths(Record, frozen=True):
    """One draft beside one target on one machine: its confidence by temperature, and what its steps cost. `lookahead`: positions measured."""

    draft: str
    method: str
    target: str
    lookahead: int
    machine: str
    dtype: str
    threads: int | None
    confidences: tuple[Confidence, ...]
    costs: StepCosts
    provenance: Provenance

    def __post_init__(self) -> None:
        require(self, positive=("lookahead",))
        if not self.confidences:
            raise ValueError("confidences must be of at least one temperature")
