"""The nouns on the arrows between the rooms, as typed documents on disk.

Promises: every record is frozen, an unknown key is an error, a value that was not measured is None (never 0), and a
file or folder is written whole or not at all. Refuses to know: how anything in a record is computed.
"""

import errno
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec

T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of all records: frozen, keyword-only, strict about keys, silent about what is missing."""


def require(
    record: Any, *, positive: tuple[str, ...] = (), non_negative: tuple[str, ...] = (), unit: tuple[str, ...] = ()
) -> None:
    """One-line errors that name the field: `positive` > 0, `non_negative` ≥ 0, `unit` within [0, 1]; None passes, NaN never."""
    names = positive + non_negative
    if names and not _is_fine(_getter(names)(record), len(positive)):
        for name in names:
            _require(name, getattr(record, name), positive=name in positive)
    for name in unit:
        if (value := getattr(record, name)) is not None:
            _require(name, value, most=1.0)


@cache
def _getter(names: tuple[str, ...]) -> Callable[[Any], Any]:
    if len(names) > 1:
        return attrgetter(*names)
    return lambda record: tuple(getattr(record, name) for name in names)


def _is_fine(values: tuple[Any, ...], positive: int) -> bool:
    """Whether all that is no None is a finite number, the first `positive` above 0 and the others not below, as in nearly all records;
    lists are looked at one by one.
    """
    numbers = [value for value in values if value is not None]
    try:
        total, least = sum(numbers), min(numbers, default=1)
    except TypeError:
        return False
    return total - total == 0 and (least > 0 or (least == 0 and 0 not in values[:positive]))


def _require(name: str, value: Any, *, positive: bool = False, most: float = math.inf) -> None:
    for item in value if isinstance(value, tuple) else () if value is None else (value,):
        if not math.isfinite(item):
            raise ValueError(f"{name} must be a finite number, got {item}")
        if positive and item <= 0:
            raise ValueError(f"{name} must be positive, got {item}")
        if item < 0:
            raise ValueError(f"{name} must not be negative, got {item}")
        if item > most:
            raise ValueError(f"{name} must lie in [0, 1], got {item}")


def with_hint(error: E, hint: str) -> E:
    """`error` with what to do next as its note (PEP 678), which the command line prints after "hint:"; raise it where the remedy
    is known: `raise with_hint(ValueError("…"), "foredraft list machines")`.
    """
    error.add_note(hint)
    return error


# What a machine's rates may be of, and the other spellings of number formats: those of torch, vLLM's --dtype and --kv-cache-dtype.
RATES = "float32", "tf32", "float16", "bfloat16", "fp8", "int8", "fp4", "int4"
DTYPE_SPELLINGS = {
    "bfloat16": ("bf16", "brainfloat16"), "float16": ("fp16", "half", "f16"), "float32": ("fp32", "float", "f32", "single"),
    "fp8": ("float8", "fp8_e4m3", "fp8_e5m2", "float8_e4m3", "float8_e4m3fn", "float8_e5m2", "e4m3"),
    "int8": ("i8", "gptq-int8"), "int4": ("i4", "awq", "gptq", "gptq-int4", "awq-int4"),
    "fp4": ("float4", "float4_e2m1fn_x2", "e2m1"),
}  # fmt: skip


class Provenance(Record, frozen=True, gc=False):
    """Where a number comes from. `trust` is one of raw_logs, repository, paper, derived, read_off_plot, secondary, own, assumed."""

    source: str
    trust: str = "own"
    note: str | None = None
    command: str | None = None
    versions: dict[str, str] = {}
    created: str | None = None

    def __hash__(self) -> int:
        """Without `versions`, a dict, so that a report can count equal rows and origins once; equal records have equal hashes."""
        return hash((self.source, self.trust, self.note, self.command, self.created))


class Machine(Record, frozen=True):
    """One accelerator (or CPU) as the cost law sees it; rates are the maker's dense peaks, effective ones are fitted
    by `laws.cost`.

    Units: bytes, bytes/s, FLOP/s per dtype, seconds. `link_bytes_per_s` is one device's one-way bandwidth to its
    peers. Fields from `cache_bytes` on are what `foredraft probe` measures: rates are then reached, not a maker's;
    `step_overhead_s` is a decoding step whose model costs nothing; `verify_s` seconds of one target pass by its number of
    tokens; `measured` says of each figure how it was measured.
    """

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: dict[str, float]
    source: str
    link_bytes_per_s: float | None = None
    link_latency_s: float | None = None
    aliases: tuple[str, ...] = ()
    cache_bytes: float | None = None
    write_bytes_per_s: float | None = None
    step_overhead_s: float | None = None
    verify_s: dict[int, float] = {}
    threads: int | None = None
    measured: dict[str, str] = {}
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "memory_bytes", "bandwidth_bytes_per_s", "link_bytes_per_s", "cache_bytes", "write_bytes_per_s",
                "step_overhead_s", "threads",
            ),
            non_negative=("link_latency_s",),
        )  # fmt: skip
        _check_units(self)
        msgspec.structs.force_setattr(self, "flops_per_s", _rates(self.flops_per_s))
        for key, value in self.verify_s.items():
            if not value > 0:
                raise ValueError(f"verify_s[{key}] must be positive, got {value}")


@cache
def dtype_name(text: str) -> str:
    """A number format in our spelling ("bf16", "torch.bfloat16", "BF16": bfloat16); one without another spelling as it is, in lower case."""
    name = text.strip().lower().removeprefix("torch.")
    return next((ours for ours, spellings in DTYPE_SPELLINGS.items() if name in spellings), name)


def _rates(flops_per_s: dict[str, float]) -> dict[str, float]:
    """A machine's rates under our names. Raises ValueError on an unknown format, one named twice, and what is in no FLOP/s."""
    rates: dict[str, float] = {}
    for key, value in flops_per_s.items():
        name = dtype_name(key)
        name = "fp4" if name in ("nvfp4", "mxfp4") else name  # blocks of scales are all one to the multiplier
        if name not in RATES:
            raise ValueError(f"flops_per_s[{key}]: rates are by {', '.join(RATES)}; name one of them")
        if name in rates:
            raise ValueError(f"flops_per_s names {name} twice; leave one")
        _check_unit(f"flops_per_s[{key}]", value, least=1e8, most=1e19, unit="FLOP/s", steps=((1e5, 12), (math.inf, 9)))
        rates[name] = value
    if not rates:
        raise ValueError('flops_per_s is empty; give a rate such as {"bfloat16": 1e15}, in FLOP/s')
    return rates


