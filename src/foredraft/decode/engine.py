"""The engine: requests enter and leave between steps; every step proposes, scores, verifies and commits.

Promises: lossless by `verify` alone; a request that cannot fit is refused with its numbers; one counter for plain and
speculative decoding. Refuses to know: how drafts are made, tokenizers, laws.

Shapes: B running sequences, W drafted nodes, N = W + 1 nodes with the root, V vocabulary, F features that the drafter
reads.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from foredraft.decode.batch import Request, Sequence
from foredraft.decode.drafter import Drafter, prefill, prefill_together, row_probabilities
from foredraft.decode.layout import lay_out
from foredraft.decode.lengths import Lengths, StepLengths
from foredraft.decode.proposals import PAD, Budget, Proposal, in_line, shortened
from foredraft.decode.sampling import argmax
from foredraft.decode.verify import Verdict, depths, verify_by_level, verify_greedy, verify_rows, verify_tree
from foredraft.models import kernels
from foredraft.models.cache import KVCache
from foredraft.models.decoder import Decoder
from foredraft.models.graphs import Graphed
from foredraft.records import StepRecord, with_hint

PROMPT_TOKENS = 2**16  # of a pass over several prompts on a GPU, padding included
SHARED_ROWS = 16  # the share of rows, one of so many, that is left free until prompts are read together

Schedule = Callable[[int], Budget | int]  # by the number of running sequences; an int is a chain's lookahead


class Scores(NamedTuple):
    """A target's logits of a step's root and nodes, [B, N, V]; or [R, V] of those that there are alone, which stand at `nodes` [R] of `shape`
    (B, N): a pass over several sequences of uneven lengths has no rows for what is not there.
    """

    logits: Tensor
    nodes: tuple[Tensor, ...] | None = None
    shape: tuple[int, ...] = ()

    def placed(self, x: Tensor) -> Tensor:
        """What is said of each of the logits' rows as [B, N, …], zeros where there is no node."""
        return x if self.nodes is None else x.new_zeros(*self.shape, *x.shape[1:]).index_put_(self.nodes, x)

    def at(self, rows: list[int], nodes: list[int]) -> Tensor:
        """Logits at a node of each of these rows, [R, V]."""
        if self.nodes is None:
            return self.logits[rows, nodes]
        return self.logits[self.placed(torch.arange(len(self.logits), device=self.logits.device))[rows, nodes]]


