"""Prompt lookup (n-gram): drafts what followed the last time that the latest tokens stood in the text. Nothing is computed."""

from collections.abc import Sequence as Listed

import torch

from foredraft.decode.batch import Sequence
from foredraft.decode.lengths import StepLengths
from foredraft.decode.proposals import PAD, Budget, Proposal


class NGramDrafter:
    """Prompt lookup: what followed the last place where the latest tokens stood before (longest match first). Nothing is computed."""

    name = "ngram"
    reads: tuple[int, ...] = ()
    cache = None
    trees = False

    def __init__(self, longest: int = 3, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"shortest ({shortest}) must lie between 1 and longest ({longest})")
        self.sizes = range(longest, shortest - 1, -1)
        self.rows: dict[int, NGramIndex] = {}

    def admit(self, row: int, sequence: Sequence) -> None:
        self.rows[row] = NGramIndex(self.sizes)

    def move(self, source: int, row: int, num: int) -> None:
        self.rows[row] = self.rows[source]

    def propose(self, running: Listed[Sequence], budget: Budget, lengths: StepLengths | None = None) -> Proposal:
        assert lengths is None, "a look-up has no confidence"
        chains = [self.rows[row].after(sequence.tokens, budget.lookahead) for row, sequence in enumerate(running)]
        width = max(map(len, chains))
        tokens = torch.tensor([chain + [0] * (width - len(chain)) for chain in chains], dtype=torch.long)
        parents = [[*range(-1, len(chain) - 1), *[PAD] * (width - len(chain))] for chain in chains]
        return Proposal(tokens, parents, chain=True)


class NGramIndex:
    """Where each n-gram of a growing text stood last, kept up as it grows; `sizes` from the longest down."""

    def __init__(self, sizes: range) -> None:
        self.sizes, self.read = sizes, 0
        self.ends: dict[tuple[int, ...], int] = {}

    def after(self, tokens: list[int], num: int) -> list[int]:
        """The `num` tokens that followed the latest earlier match of the end of `tokens`; empty where nothing matches. Where
        the match ends fewer tokens ago, the text is taken to go on repeating itself.
        """
        end, _ = self._latest(tokens)
        return _following(tokens, end, num) if end else []

    def as_long_as_matched(self, tokens: list[int], most: int) -> list[int]:
        """As `after`, as many tokens as the match is long, `most` at most: the longer a text repeats another, the further it does."""
        end, size = self._latest(tokens)
        while size < min(most, end) and tokens[end - size - 1] == tokens[-size - 1]:
            size += 1
        return _following(tokens, end, min(size, most))

    def _latest(self, tokens: list[int]) -> tuple[int, int]:
        """Where the latest earlier match of the end of `tokens` ends, and of how many it is of those looked for, the longest first; or 0, 0."""
        for end in range(self.read + 1, len(tokens)):  # an n-gram counts once a token has followed it
            for size in self.sizes:
                if size <= end:
                    self.ends[tuple(tokens[end - size : end])] = end
        self.read = max(self.read, len(tokens) - 1)
        matches = ((self.ends.get(tuple(tokens[-size:])), size) for size in self.sizes if size < len(tokens))
        return next(((end, size) for end, size in matches if end), (0, 0))


def _following(tokens: list[int], end: int, num: int) -> list[int]:
    """The `num` tokens behind place `end`, over again where the text ends."""
    period = tokens[end : end + num]
    return [period[i % len(period)] for i in range(num)]
