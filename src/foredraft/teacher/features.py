"""What a frozen target says of a batch: the streams a head reads, and the state whose logits it is trained on.

Computed as each batch comes, under no gradient; of a whole batch nothing is kept but these. `feature_cache` keeps them
on disk instead.

Promises: with `within_documents`, what a served target would compute of each document alone. Refuses to know: heads, losses.

Shapes: B windows, T tokens, F width of all streams together, W the target's hidden size.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from foredraft.data.tokens import Batch


class Features(NamedTuple):
    """`streams_BTF`, joined low to high as `DraftHead.combine` takes them; `final_BTW`, what the LM head reads."""

    streams_BTF: Tensor
    final_BTW: Tensor


class FeatureSource(Protocol):
    """Anything that knows a batch's features: the target itself, or a cache of what it said."""

    def __call__(self, batch: Batch) -> Features: ...


class Online:
    """Features from the target's own pass over each batch, in the target's type.

    `within_documents`: no token sees another document's, and positions count from each document's start (a mask [B, T, T] of
    bytes lives for the pass). `target` is only ever called, so that it may be sharded.
    """

    def __init__(self, target: nn.Module, streams: tuple[int, ...], *, within_documents: bool = False) -> None:
        self.target, self.streams, self.within_documents = target, streams, within_documents

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Features:
        tokens_BT, _, documents_BT = batch
        positions, mask = (None, None) if not self.within_documents else apart(documents_BT)
        output = self.target(tokens_BT, positions, mask_BTS=mask, hidden_states=self.streams, logits="none")
        alone = len(output.hidden_states) == 1
        return Features(output.hidden_states[0] if alone else torch.cat(output.hidden_states, -1), output.final_BTC)


def apart(documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions from each document's first token on [B, T], and who sees whom [B, T, T]: earlier tokens of its own."""
    length = documents_BT.shape[1]
    places = torch.arange(length, device=documents_BT.device)
    same = documents_BT[:, :, None] == documents_BT[:, None, :]
    return places - same.int().argmax(-1), same & (places <= places[:, None])
