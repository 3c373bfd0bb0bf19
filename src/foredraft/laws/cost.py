"""What a step costs: from Shape × Machine to step time, KV capacity, queueing and throughput. Speedup comes out; it
is never put in.

Promises: the draft's weights and KV cache take memory from the target, and a server whose cache is full makes requests wait;
every coefficient can be calibrated on measured rows. Refuses to know: what one pass costs (`laws.passes`), acceptance, search,
files.

A speculative step is one target pass over the verified tokens, `depth` draft passes, a fixed cost of speculation and, of a
tree, one of ranking each level. A draft that drafts a block takes one pass over its positions instead, the keys and values of the context and, where
its tokens are picked in order, a light chain for each. A closed loop of C clients runs min(C, capacity / tokens held per
sequence) sequences; the rest queue. A prompt's pass is never shorter than one pass over the weights, but beside running sequences it rides on theirs.

Sources: memory against batch, MagicDec, arXiv 2408.11049; linear step time fitted on an H100, SpecDecode-Bench, arXiv
2601.11580. All times in seconds, sizes in bytes; arguments broadcast as numpy arrays.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from foredraft.laws.passes import Array, Efficiency, Layout, PassCost, cache_share
from foredraft.records import Machine, with_hint
from foredraft.shapes import Shape

# How many of the other clients' prompts come at the same time as one's own, half of them before it: clients that ask again at once and get
# answers of one length stay in step. Between 0 and 0.9 on vLLM's rows of Qwen3-32B (one H100, 32 to 128 clients).
IN_STEP = 0.2


class ServedLoad(NamedTuple):
    """What a server does at one concurrency: output tokens/s, seconds to the first token and per output token, sequences running."""

    output_tok_s: Array
    ttft_s: Array
    tpot_s: Array
    running: Array


class Prefill(NamedTuple):
    """A prompt's pass: seconds `alone` on an idle server, and what it adds `beside` others, whose reading of weights it shares."""

    alone: float
    beside: float


@dataclass(frozen=True)
class BlockDrafting:
    """What a draft of blocks takes beside its one pass: a pass of the committed tokens, and one of each drafted token after another."""

    context: PassCost
    chain: PassCost | None

    def seconds(self, sequences: Array, depth: Array, committed: Array, blend: float) -> Array:
        """Of `depth` drafted and `committed` tokens of each of `sequences`."""
        context = self.context.seconds(sequences, committed, blend)
        return context + (depth * self.chain.seconds(sequences, 1.0, blend) if self.chain else 0.0)

    def scaled(self, *, memory: float, compute: float) -> "BlockDrafting":
        chain = self.chain and self.chain.scaled(memory=memory, compute=compute)
        return BlockDrafting(self.context.scaled(memory=memory, compute=compute), chain)


