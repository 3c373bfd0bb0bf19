"""A look-up before any other drafter: by sequence and step the text's own continuation where a long enough match stands, as far as the match
is long, else the draft.

Promises: each row's proposal depends on its own text and settings, whoever runs beside it; the inner draft misses nothing of what is
looked up. Refuses to know: what the inner drafter is.

Where every row matches, the inner draft does not run, and reads later what came meanwhile: hidden states wait in `Sequence.fresh`,
tokens behind what a model has read. Where some match, it runs for all rows, since those of a batch cost about what one does (rows of a
cache are a view), and the rows that match drop what it drafted: what it drew for them is drawn back, so that a request's chance is the
same alone and in a batch. A look-up is a deterministic draft and is verified as one, beside a chain that was sampled too (`verify_rows`).

Shapes: B running sequences, W drafted nodes.
"""

from collections.abc import Sequence as Listed

import torch
from torch.nn import functional

from foredraft.decode.batch import Sequence
from foredraft.decode.drafter import Drafter
from foredraft.decode.lengths import StepLengths
from foredraft.decode.ngram import NGramIndex
from foredraft.decode.proposals import PAD, Budget, Proposal
from foredraft.kinds import BESIDE, Lookup
from foredraft.models.cache import KVCache


class LookupFirst:
    """`inner`, and before it a look-up of matches of at least `lookup.min_match` tokens, of `budget.lookup` positions at most."""

    def __init__(self, inner: Drafter, lookup: Lookup) -> None:
        self.inner, self.lookup = inner, lookup
        self.name, self.reads, self.trees = inner.name + BESIDE, inner.reads, inner.trees
        self.rows: dict[int, NGramIndex] = {}

    @property
    def cache(self) -> KVCache | None:
        return self.inner.cache

    def admit(self, row: int, sequence: Sequence) -> None:
        self.rows[row] = NGramIndex(self.lookup.sizes)
        self.inner.admit(row, sequence)

    def move(self, source: int, row: int, num: int) -> None:
        self.rows[row] = self.rows[source]
        self.inner.move(source, row, num)

    def propose(self, running: Listed[Sequence], budget: Budget, lengths: StepLengths | None = None) -> Proposal:
        assert lengths is None, "a look-up has no confidence"
        most = budget.levels if budget.lookup is None else budget.lookup
        chains = [self.rows[row].as_long_as_matched(sequence.tokens, most) for row, sequence in enumerate(running)]
        if all(chains):
            return beside(
                Proposal(torch.empty(len(chains), 0, dtype=torch.long), [[]] * len(chains), chain=True), chains
            )
        matched = [sequence for sequence, chain in zip(running, chains, strict=True) if chain]
        before = [sequence.generator.get_state() for sequence in matched]
        proposal = self.inner.propose(running, budget)
        for sequence, state in zip(matched, before, strict=True):
            sequence.generator.set_state(state)
        return beside(proposal, chains) if matched else proposal


def beside(proposal: Proposal, chains: Listed[list[int]]) -> Proposal:
    """The proposal with each of `chains` that holds any token in its row's place."""
    drafted = proposal.tokens.shape[1]
    width = max(drafted, *map(len, chains))
    looked_up = torch.tensor(
        [[*chain, *[-1] * (width - len(chain))] for chain in chains], device=proposal.tokens.device
    )
    matched = torch.tensor([bool(chain) for chain in chains], device=looked_up.device)[:, None]
    tokens = torch.where(matched, looked_up.clamp(min=0), functional.pad(proposal.tokens, (0, width - drafted)))
    parents = [
        list(range(-1, len(chain) - 1)) if chain else above
        for chain, above in zip(chains, proposal.parents, strict=True)
    ]
    padded = [[*above, *[PAD] * (width - len(above))] for above in parents]
    return proposal._replace(tokens=tokens, parents=padded, looked_up=tuple(map(bool, chains)))