def _check_units(machine: Machine) -> None:
    """Raise ValueError where a figure is in GB, TB/s or microseconds, by its size."""
    per_s = ((100, 12), (1e6, 9), (math.inf, 6))
    _check_unit(
        "memory_bytes", machine.memory_bytes, least=1e8, most=1e15, unit="bytes", steps=((1e4, 9), (math.inf, 6))
    )
    _check_unit(
        "bandwidth_bytes_per_s", machine.bandwidth_bytes_per_s, least=1e8, most=1e15, unit="bytes/s", steps=per_s
    )
    if machine.link_bytes_per_s is not None:
        _check_unit(
            "link_bytes_per_s", machine.link_bytes_per_s, least=1e6, most=1e15, unit="bytes/s", steps=((1e6, 9),)
        )
    if (machine.link_latency_s or 0) >= 1:
        raise ValueError(f"link_latency_s {machine.link_latency_s:g}: in seconds; {machine.link_latency_s:g}e-6?")


def _check_unit(
    field: str, value: float, *, least: float, most: float, unit: str, steps: tuple[tuple[float, int], ...]
) -> None:
    """`steps`: below each value, the power of ten that it was probably given in."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{field} must be positive and finite, got {value}")
    if value < least:
        power = next(power for below, power in steps if value < below)
        raise ValueError(f"{field} {value:g}: it is in {unit}; {value:g}e{power}?")
    if value > most:
        raise ValueError(f"{field} {value:g}: it is in {unit}, and no machine has more than {most:g}")


class Workload(Record, frozen=True):
    """What the server is asked to do: mean prompt and answer lengths in tokens, and the concurrencies of interest with their weights."""

    input_len: float
    output_len: float
    concurrency: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    temperature: float = 0.0
    dataset: str | None = None

    def __post_init__(self) -> None:
        require(self, positive=("input_len", "output_len", "concurrency"), non_negative=("weights", "temperature"))
        if not self.concurrency:
            raise ValueError("concurrency must name at least one value")
        if self.weights is not None and (len(self.weights) != len(self.concurrency) or sum(self.weights) <= 0):
            raise ValueError(
                f"weights must give one non-negative weight per concurrency ({len(self.concurrency)}), not all 0"
            )


MOST_CLIENTS = 10**6


def concurrency_of(text: str) -> tuple[int, ...]:
    """Concurrencies in words: "1,8,64" as it stands, "1-256" as the powers of 2 between. Raises ValueError on any other."""
    try:
        if "-" in text:
            low, high = map(int, text.split("-"))
            if not 0 < low <= high <= MOST_CLIENTS:
                raise ValueError
            return (low, *(n for n in (2**i for i in range(31)) if low < n < high), *((high,) if high > low else ()))
        concurrencies = tuple(int(part) for part in text.split(","))
        if not all(0 < clients <= MOST_CLIENTS for clients in concurrencies):
            raise ValueError
        return concurrencies
    except ValueError:
        words = f"a list such as 1,8,64 or a range such as 1-256, of 1 to {MOST_CLIENTS:,} clients"
        raise ValueError(f"concurrency must be {words}, got {text[:99]!r}") from None


class Estimate(Record, frozen=True):
    """A number with its interval. `extrapolates` names the inputs that left the range of the data behind it."""

    value: float
    low: float
    high: float
    unit: str
    source: str
    level: float = 0.9
    extrapolates: tuple[str, ...] = ()

    def covers(self, value: float) -> bool:
        return self.low <= value <= self.high


class BreakEven(Record, frozen=True):
    """Served tokens after which a draft's training has paid for itself; `high` is None where some draws never pay it back."""

    tokens: float
    low: float
    high: float | None
    level: float = 0.9