class Engine:
    """Decodes requests on `target`, `max_batch` at a time, each within `max_context` tokens.

    `lookahead` is a number, a `Budget`, or the planner's schedule by running sequences (0: no speculation). `max_nodes`
    bounds a drafted tree. `lengths`: how many tokens of a chain are drafted and verified, by the draft's confidence. Raises
    ValueError where target's and drafter's caches would exceed `cache_bytes`, with the
    numbers.
    """

    def __init__(
        self, target: Decoder, drafter: Drafter | None = None, *, lookahead: int | Budget | Schedule = 4,
        max_batch: int = 8, max_context: int = 2048, max_nodes: int = 64, cache_bytes: int | None = None, lengths: Lengths | None = None,
    ) -> None:  # fmt: skip
        if target.d2t is not None:
            raise ValueError(
                f"target {target.shape.name} knows {len(target.d2t):,} of its {target.shape.vocab_size:,} tokens: it is a draft; give its target"
            )
        self.target, self.score, self.drafter, self.lengths = target, Graphed(target), drafter, lengths
        self.schedule: Schedule = lookahead if callable(lookahead) else lambda running: lookahead
        if not callable(lookahead):
            self._check(budgeted(lookahead), max_nodes)
        self.max_batch, self.max_context, self.max_nodes = max_batch, max_context, max_nodes
        drafts = drafter.cache.num_bytes if drafter and drafter.cache else 0
        needed = drafts + max_batch * (max_context + max_nodes) * target.shape.kv_bytes_per_token(str(target.dtype)[6:])
        if cache_bytes is not None and needed > cache_bytes:
            raise ValueError(
                f"cache_bytes {cache_bytes:,} is less than the {needed:,.0f} of {max_batch} sequences of {max_context} + {max_nodes} tokens "
                f"({drafts:,} of them the drafter's); lower max_batch or max_context"
            )
        self.cache = target.new_cache(max_batch, max_context + max_nodes)
        self.running: list[Sequence] = []
        self.waiting: deque[Sequence] = deque()
        self._count = 0
        self.prompt_tokens = PROMPT_TOKENS if target.device.type == "cuda" else 0  # 0: prompts are read one by one

    def _check(self, budget: Budget, max_nodes: int) -> None:
        if budget.most > max_nodes:
            raise ValueError(
                f"lookahead must lie in 0…{max_nodes}, the nodes that a step may verify; got {budget.most}"
            )
        if self.drafter and not self.drafter.trees and budget.branches:
            raise ValueError(f"{self.drafter.name} drafts no trees; leave the tree out")
        if self.lengths and budget.branches and not budget.fixed:
            raise ValueError("a tree's nodes are as many in every step: leave the tree out, or the ~ behind the draft")

    def add(self, request: Request, on_tokens: Callable[[list[int]], None] | None = None) -> Sequence:
        """Queue a request; `on_tokens` gets what each step emits. Raises ValueError where it cannot fit or holds unknown tokens."""
        needed, vocabulary = len(request.prompt) + request.max_tokens, self.target.shape.vocab_size
        if needed > self.max_context:
            error = ValueError(
                f"prompt ({len(request.prompt)}) and max_tokens ({request.max_tokens}) need {needed} tokens, max_context is {self.max_context}"
            )
            longest = self.target.shape.max_position_embeddings or self.max_context
            more = f"--context {needed} (the model goes up to {longest:,}), or " if needed <= longest else ""
            raise with_hint(error, f"{more}lower --max-tokens, or a shorter prompt")
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
        """Take waiting requests in. Where prompts share a pass, a few free rows wait for more: the pass costs its launches."""
        free, share = self.max_batch - len(self.running), self.prompt_tokens > 0
        if self.running and share and free < min(self.max_batch // SHARED_ROWS, len(self.waiting)):
            return
        entering = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        while entering:
            num = self._sharing(entering) if share else 1
            for sequence, hidden_states in zip(entering[:num], self._read(entering[:num]), strict=True):
                sequence.fresh = torch.cat(hidden_states, -1) if hidden_states else None
                self.running.append(sequence)
            entering = entering[num:]

    def _tell_drafter(self, drafter: Drafter) -> None:
        """Let it read what it has not, once it is to draft: where nothing is drafted at so many requests, reading would be for nothing."""
        for row, sequence in enumerate(self.running):
            if not sequence.admitted:
                drafter.admit(row, sequence)
                sequence.admitted = True

    def _sharing(self, entering: list[Sequence]) -> int:
        """How many of the first prompts, padded to the longest, fit a pass."""
        longest = 1
        for num, sequence in enumerate(entering):
            longest = max(longest, sequence.cached)
            if num and (num + 1) * longest > self.prompt_tokens:
                return num
        return len(entering)

    def _read(self, entering: list[Sequence]) -> list[tuple[Tensor, ...]]:
        """Their prompts into the next rows of the cache; of each the hidden states that the drafter reads."""
        row, reads = len(self.running), self.drafter.reads if self.drafter else ()
        if len(entering) == 1:
            return [prefill(self.target, self.cache, row, entering[0], reads)]
        return prefill_together(self.target, self.cache, row, entering, reads)

    def _release(self) -> None:
        """Drop finished sequences; the last row takes the place of each."""
        for row in reversed([i for i, sequence in enumerate(self.running) if sequence.finish]):
            last = len(self.running) - 1
            if row < last:
                num = len(self.running[last].tokens)
                self.cache.copy_row(last, row, num)
                self.running[row] = self.running[last]
                if self.drafter and self.running[row].admitted:
                    self.drafter.move(last, row, num)
            self.running.pop()

    def _step(self) -> StepRecord:
        wanted = self._wanted()
        if self.drafter and wanted:
            self._tell_drafter(self.drafter)  # a prompt's reading, which is no part of a step
        start = time.perf_counter()
        proposal, lookahead = self._propose(self.drafter, *wanted) if self.drafter and wanted else self._none()
        drafted = time.perf_counter()
        scores, features_BNF = self._score(proposal)
        scored = time.perf_counter()
        verdict = self._verify(scores, proposal)
        emitted = self._commit(proposal, verdict, features_BNF)
        done = time.perf_counter()
        return StepRecord(
            lookahead=lookahead, drafted=tuple(sum(parent > PAD for parent in row) for row in proposal.parents),
            accepted=tuple(map(len, verdict.path)), emitted=tuple(emitted),
            draft_s=drafted - start, target_s=scored - drafted, other_s=done - scored, looked_up=proposal.looked_up,
        )  # fmt: skip

    def _wanted(self) -> tuple[Budget, StepLengths | None] | None:
        """What is to be drafted, and by which choice of lengths where that is made as drafting goes on; None: nothing."""
        budget = budgeted(self.schedule(len(self.running)))
        if not self.drafter or not budget.levels:
            return None
        self._check(budget, self.max_nodes)
        if self.lengths is None or budget.fixed:
            return budget, None
        temperatures = [sequence.request.sampling.temperature for sequence in self.running]
        chosen = self.lengths.begin(temperatures, budget.lookahead)
        if isinstance(chosen, int):
            return (budget._replace(lookahead=chosen), None) if chosen else None
        return budget, chosen

    def _propose(self, drafter: Drafter, budget: Budget, lengths: StepLengths | None) -> tuple[Proposal, int]:
        """As many tokens of each chain as are wanted verified, and how deep was drafted."""
        proposal = drafter.propose(self.running, budget, lengths)
        if lengths is None:
            return proposal, budget.levels
        return shortened(proposal, lengths.lengths), proposal.tokens.shape[1]

    def _none(self) -> tuple[Proposal, int]:
        return in_line(torch.empty(len(self.running), 0, dtype=torch.long)), 0

    def _score(self, proposal: Proposal) -> tuple[Scores, Tensor | None]:
        """One target pass over root and nodes: logits, and the hidden states that the drafter reads [B, N, F]."""
        device = self.target.device
        root_B1 = torch.tensor([[sequence.tokens[-1]] for sequence in self.running], device=device)
        positions_BN, slots_BN, mask_BNS = lay_out(proposal, [sequence.cached for sequence in self.running], device)
        reads = self.drafter.reads if self.drafter else ()
        tokens_BN = torch.cat((root_B1, proposal.tokens.to(device)), 1)
        cache = self.cache.rows(0, len(self.running))
        real = [[True, *(parent > PAD for parent in row)] for row in proposal.parents]
        if self._packs(sum(map(sum, real)), tokens_BN.numel()):
            nodes = torch.tensor(real, device=device).nonzero(as_tuple=True)
            return self._score_packed(nodes, (tokens_BN, positions_BN, slots_BN, mask_BNS), cache, reads)
        output = self.score(
            tokens_BN, positions_BN, cache=cache, slots_BT=slots_BN, mask_BTS=mask_BNS, hidden_states=reads
        )
        assert output.logits_BTV is not None
        return Scores(output.logits_BTV), torch.cat(output.hidden_states, -1) if reads else None

    def _packs(self, nodes: int, padded: int) -> bool:
        """Whether a pass over these nodes alone, as sequences of one token each, is shorter: by our kernels, which read a row of the cache
        wherever it is.
        """
        return nodes < padded and not self.score.rounds and nodes <= kernels.most_rows(self.target)

    def _score_packed(
        self, nodes: tuple[Tensor, ...], inputs: tuple[Tensor, ...], cache: KVCache, reads: tuple[int, ...]
    ) -> tuple[Scores, Tensor | None]:
        """What `_score` gives; `nodes` are the indices [R] of those that there are, `inputs` what a pass takes [B, N, ..]."""
        tokens, positions, slots, mask = (part[nodes][:, None] for part in inputs)
        output = self.score(
            tokens, positions, cache=cache.of_rows(nodes[0]), slots_BT=slots, mask_BTS=mask, hidden_states=reads
        )
        assert output.logits_BTV is not None
        scores = Scores(output.logits_BTV[:, 0], nodes, inputs[0].shape)
        return scores, scores.placed(torch.cat(output.hidden_states, -1)[:, 0]) if reads else None

    def _verify(self, scores: Scores, proposal: Proposal) -> Verdict:
        """One rule for deterministic drafts, one for sampled chains; as many uniforms as the depth asks, from each request's own seed."""
        samplings, title = [sequence.request.sampling for sequence in self.running], f"target {self.target.shape.name}"
        if proposal.q is None and not any(sampling.temperature for sampling in samplings):
            return verify_greedy(scores.placed(argmax(scores.logits, title)), proposal.tokens, proposal.parents)
        draws = [1 + max(depths(row)) for row in proposal.parents]
        drawn = [sequence.uniforms(num) for sequence, num in zip(self.running, draws, strict=True)]
        uniforms = pad_sequence(drawn, batch_first=True).to(scores.logits.device)

        def p_of(rows: list[int], nodes: list[int]) -> Tensor:
            """In float64, so that a long vocabulary's sums do not round."""
            return row_probabilities(scores.at(rows, nodes), [samplings[row] for row in rows], title).double()

        if proposal.q is None and scores.logits.device.type == "cpu":
            return verify_by_level(p_of, proposal.tokens, proposal.parents, uniforms)
        p_BNV = row_probabilities(scores.placed(scores.logits), samplings, title).double()
        if proposal.q is None:
            return verify_tree(p_BNV, proposal.tokens, proposal.parents, uniforms)
        tokens, q_BKV = proposal.tokens.to(p_BNV.device), proposal.q.to(p_BNV)
        sampled = [not row for row in proposal.looked_up or (False,) * len(tokens)]
        return verify_rows(p_BNV, q_BKV, tokens, proposal.parents, sampled, uniforms)

    def _commit(self, proposal: Proposal, verdict: Verdict, features_BNF: Tensor | None) -> list[int]:
        """Keep the accepted rows of the cache, extend the sequences; give how many tokens each gained."""
        if not proposal.chain:  # a chain's accepted nodes stand in their places already
            self._compact(verdict.path)
        emitted, drafted_BW = [], proposal.tokens.tolist()
        features = None if features_BNF is None else _on_paths(features_BNF, verdict.path)
        for row, (sequence, path, bonus) in enumerate(zip(self.running, verdict.path, verdict.bonus, strict=True)):
            sequence.steps += 1
            sequence.accepted_at.append(len(path))
            emitted.append(sequence.extend([*(drafted_BW[row][node] for node in path), bonus]))
            if features is not None:
                sequence.gained.append(features[row])
        return emitted

    def _compact(self, paths: list[list[int]]) -> None:
        """Move the accepted nodes' keys and values to the slots behind the root's."""
        longest = max(map(len, paths))
        first = [sequence.cached + 1 for sequence in self.running]
        keep = [
            [start + node for node in path] + [-1] * (longest - len(path))
            for start, path in zip(first, paths, strict=True)
        ]
        device = self.target.device
        slots, starts = torch.tensor(keep, dtype=torch.long, device=device), torch.tensor(first, device=device)
        self.cache.rows(0, len(self.running)).compact(slots, starts)


def _on_paths(features_BNF: Tensor, paths: list[list[int]]) -> list[Tensor]:
    """Each sequence's features of its root and accepted nodes, [1 + accepted, F]: one gather for all, since each would be a launch."""
    longest = max(map(len, paths))
    nodes = [[0, *(node + 1 for node in path), *[0] * (longest - len(path))] for path in paths]
    index = torch.tensor(nodes, device=features_BNF.device)[..., None].expand(-1, -1, features_BNF.shape[-1])
    gathered = features_BNF.gather(1, index)
    return [row[: 1 + len(path)] for row, path in zip(gathered, paths, strict=True)]


def budgeted(budget: Budget | int) -> Budget:
    """A schedule's word as a budget, checked; an int is a chain's lookahead."""
    return (budget if isinstance(budget, Budget) else Budget(budget)).check()
