"""A frozen target's hidden states of a batch: the auxiliary ones that a head reads, and the final one, whose logits it is trained on.

Computed as each batch comes, under no gradient; of a whole batch nothing stays but these. `cache` puts them on disk instead.

Promises: with `within_documents`, what a served target would compute of each document alone. Refuses to know: heads, losses.

Shapes: B windows, T tokens, F width of all auxiliary hidden states together, W the target's hidden size.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.models.target import Target


class HiddenStates(NamedTuple):
    """`aux_BTF`, joined low to high as `DraftHead.combine` takes them; `final_BTW`, what the LM head reads; `argmax_BT`, the id
    that it finds likeliest there, and `log_sum_BT`, the logarithm of the sum of its exponents, None where nobody has looked.
    """

    aux_BTF: Tensor
    final_BTW: Tensor
    argmax_BT: Tensor | None = None
    log_sum_BT: Tensor | None = None


class HiddenStateSource(Protocol):
    """Anything that has a batch's hidden states: the target itself, or a cache of them."""

    def __call__(self, batch: Batch) -> HiddenStates: ...


class OnlineHiddenStates:
    """Hidden states by the target's own pass over each batch, in the target's type.

    `layers`: as in `Decoder.forward`, the number of layers alone for the final hidden state alone. `within_documents`: no token
    sees another document's, and positions count from each document's start (a mask [B, T, T] of bytes lives for the pass).
    `target` is only ever called, so that it may be sharded.
    """

    def __init__(self, target: Target, layers: tuple[int, ...], *, within_documents: bool = False) -> None:
        self.target, self.layers, self.within_documents = target, layers, within_documents

    @torch.no_grad()
    def __call__(self, batch: Batch) -> HiddenStates:
        if self.within_documents and not self.target.masked:
            return self._by_document(batch)
        positions, mask = document_places(batch.documents_BT) if self.within_documents else (None, None)
        return self._of_pass(batch.tokens_BT, positions, mask)

    def _of_pass(
        self, tokens_BT: Tensor, positions_BT: Tensor | None = None, mask: Tensor | None = None
    ) -> HiddenStates:
        output = self.target(tokens_BT, positions_BT, mask_BTS=mask, hidden_states=self.layers, logits="none")
        alone = len(output.hidden_states) == 1
        return HiddenStates(output.hidden_states[0] if alone else torch.cat(output.hidden_states, -1), output.final_BTC)

    def _by_document(self, batch: Batch) -> HiddenStates:
        """Each document of each window as a text of its own, padded on the right, which no token before it sees."""
        pieces, tokens_BT, states = runs(batch.documents_BT), batch.tokens_BT, None
        for group in grouped(pieces, tokens_BT.numel()):
            padded_BT = tokens_BT.new_zeros(len(group), group[0].length)
            for row, piece in enumerate(group):
                padded_BT[row, : piece.length] = tokens_BT[piece.row, piece.start : piece.start + piece.length]
            parts = [part for part in self._of_pass(padded_BT)[:2] if part is not None]
            states = states or [part.new_zeros(*tokens_BT.shape, part.shape[-1]) for part in parts]
            for row, piece in enumerate(group):
                for whole, part in zip(states, parts, strict=True):
                    whole[piece.row, piece.start : piece.start + piece.length] = part[row, : piece.length]
        assert states is not None, "a batch has at least one token"
        return HiddenStates(*states)


class Run(NamedTuple):
    """Tokens of one document that stand side by side in a window."""

    row: int
    start: int
    length: int


def runs(documents_BT: Tensor) -> list[Run]:
    """Every document of every window, in order."""
    pieces = []
    for row, documents in enumerate(documents_BT.cpu()):
        lengths = documents.unique_consecutive(return_counts=True)[1].tolist()
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        pieces += [Run(row, start, length) for start, length in zip(starts, lengths, strict=True)]
    return pieces


def grouped(pieces: list[Run], most_tokens: int) -> list[list[Run]]:
    """The longest first, in groups that padded to their longest hold no more than `most_tokens`."""
    groups: list[list[Run]] = []
    for piece in sorted(pieces, key=lambda piece: -piece.length):
        if groups and (len(groups[-1]) + 1) * groups[-1][0].length <= most_tokens:
            groups[-1].append(piece)
        else:
            groups.append([piece])
    return groups


def document_places(documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions from each document's first token on [B, T], and who sees whom [B, T, T]: earlier tokens of its own."""
    length = documents_BT.shape[1]
    places = torch.arange(length, device=documents_BT.device)
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return places - same.int().argmax(-1), same & (places <= places[:, None])