class Observation(Record, frozen=True, gc=False):
    """One measurement: what was run, the dials, and what came out. What was not measured is None.

    `run` is the cluster that a bootstrap resamples, `family` the recipe that a draft shares with others, within which laws are
    fitted. `tokens_per_step` (τ) includes the bonus token. `survival[i-1]`
    is P(at least i draft tokens accepted), joint, not conditional. `accept_prob` (α) is per token and `accept_kind`
    says which: greedy P(argmax p = argmax q), point E[p(x̂)], sampled Σ min(p, q). `pooling` says whether τ is pooled
    over steps or a mean over requests. `concurrency` counts clients of a server, `batch_size` sequences in a fixed
    batch. Perplexities are in their own tokenizer, named.
    """

    run: str
    target: str
    method: str
    provenance: Provenance
    draft: str | None = None
    family: str | None = None
    dataset: str | None = None
    temperature: float | None = None
    engine: str | None = None
    machine: str | None = None
    tensor_parallel: int | None = None
    dtype: str | None = None
    # dials
    target_params: float | None = None
    target_tokens: float | None = None
    draft_params: float | None = None
    draft_tokens: float | None = None
    draft_layers: int | None = None
    lookahead: int | None = None
    topk: int | None = None
    tree_nodes: int | None = None
    concurrency: int | None = None
    batch_size: int | None = None
    input_len: float | None = None
    output_len: float | None = None
    num_requests: int | None = None
    # outcomes
    steps: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    tokens_per_step: float | None = None
    pooling: str | None = None
    survival: tuple[float, ...] | None = None
    accept_prob: float | None = None
    accept_kind: str | None = None
    cost_ratio: float | None = None
    output_tok_s: float | None = None
    speedup: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    kv_cache_tokens: int | None = None
    model_bytes: float | None = None
    loss: float | None = None
    target_perplexity: float | None = None
    draft_perplexity: float | None = None
    target_tokenizer: str | None = None
    draft_tokenizer: str | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "target_params", "target_tokens", "draft_params", "draft_tokens", "draft_layers", "topk", "concurrency", "batch_size",
                "tensor_parallel", "output_tok_s", "speedup", "input_len", "output_len", "num_requests", "tokens_per_step", "loss",
                "target_perplexity", "draft_perplexity", "tpot_s", "itl_s",
            ),
            non_negative=(
                "lookahead", "tree_nodes", "temperature", "steps", "drafted", "accepted", "ttft_s", "kv_cache_tokens", "model_bytes",
                "cost_ratio",
            ),
            unit=("survival", "accept_prob"),
        )  # fmt: skip
        if self.accepted is not None and self.drafted is not None and self.accepted > self.drafted:
            raise ValueError(f"accepted ({self.accepted}) must not exceed drafted ({self.drafted})")
        if self.tokens_per_step is not None and self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step counts the bonus token and so is at least 1, got {self.tokens_per_step}")