@dataclass(frozen=True)
class ServerCost:
    """A target with at most one draft under a workload of fixed mean lengths.

    `capacity_tokens` is what running sequences can hold in the KV cache beside both models; inf where it is unknown.
    `draft` None with speculation means a drafter that costs nothing but `speculation_s` (prompt lookup). `replicas` share
    the sequences evenly; `request_s` passes before a prompt's pass. `block`: the draft's one pass drafts all tokens of a step. Sequences are
    admitted while the cache has room, of which `occupancy` is what competing ones fill on average.
    """

    target: PassCost
    draft: PassCost | None
    input_len: float
    output_len: float
    capacity_tokens: float
    speculation_s: float
    prefill: Prefill
    blend: float
    tree_level_s: float = 0.0
    replicas: int = 1
    request_s: float = 0.0
    block: BlockDrafting | None = None
    occupancy: float = 1.0
    first_steps: float = 0.0

    def step_s(
        self, batch: ArrayLike, depth: ArrayLike, *, width: ArrayLike = 1, nodes: ArrayLike | None = None
    ) -> Array:
        """Seconds of one step of `batch` sequences: `depth` draft passes of `width` tokens each (of a block one pass over `depth` + 1
        positions), then `nodes` + 1 verified tokens each.

        depth 0 is plain decoding. `nodes` is `depth` (a chain) unless a tree is given.
        """
        depth, sequences = (
            np.asarray(depth, dtype=float),
            np.maximum(np.asarray(batch, dtype=float) / self.replicas, 1.0),
        )
        verified = 1 + (depth if nodes is None else np.asarray(nodes, dtype=float))
        step = self.target.seconds(sequences, verified, self.blend)
        return step + self._drafting_s(sequences, depth, width, verified) + np.where(depth > 0, self.speculation_s, 0.0)

    def _drafting_s(self, sequences: Array, depth: Array, width: ArrayLike, verified: Array) -> Array:
        ranking = np.where(np.asarray(width) > 1, self.tree_level_s, 0.0)
        if self.draft is None:
            return depth * ranking
        if self.block is None:
            return depth * (self.draft.seconds(sequences, width, self.blend) + ranking)
        block_s = self.draft.seconds(sequences, depth + 1.0, self.blend)
        return np.where(depth > 0, block_s + self.block.seconds(sequences, depth, verified, self.blend), 0.0)

    def idle_speed(self, sequences: ArrayLike) -> Array:
        """Speed of steps that draft nothing beside a draft whose pass is made all the same, over that of steps without it."""
        sequences = np.asarray(sequences, dtype=float)
        if self.draft is None:
            return np.ones_like(sequences)
        return 1 / (1 + self.draft.seconds(sequences, 1.0, self.blend) / self.step_s(sequences, 0.0))

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
        interrupt everybody. A prompt beside others waits for the step that runs, its token for the rest of the one that it rides in, a step
        together; for prompts that come with it; and where the cache is full for its turn.
        """
        concurrency, tau = np.asarray(concurrency, dtype=float), np.asarray(tokens_per_step, dtype=float)
        running = self.running(concurrency)
        admitted = np.minimum(concurrency, np.maximum(self.capacity_tokens / self.occupancy / self.cached_tokens, 1.0))
        step_s = self.step_s(running, depth, width=width, nodes=nodes)
        decode_s = self.output_len / tau * step_s
        company = np.maximum(running / self.replicas, 1.0)
        prefill_s = self._prefill_s(company)
        engines = np.minimum(self.replicas, running)
        service_s = decode_s / running + prefill_s / engines  # the engines' time for one request
        beside_s = np.minimum(company - 1, 1.0) * step_s + IN_STEP * (company - 1) / 2 * self.prefill.beside
        first_s = self.request_s + self.prefill.alone + self.first_steps * step_s
        ttft_s = first_s + beside_s + (concurrency - admitted) * service_s
        return ServedLoad(
            self.output_len / service_s, ttft_s, (decode_s + (company - 1) * prefill_s) / self.output_len, running
        )

    def shares(
        self, concurrency: ArrayLike, depth: ArrayLike, tokens_per_step: ArrayLike, *, width: ArrayLike = 1,
        nodes: ArrayLike | None = None,
    ) -> tuple[Array, Array]:  # fmt: skip
        """Of the engines' time under `load`, what prompts take, and what drafting takes."""
        depth, running = np.asarray(depth, dtype=float), self.running(np.asarray(concurrency, dtype=float))
        step_s = self.step_s(running, depth, width=width, nodes=nodes)
        prompt_s = self._prefill_s(np.maximum(running / self.replicas, 1.0)) / np.minimum(self.replicas, running)
        steps_s = self.output_len / np.asarray(tokens_per_step, dtype=float) * step_s / running
        sequences, verified = (
            np.maximum(running / self.replicas, 1.0),
            1 + (depth if nodes is None else np.asarray(nodes)),
        )
        prompt = prompt_s / (prompt_s + steps_s)
        return prompt, (1 - prompt) * self._drafting_s(sequences, depth, width, verified) / step_s

    def running(self, concurrency: Array) -> Array:
        """Sequences that decode together where so many clients ask."""
        return np.minimum(concurrency, np.maximum(self.capacity_tokens / self.cached_tokens, 1.0))

    def _prefill_s(self, company: Array) -> Array:
        """Of a prompt beside so many sequences on its replica, itself among them."""
        return self.prefill.beside + (self.prefill.alone - self.prefill.beside) / company


def mean_running(concurrency: ArrayLike, num_requests: ArrayLike) -> Array:
    """Requests in flight on average where `concurrency` clients share `num_requests` of equal length: the last wave is not full."""
    clients, requests = np.asarray(concurrency, dtype=float), np.asarray(num_requests, dtype=float)
    return requests / np.ceil(requests / clients)


