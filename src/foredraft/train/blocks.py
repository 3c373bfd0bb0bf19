"""Heads of blocks as something to train: DFlash (arXiv 2602.06036) and DSpark (arXiv 2607.05147) on a frozen target's hidden states.

Blocks begin at places drawn anew every step among those whose next token is to be predicted, so many in every window, all of them in one
pass (`teacher.blocks`). Position j of a block weighs decay^(j-1), and counts as long as all before it are to be predicted too, in one
document. DFlash: cross-entropy against the text's own tokens, which should be the target's answers. DSpark: as published
0.1·cross-entropy + 0.9·Σ|p − q| (twice total variation), + the cross-entropy of its confidence against Σ min(p, q), the tokens before each
place being the text's. All are divided by the summed weight of the places that count.

Promises: which places are drawn depends on the window and the step alone, so that any split of a batch trains the same head.
Refuses to know: the loop, plans.

Shapes: B windows, T tokens, A anchors of a window, k drafted tokens of a block (the steps of `lm_head_loss`), M = B·A, W the target's
hidden size.
"""

import zlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foredraft.data.tokens import Batch
from foredraft.models.block_head import BlockHead
from foredraft.models.draft_head import DraftHead
from foredraft.shapes import Shape
from foredraft.teacher.acceptance import tally
from foredraft.teacher.blocks import PackedHead
from foredraft.teacher.hidden_states import HiddenStates
from foredraft.teacher.predictions import emitted_mask
from foredraft.train.flops import EVERYTHING, BlockSettings, Computed, block_training_flops
from foredraft.train.heads import HeadObjective
from foredraft.train.lm_head import draft_ids_of, lm_head_loss

HELD_OUT = -1  # a step that no training has


class TrainedBlocks(PackedHead):
    """A head with all that is computed from its parameters as one module, so that devices may wrap and shard it."""

    def __init__(self, head: BlockHead, settings: BlockSettings) -> None:
        super().__init__(head, within_documents=settings.within_documents)
        self.settings = settings

    def forward(self, batch: Batch, hidden_states: HiddenStates, tallied: bool = False, step: int = HELD_OUT) -> Any:
        """Summed loss, its weight, and by position [3, k]: loss on tokens, places, agreements; `step` draws the anchors. `tallied`: the sums
        of `acceptance.tally` instead.
        """
        return self.tally(batch, hidden_states) if tallied else self.loss(batch, hidden_states, step)

    def loss(self, batch: Batch, hidden_states: HiddenStates, step: int) -> tuple[Tensor, Tensor, Tensor]:
        settings, head = self.settings, self.head
        anchors_BA, valid_BA = drawn_anchors(batch, settings.num(batch.tokens_BT.shape[1]), step)
        states_kMC = _by_position(self.states(batch, hidden_states, anchors_BA))
        places_kM, counted_kM = drafted_places(batch, anchors_BA, valid_BA, head.block)
        before_kM, labels_kM = (_taken(tokens, places_kM) for tokens in (batch.tokens_BT, _next(batch.tokens_BT)))
        weights = settings.decay ** torch.arange(head.block, device=states_kMC.device, dtype=torch.float32)
        needs_target = bool(settings.confidence) or set(settings.loss) != {"ce"}
        tokens = lm_head_loss(
            states_kMC, self.lm_head(), counted_kM, settings.loss, weights_S=weights, monitor="agree",
            teacher=self.teacher(hidden_states, places_kM) if needs_target else None,
            labels_M=draft_ids_of(labels_kM.contiguous(), head.draft_ids) if "ce" in settings.loss else None,
            correction=head.correction(before_kM), accepted=bool(settings.confidence),
        )  # fmt: skip
        total = tokens.total
        if tokens.accept_SM is not None:
            confident = self._confidence_loss(states_kMC, before_kM, tokens.accept_SM, counted_kM)
            total = total + settings.confidence * (weights * confident).sum()
        by_position = torch.stack([share * tokens.terms[name] for name, share in settings.loss.items()]).sum(0)
        places = tokens.terms["places"]
        return total, (weights * places).sum(), torch.stack((by_position, places, tokens.terms["agree"]))

    def _confidence_loss(self, states_kMC: Tensor, before_kM: Tensor, accept_kM: Tensor, counted_kM: Tensor) -> Tensor:
        """Cross-entropy of the confidence head against what chance accepts, summed by position, [k]."""
        head: Any = self.head
        logits = head.acceptance(states_kMC, before_kM).float()
        losses = F.binary_cross_entropy_with_logits(logits, accept_kM.clamp(0, 1), reduction="none")
        return (losses * counted_kM).sum(1)

    def tally(self, batch: Batch, hidden_states: HiddenStates) -> dict[str, Tensor]:
        emitted = emitted_mask(batch.mask_BT, batch.documents_BT)
        predicted = self.predictions(batch, hidden_states, self.settings.lookahead)
        return tally(predicted, batch.tokens_BT, emitted, batch.documents_BT)