class Measurement(Record, frozen=True):
    """One row of `foredraft measure`: an observation with the intervals and details that a table of dials cannot hold.

    `way`: "live" (the engine's own steps) or "forced" (one pass of the target over its own answers). `category` None: all
    categories together. `intervals`: by the name of an Observation field, cluster bootstrap over requests, 90 %.
    `accept_probs`: α by kind, "greedy", "point", "sampled". `survival`, `accept_given_prefix`: by position, from 1.
    `wanted_requests`: how many requests would narrow τ's interval to the width asked for. `ttot_s`: seconds from a
    request to the last token of its answer.
    """

    observation: Observation
    way: str
    category: str | None = None
    intervals: dict[str, Estimate] = {}
    accept_probs: dict[str, Estimate] = {}
    survival: tuple[Estimate, ...] = ()
    accept_given_prefix: tuple[Estimate, ...] = ()
    wanted_requests: int | None = None
    ttot_s: Estimate | None = None

    def __post_init__(self) -> None:
        if self.way not in ("live", "forced"):
            raise ValueError(f"way must be live or forced, got {self.way!r}")
        if unknown := set(self.accept_probs) - {"greedy", "point", "sampled"}:
            raise ValueError(f"accept_probs: kinds are greedy, point and sampled, got {', '.join(sorted(unknown))}")


class StepRecord(Record, frozen=True):
    """One decoding step as the engine counted it; one entry per running sequence in the tuples.

    `drafted` are the nodes that were verified, `accepted` those that were kept, `emitted` the tokens gained (accepted and
    bonus, less what a stop cut off). `lookahead` is the depth that was drafted, 0 for plain decoding. Seconds are wall
    time: drafting, the target's pass, everything else of the step.
    """

    lookahead: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    emitted: tuple[int, ...]
    draft_s: float
    target_s: float
    other_s: float


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


class Plan(Record, frozen=True):
    """The answer of `foredraft plan`: which draft, how to run it at each concurrency, what it gains, and how far to
    trust that. `devices` in all make `data_parallel` replicas; `expert_parallel`: experts lie whole on all devices together.
    `dtype`: of the weights; `kv_dtype` None: the KV cache as the model has it. `settings`: the schedule searched for each engine, in
    that engine's words.
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


def decode(kind: type[T], data: bytes | str, *, name: str = "record") -> T:
    """Decode JSON into `kind`; raise ValueError with one line that names the file and the field."""
    if isinstance(data, bytes) and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise with_hint(ValueError(f"{name}: not UTF-8"), f"iconv -f UTF-16 -t UTF-8 {name}")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        failure = ValueError(f"{name}: {error}")
        raise (with_hint(failure, "plan again: foredraft plan TARGET --out DIR") if kind is Plan else failure) from None


def read_text(path: str | Path) -> str:
    """A text in UTF-8, with a byte-order mark or without. Raises ValueError naming a file in another encoding."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise with_hint(
            ValueError(f"{path}: not UTF-8 (byte {error.start})"), f"iconv -f {_encoding(error.object)} -t UTF-8 {path}"
        ) from None


def _encoding(data: bytes) -> str:
    """What a text that is no UTF-8 probably is, by its byte-order mark."""
    return "UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "LATIN1"


def read(kind: type[T], path: str | Path) -> T:
    """Read one JSON document."""
    return decode(kind, Path(path).read_bytes(), name=str(path))


def read_lines(kind: type[T], path: str | Path) -> list[T]:
    """Read JSON lines; raise ValueError naming the line; an empty file is an error."""
    lines = Path(path).read_bytes().splitlines()  # of bytes: U+2028 in a text ends no line
    records = [decode(kind, line, name=f"{path}:{i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not records:
        raise ValueError(f"{path}: no records in the file")
    return records


def write(path: str | Path, record: Any) -> None:
    """Write one JSON document, indented, atomically."""
    write_bytes(
        path,
        msgspec.json.format(
            msgspec.json.encode(record, order="deterministic" if isinstance(record, dict) else None), indent=1
        )
        + b"\n",
    )


def write_lines(path: str | Path, records: Iterable[Any]) -> None:
    """Write JSON lines, atomically."""
    write_bytes(path, msgspec.json.Encoder().encode_lines(list(records)))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` in one step, so that a crash leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def lock(path: str | Path, busy: str) -> IO[bytes]:
    """Return the open file at `path`, locked until it is closed or this process ends. Raises ValueError `busy` where another holds it."""
    import fcntl

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(busy) from None
    return file


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder to fill, renamed to `path` once all in it is on disk, and removed when the block does not end well.

    Raises ValueError where `path` already holds something, and OSError naming `path` where the disk is full.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: exists already; remove it or choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            errno.ENOSPC, f"the disk is full ({free / 1e6:,.0f} MB free before cleaning up), nothing was kept; free some or choose another --out",
            str(path),
        ) from None  # fmt: skip
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have everything on disk before it gets its name; a disk that fills late says so here."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
