"""What one forward pass costs: from Shape × Machine × Layout to seconds, by sequences and tokens of each.

Promises: one law for target and draft, dense and mixture of experts; every coefficient has a default with its source.
Refuses to know: how passes make a step, queueing, calibration, files.

A pass over b sequences of m tokens each, on one of `data` replicas split over `tensor` devices:

    floor + (memory^p + compute^p)^(1/p) + exchanges,
    memory  = dense weights / bandwidth + experts touched / their bandwidth + b · cached bytes of a sequence / its bandwidth,
    compute = b·m · FLOPs per token / effective rate,

p = 1 is their sum, p → ∞ their maximum; the data decide (`blend`). Tokens of one sequence share experts: m of them count
as m^CORRELATION, and since some experts are popular, n as n^`popularity` independent ones: E·(1 − (1 − k/E)^n) of a layer's E.

Sources: roofline (Williams et al. 2009); Leviathan et al., arXiv 2211.17192; experts touched, MoESD, arXiv 2505.19645; their
correlation, cohere.com/blog/mixture-of-experts-models-get-more-from-speculative-decoding (four consecutive tokens touch 2.5 times
the experts of one, the second shares 38 % of its own). Times in seconds, sizes in bytes; arguments broadcast as numpy arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from foredraft.records import Machine, Record, require
from foredraft.shapes import Shape
from foredraft.shapes.formats import UNQUANTISED, bytes_per_value, compute_dtype

Array = NDArray[np.float64]

CORRELATION = 0.67  # log 2.5 / log 4 = 0.66 and log 1.62 / log 2 = 0.70, of the source above
TILE = 16  # rows of a grouped product's tile: an expert with fewer tokens is multiplied as with so many (the least of Triton's fused_moe)
LOGIT_BYTES = (
    12  # moved for a word whose logit a chain changes: read, written and read again for the choice, in 32 bits
)


class Layout(Record, frozen=True):
    """How devices share a model: `data` replicas, each split over `tensor` devices; `expert`: the experts lie whole on all devices
    together, and tokens travel to them, else each is split like the rest.
    """

    tensor: int = 1
    data: int = 1
    expert: bool = False

    def __post_init__(self) -> None:
        require(self, positive=("tensor", "data"))

    @property
    def devices(self) -> int:
        return self.tensor * self.data

    def check(self, shape: Shape) -> None:
        """Raises ValueError where groups do not divide the heads (those of keys and values divide too, or are copied to several
        devices each), or all devices together the experts.
        """
        heads, shared = shape.num_heads, 1 if shape.kv_replicated else shape.num_kv_heads
        able = [n for n in range(1, heads + 1) if heads % n == 0 and (shared % n == 0 or n % shared == 0)]
        if self.tensor not in able:
            kept = "" if shape.kv_replicated else f" ({shared} of keys and values)"
            split = f"--devices {self.devices}" + f" in {self.data} replicas" * (self.data > 1)
            numbers = f"{', '.join(map(str, able[:-1]))} or {able[-1]}"
            message = f"{split} does not divide the {heads} heads{kept} of {shape.name}; {numbers} would"
            raise ValueError(message + " in each" * (self.data > 1))
        if self.expert and shape.num_experts and shape.num_experts % self.devices:
            raise ValueError(
                f"--devices {self.devices} does not divide the {shape.num_experts} experts of {shape.name}"
            )


class Efficiency(Record, frozen=True):
    """What serving software reaches of a machine's peaks, and its fixed costs in seconds.

    Shares of the peak: `bandwidth` of dense weights, `expert_bandwidth` of experts (grouped products), `cache_bandwidth` of the KV
    cache, `compute` in decoding and `prompt_compute` in prompts; of these `narrow` at rates below 16 bits (activations are quantised
    first) and `unpacking` where weights are stored in fewer bits than they are multiplied in. `popularity`: the power of n independent
    tokens as which n of other sequences count, which favour some experts too. Seconds: `target_fixed_s` a step,
    `target_layer_s` a layer, `expert_layer_s` more of a layer with experts (routing, sorting), `exchange_s` of one exchange for each
    doubling of devices, beside the link's own latency, `request_s` of a request and `prompt_layer_s` of each layer in its prompt's pass,
    which is launched kernel by kernel; `first_steps` behind that pass until the first token is there. `chain_s`: of each token that is picked
    after a block's pass (DSpark's figure 4, H100 assumed). `speculation_rank_s`: more of a speculative step for each doubling of the devices
    that share a model, where they wait for each other between its parts. Fitted on published rows (recipes/cost_law.py); what a draft's pass
    and speculation cost, on vLLM's rows of Qwen3-32B and Llama-3.1-8B on H100 (docs/log.md), for SGLang on its own (recipes/speculation_cost.py).
    `reserve` and `speculation_reserve` are the shares of memory that activations, graphs and the drafter's buffers keep from the KV cache
    (measured capacities); no published rows of vLLM tell `tree_level_s` or `speculation_rank_s`; `occupancy` is the share of the cache that
    sequences fill when they compete for it, the rest lost to admission and preemption.
    """

    bandwidth: float = 0.74
    expert_bandwidth: float = 0.4
    cache_bandwidth: float = 0.48
    compute: float = 0.55
    prompt_compute: float = 0.75
    narrow: float = 0.7
    unpacking: float = 0.35
    blend: float = 3.0
    popularity: float = 0.9
    target_fixed_s: float = 1.6e-4
    target_layer_s: float = 3e-5
    expert_layer_s: float = 4e-5
    exchange_s: float = 7e-6
    request_s: float = 1.5e-3
    prompt_layer_s: float = 3e-4
    first_steps: float = 0.0
    draft_fixed_s: float = 5e-4
    draft_layer_s: float = 4.5e-5
    chain_s: float = 5e-5
    speculation_s: float = 1.5e-3
    speculation_rank_s: float = 0.0
    tree_level_s: float = 0.0
    memory_use: float = 0.9
    reserve: float = 0.067
    speculation_reserve: float = 0.024
    occupancy: float = 0.75


@dataclass(frozen=True)
class PassCost:
    """Coefficients of one model's forward pass on its machines, per replica.

    `dense_s`: reading the weights that every token uses; `experts_s(sequences, tokens)`: reading the experts that so many sequences of
    `tokens` each are routed to, and `padding_s` multiplying the empty rows of their tiles, None without; `sequence_s`: reading one
    sequence's cache; `link_token_s`: moving one token's states between devices.
    """

    fixed_s: float
    dense_s: float
    token_s: float
    sequence_s: float
    link_token_s: float = 0.0
    experts_s: Callable[[Array, Array], Array] | None = None
    padding_s: Callable[[Array, Array], Array] | None = None

    @classmethod
    def of(
        cls, shape: Shape, machine: Machine, efficiency: Efficiency, *, context: float, fixed_s: float, layer_s: float,
        layout: Layout | None = None, dtype: str | None = None, kv_dtype: str | None = None, prompt: bool = False,
    ) -> "PassCost":  # fmt: skip
        """The cost of `shape` where each sequence has `context` cached tokens. `dtype` None: the weights as the checkpoint stores them.
        `prompt`: of the tokens of a prompt, of which the LM head scores one and whose products are large.
        """
        layout = layout or Layout()
        bandwidth, recurrent = machine.bandwidth_bytes_per_s, shape.head is not None
        rate = reached_rate(shape, machine, efficiency, dtype, prompt=prompt) * layout.tensor
        flops = shape.flops_per_token(context, recurrent=recurrent) - 2.0 * prompt * shape.head_params
        exchanges, link_token_s = exchange(shape, machine, layout)
        group = layout.devices if layout.expert else layout.tensor
        latency_s = (machine.link_latency_s or 0.0) + efficiency.exchange_s * float(np.log2(group))
        floor_s = fixed_s + shape.num_layers * layer_s + shape.num_sparse_layers * efficiency.expert_layer_s
        cache_s = (
            shape.cache_read_bytes(context, kv_dtype)
            * cache_share(shape, layout)
            / (bandwidth * efficiency.cache_bandwidth)
        )
        dense_s = shape.dense_read_bytes(dtype, recurrent=recurrent) / (
            bandwidth * efficiency.bandwidth * layout.tensor
        )
        cost = cls(floor_s + exchanges * latency_s, dense_s, flops / rate, cache_s, link_token_s)
        if not shape.num_experts:
            return cost
        reached = efficiency.bandwidth if prompt else efficiency.expert_bandwidth
        expert_s = shape.num_sparse_layers * shape.expert_bytes(dtype) / (bandwidth * reached * group)
        row_s = 2.0 * shape.num_sparse_layers * shape.expert_params / (rate * layout.data if layout.expert else rate)
        crowd = layout.data if layout.expert else 1

        def touched(sequences: Array, tokens: Array) -> Array:
            return experts_touched(shape, crowd * sequences, tokens, efficiency.popularity)

        def experts_s(sequences: Array, tokens: Array) -> Array:
            return expert_s * touched(sequences, tokens)

        def padding_s(sequences: Array, tokens: Array) -> Array:
            rows = shape.experts_per_token * crowd * sequences * tokens
            return row_s * np.maximum(TILE * touched(sequences, tokens) - rows, 0.0)

        return replace(cost, experts_s=experts_s, padding_s=padding_s)

    @classmethod
    def of_context(
        cls, shape: Shape, machine: Machine, efficiency: Efficiency, *, layout: Layout, dtype: str | None
    ) -> "PassCost":
        """What committed tokens take in a head that drafts blocks, to leave their keys and values: products of their own where these
        alone are made, else a share of the block's pass, whose weights are read anyway.
        """
        rate = reached_rate(shape, machine, efficiency, dtype) * layout.tensor
        read = bytes_per_value(dtype or shape.weight_format) * (
            shape.context_weights if shape.head and shape.head.context_in_keys else 0
        )
        bandwidth = machine.bandwidth_bytes_per_s * efficiency.bandwidth * layout.tensor
        return cls(0.0, read / bandwidth, 2.0 * shape.context_weights / rate, 0.0)

    @classmethod
    def of_chain(
        cls, shape: Shape, machine: Machine, efficiency: Efficiency, *, layout: Layout, dtype: str | None
    ) -> "PassCost | None":
        """What each drafted token takes after its block's pass: the chain's matrices, and where they end in words, the logits that they
        move, which every device of a group does whole; None without a chain.
        """
        if not shape.chain:
            return None
        rate = reached_rate(shape, machine, efficiency, dtype) * layout.tensor
        bandwidth = machine.bandwidth_bytes_per_s * efficiency.bandwidth
        words = shape.draft_vocab_size or shape.vocab_size
        logits = LOGIT_BYTES * max((outputs for _, outputs in shape.chain.values() if outputs == words), default=0)
        flops = 2.0 * sum(inputs * outputs for inputs, outputs in shape.chain.values())
        weights_s = shape.chain_bytes(dtype) / (bandwidth * layout.tensor)
        return cls(efficiency.chain_s, weights_s, flops / rate, logits / bandwidth)

    def weights_s(self, sequences: Array, tokens: Array) -> Array:
        """Reading the weights for `sequences` of `tokens` each; it grows with them only for mixtures of experts."""
        return self.dense_s + (self.experts_s(sequences, tokens) if self.experts_s else np.zeros(()))

    def seconds(self, sequences: ArrayLike, tokens: ArrayLike, blend: float) -> Array:
        """One pass over `sequences` of `tokens` each, their caches read."""
        sequences, tokens = np.asarray(sequences, dtype=float), np.asarray(tokens, dtype=float)
        memory = self.weights_s(sequences, tokens) + self.sequence_s * sequences
        compute = self.token_s * sequences * tokens + (self.padding_s(sequences, tokens) if self.padding_s else 0.0)
        peak = np.maximum(memory, compute)
        blended = peak * (1 + (np.minimum(memory, compute) / peak) ** blend) ** (1 / blend)
        return self.fixed_s + blended + self.link_token_s * sequences * tokens

    def scaled(
        self, *, fixed: float = 1.0, memory: float = 1.0, compute: float = 1.0, experts: float = 1.0
    ) -> "PassCost":
        """With its parts multiplied; `experts` beside `memory`."""
        experts_s, padding_s = self.experts_s, self.padding_s
        return replace(
            self, fixed_s=self.fixed_s * fixed, dense_s=self.dense_s * memory, token_s=self.token_s * compute,
            sequence_s=self.sequence_s * memory,
            experts_s=experts_s and (lambda sequences, tokens: experts_s(sequences, tokens) * memory * experts),
            padding_s=padding_s and (lambda sequences, tokens: padding_s(sequences, tokens) * compute),
        )  # fmt: skip


def experts_touched(shape: Shape, sequences: Array, tokens: Array, popularity: float) -> Array:
    """Expected distinct experts of a layer that `sequences` of `tokens` each are routed to; 0 without experts."""
    return np.asarray(shape.experts_touched((sequences * tokens**CORRELATION) ** popularity), dtype=float)


def exchange(shape: Shape, machine: Machine, layout: Layout) -> tuple[int, float]:
    """Exchanges of one pass, and the seconds that one token's states take on the link in all of them.

    Tensor parallel: an all-reduce after attention and one after the MLP, a ring of 2(t − 1)/t of the states each. Experts on all
    devices: in their layers two all-to-all instead of the second, each token to its k experts and back.
    """
    state_s = 2 * shape.hidden_size / (machine.link_bytes_per_s or np.inf)
    sparse = shape.num_sparse_layers if layout.expert and layout.devices > 1 else 0
    reduces = 2 * shape.num_layers - sparse if layout.tensor > 1 else 0
    reduced = 2 * (layout.tensor - 1) / layout.tensor
    travelled = shape.experts_per_token * (layout.devices - 1) / layout.devices
    return reduces + 2 * sparse, state_s * (reduces * reduced + 2 * sparse * travelled)


def cache_share(shape: Shape, layout: Layout) -> float:
    """Of a sequence's cache, what each device of a group keeps: no less than one key-value head, all of a latent one."""
    return 1.0 if shape.kv_replicated else max(1 / layout.tensor, 1 / shape.num_kv_heads)


def reached_rate(
    shape: Shape, machine: Machine, efficiency: Efficiency, dtype: str | None, *, prompt: bool = False
) -> float:
    """FLOP/s that one device reaches on the weights' format."""
    stored = dtype or shape.weight_format
    multiplied = compute_dtype(stored, machine.flops_per_s)
    share = efficiency.prompt_compute if prompt else efficiency.compute
    if multiplied not in UNQUANTISED:
        share *= efficiency.narrow
    elif stored not in UNQUANTISED:
        share *= efficiency.unpacking
    return machine.flops_per_s[multiplied] * share
