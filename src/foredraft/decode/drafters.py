"""Drafters: anything that proposes what may come next. All stand behind `propose`; none can change what is emitted.

Promises: each row's proposal depends on that row's text and settings alone. Refuses to know: what becomes of a proposal.

Shapes: B running sequences, M tokens that a drafter has not seen yet, V vocabulary.
"""

from collections.abc import Sequence as Listed
from typing import Protocol

import torch
from torch import Tensor

from foredraft.decode.batch import Sequence
from foredraft.decode.proposals import PAD, Budget, Proposal, in_line
from foredraft.decode.sampling import Sampling, likeliest, probabilities
from foredraft.decode.trees import Extend, grow
from foredraft.decode.verify import draw
from foredraft.models.cache import Cache
from foredraft.models.decoder import Decoder
from foredraft.models.graphs import Graphed
from foredraft.models.kernels import chunk
from foredraft.models.placing import Output, causal_mask


class Drafter(Protocol):
    """What the engine asks of a drafter. `reads` names the target's streams whose values it needs for each token
    (none: it reads tokens alone); `cache` is what it holds per sequence; `trees`, whether it drafts any.
    """

    name: str
    reads: tuple[int, ...]
    trees: bool

    @property
    def cache(self) -> Cache | None: ...

    def admit(self, row: int, sequence: Sequence) -> None:
        """A sequence enters at `row`: read its prompt but for the last token."""
        ...

    def propose(self, running: Listed[Sequence], budget: Budget) -> Proposal:
        """Draft for rows 0 … n-1."""
        ...

    def move(self, source: int, row: int) -> None:
        """The sequence of row `source` now stands at `row`."""
        ...


class NGram:
    """Prompt look-up: what followed the last place where the latest tokens stood before (longest match first).
    Nothing is computed.
    """

    name = "ngram"
    reads: tuple[int, ...] = ()
    cache = None
    trees = False

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest ({shortest}) must lie between 1 and longest ({longest})")
        self.sizes = range(longest, shortest - 1, -1)
        self.rows: dict[int, Places] = {}

    def admit(self, row: int, sequence: Sequence) -> None:
        self.rows[row] = Places(self.sizes)

    def move(self, source: int, row: int) -> None:
        self.rows[row] = self.rows[source]

    def propose(self, running: Listed[Sequence], budget: Budget) -> Proposal:
        found = [self.rows[row].after(sequence.tokens, budget.lookahead) for row, sequence in enumerate(running)]
        width = max(map(len, found))
        tokens = torch.tensor([chain + [0] * (width - len(chain)) for chain in found], dtype=torch.long)
        parents = [[*range(-1, len(chain) - 1), *[PAD] * (width - len(chain))] for chain in found]
        return Proposal(tokens, parents, chain=True)


class Places:
    """Where each n-gram of a growing text stood last, kept up as it grows; `sizes` from the longest down."""

    def __init__(self, sizes: range) -> None:
        self.sizes, self.read = sizes, 0
        self.ends: dict[tuple[int, ...], int] = {}

    def after(self, tokens: list[int], num: int) -> list[int]:
        """The `num` tokens that followed the latest earlier match of the end of `tokens`; empty where nothing matches. Where
        the match ends fewer tokens ago, the text is taken to go on repeating itself.
        """
        for end in range(self.read + 1, len(tokens)):  # an n-gram counts once a token has followed it
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.read = max(self.read, len(tokens) - 1)
        for size in self.sizes:
            end = self.ends.get(tuple(tokens[-size:])) if size < len(tokens) else None
            if end is not None:
                period = tokens[end:]
                return [period[i % len(period)] for i in range(num)] if len(period) < num else period[:num]
        return []


