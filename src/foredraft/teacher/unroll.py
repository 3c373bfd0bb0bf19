"""Training-time test (arXiv 2503.01840, section 3.2): a head runs along every text as it would when drafting from every place.

Row t of step 0 is the head's first draft after token t + 1: the embedding of token t + 1 beside the target's feature of
token t, as in `models.heads`. Step s runs the same row s tokens on, on its own output of step s - 1: token t + 1 + s at
position t + s. Its state there reads token t + 2 + s, which the target's state at place t + 1 + s reads too.

Promises: states equal those of the head drafting from a cache, the text's tokens accepted. Refuses to know: losses, what
the target says.

Shapes: B windows, T tokens, R = T - 2 rows, C hidden size, V vocabulary, S steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.models.draft_head import DraftHead
from foredraft.models.layers import AttentionMetadata
from foredraft.teacher.chains import Chains


def unroll(
    head: DraftHead,
    table_VC: Tensor,
    hidden_BTC: Tensor,
    tokens_BT: Tensor,
    steps: int,
    documents_BT: Tensor | None = None,
) -> list[Tensor]:
    """The states that the LM head reads, of each of `steps` steps, [B, R, C].

    `table_VC`: embeddings of the target's ids. `hidden_BTC`: what `head.combine` made of the target's features.
    `documents_BT` keeps attention inside documents. Rows that run past the window hold no meaning.
    """
    batch, length = tokens_BT.shape
    rows = length - 2
    assert rows > 0, f"a window needs 3 tokens, got {length}"
    chains = Chains(None if documents_BT is None else documents_BT[:, :rows])
    embeds_BTC = F.embedding(F.pad(tokens_BT, (0, steps)), table_VC).to(head.dtype)
    places_BR = torch.arange(rows, device=tokens_BT.device).expand(batch, rows)
    hidden, states = hidden_BTC[:, :rows].to(head.dtype), []  # the residual stream stays whole under autocast
    for step in range(steps):
        rotation = head.rotary(places_BR[:1] + step, head.dtype)
        metadata = AttentionMetadata(rotation, None, places_BR, None, chains)
        hidden = head.run(embeds_BTC[:, 1 + step : 1 + step + rows], hidden, metadata)
        states.append(head.norm(hidden))
    return states


def aligned(states: list[Tensor], length: int) -> Tensor:
    """States by the place whose law they are to match, [S, B, T, C]: step s's row t stands at place t + 1 + s."""
    return torch.stack([F.pad(x[:, : length - 2 - s], (0, 0, 1 + s, 1)) for s, x in enumerate(states)])


def within(documents_BT: Tensor, steps: int) -> Tensor:
    """Where `aligned` states count, [S, B, T] bool: from the row's first token to the token read, all in one document."""
    batch, length = documents_BT.shape
    found = torch.zeros(steps, batch, length, dtype=torch.bool, device=documents_BT.device)
    for step in range(min(steps, length - 2)):
        found[step, :, 1 + step : -1] = documents_BT[:, : length - 2 - step] == documents_BT[:, 2 + step :]
    return found
