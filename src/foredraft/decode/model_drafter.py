"""Drafting with an independent model: chains, drawn or of its argmax, and trees.

Shapes: B running sequences, M tokens that the model has not read yet, V vocabulary.
"""

from collections.abc import Sequence as Listed

import torch
from torch import Tensor

from foredraft.decode.batch import Sequence
from foredraft.decode.drafter import (
    Pairs,
    by_kernels,
    fitted,
    goes_on,
    over_target,
    prefill,
    row_probabilities,
    unread,
)
from foredraft.decode.lengths import StepLengths
from foredraft.decode.proposals import Budget, Proposal, in_line
from foredraft.decode.sampling import first_largest, require_finite
from foredraft.decode.trees import Extend, grow
from foredraft.decode.verify import draw
from foredraft.models.cache import KVCache
from foredraft.models.chain import Chain
from foredraft.models.decoder import Decoder
from foredraft.models.forward import Output, causal_mask
from foredraft.models.graphs import Graphed


class ModelDrafter:
    """An independent model with a cache of its own. In a chain greedy requests get its argmax, sampled ones a draw from
    its probabilities under the same settings; in a tree all get its most probable tokens.
    """

    reads: tuple[int, ...] = ()
    trees = True

    def __init__(
        self, model: Decoder, cache: KVCache, *, vocab_size: int | None = None, name: str = "draft_model"
    ) -> None:
        """`vocab_size` is the target's where it differs by padding rows: logits are cut or padded to it, but for those of a model with a
        draft vocabulary, whose tokens are all the target's.
        """
        self.model, self.run, self.cache, self.name = model, Graphed(model), cache, name
        self.vocab_size = vocab_size or model.shape.vocab_size
        self.num_read = [0] * cache.batch
        self._title = f"draft {model.shape.name}"
        self.kernel = Chain.of(model, None if model.d2t is not None else self.vocab_size)

    def admit(self, row: int, sequence: Sequence) -> None:
        self.num_read[row] = 0
        prefill(self.model, self.cache, row, sequence)
        self.num_read[row] = sequence.cached

    def move(self, source: int, row: int, num: int) -> None:
        self.cache.copy_row(source, row, num)
        self.num_read[row] = self.num_read[source]

    def propose(self, running: Listed[Sequence], budget: Budget, lengths: StepLengths | None = None) -> Proposal:
        """Read the tokens since, then extend by a token or a tree's level at a time; the next reading overwrites what was drafted."""
        cache = self.cache.rows(0, len(running))
        tokens_BM, positions_BM, last_B = unread(running, self.num_read, self.model.device)
        ends = [len(sequence.tokens) for sequence in running]
        self.num_read[: len(running)] = ends
        drawn = not budget.branches and any(sequence.request.sampling.temperature for sequence in running)
        pairs = Pairs(tokens_BM, None, positions_BM, last_B, max(ends))
        if not drawn and (proposal := by_kernels(self.kernel, pairs, cache, budget, lengths, self._title)):
            return proposal
        mask = causal_mask(positions_BM, max(ends))
        output = self.run(
            tokens_BM, positions_BM, cache=cache, slots_BT=positions_BM, mask_BTS=mask, logits=last_B[:, None]
        )
        base_B1 = torch.tensor(ends, device=self.model.device)[:, None]
        if budget.branches:
            extend = self._extending(cache)
            return grow(self._logits(output), base_B1, budget, extend, self.model.target_ids, model=self._title)
        return self._chain(running, output, base_B1, cache, budget.lookahead, lengths)

    def _chain(
        self, running: Listed[Sequence], output: Output, base_B1: Tensor, cache: KVCache, lookahead: int, lengths: StepLengths | None
    ) -> Proposal:  # fmt: skip
        """Where all requests are greedy, chance has no part in it."""
        samplings = [sequence.request.sampling for sequence in running]
        greedy = not any(sampling.temperature for sampling in samplings)
        width = int(base_B1.max()) + lookahead - 1
        tokens: list[Tensor] = []
        scores: list[Tensor] = []
        probs: list[Tensor] = []
        for depth in range(lookahead):
            logits = self._logits(output)[:, 0]
            more = goes_on(lengths, logits, depth, lookahead)
            if greedy:
                largest, ids = first_largest(logits)
                scores.append(largest)
            else:
                probs.append(row_probabilities(logits, samplings, self._title))
                uniforms = torch.stack([sequence.uniforms(1) for sequence in running]).to(logits.device)[:, 0]
                ids = draw(probs[-1].double(), uniforms)
            tokens.append(self.model.target_ids(ids))
            if not more:
                break
            tokens_B1, position_B1 = tokens[-1][:, None], base_B1 + depth
            mask = causal_mask(position_B1, width)
            output = self.run(tokens_B1, position_B1, cache=cache, slots_BT=position_B1, mask_BTS=mask)
        if greedy:
            require_finite(torch.stack(scores, 1), self._title)  # once, since every look waits for the device
        return in_line(torch.stack(tokens, 1), None if greedy else self._kept(torch.stack(probs, 1)))

    def _extending(self, cache: KVCache) -> Extend:
        def extend(tokens: Tensor, source: Tensor, positions: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
            return self._logits(self.run(tokens, positions, cache=cache, slots_BT=slots, mask_BTS=mask))

        return extend

    def _logits(self, output: Output) -> Tensor:
        """Over the target's vocabulary, or over the draft's where the model has one."""
        assert output.logits_BTV is not None
        return output.logits_BTV if self.model.d2t is not None else fitted(output.logits_BTV, self.vocab_size)

    def _kept(self, probs_BKD: Tensor) -> Tensor:
        """q: the probabilities drawn from, over the target's vocabulary."""
        return over_target(probs_BKD, self.model.draft_ids, self.vocab_size)
