"""What follows from measurements: fitted laws, estimates with intervals, and plans."""

from typing import Any

from foredraft.records.measured import Estimate, Provenance, Workload
from foredraft.records.record import Record


class BreakEven(Record, frozen=True):
    """Served tokens after which a draft has paid for itself; `high` is None where some draws never pay it back. `days`: of serving at the
    workload's loads around the clock until then, by the middle draw.
    """

    tokens: float
    low: float
    high: float | None
    level: float = 0.9
    days: float | None = None


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
    FLOPs and device-hours of the training machine, the target's own answers included where they are counted. `method`: which kind of
    head (`kinds.of_choice`); None for other kinds, and in plans older than it. `training_dtype`: in which the training machine is faster.
    `hub_id`: where it can be downloaded from, on the Hugging Face Hub; `trained_by`: tools that train it, where foredraft does not yet;
    `draft_vocab`: how many of the most frequent tokens it may draft, None for all;
    `vocab_overlap`: the share of its vocabulary that the target has, of a draft of another vocabulary. `lookup_min_match`: tokens of a
    match at least of a look-up before it; None: none stands there.
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
    draft_vocab: int | None = None
    training_dtype: str | None = None
    lookup_min_match: int | None = None

    def __post_init__(self) -> None:
        if self.method is not None and self.kind != "head":
            raise ValueError(f"method is only of a head, got {self.method!r} of kind {self.kind!r}")


class ScheduleStep(Record, frozen=True):
    """What to run at one concurrency: `lookahead` draft passes (0: no speculation), `topk` and `tree_nodes` of a tree
    (1 and lookahead: a chain), and the static `tree` that was weighed: (parent, rank) of each node, -1 the root. `ttft_s` None: whether
    clients queue cannot be told. `plain_output_tok_s`, `plain_tpot_s`: without a draft, the middle of the same draws.
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
    ttft_s: Estimate | None = None
    tree: tuple[tuple[int, int], ...] = ()
    plain_output_tok_s: float | None = None
    plain_tpot_s: float | None = None

    @property
    def gains(self) -> bool:
        """Whether the draft makes this load faster than a server without one."""
        return self.lookahead > 0 and self.speedup.value > 1


class RunnerUp(Record, frozen=True):
    """The best draft of a kind that lost: its mean gain, in the plan's terms and without its training, and the largest reason.

    `label`: of the kind, for people. `edges`: of its size and its training tokens, those that end where the search did: most or least.
    """

    draft: DraftChoice
    speedup: Estimate
    reason: str
    label: str | None = None
    edges: dict[str, str] = {}


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
    """A draft that gains more than the planned one, by `margin` (log of the gain), in too many of the draws to call that decided.

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


class Action(Record, frozen=True):
    """What to do first. `verb`: download (a public draft), train, use (what the engine, the target's checkpoint or the user has already) or
    nothing; `why` in a clause; `commands`: to type next, in order, with what only the user knows in capitals.
    """

    verb: str
    why: str
    commands: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.verb not in ("download", "train", "use", "nothing"):
            raise ValueError(f"verb must be download, train, use or nothing, got {self.verb!r}")


class CostSheet(Record, frozen=True):
    """What the planned draft costs to get, and what output tokens cost with it and without.

    `machine` and `devices` train. Device-hours there: `answers_hours` in which the target answers prompts, `answer_tokens` in all;
    `passes_hours` of the target's passes over the training tokens, whose hidden states a head learns from; `draft_hours` of the draft's own.
    `device_hour` and `train_device_hour`: stated prices; `spent`: money for all hours above; `per_million`: money per million output tokens over
    the workload's loads, training left out, and `per_million_plain` without a draft. None: not stated, or not needed.
    """

    machine: str
    devices: int
    draft_hours: float
    passes_hours: float = 0.0
    answers_hours: float = 0.0
    answer_tokens: float | None = None
    device_hour: float | None = None
    train_device_hour: float | None = None
    spent: float | None = None
    per_million: Estimate | None = None
    per_million_plain: Estimate | None = None

    @property
    def hours(self) -> float:
        """All device-hours."""
        return self.draft_hours + self.passes_hours + self.answers_hours


class NearestLevel(Record, frozen=True):
    """How near a plan comes to a level that it does not meet: the value, and at how many clients."""

    value: float
    clients: int


class ServiceLevels(Record, frozen=True):
    """What was asked of the service, `ttft_s` and `tpot_s` in seconds and `rate` in requests per second, and how far the plan meets it.

    `clients`: about the most at which both levels on latency are met, None at no load that was searched; `requests_per_s` are served there,
    by the middle draw. `rate_clients`: about as many are at once where the rate is served within those levels, None where it is not.
    `plain_clients` and `plain_requests_per_s`: the same without a draft. `nearest`: of each level that is not met. `searched`: whether
    `clients` is the largest load that was searched, so that there may be more.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    rate: float | None = None
    clients: float | None = None
    requests_per_s: float | None = None
    rate_clients: float | None = None
    plain_clients: float | None = None
    plain_requests_per_s: float | None = None
    nearest: dict[str, NearestLevel] = {}
    searched: bool = False

    @property
    def is_met(self) -> bool:
        """Whether all levels are met at some load."""
        return not self.nearest


class Trust(Record, frozen=True):
    """What stands behind a plan: what was measured nearest to it of the draft's `acceptance` and of the server's `costs`, a clause each; and
    `beyond`, a clause for each input that leaves the range of those measurements.
    """

    acceptance: str
    costs: str
    beyond: tuple[str, ...] = ()


class LengthGain(Record, frozen=True):
    """At one concurrency: the lookahead that is best at all loads together (0: no speculation), the one scheduled here, and what the
    schedule and a length that adapts by confidence would bring over the first, in the plan's terms; None where the draft shows no
    confidence. `verified`: drafted tokens that the adaptive length verifies per sequence and step. `adapts`: for each "sequence", or
    for the whole "batch". `setting`: what the plan's engine calls it, None where it has none for this draft. The verdicts: "worth it",
    "nothing" or "loses". `uncaptured`: tokens of a step of the scheduled length, where they are more than graphs are usually captured for.
    """

    concurrency: int
    fixed: int
    scheduled: int
    schedule: Estimate
    schedule_verdict: str
    adaptive: Estimate | None = None
    adaptive_verdict: str | None = None
    verified: float | None = None
    adapts: str | None = None
    setting: str | None = None
    uncaptured: float | None = None


class Plan(Record, frozen=True):
    """The answer of `foredraft plan`: what to do, which draft, how to run it at each concurrency, what it gains, and how far to
    trust that. `devices` in all make `data_parallel` replicas; `expert_parallel`: experts lie whole on all devices together.
    `dtype`: of the weights; `kv_dtype` None: the KV cache as the model has it. `edges`: of the draft's size and training tokens, those
    that end where the search did; `runners_up`: the best draft of each other kind. `settings`: the schedule searched for each engine, in
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
    action: Action | None = None
    trust: Trust | None = None
    costs: CostSheet | None = None
    service_levels: ServiceLevels | None = None
    break_even: BreakEven | None = None
    continuous_params: Estimate | None = None
    buildable: tuple[DraftChoice, ...] = ()
    edges: dict[str, str] = {}
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
    lengths: tuple[LengthGain, ...] = ()
    provenance: tuple[Provenance, ...] = ()
