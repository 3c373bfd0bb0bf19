"""What a step costs: from Shape × Machine to step time, KV capacity, queueing and throughput. Speedup comes out; it
is never put in.

Promises: one law for target and draft; every coefficient has a default with its source and can be calibrated on
measured rows; the draft's weights and KV cache take memory from the target, and a server whose cache is full makes
requests wait. Refuses to know: acceptance, search, files.

One forward pass over n tokens of sequences that hold c cached tokens in all:

    fixed + (memory^p + compute^p)^(1/p) + link,   memory = (weights touched by n + c · KV bytes) / effective bandwidth,
                                                  compute = n · FLOPs per token / effective rate,

p = 1 is their sum, p → ∞ their maximum; the data decide (`blend`). A speculative step is one target pass over the
verified tokens, `depth` draft passes, a fixed cost of speculation and, of a tree, one of ranking each level. A closed
loop of C clients runs min(C, capacity / tokens held per sequence) sequences; the rest queue.

Sources: roofline (Williams et al. 2009); Leviathan et al., arXiv 2211.17192; memory against batch, MagicDec, arXiv
2408.11049; linear step time fitted on an H100, SpecDecode-Bench, arXiv 2601.11580. All times in seconds, sizes in
bytes; arguments broadcast as numpy arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foredraft.records import Machine, Record, with_hint
from foredraft.shapes import Shape

Array = NDArray[np.float64]


class Efficiency(Record, frozen=True):
    """What serving software reaches of a machine's peaks, and its fixed costs in seconds.

    Defaults: published rows of vLLM on H100 (Qwen3-32B with three drafts, Llama-3.1-8B), see docs/log.md. `reserve`
    and `speculation_reserve` are the shares of memory that activations, graphs and the drafter's buffers keep from
    the KV cache (four measured capacities); no published rows tell `tree_level_s`; `occupancy`
    is the share of the cache that sequences fill when they compete for it, the rest lost to admission and preemption.
    """

    bandwidth: float = 0.8
    compute: float = 0.7
    blend: float = 3.0
    target_fixed_s: float = 3e-4
    target_layer_s: float = 5e-6
    draft_fixed_s: float = 5e-4
    draft_layer_s: float = 4.5e-5
    speculation_s: float = 1.5e-3
    tree_level_s: float = 0.0
    memory_use: float = 0.9
    reserve: float = 0.067
    speculation_reserve: float = 0.024
    occupancy: float = 0.75


class ServedLoad(NamedTuple):
    """What a server does at one concurrency: output tokens/s, seconds to the first token and per output token, sequences running."""

    output_tok_s: Array
    ttft_s: Array
    tpot_s: Array
    running: Array


@dataclass(frozen=True)
class PassCost:
    """Coefficients of one model's forward pass on its machine; `weights_s(n)` grows with n only for mixtures of experts."""

    fixed_s: float
    weights_s: Callable[[Array], Array]
    token_s: float
    kv_token_s: float
    link_token_s: float = 0.0

    @classmethod
    def of(
        cls, shape: Shape, machine: Machine, efficiency: Efficiency, *, fixed_s: float, layer_s: float,
        tensor_parallel: int = 1, dtype: str = "bfloat16", kv_dtype: str | None = None,
    ) -> "PassCost":  # fmt: skip
        """The cost of `shape` split over `tensor_parallel` machines. Raises ValueError when the machine has no rate for `dtype`."""
        if dtype not in machine.flops_per_s:
            raise ValueError(f"dtype {dtype}: {machine.name} has rates for {', '.join(machine.flops_per_s)}")
        bandwidth = machine.bandwidth_bytes_per_s * efficiency.bandwidth * tensor_parallel
        rate = machine.flops_per_s[dtype] * efficiency.compute * tensor_parallel
        exchanges = (
            2 * shape.num_layers if tensor_parallel > 1 else 0
        )  # one all-reduce after attention, one after the MLP
        recurrent = shape.head is not None
        share = 2 * (tensor_parallel - 1) / tensor_parallel
        link = share * shape.hidden_size * 2 / (machine.link_bytes_per_s or np.inf)
        return cls(
            fixed_s=fixed_s + shape.num_layers * layer_s + exchanges * (machine.link_latency_s or 0.0),
            weights_s=lambda tokens: shape.read_bytes(tokens, dtype, recurrent=recurrent) / bandwidth,
            token_s=shape.flops_per_token(0, recurrent=recurrent) / rate,
            kv_token_s=shape.kv_bytes_per_token(kv_dtype or dtype) / bandwidth,
            link_token_s=exchanges * link,
        )

    def seconds(self, tokens: ArrayLike, kv_tokens: ArrayLike, blend: float) -> Array:
        """One pass over `tokens` tokens in all, reading `kv_tokens` cached ones."""
        tokens = np.asarray(tokens, dtype=float)
        memory = self.weights_s(tokens) + self.kv_token_s * np.asarray(kv_tokens, dtype=float)
        compute = self.token_s * tokens
        peak = np.maximum(memory, compute)
        return (
            self.fixed_s
            + peak * ((memory / peak) ** blend + (compute / peak) ** blend) ** (1 / blend)
            + self.link_token_s * tokens
        )

    def scaled(self, *, fixed: float = 1.0, memory: float = 1.0, compute: float = 1.0) -> "PassCost":
        weights_s = self.weights_s
        return replace(
            self, fixed_s=self.fixed_s * fixed, weights_s=lambda tokens: weights_s(tokens) * memory,
            token_s=self.token_s * compute, kv_token_s=self.kv_token_s * memory,
        )  # fmt: skip