class LanguageModel:
    """An independent model with a cache of its own. In a chain greedy requests get its argmax, sampled ones a draw from
    its law under the same settings; in a tree all get its likeliest tokens.
    """

    reads: tuple[int, ...] = ()
    trees = True

    def __init__(
        self, model: Decoder, cache: Cache, *, vocab_size: int | None = None, name: str = "draft_model"
    ) -> None:
        """`vocab_size` is the target's where it differs by padding rows: the law is cut or padded to it."""
        self.model, self.run, self.cache, self.name = model, Graphed(model), cache, name
        self.vocab_size = vocab_size or model.shape.vocab_size
        self.seen = [0] * cache.batch

    def admit(self, row: int, sequence: Sequence) -> None:
        self.seen[row] = 0
        prefill(self.model, self.cache, row, sequence)
        self.seen[row] = sequence.cached

    def move(self, source: int, row: int) -> None:
        self.cache.kv[:, :, row] = self.cache.kv[:, :, source]
        self.seen[row] = self.seen[source]

    def propose(self, running: Listed[Sequence], budget: Budget) -> Proposal:
        """Read the tokens that came since, then extend one token at a time, or a level of the tree; what was drafted is
        overwritten by what is read next.
        """
        cache = self.cache.rows(0, len(running))
        tokens_BM, positions_BM, last_B = unread(running, self.seen, self.model.device)
        ends = [len(sequence.tokens) for sequence in running]
        mask = causal_mask(positions_BM, max(ends))
        output = self.run(
            tokens_BM, positions_BM, cache=cache, slots_BT=positions_BM, mask_BTS=mask, logits=last_B[:, None]
        )
        self.seen[: len(running)] = ends
        base_B1 = torch.tensor(ends, device=self.model.device)[:, None]
        if budget.branches:
            return grow(self._fitted(output), base_B1, budget, self._extending(cache))
        return self._chain(running, output, base_B1, cache, budget.lookahead)

    def _chain(
        self, running: Listed[Sequence], output: Output, base_B1: Tensor, cache: Cache, lookahead: int
    ) -> Proposal:
        """Where all requests are greedy, chance has no part in it."""
        samplings = [sequence.request.sampling for sequence in running]
        greedy = not any(sampling.temperature for sampling in samplings)
        width = int(base_B1.max()) + lookahead - 1
        tokens: list[Tensor] = []
        laws: list[Tensor] = []
        for depth in range(lookahead):
            logits = self._fitted(output)[:, 0]
            if greedy:
                tokens.append(likeliest(logits))
            else:
                laws.append(each(logits, samplings))
                uniforms = torch.stack([sequence.uniforms(1) for sequence in running]).to(logits.device)[:, 0]
                tokens.append(draw(laws[-1].double(), uniforms))
            if depth + 1 < lookahead:
                tokens_B1, position_B1 = tokens[-1][:, None], base_B1 + depth
                mask = causal_mask(position_B1, width)
                output = self.run(tokens_B1, position_B1, cache=cache, slots_BT=position_B1, mask_BTS=mask)
        return in_line(torch.stack(tokens, 1), None if greedy else torch.stack(laws, 1))

    def _extending(self, cache: Cache) -> Extend:
        def extend(tokens: Tensor, source: Tensor, positions: Tensor, slots: Tensor, mask: Tensor) -> Tensor:
            return self._fitted(self.run(tokens, positions, cache=cache, slots_BT=slots, mask_BTS=mask))

        return extend

    def _fitted(self, output: Output) -> Tensor:
        assert output.logits_BTV is not None
        return fitted(output.logits_BTV, self.vocab_size)


def fitted(logits_BV: Tensor, vocab_size: int) -> Tensor:
    """Logits over the target's vocabulary: rows that only the draft has are cut, those it lacks are impossible."""
    lacking = max(vocab_size - logits_BV.shape[-1], 0)
    if not lacking and logits_BV.shape[-1] == vocab_size:
        return logits_BV
    return torch.nn.functional.pad(logits_BV[..., :vocab_size], (0, lacking), value=-torch.inf)


def each(logits_BV: Tensor, samplings: Listed[Sampling]) -> Tensor:
    """The law of every row under its own settings; logits may have further axes between."""
    if len(set(samplings)) == 1:
        return probabilities(logits_BV, samplings[0])
    return torch.stack([probabilities(logits, sampling) for logits, sampling in zip(logits_BV, samplings, strict=True)])


def prefill(
    model: Decoder, cache: Cache, row: int, sequence: Sequence, streams: tuple[int, ...] = ()
) -> tuple[Tensor, ...]:
    """Read all tokens but the last into `row`; give the streams asked for, each [M, C]."""
    num, device, into = sequence.cached, model.device, cache.rows(row, row + 1)
    tokens, positions = torch.tensor([sequence.tokens[:-1]], device=device), torch.arange(num, device=device)[None]
    size, parts = chunk(num, model.dtype, device), []
    for start in range(0, num, size):
        some = positions[:, start : start + size]
        mask = causal_mask(some, int(some[0, -1]) + 1)
        output = model(tokens[:, start : start + size], some, into, mask_BTS=mask, streams=streams, logits="none")
        parts.append(output.streams)
    return tuple(torch.cat(stream, 1)[0] for stream in zip(*parts, strict=True))


def unread(running: Listed[Sequence], seen: Listed[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens since `seen`, padded on the right by the last one at its own place: tokens and positions [B, M], index
    of the last [B].
    """
    counts = [len(sequence.tokens) - start for sequence, start in zip(running, seen, strict=False)]
    width = max(counts)
    tokens = [
        s.tokens[len(s.tokens) - n :] + [s.tokens[-1]] * (width - n) for s, n in zip(running, counts, strict=True)
    ]
    starts = torch.tensor([len(s.tokens) - n for s, n in zip(running, counts, strict=True)], device=device)
    last = torch.tensor([n - 1 for n in counts], device=device)
    offsets = torch.arange(width, device=device).minimum(last[:, None])
    return torch.tensor(tokens, device=device), starts[:, None] + offsets, last
