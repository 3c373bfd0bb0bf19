"""What is measured and on what: machines, workloads, observations, steps. A value that was not measured is None, never 0."""

import math
from functools import cache

import msgspec

from foredraft.records.record import Record, require

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
    tokens; `stack_s`, by number format and number of rows, those of our engine's products of rows with `stack_bytes` of weights, more than any
    cache holds; `measured` says of each figure how it was measured.
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
    stack_bytes: float | None = None
    stack_s: dict[str, dict[int, float]] = {}
    threads: int | None = None
    measured: dict[str, str] = {}
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        require(
            self,
            positive=(
                "memory_bytes", "bandwidth_bytes_per_s", "link_bytes_per_s", "cache_bytes", "write_bytes_per_s",
                "step_overhead_s", "threads", "stack_bytes",
            ),
            non_negative=("link_latency_s",),
        )  # fmt: skip
        _check_units(self)
        msgspec.structs.force_setattr(self, "flops_per_s", _rates(self.flops_per_s))
        timed = {"verify_s": self.verify_s} | {f"stack_s[{name}]": rows for name, rows in self.stack_s.items()}
        for name, seconds in timed.items():
            for key, value in seconds.items():
                if not value > 0:
                    raise ValueError(f"{name}[{key}] must be positive, got {value}")


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


# What prompts may be of.
TASKS = (
    "chat",
    "code",
    "math",
    "rag",
    "summarisation",
    "translation",
    "qa",
    "writing",
    "multilingual",
    "reasoning",
)


class Workload(Record, frozen=True):
    """What the server is asked to do: mean prompt and answer lengths in tokens, the concurrencies of interest with their weights, and what
    the prompts are of (chat, code, math, …; None: a mix).
    """

    input_len: float
    output_len: float
    concurrency: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    temperature: float = 0.0
    dataset: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        require(self, positive=("input_len", "output_len", "concurrency"), non_negative=("weights", "temperature"))
        if self.task is not None and self.task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, or left out for a mix; got {self.task!r}")
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


class Observation(Record, frozen=True, gc=False):
    """One measurement: what was run, the dials, and what came out. What was not measured is None.

    `run` is the cluster that a bootstrap resamples, `family` the recipe that a draft shares with others, within which laws are
    fitted. `tokens_per_step` (τ) includes the bonus token. `survival[i-1]`
    is P(at least i draft tokens accepted), joint, not conditional. `accept_prob` (α) is per token and `accept_kind`
    says which: greedy P(argmax p = argmax q), point E[p(x̂)], sampled Σ min(p, q). `pooling` says whether τ is pooled
    over steps or a mean over requests. `lookup_steps`, `lookup_drafted` and `lookup_accepted` are the part of steps, drafted and accepted
    that a look-up stands for, where it stands before a draft (method eagle3+ngram): of matches of `lookup_min_match` tokens, as long as the match
    and `lookup_lookahead` tokens at most.
    `draft_vocab`: how many tokens the draft may draft, None for all. Of an engine that clocks its own steps, means over its steps of `draft_s`,
    drafting, `target_s`, the target's pass, and `other_s`, the rest; and `prompt_s`, what passed outside steps, over its requests.
    `concurrency` counts clients of a server, `batch_size` sequences in a fixed batch. Perplexities are in their own tokenizer, named.
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
    draft_vocab: int | None = None
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
    lookup_min_match: int | None = None
    lookup_lookahead: int | None = None
    lookup_steps: int | None = None
    lookup_drafted: int | None = None
    lookup_accepted: int | None = None
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
    draft_s: float | None = None
    target_s: float | None = None
    other_s: float | None = None
    prompt_s: float | None = None
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
                "target_params", "target_tokens", "draft_params", "draft_tokens", "draft_layers", "draft_vocab", "topk", "concurrency",
                "batch_size", "tensor_parallel", "output_tok_s", "speedup", "input_len", "output_len", "num_requests", "tokens_per_step", "loss",
                "target_perplexity", "draft_perplexity", "tpot_s", "itl_s", "target_s", "lookup_min_match", "lookup_lookahead",
            ),
            non_negative=(
                "lookahead", "tree_nodes", "temperature", "steps", "drafted", "accepted", "ttft_s", "kv_cache_tokens", "model_bytes",
                "cost_ratio", "lookup_steps", "lookup_drafted", "lookup_accepted", "draft_s", "other_s", "prompt_s",
            ),
            unit=("survival", "accept_prob"),
        )  # fmt: skip
        if self.accepted is not None and self.drafted is not None and self.accepted > self.drafted:
            raise ValueError(f"accepted ({self.accepted}) must not exceed drafted ({self.drafted})")
        if self.tokens_per_step is not None and self.tokens_per_step < 1:
            raise ValueError(f"tokens_per_step counts the bonus token and so is at least 1, got {self.tokens_per_step}")


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
    time: drafting, the target's pass, everything else of the step. `looked_up`: whether a sequence's draft was the text's own
    continuation, where a look-up stands before a draft; () where none does.
    """

    lookahead: int
    drafted: tuple[int, ...]
    accepted: tuple[int, ...]
    emitted: tuple[int, ...]
    draft_s: float
    target_s: float
    other_s: float
    looked_up: tuple[bool, ...] = ()