def drawn_anchors(batch: Batch, num: int, step: int) -> tuple[Tensor, Tensor]:
    """`num` places of each window whose next token is to be predicted, drawn without replacement by the window's own tokens and the step, in
    rising order [B, A]; and which of them there are, where a window has fewer [B, A] bool.
    """
    eligible_BT = batch.mask_BT.new_zeros(batch.mask_BT.shape)
    same = batch.documents_BT[:, 1:] == batch.documents_BT[:, :-1]
    eligible_BT[:, :-1] = batch.mask_BT[:, 1:] & same
    seeds = [zlib.crc32(row.numpy().tobytes(), step & 0xFFFFFFFF) for row in batch.tokens_BT.cpu()]
    width = eligible_BT.shape[1]
    keys_BT = torch.stack([torch.rand(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    keys_BT = torch.where(eligible_BT, keys_BT.to(eligible_BT.device), 2.0)
    chosen_BA = keys_BT.topk(min(num, width), largest=False).indices.sort(1).values
    valid_BA = eligible_BT.gather(1, chosen_BA)
    return chosen_BA, valid_BA


def drafted_places(batch: Batch, anchors_BA: Tensor, valid_BA: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The places before the tokens that each block drafts, as indices of the flattened batch [k, M], and which count: those whose token,
    and all before it in the block, are to be predicted in the anchor's document.
    """
    length = batch.tokens_BT.shape[1]
    places_BAk = anchors_BA[..., None] + torch.arange(block, device=anchors_BA.device)
    inside, rows = places_BAk + 1 < length, torch.arange(len(anchors_BA), device=anchors_BA.device)[:, None, None]
    following = (places_BAk + 1).clamp(max=length - 1)
    same = batch.documents_BT[rows, following] == batch.documents_BT.gather(1, anchors_BA)[..., None]
    labelled = batch.mask_BT[rows, following] & same & inside & valid_BA[..., None]
    places = rows * length + places_BAk.clamp(max=length - 1)
    return _by_position(places), _by_position(labelled.cumprod(2).bool())


def _by_position(x_BAk: Tensor) -> Tensor:
    """[B, A, k, …] to [k, M, …]."""
    return x_BAk.flatten(0, 1).transpose(0, 1)


def _taken(x_BT: Tensor, places_kM: Tensor) -> Tensor:
    """What stands at each place."""
    return x_BT.flatten(0, 1)[places_kM]


def _next(tokens_BT: Tensor) -> Tensor:
    return F.pad(tokens_BT[:, 1:], (0, 1))


class BlockObjective(HeadObjective):
    """`HeadObjective` of a head of blocks."""

    settings: BlockSettings

    @staticmethod
    def module(head: DraftHead, settings: Any) -> TrainedBlocks:
        """Raises ValueError where the settings do not fit the head."""
        if not isinstance(head, BlockHead):
            raise ValueError("block settings are for a head that drafts blocks")
        if settings.lookahead > head.block:
            raise ValueError(f"lookahead ({settings.lookahead}) must not exceed the block's {head.block} tokens")
        confident = getattr(head, "confidence_head", None) is not None
        if bool(settings.confidence) != confident:
            raise ValueError(
                "confidence weighs the loss of a confidence head: the head must have one if and only if it is positive"
            )
        return TrainedBlocks(head, settings)

    @staticmethod
    def flops(shape: Shape, target: Shape, settings: Any, length: int, computed: Computed = EVERYTHING) -> float:
        return block_training_flops(shape, target, settings, length, computed)

    def sums(self, batch: Batch, hidden_states: HiddenStates, step: int) -> Any:
        return self.trained(batch, hidden_states, False, step)
