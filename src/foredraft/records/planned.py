"""What follows from measurements: fitted laws, estimates with intervals, and plans."""

from typing import Any

from foredraft.records.measured import Estimate, Provenance, Workload
from foredraft.records.record import Record


class BreakEven(Record, frozen=True):
    """Served tokens after which a draft's training has paid for itself; `high` is None where some draws never pay it back."""

    tokens: float
    low: float
    high: float | None
    level: float = 0.9


class Fit(Record, frozen=True):
    """A fitted law as a value: parameters, bootstrap draws, the range of the data, and what to distrust.

    `draws` has one row per bootstrap draw in the order of `parameters`. `held_out_error` is the mean absolute error
    on the largest run, left out of a fit of its own, in the units of `output`; `rivals` gives the same for the other
    forms tried on the same data. `checkpoints_of`: so many runs, whose checkpoints stood for `num_clusters` runs, so that intervals
    leave out how runs differ.
    """

    law: str
    formula: str
    output: str
    parameters: dict[str, float]
    draws: tuple[tuple[float, ...], ...]
    domain: dict[str, tuple[float, float]]
    num_observations: int
    num_clusters: int
    residual_sd: float
    held_out_error: float | None = None
    rivals: dict[str, float] = {}
    at_bound: tuple[str, ...] = ()
    checkpoints_of: int | None = None
    provenance: tuple[Provenance, ...] = ()


class DraftChoice(Record, frozen=True):
    """A draft to train or to use. `kind` is head, lm or lookup; counts are parameters and tokens; training cost is
    FLOPs and device-hours. `method`: which kind of head (`kinds.of_choice`); None for other kinds, and in plans older than it.
    `hub_id`: where it can be downloaded from, on the Hugging Face Hub; `trained_by`: tools that train it, where foredraft does not yet;
    `vocab_overlap`: the share of its vocabulary that the target has, of a draft of another vocabulary.
    """

    kind: str
    name: str
    params: float
    non_embedding_params: float
    method: str | None = None
    num_layers: int = 0
    hidden_size: int = 0
    draft_tokens: float | None = None
    training_flops: float = 0.0
    training_gpu_hours: float = 0.0
    hub_id: str | None = None
    trained_by: tuple[str, ...] = ()
    vocab_overlap: float | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.kind != "head":
            raise ValueError(f"method is only of a head, got {self.method!r} of kind {self.kind!r}")


class ScheduleStep(Record, frozen=True):
    """What to run at one concurrency: `lookahead` draft passes (0: no speculation), `topk` and `tree_nodes` of a tree
    (1 and lookahead: a chain), and the static `tree` that was weighed: (parent, rank) of each node, -1 the root.
    """

    concurrency: int
    running: float
    lookahead: int
    topk: int
    tree_nodes: int
    tokens_per_step: Estimate
    speedup: Estimate
    output_tok_s: Estimate
    tpot_s: Estimate
    ttft_s: Estimate
    tree: tuple[tuple[int, int], ...] = ()


class RunnerUp(Record, frozen=True):
    """A draft that lost: its mean gain, in the plan's terms and without its training, and the largest reason."""

    draft: DraftChoice
    speedup: Estimate
    reason: str


class NextRun(Record, frozen=True):
    """A run that would narrow the plan: the share of the speedup interval's width it is expected to remove, and its
    cost in device-hours. `factor`: what it settles, by the planner's name; `draft_tokens`: what the plan's draft is to be trained on
    for it, None where nothing is trained.
    """

    run: str
    settles: str
    narrows: float
    gpu_hours: float
    factor: str | None = None
    draft_tokens: float | None = None


class Rival(Record, frozen=True):
    """A draft that the draws do not tell from the planned one, which does not gain more by `margin` (log of the gain) in enough of them.

    `draft` None: no speculation. `speedup`: its gain in the plan's terms, without its training; `lookaheads`: at each concurrency of the
    workload. `ahead`, `behind`: shares of the joint draws in which it gains more, and less, than the planned one by more than the margin,
    training paid.
    """

    draft: DraftChoice | None
    speedup: Estimate
    lookaheads: tuple[int, ...]
    ahead: float
    behind: float
    margin: float


class Plan(Record, frozen=True):
    """The answer of `foredraft plan`: which draft, how to run it at each concurrency, what it gains, and how far to
    trust that. `devices` in all make `data_parallel` replicas; `expert_parallel`: experts lie whole on all devices together.
    `dtype`: of the weights; `kv_dtype` None: the KV cache as the model has it. `settings`: the schedule searched for each engine, in
    that engine's words. `rival`: another draft that may as well be the better one.
    """

    objective: str
    engine: str
    target: str
    machine: str
    devices: int
    dtype: str
    workload: Workload
    speedup: Estimate
    schedule: tuple[ScheduleStep, ...]
    draft: DraftChoice | None = None
    rival: Rival | None = None
    break_even: BreakEven | None = None
    continuous_params: Estimate | None = None
    buildable: tuple[DraftChoice, ...] = ()
    data_parallel: int = 1
    expert_parallel: bool = False
    kv_dtype: str | None = None
    theory_params: float | None = None
    runners_up: tuple[RunnerUp, ...] = ()
    next_runs: tuple[NextRun, ...] = ()
    not_considered: dict[str, str] = {}
    extrapolates: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()
    settings: dict[str, dict[str, Any]] = {}
    provenance: tuple[Provenance, ...] = ()