@dataclass(frozen=True)
class ServerCost:
    """A target with at most one draft under a workload of fixed mean lengths.

    `capacity_tokens` is what running sequences can hold in the KV cache beside both models; inf where it is unknown.
    `draft` None with speculation means a drafter that costs nothing but `speculation_s` (prompt lookup).
    """

    target: PassCost
    draft: PassCost | None
    input_len: float
    output_len: float
    capacity_tokens: float
    speculation_s: float
    prefill_s: float
    blend: float
    tree_level_s: float = 0.0

    def step_s(
        self, batch: ArrayLike, depth: ArrayLike, *, width: ArrayLike = 1, nodes: ArrayLike | None = None
    ) -> Array:
        """Seconds of one step of `batch` sequences: `depth` draft passes of `width` tokens each, then `nodes` + 1
        verified tokens each.

        depth 0 is plain decoding. `nodes` is `depth` (a chain) unless a tree is given.
        """
        batch, depth = np.asarray(batch, dtype=float), np.asarray(depth, dtype=float)
        cached = batch * self.cached_tokens
        verified = 1 + (depth if nodes is None else np.asarray(nodes, dtype=float))
        step = self.target.seconds(batch * verified, cached, self.blend)
        drafting = self.draft.seconds(batch * width, cached, self.blend) if self.draft else 0.0
        ranking = np.where(np.asarray(width) > 1, self.tree_level_s, 0.0)
        return step + depth * (drafting + ranking) + np.where(depth > 0, self.speculation_s, 0.0)

    @property
    def cached_tokens(self) -> float:
        """Cached tokens of one running sequence, averaged over its life."""
        return self.input_len + self.output_len / 2

    def load(
        self, concurrency: ArrayLike, depth: ArrayLike, tokens_per_step: ArrayLike, *, width: ArrayLike = 1,
        nodes: ArrayLike | None = None,
    ) -> ServedLoad:  # fmt: skip
        """What `concurrency` clients see who each ask again at once: throughput, TTFT (queueing included) and TPOT.

        Decoding of a sequence's `output_len` tokens takes output_len / τ steps, shared by those that run; prefills
        interrupt everybody.
        """
        concurrency, tau = np.asarray(concurrency, dtype=float), np.asarray(tokens_per_step, dtype=float)
        running = np.minimum(concurrency, np.maximum(self.capacity_tokens / self.cached_tokens, 1.0))
        decode_s = self.output_len / tau * self.step_s(running, depth, width=width, nodes=nodes)
        service_s = decode_s / running + self.prefill_s  # the engine's time for one request
        waiting = concurrency - running
        tpot_s = (decode_s + (running - 1) * self.prefill_s) / self.output_len
        return ServedLoad(self.output_len / service_s, self.prefill_s + waiting * service_s, tpot_s, running)


def serve(
    target: Shape, machine: Machine, *, input_len: float, output_len: float, draft: Shape | None = None,
    tensor_parallel: int = 1, dtype: str = "bfloat16", kv_dtype: str | None = None,
    efficiency: Efficiency | None = None, speculate: bool = True,
) -> ServerCost:  # fmt: skip
    """A server of `target`, and of `draft` beside it, on `tensor_parallel` machines.

    `speculate` False leaves out the memory that a drafter's buffers take. Raises ValueError when the models do not
    fit or the cache cannot hold one sequence, with the numbers.
    """
    eff = efficiency or Efficiency()
    if draft and draft.params >= target.params:
        raise ValueError(
            f"draft {draft.name} ({draft.params / 1e9:.3g} B) must be smaller than target {target.name} ({target.params / 1e9:.3g} B)"
        )
    placed = {"tensor_parallel": tensor_parallel, "dtype": dtype, "kv_dtype": kv_dtype or dtype}
    capacity = capacity_tokens(target, machine, draft=draft, efficiency=eff, speculate=speculate, **placed)
    if capacity < input_len + output_len:
        message = (
            f"{target.name}{' with ' + draft.name if draft else ''} on {tensor_parallel}×{machine.name}: the KV cache holds "
            f"{max(capacity, 0):,.0f} tokens, one sequence needs {input_len + output_len:,.0f}; use more devices or a smaller dtype"
        )
        raise with_hint(ValueError(message), "raise --devices, or lower --dtype, --input-len or --output-len")
    target_pass = PassCost.of(target, machine, eff, fixed_s=eff.target_fixed_s, layer_s=eff.target_layer_s, **placed)
    fixed = {"fixed_s": eff.draft_fixed_s, "layer_s": eff.draft_layer_s}
    draft_pass = PassCost.of(draft, machine, eff, **fixed, **placed) if draft else None
    rate = machine.flops_per_s[dtype] * eff.compute * tensor_parallel
    prefill_flops = sum(shape.flops_per_token(input_len / 2) for shape in (target, draft) if shape) * input_len
    return ServerCost(
        target_pass, draft_pass, input_len, output_len, capacity * eff.occupancy, eff.speculation_s, prefill_flops / rate, eff.blend,
        eff.tree_level_s,
    )  # fmt: skip


def capacity_tokens(
    target: Shape, machine: Machine, *, draft: Shape | None = None, tensor_parallel: int = 1, dtype: str = "bfloat16",
    kv_dtype: str | None = None, efficiency: Efficiency | None = None, speculate: bool = True,
) -> float:  # fmt: skip
    """Tokens that the KV cache holds beside the weights of target and draft (each cached token is kept by both models)."""
    eff = efficiency or Efficiency()
    reserve = eff.reserve + (eff.speculation_reserve if draft and speculate else 0.0)
    shapes = [shape for shape in (target, draft) if shape]
    room = tensor_parallel * machine.memory_bytes * (eff.memory_use - reserve) - sum(
        shape.weight_bytes(dtype) for shape in shapes
    )
    return room / sum(shape.kv_bytes_per_token(kv_dtype or dtype) for shape in shapes)
