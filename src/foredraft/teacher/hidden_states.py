"""A frozen target's hidden states of a batch: the auxiliary ones that a head reads, and the final one, whose logits it is trained on.

Computed as each batch comes, under no gradient; of a whole batch nothing stays but these. `cache` puts them on disk instead.

Promises: with `within_documents`, what a served target would compute of each document alone. Refuses to know: heads, losses.

Shapes: B windows, T tokens, F width of all auxiliary hidden states together, W the target's hidden size.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from foredraft.data.tokens import Batch


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

    def __init__(self, target: nn.Module, layers: tuple[int, ...], *, within_documents: bool = False) -> None:
        self.target, self.layers, self.within_documents = target, layers, within_documents

    @torch.no_grad()
    def __call__(self, batch: Batch) -> HiddenStates:
        positions, mask = document_places(batch.documents_BT) if self.within_documents else (None, None)
        output = self.target(batch.tokens_BT, positions, mask_BTS=mask, hidden_states=self.layers, logits="none")
        alone = len(output.hidden_states) == 1
        return HiddenStates(output.hidden_states[0] if alone else torch.cat(output.hidden_states, -1), output.final_BTC)


def document_places(documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions from each document's first token on [B, T], and who sees whom [B, T, T]: earlier tokens of its own."""
    length = documents_BT.shape[1]
    places = torch.arange(length, device=documents_BT.device)
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return places - same.int().argmax(-1), same & (places <= places[:, None])
