"""Drafters: anything that proposes what may come next. All stand behind `propose`; none can change what is emitted.

Promises: a proposal names for every running sequence the drafted tokens, their tree, and the law q they were drawn
from, or that chance had no part in it (q None). Refuses to know: what becomes of a proposal.

Shapes: B running sequences, W drafted nodes, K positions of a chain, M tokens that a drafter has not seen yet, V
vocabulary.
"""

from collections.abc import Sequence as Listed
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foredraft.decode.batch import Sequence
from foredraft.decode.sampling import Sampling, probabilities
from foredraft.decode.verify import draw
from foredraft.models.cache import Cache
from foredraft.models.decoder import Decoder
from foredraft.models.placing import causal_mask

PAD = -2  # parent of a node that stands for nothing


class Proposal(NamedTuple):
    """`tokens_BW` and `parents_BW` (index of the parent node, -1 the root, -2 padding); `q_BKV` for chains drawn by
    chance.
    """

    tokens: Tensor
    parents: Tensor
    q: Tensor | None = None


class Drafter(Protocol):
    """What the engine asks of a drafter. `reads` names the target's streams whose values it needs for each token
    (none: it reads tokens alone).
    """

    name: str
    reads: tuple[int, ...]

    def admit(self, row: int, sequence: Sequence) -> None:
        """A sequence enters at `row`: read its prompt but for the last token."""
        ...

    def propose(self, running: Listed[Sequence], lookahead: int) -> Proposal:
        """Draft up to `lookahead` positions for rows 0 … n-1."""
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

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest ({shortest}) must lie between 1 and longest ({longest})")
        self.longest, self.shortest = longest, shortest

    def admit(self, row: int, sequence: Sequence) -> None: ...

    def move(self, source: int, row: int) -> None: ...

    def propose(self, running: Listed[Sequence], lookahead: int) -> Proposal:
        found = [self.look_up(sequence.tokens, lookahead) for sequence in running]
        tokens = torch.zeros(len(running), lookahead, dtype=torch.long)
        parents = torch.full_like(tokens, PAD)
        for row, chain in enumerate(found):
            tokens[row, : len(chain)] = torch.tensor(chain, dtype=torch.long)
            parents[row, : len(chain)] = torch.arange(len(chain)) - 1
        return Proposal(tokens, parents)

    def look_up(self, tokens: list[int], lookahead: int) -> list[int]:
        """At most `lookahead` tokens that followed the latest earlier match; empty where nothing matches."""
        for size in range(min(self.longest, len(tokens) - 1), self.shortest - 1, -1):
            pattern = tokens[-size:]
            for start in range(len(tokens) - size - 1, -1, -1):
                if tokens[start : start + size] == pattern:
                    return tokens[start + size : start + size + lookahead]
        return []


class LanguageModel:
    """An independent model with a cache of its own. Greedy requests get its argmax, sampled ones a draw from its law
    under the same settings.
    """

    reads: tuple[int, ...] = ()

    def __init__(
        self, model: Decoder, cache: Cache, *, vocab_size: int | None = None, name: str = "draft_model"
    ) -> None:
        """`vocab_size` is the target's where it differs by padding rows: the law is cut or padded to it."""
        self.model, self.cache, self.name = model, cache, name
        self.vocab_size = vocab_size or model.shape.vocab_size
        self.seen = [0] * cache.batch

    def admit(self, row: int, sequence: Sequence) -> None:
        self.seen[row] = 0
        prefill(self.model, self.cache, row, sequence)
        self.seen[row] = sequence.cached

    def move(self, source: int, row: int) -> None:
        self.cache.kv[:, :, row] = self.cache.kv[:, :, source]
        self.seen[row] = self.seen[source]

    def propose(self, running: Listed[Sequence], lookahead: int) -> Proposal:
        """Read the tokens that came since, then extend one token at a time; what was drafted is overwritten by what
        is read next.
        """
        cache, samplings = self.cache.rows(0, len(running)), [sequence.request.sampling for sequence in running]
        tokens_BM, positions_BM, last_B = unread(running, self.seen, self.model.device)
        rows = torch.arange(len(running), device=self.model.device)
        tokens, laws = [], []
        width = int(positions_BM.max()) + lookahead
        mask = causal_mask(positions_BM, width)
        logits = self.model(tokens_BM, positions_BM, cache, mask_BTS=mask, logits=last_B[:, None]).logits_BTV[:, 0]
        position_B = positions_BM[rows, last_B]
        for depth in range(lookahead):
            law = each(fitted(logits, self.vocab_size), samplings)
            uniforms = torch.stack([sequence.uniforms(1) for sequence in running]).to(law.device)[:, 0]
            tokens.append(draw(law.double(), uniforms))
            laws.append(law)
            if depth + 1 < lookahead:
                position_B = position_B + 1
                mask = causal_mask(position_B[:, None], width)
                logits = self.model(tokens[-1][:, None], position_B[:, None], cache, mask_BTS=mask).logits_BTV[:, 0]
        self.seen[: len(running)] = [len(sequence.tokens) for sequence in running]
        drafted = torch.stack(tokens, 1)
        parents = (torch.arange(lookahead, device=drafted.device) - 1).expand(drafted.shape)
        return Proposal(drafted, parents, torch.stack(laws, 1))


def fitted(logits_BV: Tensor, vocab_size: int) -> Tensor:
    """Logits over the target's vocabulary: rows that only the draft has are cut, those it lacks are impossible."""
    lacking = max(vocab_size - logits_BV.shape[-1], 0)
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
    if sequence.cached == 0:
        return ()
    tokens = torch.tensor([sequence.tokens[:-1]], device=model.device)
    positions = torch.arange(tokens.shape[1], device=model.device)[None]
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=model.device).tril()[None]
    output = model(tokens, positions, cache.rows(row, row + 1), mask_BTS=mask, streams=streams, logits="none")
    return tuple(stream[0] for stream in output.streams)


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
