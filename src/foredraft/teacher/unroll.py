"""Training-time test (arXiv 2503.01840, section 3.2): a head runs along every text as it would when drafting from every place.

Row t of step 0 is the head's first draft after token t + 1: the embedding of token t + 1 beside the target's hidden state of
token t, as in `models.heads`. Step s runs the same row s tokens on, on its own output of step s - 1: token t + 1 + s at
position t + s. Its state there reads token t + 2 + s, which the target's state at place t + 1 + s reads too.

Promises: states equal those of the head drafting from a cache, the text's tokens accepted. Refuses to know: losses.

Shapes: B windows, T tokens, R = T - 2 rows, C hidden size, V vocabulary, S steps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.models.draft_head import TokenHead
from foredraft.models.layers import AttentionMetadata
from foredraft.teacher.beside_target import HeadBesideTarget
from foredraft.teacher.chains import Chains
from foredraft.teacher.hidden_states import HiddenStates
from foredraft.teacher.predictions import Predictions, emitted_mask, predictions
from foredraft.teacher.teacher import Teacher


class UnrolledHead(HeadBesideTarget):
    """A head that is run token by token along texts."""

    head: TokenHead

    def __init__(self, head: TokenHead, *, within_documents: bool = False) -> None:
        super().__init__(head, within_documents=within_documents)

    def combined(self, hidden_states: HiddenStates) -> Tensor:
        """What the first step reads beside embeddings, [B, T, C]."""
        return self.head.combine(hidden_states.aux_BTF)

    def states(self, batch: Batch, hidden_states: HiddenStates, steps: int) -> Tensor:
        """`aligned` states, [S, B, T, C]."""
        embedding, documents = self.head.embed_tokens, batch.documents_BT if self.within_documents else None
        table = self._tables[0] if embedding is None else embedding.weight
        states = unroll(self.head, table, self.combined(hidden_states), batch.tokens_BT, steps, documents)
        return aligned(states, batch.tokens_BT.shape[1])

    def teacher(self, hidden_states: HiddenStates) -> Teacher:
        """What the head's predictions are held against."""
        final_MW, ids_V, argmax_BT = hidden_states.final_BTW.flatten(0, 1), self.head.draft_ids, hidden_states.argmax_BT
        if ids_V is None or argmax_BT is None:
            return Teacher(final_MW, self._tables[1], ids_V, form=self._form)
        form = self._form.rows(ids_V)
        return Teacher(final_MW, self.draftable_rows(ids_V), ids_V, argmax_BT.flatten(), form=form)

    def predictions(
        self, batch: Batch, hidden_states: HiddenStates, lookahead: int, *, probs: bool = False
    ) -> Predictions:
        """What the head would draft from every place of the batch's texts."""
        states, drafted = self.states(batch, hidden_states, lookahead), within(batch.documents_BT, lookahead)
        emitted = emitted_mask(batch.mask_BT, batch.documents_BT)
        teacher = self.teacher(hidden_states)
        return predictions(states, self.lm_head(), teacher, batch.tokens_BT, emitted, drafted, probs=probs)


def unroll(
    head: TokenHead,
    table_VC: Tensor,
    hidden_BTC: Tensor,
    tokens_BT: Tensor,
    steps: int,
    documents_BT: Tensor | None = None,
) -> list[Tensor]:
    """The states that the LM head reads, of each of `steps` steps, [B, R, C].

    `table_VC`: embeddings of the target's ids. `hidden_BTC`: what `head.combine` made of the target's hidden states.
    `documents_BT` keeps attention inside documents. Rows that run past the window hold no meaning.
    """
    batch, length = tokens_BT.shape
    rows = length - 2
    assert rows > 0, f"a window needs 3 tokens, got {length}"
    chains = Chains(None if documents_BT is None else documents_BT[:, :rows])
    embeds_BTC = F.embedding(F.pad(tokens_BT, (0, steps)), table_VC).to(head.dtype)
    places_BR = torch.arange(rows, device=tokens_BT.device).expand(batch, rows)
    hidden, states = hidden_BTC[:, :rows].to(head.dtype), []  # the residual stays whole under autocast
    for step in range(steps):
        rotation = head.rotary(places_BR[:1] + step, head.dtype)
        metadata = AttentionMetadata(rotation, None, places_BR, None, chains)
        pre_norm = head.run(embeds_BTC[:, 1 + step : 1 + step + rows], hidden, metadata)
        states.append(head.norm(pre_norm))
        hidden = head.fed_back(pre_norm, states[-1])
    return states


def aligned(states: list[Tensor], length: int) -> Tensor:
    """States by the place whose token they predict, [S, B, T, C]: step s's row t stands at place t + 1 + s."""
    return torch.stack([F.pad(x[:, : length - 2 - s], (0, 0, 1 + s, 1)) for s, x in enumerate(states)])


def within(documents_BT: Tensor, steps: int) -> Tensor:
    """Where `aligned` states count, [S, B, T] bool: from the row's first token to the token read, all in one document."""
    batch, length = documents_BT.shape
    counted = torch.zeros(steps, batch, length, dtype=torch.bool, device=documents_BT.device)
    for step in range(min(steps, length - 2)):
        counted[step, :, 1 + step : -1] = documents_BT[:, : length - 2 - step] == documents_BT[:, 2 + step :]
    return counted
