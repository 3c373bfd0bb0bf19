"""The engine: requests enter and leave between steps; every step proposes, scores, verifies and commits.

Promises: lossless by `verify` alone; a request that cannot fit is refused with its numbers; one counter for plain and
speculative decoding. Refuses to know: how drafts are made, tokenizers, laws.

Shapes: B running sequences, W drafted nodes, N = W + 1 nodes with the root, S cache slots, V vocabulary, D levels of
the deepest tree and one more.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from foredraft.decode.batch import Request, Sequence
from foredraft.decode.drafters import PAD, Drafter, Proposal, each, prefill
from foredraft.decode.verify import Verdict, verify_chain, verify_tree
from foredraft.models.decoder import Decoder
from foredraft.records import StepRecord

Schedule = Callable[[int], int]  # running sequences -> lookahead


class Engine:
    """Decodes requests on `target`, `max_batch` at a time, each within `max_context` tokens.

    `lookahead` is a number or the planner's schedule by running sequences (0: no speculation). `max_nodes` bounds a
    drafted tree. Raises ValueError where the cache would exceed `cache_bytes`, with the numbers.
    """

    def __init__(
        self,
        target: Decoder,
        drafter: Drafter | None = None,
        *,
        lookahead: int | Schedule = 4,
        max_batch: int = 8,
        max_context: int = 2048,
        max_nodes: int = 64,
        cache_bytes: int | None = None,
    ) -> None:
        if not callable(lookahead) and not 0 <= lookahead <= max_nodes:
            raise ValueError(f"lookahead must lie in 0…{max_nodes}, the nodes that a step may verify; got {lookahead}")
        self.target, self.drafter = target, drafter
        self.lookahead: Schedule = lookahead if callable(lookahead) else lambda running: lookahead
        self.max_batch, self.max_context, self.max_nodes = max_batch, max_context, max_nodes
        needed = max_batch * (max_context + max_nodes) * target.shape.kv_bytes_per_token(str(target.dtype)[6:])
        if cache_bytes is not None and needed > cache_bytes:
            raise ValueError(
                f"cache_bytes {cache_bytes:,} is less than the {needed:,.0f} of {max_batch} sequences of {max_context} + {max_nodes} tokens; "
                "lower max_batch or max_context"
            )
        self.cache = target.new_cache(max_batch, max_context + max_nodes)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._count = 0

    def add(self, request: Request, on_tokens: Callable[[list[int]], None] | None = None) -> Sequence:
        """Queue a request; `on_tokens` is called with what each step emits. Raises ValueError where it cannot fit or
        holds unknown tokens.
        """
        needed, vocabulary = len(request.prompt) + request.max_tokens, self.target.shape.vocab_size
        if needed > self.max_context:
            raise ValueError(
                f"prompt ({len(request.prompt)}) and max_tokens ({request.max_tokens}) need {needed} tokens, max_context is {self.max_context}"
            )
        if not all(0 <= token < vocabulary for token in request.prompt):
            raise ValueError(f"prompt holds a token outside the vocabulary of {vocabulary}")
        self._count += 1
        sequence = Sequence.of(self._count, request, on_tokens)
        self.waiting.append(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """Take a request out between two steps (not from within `on_tokens`); what it has so far stays with it."""
        sequence.finish = sequence.finish or "cancelled"
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        self._release()

    @torch.inference_mode()
    def run(self) -> Iterator[StepRecord]:
        """Step until nothing is left; requests may be added meanwhile."""
        while self.waiting or self.running:
            self._admit()
            yield self._step()
            self._release()

    def generate(self, requests: list[Request]) -> list[Sequence]:
        """All requests to their ends, in their order."""
        sequences = [self.add(request) for request in requests]
        for _ in self.run():
            pass
        return sequences

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.max_batch:
            sequence = self.waiting.popleft()
            row = len(self.running)
            reads = self.drafter.reads if self.drafter else ()
            streams = prefill(self.target, self.cache, row, sequence, reads)
            sequence.fresh = torch.cat(streams, -1) if streams else None
            if self.drafter:
                self.drafter.admit(row, sequence)
            self.running.append(sequence)

    def _release(self) -> None:
        """Drop finished sequences; the last row takes the place of each."""
        for row in reversed([i for i, sequence in enumerate(self.running) if sequence.finish]):
            last = len(self.running) - 1
            if row < last:
                self.cache.kv[:, :, row] = self.cache.kv[:, :, last]
                self.running[row] = self.running[last]
                if self.drafter:
                    self.drafter.move(last, row)
            self.running.pop()

    def _step(self) -> StepRecord:
        start = time.perf_counter()
        proposal, depth = self._propose()
        drafted = time.perf_counter()
        p_BNV, features_BNF = self._score(proposal)
        scored = time.perf_counter()
        verdict = self._verify(p_BNV, proposal, depth)
        counts = self._commit(proposal, verdict, features_BNF)
        done = time.perf_counter()
        real = (proposal.parents > PAD).sum(-1).tolist()
        return StepRecord(
            lookahead=depth, drafted=tuple(real), accepted=tuple(counts[0]), emitted=tuple(counts[1]),
            draft_s=drafted - start, target_s=scored - drafted, other_s=done - scored,
        )  # fmt: skip

    def _propose(self) -> tuple[Proposal, int]:
        lookahead = self.lookahead(len(self.running)) if self.drafter else 0
        if lookahead > 0 and self.drafter:
            proposal = self.drafter.propose(self.running, lookahead)
            if proposal.tokens.shape[1] > self.max_nodes:
                raise ValueError(
                    f"a step drafted {proposal.tokens.shape[1]} nodes, max_nodes is {self.max_nodes}; draft fewer"
                )
            tokens, parents, q = proposal
            device = self.target.device
            return Proposal(tokens.to(device), parents.to(device), None if q is None else q.to(device)), lookahead
        none = torch.zeros(len(self.running), 0, dtype=torch.long, device=self.target.device)
        return Proposal(none, none), 0

    def _score(self, proposal: Proposal) -> tuple[Tensor, Tensor | None]:
        """One target pass over root and nodes: their laws [B, N, V], and the streams that the drafter reads [B, N,
        F].
        """
        device = self.target.device
        root_B1 = torch.tensor([[sequence.tokens[-1]] for sequence in self.running], device=device)
        base_B1 = torch.tensor([[sequence.cached] for sequence in self.running], device=device)
        sees_BNN = ancestors(proposal.parents)
        slots_BN = base_B1 + torch.arange(sees_BNN.shape[1], device=device)
        positions_BN = base_B1 + sees_BNN.sum(-1) - 1
        width = int(base_B1.max()) + sees_BNN.shape[1]
        mask_BNS = (torch.arange(width, device=device) < base_B1)[:, None].repeat(1, sees_BNN.shape[1], 1)
        mask_BNS.scatter_(2, slots_BN[:, None].expand(sees_BNN.shape), sees_BNN)
        reads = self.drafter.reads if self.drafter else ()
        output = self.target(
            torch.cat((root_B1, proposal.tokens), 1),
            positions_BN,
            self.cache.rows(0, len(self.running)),
            slots_BN,
            mask_BNS,
            streams=reads,
        )
        samplings = [sequence.request.sampling for sequence in self.running]
        return each(output.logits_BTV, samplings), torch.cat(output.streams, -1) if reads else None

    def _verify(self, p_BNV: Tensor, proposal: Proposal, depth: int) -> Verdict:
        """One rule for determined proposals, one for drawn chains; as many uniforms as the depth asks, from each
        request's own seed.
        """
        uniforms = torch.stack([sequence.uniforms(depth + 1) for sequence in self.running]).to(p_BNV.device)
        if any(sequence.request.sampling.temperature for sequence in self.running):
            p_BNV = p_BNV.double()  # so that a long vocabulary's sums do not round
        if proposal.q is None:
            return verify_tree(p_BNV, proposal.tokens, proposal.parents, uniforms)
        return verify_chain(p_BNV, proposal.q.to(p_BNV.dtype), proposal.tokens, uniforms)

    def _commit(self, proposal: Proposal, verdict: Verdict, features_BNF: Tensor | None) -> tuple[list[int], list[int]]:
        """Keep the accepted rows of the cache, extend the sequences; give accepted and emitted counts."""
        base_B = torch.tensor([sequence.cached for sequence in self.running], device=self.target.device)
        slots = torch.where(verdict.path >= 0, base_B[:, None] + 1 + verdict.path, -1)
        self.cache.rows(0, len(self.running)).compact(slots, base_B + 1)
        emitted = []
        for row, (path, bonus) in enumerate(zip(verdict.path.tolist(), verdict.bonus.tolist(), strict=True)):
            sequence, nodes = self.running[row], [node for node in path if node >= 0]
            drafted = proposal.tokens[row].tolist()
            sequence.steps += 1
            sequence.accepted_at.append(len(nodes))
            emitted.append(sequence.extend([*(drafted[node] for node in nodes), bonus]))
            if features_BNF is not None:
                new = features_BNF[row, [0, *(node + 1 for node in nodes)]]
                sequence.fresh = new if sequence.fresh is None else torch.cat((sequence.fresh, new))
        return verdict.num_accepted.tolist(), emitted


def ancestors(parents_BW: Tensor) -> Tensor:
    """Which nodes each node sees, root and itself included, [B, N, N] bool; padding sees the root and itself."""
    batch, width = parents_BW.shape
    sees = torch.eye(width + 1, dtype=torch.bool, device=parents_BW.device).repeat(batch, 1, 1)
    sees[:, :, 0] = True
    rows = torch.arange(batch, device=parents_BW.device)
    for node in range(width):  # parents come before children
        parent = parents_BW[:, node].clamp(min=-1) + 1
        sees[:, node + 1] |= sees[rows, parent]
    return sees