def serve(
    target: Shape, machine: Machine, *, input_len: float, output_len: float, draft: Shape | None = None,
    layout: Layout | None = None, dtype: str | None = None, kv_dtype: str | None = None,
    efficiency: Efficiency | None = None, speculate: bool = True, draft_reading: tuple[str, Efficiency] | None = None,
) -> ServerCost:  # fmt: skip
    """A server of `target`, and of `draft` beside it, on the devices of `layout`; `dtype` None: weights as the checkpoint stores them.

    `speculate` False leaves out the memory that a drafter's buffers take. `draft_reading`: the type that the draft computes in where it is
    another than the target's, and what the engine reaches in it. Raises ValueError when the layout does not divide the
    target, the models do not fit or the cache cannot hold one sequence, with the numbers.
    """
    eff, layout = efficiency or Efficiency(), layout or Layout()
    layout.check(target)
    if draft and draft.params >= target.params:
        raise ValueError(
            f"draft {draft.name} ({draft.params / 1e9:.3g} B) must be smaller than target {target.name} ({target.params / 1e9:.3g} B)"
        )
    placed: dict[str, Any] = {"layout": layout, "dtype": dtype, "kv_dtype": kv_dtype}
    capacity = capacity_tokens(
        target, machine, draft=draft, efficiency=eff, speculate=speculate, context=input_len + output_len / 2, **placed
    )
    if capacity < input_len + output_len:
        message = (
            f"{target.name}{' with ' + draft.name if draft else ''} on {layout.devices}×{machine.name}: the KV cache holds "
            f"{max(capacity, 0):,.0f} tokens, one sequence needs {input_len + output_len:,.0f}; use more devices or a smaller dtype"
        )
        raise with_hint(ValueError(message), "raise --devices, or lower --dtype, --input-len or --output-len")
    fixed = {"fixed_s": eff.target_fixed_s, "layer_s": eff.target_layer_s}
    draft_fixed = {"fixed_s": eff.draft_fixed_s, "layer_s": eff.draft_layer_s}

    speculation_s = eff.speculation_s + eff.speculation_rank_s * float(np.log2(layout.tensor))
    draft_dtype, draft_eff = draft_reading or (dtype, eff)
    block = _block_drafting(draft, machine, draft_eff, layout, draft_dtype)

    def passes(context: float, *, prompt: bool = False) -> list[PassCost]:
        """Of the target, and of the draft where there is one; over a prompt a draft of blocks makes keys and values alone."""
        costs = [PassCost.of(target, machine, eff, context=context, prompt=prompt, **fixed, **placed)]
        if draft and not (block and prompt):
            own = {**placed, "dtype": draft_dtype}
            costs.append(PassCost.of(draft, machine, draft_eff, context=context, prompt=prompt, **draft_fixed, **own))
        return [*costs, block.context] if block and prompt else costs

    decoding, prompt = passes(input_len + output_len / 2), passes(input_len / 2, prompt=True)
    return ServerCost(
        decoding[0], decoding[1] if draft else None, input_len, output_len, capacity * eff.occupancy, speculation_s,
        _prefill(prompt, input_len, eff.blend), eff.blend, eff.tree_level_s, layout.data,
        eff.request_s + target.num_layers * eff.prompt_layer_s, block, eff.occupancy, eff.first_steps,
    )  # fmt: skip


def _block_drafting(
    draft: Shape | None, machine: Machine, eff: Efficiency, layout: Layout, dtype: str | None
) -> BlockDrafting | None:
    """None of a draft that drafts one token after another."""
    if draft is None or draft.head is None or not draft.head.block:
        return None
    context = PassCost.of_context(draft, machine, eff, layout=layout, dtype=dtype)
    return BlockDrafting(context, PassCost.of_chain(draft, machine, eff, layout=layout, dtype=dtype))


def _prefill(passes: list[PassCost], input_len: float, blend: float) -> Prefill:
    alone = sum(float(each.seconds(1, input_len, blend)) for each in passes)
    return Prefill(alone, input_len * sum(each.token_s + each.link_token_s for each in passes))


def capacity_tokens(
    target: Shape, machine: Machine, *, draft: Shape | None = None, layout: Layout | None = None, dtype: str | None = None,
    kv_dtype: str | None = None, efficiency: Efficiency | None = None, speculate: bool = True, context: float = 4096.0,
) -> float:  # fmt: skip
    """Tokens that the KV cache holds beside the weights of target and draft (each cached token is kept by both models), on all
    replicas together, of sequences of `context` tokens each: windows and states make long ones cheaper by the token.
    """
    eff, layout = efficiency or Efficiency(), layout or Layout()
    reserve = eff.reserve + (eff.speculation_reserve if draft and speculate else 0.0)
    shapes = [shape for shape in (target, draft) if shape]
    weights = sum(device_weight_bytes(shape, layout, dtype) for shape in shapes)
    token = sum(shape.cache_bytes(context, kv_dtype) * cache_share(shape, layout) for shape in shapes) / context
    return layout.data * (machine.memory_bytes * (eff.memory_use - reserve) - weights) / token


def device_weight_bytes(shape: Shape, layout: Layout, dtype: str | None) -> float:
    """Weights that one device holds."""
    experts = shape.num_sparse_layers * shape.num_experts * shape.expert_bytes(dtype) if shape.num_experts else 0.0
    shared = (shape.weight_bytes(dtype) - experts) / layout.tensor
    return shared + experts / (layout.devices if layout.expert else layout.tensor)
