"""Blocks of a `BlockHead` along finished texts: many anchors of a text in one pass, each block as it would be drafted there.

All texts' tokens give keys and values once (`BlockHead.context`); the rows of all blocks stand side by side as one long sequence, and its
attention is cut so that a row sees the context strictly before its anchor and the rows of its own block, nothing else. The two parts
are one softmax. Anchors in rising order let a few blocks at a time meet only the context that any of them sees.

Promises: states equal those of the head drafting from a cache, the text's tokens accepted. Refuses to know: losses, which anchors.

Shapes: B texts, T tokens, A anchors of a text, R rows of a block, k tokens that a block drafts, N query heads, K key heads, G = N/K,
D head_dim, C hidden size, S steps of a chain, r rank of a correction.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.models.block_head import BlockHead
from foredraft.models.layers import AttentionMetadata
from foredraft.teacher.attention import out_of_graphs
from foredraft.teacher.beside_target import HeadBesideTarget
from foredraft.teacher.hidden_states import HiddenStates
from foredraft.teacher.predictions import Predictions, emitted_mask, predictions
from foredraft.teacher.teacher import Teacher

TOGETHER = 16  # blocks of a text whose attention is computed at once


class BlockAttention:
    """The attention of packed blocks, an `AttentionMetadata`'s `context`.

    `hidden_BTC`: what `BlockHead.combine` made of the texts' hidden states, `rotation` that of their places. `documents_BT` keeps the context
    inside the anchor's document (None: all earlier tokens).
    """

    def __init__(
        self,
        hidden_BTC: Tensor,
        rotation: tuple[Tensor, Tensor],
        anchors_BA: Tensor,
        rows: int,
        documents_BT: Tensor | None = None,
    ) -> None:
        self.hidden_BTC, self.rotation, self.rows, num = hidden_BTC, rotation, rows, anchors_BA.shape[1]
        self._attend = out_of_graphs(self.attend)
        seen_BAT = torch.arange(hidden_BTC.shape[1], device=anchors_BA.device) < anchors_BA[..., None]
        if documents_BT is not None:
            seen_BAT &= documents_BT[:, None] == documents_BT.gather(1, anchors_BA)[..., None]
        self.parts = [slice(start, min(start + TOGETHER, num)) for start in range(0, num, TOGETHER)]
        self.stops = [int(anchors_BA[:, part].max()) for part in self.parts]
        unseen = torch.zeros(seen_BAT.shape, device=seen_BAT.device).masked_fill_(~seen_BAT, -torch.inf)[
            :, None, :, None
        ]
        self.biases = [unseen[:, :, part, :, :stop] for part, stop in zip(self.parts, self.stops, strict=True)]

    def __call__(
        self, layer: int, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, context_k: Tensor, context_v: Tensor
    ) -> Tensor:
        return self._attend(q_BNTD, k_BKTD, v_BKTD, context_k, context_v)

    def attend(self, q_BNTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, context_k: Tensor, context_v: Tensor) -> Tensor:
        dtype, groups = v_BKTD.dtype, q_BNTD.shape[1] // k_BKTD.shape[1]
        scaled = (q_BNTD * q_BNTD.shape[-1] ** -0.5).to(dtype)  # float32 after rotation under autocast
        q = scaled.unflatten(1, (-1, groups)).unflatten(3, (-1, self.rows)).transpose(2, 3)  # B, K, A, G, R, D
        k, v = (x.to(dtype).unflatten(2, (-1, self.rows)) for x in (k_BKTD, v_BKTD))  # B, K, A, R, D
        context_k, context_v = (x.to(dtype).contiguous() for x in (context_k, context_v))
        outs = []
        for part, stop, bias in zip(self.parts, self.stops, self.biases, strict=True):
            rows = q[:, :, part].flatten(3, 4)
            before = (rows.flatten(2, 3) @ context_k[:, :, :stop].transpose(-1, -2)).unflatten(2, rows.shape[2:4])
            within = rows @ k[:, :, part].transpose(-1, -2)
            probs = torch.cat((before + bias, within), -1).softmax(-1).to(dtype)
            from_context = probs[..., :stop].flatten(2, 3) @ context_v[:, :, :stop]
            outs.append(from_context.unflatten(2, rows.shape[2:4]) + probs[..., stop:] @ v[:, :, part])
        return torch.cat(outs, 2).unflatten(3, (groups, -1)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


class PackedHead(HeadBesideTarget):
    """A head of blocks that is run on many blocks of a text at once."""

    head: BlockHead

    def __init__(self, head: BlockHead, *, within_documents: bool = False) -> None:
        super().__init__(head, within_documents=within_documents)

    def states(self, batch: Batch, hidden_states: HiddenStates, anchors_BA: Tensor) -> Tensor:
        """What the LM head reads of each block's drafted places, [B, A, k, C]; anchors in rising order."""
        head, device = self.head, anchors_BA.device
        hidden = head.combine(hidden_states.aux_BTF)
        places = torch.arange(hidden.shape[1], device=device)[None]
        documents = batch.documents_BT if self.within_documents else None
        rotation = head.rotary(places, head.dtype)
        context = BlockAttention(hidden, rotation, anchors_BA, head.rows, documents)
        positions = (anchors_BA[..., None] + torch.arange(head.rows, device=device)).flatten(1)
        table = self._tables[0] if head.embed_tokens is None else head.embed_tokens.weight
        embeds = F.embedding(head.blocks(batch.tokens_BT.gather(1, anchors_BA)), table).to(head.dtype)
        metadata = AttentionMetadata(head.rotary(positions, head.dtype), None, positions, None, context=context)
        return head.norm(head.run(embeds, metadata)).unflatten(1, (-1, head.rows))[:, :, head.first_row :]

    def teacher(self, hidden_states: HiddenStates, places_kM: Tensor) -> Teacher:
        """What each step is held against at places of its own, indices of the flattened batch."""
        final_kMW, argmax_kM, log_sum_kM = (
            None if known is None else known.flatten(0, 1)[places_kM]
            for known in (hidden_states.final_BTW, hidden_states.argmax_BT, hidden_states.log_sum_BT)
        )
        assert final_kMW is not None
        ids_V = self.head.draft_ids
        if ids_V is None or argmax_kM is None:
            return Teacher(final_kMW, self._tables[1], ids_V, form=self._form)
        form = self._form.rows(ids_V)
        return Teacher(final_kMW, self.draftable_rows(ids_V), ids_V, argmax_kM, log_sum_kM, form)

    def predictions(
        self, batch: Batch, hidden_states: HiddenStates, lookahead: int, *, probs: bool = False
    ) -> Predictions:
        """What the head would draft from every place of the batch's texts at which an engine may begin a step.

        Raises ValueError where `lookahead` is more than a block has.
        """
        if lookahead > self.head.block:
            raise ValueError(
                f"{self.head.shape.name} drafts blocks of {self.head.block} tokens; lower lookahead ({lookahead}) to that"
            )
        emitted = emitted_mask(batch.mask_BT, batch.documents_BT)
        anchors_BA, valid_BA = marked(F.pad(emitted[:, 1:], (0, 1)))
        states_BAkC = self.states(batch, hidden_states, anchors_BA)[:, :, :lookahead]
        states, drafted = by_place(states_BAkC, anchors_BA, valid_BA, batch.documents_BT)
        final_MW = hidden_states.final_BTW.flatten(0, 1)
        teacher = Teacher(final_MW, self._tables[1], self.head.draft_ids, form=self._form)
        matrix = self.lm_head()
        if (
            correction := self.head.correction(batch.tokens_BT)
        ) is not None:  # a place's token is the one before what it predicts
            states = torch.cat((states, correction[0].expand(len(states), -1, -1, -1).to(states)), -1)
            matrix = torch.cat((matrix, correction[1].to(matrix)), 1)
        return predictions(states, matrix, teacher, batch.tokens_BT, emitted, drafted, probs=probs)


def marked(here_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The marked places of each row in rising order [B, A], padded by place 0 on the left, and which of them are none of padding."""
    counts = here_BT.sum(1, keepdim=True)
    num = max(1, int(counts.max()))
    ordered = torch.where(here_BT, torch.arange(here_BT.shape[1], device=here_BT.device), -1).sort(1).values[:, -num:]
    return ordered.clamp(min=0), ordered >= 0


def by_place(states_BASC: Tensor, anchors_BA: Tensor, valid_BA: Tensor, documents_BT: Tensor) -> tuple[Tensor, Tensor]:
    """States by the place before the token that they predict, as `unroll.aligned` has them, [S, B, T, C]; and where there are any within
    one document, [S, B, T] bool.
    """
    (batch, _, steps, width), length = states_BASC.shape, documents_BT.shape[1]
    states = states_BASC.new_zeros(steps, batch, length + steps, width)
    drafted = torch.zeros(steps, batch, length + steps, dtype=torch.bool, device=anchors_BA.device)
    ahead = F.pad(documents_BT, (0, steps), value=-2)  # no document's number
    for step in range(steps):
        places = torch.where(valid_BA, anchors_BA + step, length + steps - 1)
        states[step].scatter_(1, places[..., None].expand(-1, -1, width), states_BASC[:, :, step])
        same = documents_BT.gather(1, anchors_BA) == ahead.gather(
            1, (anchors_BA + 1 + step).clamp(max=length + steps - 1)
        )
        drafted[step].scatter_(1, places, same & valid_BA)
    return states[:, :, :length], drafted[:, :, :length]
